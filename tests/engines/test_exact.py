"""`matmul` beside the exact oracle: every engine, every format, operands that look for trouble."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowprec.engines import Engine, get_engine, list_engines
from lowprec.numerics import Format, get_format
from tests.engines.dots import FLOAT32, KINDS, by_matmul, by_oracle, draw
from tests.helpers import assert_bits_equal, graded

Case = tuple[Engine, tuple[Format, Format], Format | None]

FAMILIES = (
    "sequential.float16.nearest_even",
    "sequential.float16.toward_positive",
    "sequential.bfloat16.nearest_even",
    "sequential.e8m13.toward_zero",
    "sequential.e6m9.to_odd",
    "sequential.e8m21.toward_negative",
    "chunked.16.e6m9.e6m9",
    "chunked.100.float16.float32",
    "chunked.8.e6m9.float32",
    "pairwise.float32",
    "pairwise.float16",
    "pairwise.bfloat16",
)
WIDE17 = Engine(
    name="wide17",
    inputs=(get_format("float8_e4m3fn"), get_format("float8_e5m2")),
    output=get_format("float32"),
    fused_length=24,
    fraction_bits=17,
    output_rounding="nearest_even",
    accumulator="last",
)
REGISTER: dict[str, Any] = dict(exponent_bits=5, mantissa_bits=9, infinity="ieee", nan="ieee")
CHANGES: tuple[dict[str, Any], ...] = (
    # The engine of DESIGN's example, and one change of it at a time.
    {},
    {"accumulator": "early"},
    {"accumulator": "separate"},
    {"alignment_rounding": "toward_negative"},
    {"alignment_rounding": "toward_positive"},
    {"alignment_rounding": "nearest_even"},
    {"alignment_rounding": "nearest_away"},
    {"alignment_rounding": "nearest_toward_zero"},
    {"alignment_rounding": "to_odd"},
    {"output_rounding": "toward_positive", "accumulator": "early"},
    {"output_rounding": "toward_negative"},
    {"output_rounding": "to_odd", "zero_sign": "kept"},
    {"register": get_format("e8m5")},
    {"register": get_format("e5m9"), "output_rounding": "nearest_away"},
    {"register": Format(name="high", bias=10, **REGISTER)},
    {"register": Format(name="low", bias=20, **REGISTER), "accumulator": "early"},
    {"fraction_bits": 3, "accumulator": "early"},
    {"fraction_bits": 12, "accumulator": "early", "output_rounding": "toward_zero"},
    {"fraction_bits": 28, "accumulator": "early"},
    {"fraction_bits": 29, "accumulator": "early", "alignment_rounding": "toward_negative"},
    {"fraction_bits": 48, "accumulator": "early"},
    {"fraction_bits": 40},
    {"interleave": 3, "accumulator": "early"},
    {"fused_length": 1},
    {"min_exponent": -5, "accumulator": "early", "zero_sign": "kept"},
    {"through": get_format("float16")},
    {"through": get_format("bfloat16"), "fused_length": 7},
    {"output": get_format("float16")},
    {"scale_formats": (get_format("float8_e8m0fnu"),), "scale_block": 24},
    {"scale_formats": (get_format("float8_e8m0fnu"),), "scale_block": 8},
    {"accumulation": "exact"},
    {"accumulation": "exact", "fused_length": None, "output_rounding": "toward_zero"},
    {"accumulation": "two_step", "second_fraction_bits": 20, "accumulator": "early"},
)


def cases(engine: Engine) -> list[Case]:
    """The engine with its first formats, a mixed pair, and each format of its scales."""
    inputs = engine.inputs or (FLOAT32,)
    pairs = [(inputs[0], inputs[0])]
    pairs += [(inputs[1], inputs[0])] if len(inputs) > 1 else []
    pairs += [(inputs[-1], inputs[2])] if len(inputs) > 2 else []
    return [(engine, pair, scale) for pair in pairs for scale in engine.scale_formats or (None,)]


def every_case() -> dict[str, Case]:
    """Engines that differ in more than the name, and what becomes of one engine by its changes."""
    found: dict[Any, tuple[str, Case]] = {}
    for name in (*list_engines(), *FAMILIES):
        engine = get_engine(name)
        if engine.accumulation in ("native", "unknown"):
            continue
        for case in cases(engine):
            label = "-".join(
                [name, *(fmt.name for fmt in case[1]), case[2].name if case[2] else ""]
            )
            nameless = dataclasses.replace(engine, name="", evidence=None)
            found.setdefault((nameless, *case[1:]), (label.rstrip("-"), case))
    for number, change in enumerate(CHANGES):
        engine = dataclasses.replace(WIDE17, **change)
        for case in cases(engine)[:2]:
            label = f"wide17-{number}-{'-'.join(change)}-{case[1][0].name}"
            found.setdefault(case, (label, case))
    return dict(found.values())


CASES = every_case()
FAST = (
    "hopper.wgmma.fp8.fp32-float8_e5m2-float8_e4m3fn",
    "blackwell.tcgen05.nvf4.fp32-float4_e2m1fn-float4_e2m1fn-ue4m3",
    "wide17-0--float8_e4m3fn",
)


def compare(case: Case, kind: str, seed: int) -> None:
    engine, formats, scale = case
    dots = draw(engine, formats, scale, kind, seed)
    want = by_oracle(engine, formats, scale, dots)
    assert_bits_equal(by_matmul(engine, formats, scale, dots), want)
    assert len(np.unique(want)) > 3 or kind in ("tiny", "bits", "cancelling")


@pytest.mark.parametrize("label", FAST)
@settings(max_examples=6)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1))
def test_engine_is_exact(label: str, kind: str, seed: int) -> None:
    compare(CASES[label], kind, seed)


@pytest.mark.parametrize("label", graded(sorted(CASES), every=2))
@settings(max_examples=30)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1))
def test_every_engine_is_exact(label: str, kind: str, seed: int) -> None:
    compare(CASES[label], kind, seed)
