"""Specs made in Python are held to the types they declare, as those read from TOML are."""

import dataclasses
import re
from typing import Any, Literal

import numpy as np
import pytest

from lowprec.engines.engine import Engine, get_engine
from lowprec.gemm.preparation import Gptq, Rotation
from lowprec.gemm.recipe import Delayed, OperandPair, get_recipe
from lowprec.numerics import Format, get_format
from lowprec.numerics.spec import check_spec
from lowprec.scaling import Block, get_block
from lowprec.scaling.codings import Affine, Eden, Logarithmic, Transform


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """A field of every kind."""

    name: str = "mine"
    kind: Literal["one", "two"] = "one"
    count: int = 3
    wide: bool = False
    ratio: float = 0.5
    limit: float | None = None
    tile: tuple[int | Literal["all"], int] = (1, 2)
    formats: tuple[Format, ...] = ()

    def __post_init__(self) -> None:
        check_spec(f"spec {self.name!r}", self)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (
            ValueError,
            "spec 'mine': `kind` = 'three' (str); use one of 'one', 'two'",
            {"kind": "three"},
        ),
        (TypeError, "`kind` = 1 (int); use one of 'one', 'two'", {"kind": 1}),
        (TypeError, "`kind` = None (NoneType); use one of", {"kind": None}),
        (TypeError, "`count` = 3.0 (float); use an int", {"count": 3.0}),
        (TypeError, "`count` = True (bool); use an int", {"count": True}),
        (TypeError, "`wide` = 'no' (str); use True or False", {"wide": "no"}),
        (TypeError, "`wide` = 1 (int); use True or False", {"wide": 1}),
        (TypeError, "`ratio` = '0.5' (str); use a float", {"ratio": "0.5"}),
        (TypeError, "`ratio` = False (bool); use a float", {"ratio": False}),
        (TypeError, "`limit` = [1.0] (list); use a float or None", {"limit": [1.0]}),
        (
            TypeError,
            "`tile` = [1, 2] (list); use a tuple of 2: an int or 'all', an int",
            {"tile": [1, 2]},
        ),
        (ValueError, "`tile` = (1, 2, 3) (tuple); use a tuple of 2", {"tile": (1, 2, 3)}),
        (ValueError, "`tile` = (1, 'all') (tuple); use a tuple of 2", {"tile": (1, "all")}),
        (
            ValueError,
            "`formats` = ('int8',) (tuple); use a tuple, each of it a Format",
            {"formats": ("int8",)},
        ),
        (TypeError, "`name` = 3 (int); use a str", {"name": 3}),
    ],
)
def test_a_field_of_another_type(
    error: type[Exception], message: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Spec(**changes)


def test_numbers_of_numpy_become_those_of_python() -> None:
    given: Any = {
        "count": np.int64(5),
        "wide": np.True_,
        "ratio": np.float32(0.25),
        "limit": 2,
        "tile": ("all", np.uint8(7)),
    }
    spec = Spec(**given)
    assert spec == Spec(count=5, wide=True, ratio=0.25, limit=2.0, tile=("all", 7))
    found = (spec.count, spec.wide, spec.ratio, spec.limit, spec.tile[1])
    assert [type(x) for x in found] == [int, bool, float, float, int]
    assert Spec(formats=(get_format("int8"),), limit=None).limit is None


FP8 = get_block("fp8_1x128")
KIVI = get_block("int4_kivi_g32").affine
LOGFMT = get_block("logfmt8_1x128").logarithmic
HOPPER, DEEPSEEK = get_engine("hopper.wgmma.fp8.fp32"), get_recipe("deepseek_v3")
EDEN = Eden(group=128, largest_scale=255.0, scale_override=1.0, weights="none")


@pytest.mark.parametrize(
    ("spec", "message", "changes"),
    [
        (
            get_format("float8_e4m3fn"),
            "format 'float8_e4m3fn': `nan` = 'all-ones'",
            {"nan": "all-ones"},
        ),
        (get_format("float8_e5m2"), "`infinity` = 'infinite'", {"infinity": "infinite"}),
        (get_format("float8_e5m2"), "`bias` = 7.0 (float); use an int", {"bias": 7.0}),
        (get_format("float8_e5m2"), "`exponent_bits` = True", {"exponent_bits": True}),
        (get_format("float8_e5m2"), "`signed` = 1 (int)", {"signed": 1}),
        (get_block("mxfp4"), "block 'mxfp4': `scale_rule` = 'florr'", {"scale_rule": "florr"}),
        (get_block("nvfp4"), "`tensor_scale` = 'rowamax'", {"tensor_scale": "rowamax"}),
        (get_block("nvfp4_4over6"), "`error` = 'abs'", {"error": "abs"}),
        (FP8, "`amax_source` = 'static'", {"amax_source": "static"}),
        (FP8, "`nonfinite` = 'unitscale'", {"nonfinite": "unitscale"}),
        (FP8, "`scale_arithmetic` = 'dvide'", {"scale_arithmetic": "dvide"}),
        (FP8, "`coding` = 'affin'", {"coding": "affin"}),
        (FP8, "`tile` = (1, 128, 1)", {"tile": (1, 128, 1)}),
        (FP8, "`tile` = (1, 128.0)", {"tile": (1, 128.0)}),
        (KIVI, "affine: `zero_point` = 'min' (str); use one of 'minimum'", {"zero_point": "min"}),
        (KIVI, "`nan` = 'propogate'", {"nan": "propogate"}),
        (KIVI, "`arithmetic` = 'bfloat16'", {"arithmetic": "bfloat16"}),
        (LOGFMT, "logarithmic: `zeros` = 'no'", {"zeros": "no"}),
        (LOGFMT, "`log2_coefficients` = (0.5,)", {"log2_coefficients": (0.5,)}),
        (EDEN, "eden: `weights` = 'scales'", {"weights": "scales"}),
        (Transform(kind="mean"), "transform: `kind` = 'means'", {"kind": "means"}),
        (HOPPER, "engine 'hopper.wgmma.fp8.fp32': `nan` = 'silent'", {"nan": "silent"}),
        (HOPPER, "`alignment_rounding` = 'down'", {"alignment_rounding": "down"}),
        (HOPPER, "`fused_length` = 32.0", {"fused_length": 32.0}),
        (HOPPER.evidence, "evidence: `level` = 'X'", {"level": "X"}),
        (DEEPSEEK, "recipe 'deepseek_v3': `promotion` = 'fna'", {"promotion": "fna"}),
        (DEEPSEEK, "`engine` = 'native' (str); use an Engine", {"engine": "native"}),
        (DEEPSEEK.fprop, "operands: `scales` = 'outside'", {"scales": "outside"}),
        (Delayed(), "delayed: `algorithm` = 'mean'", {"algorithm": "mean"}),
        (Gptq(), "gptq: `order` = 'falling'", {"order": "falling"}),
        (Rotation(kind="hadamard"), "rotation: `kind` = 'hadamrd'", {"kind": "hadamrd"}),
    ],
)
def test_specs_refuse_what_they_do_not_declare(
    spec: Format | Block | Affine | Logarithmic | Eden | Transform | Engine | OperandPair,
    message: str,
    changes: dict[str, Any],
) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        dataclasses.replace(spec, **changes)
