"""Engines beside bits that PyPI mmasim 2.1.1 computed, an independent model of them.

`experiments/engine_fixture.py --write` made fixtures/mmasim.npz: for every engine that mmasim
models 225 dots of each of its operands, about half of them of one instruction, the others of three;
half with c; normal, spread over many binades, cancelling, mostly zero, tiny, and random bits. Any
NaN counts as the same.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from lowprec.engines import Engine, get_engine, list_engines, matmul, oracle
from lowprec.numerics import Format, get_format

FIXTURE = Path(__file__).parent / "fixtures" / "mmasim.npz"
FAST = (
    "volta.mma.fp16.fp32",
    "ampere.mma.bf16.fp32",
    "hopper.mma.fp16.fp16",
    "hopper.wgmma.fp8.fp32",
    "hopper.mma.fp8.fp16",
    "blackwell.tcgen05.f8f6f4.fp32",
    "blackwell.tcgen05.nvf4.fp32",
    "cdna2.mfma.bf16_1k.fp32",
    "cdna3.mfma.bf16.fp32",
    "cdna3.mfma.bf8.fp32",
)
"""Engines that between them have every sort of step but the exact one, which compiles for long."""
UNMODELLED = {"fp32", "fp32_fma", "native", "kulisch", "compensated"}


@dataclasses.dataclass(frozen=True)
class Case:
    """One engine and its operands: the key of their arrays."""

    engine: Engine
    formats: tuple[Format, Format]
    scale_format: Format | None

    @property
    def key(self) -> str:
        scale = (self.scale_format,) if self.scale_format else ()
        return "/".join([self.engine.name, *(fmt.name for fmt in (*self.formats, *scale))])

    @property
    def program(self) -> tuple[Engine, tuple[Format, Format], Format | None]:
        """What is compiled: engines that differ in name alone are one."""
        nameless = dataclasses.replace(self.engine, name="nameless", evidence=None)
        return nameless, self.formats, self.scale_format


@functools.cache
def arrays() -> Mapping[str, np.ndarray]:
    with np.load(FIXTURE) as stored:
        return dict(stored)


def read_cases() -> list[Case]:
    with np.load(FIXTURE) as stored:
        keys = sorted({name.split(":")[0] for name in stored.files})
    cases = []
    for name, a, b, *scale in (key.split("/") for key in keys):
        scales = get_format(scale[0]) if scale else None
        cases.append(Case(get_engine(name), (get_format(a), get_format(b)), scales))
    return cases


CASES = read_cases()


def programs() -> list[Any]:
    """The cases of each program as a test's parameter; slow but for one of a sort."""
    groups: dict[Any, list[Case]] = {}
    for case in CASES:
        groups.setdefault(case.program, []).append(case)
    quick = {next(case for case in CASES if case.engine.name == name).program for name in FAST}
    return [
        pytest.param(cases, id=cases[0].key, marks=[] if program in quick else [pytest.mark.slow])
        for program, cases in groups.items()
    ]


def values(codes: np.ndarray, fmt: Format) -> np.ndarray:
    """float32 values; codes of tf32 are float32 bits that the engine is to cut."""
    if fmt.name == "tensorfloat32":
        return codes.view(np.float32)
    return codes.view(getattr(ml_dtypes, fmt.name, None) or fmt.name).astype(np.float32)


def assert_same(got: np.ndarray, case: Case, at: Any = ...) -> None:
    """Bits equal to the fixture's, where any NaN is the same."""
    want = arrays()[f"{case.key}:d"]
    floats = f"f{want.dtype.itemsize}"
    x, y = got[at].view(floats), want[at].view(floats)
    same = (got[at] == want[at]) | (np.isnan(x) & np.isnan(y))
    wrong = np.argwhere(~same)
    assert not len(wrong), (
        f"{case.key}: {len(wrong)} of {same.size} differ, the first at {wrong[0]}: "
        f"got {x[tuple(wrong[0])]!r}, want {y[tuple(wrong[0])]!r}"
    )


MATMUL = jax.jit(matmul, static_argnames=("engine", "a_format", "b_format"))


def product(case: Case) -> np.ndarray:
    stored = {name: arrays().get(f"{case.key}:{name}") for name in ("a", "b", "c")}
    a, b = (values(stored[x], fmt) for x, fmt in zip("ab", case.formats, strict=True))  # type: ignore[arg-type] - formats of a pair are names
    engine = case.program[0]
    more: dict[str, Any] = dict(zip(("a_format", "b_format"), case.formats, strict=True))
    if case.scale_format is not None:
        engine = dataclasses.replace(engine, scale_formats=(case.scale_format,))
        more |= {name: arrays()[f"{case.key}:{name}"] for name in ("a_scale", "b_scale")}
    c = arrays()[f"{case.key}:c"].view(np.float32)
    out = np.asarray(MATMUL(a, b, c, engine=engine, **more))
    return out.view(f"u{out.dtype.itemsize}")


def exact_dots(case: Case, engine: Engine, places: list[tuple[int, int]]) -> np.ndarray:
    """The oracle's bits at some places of the product, in the engine's output format."""
    float32 = get_format("float32")
    formats = [float32 if fmt.name == "tensorfloat32" else fmt for fmt in case.formats]
    stored = {key.split(":")[1]: x for key, x in arrays().items() if key.startswith(f"{case.key}:")}
    out = []
    for i, j in places:
        more: dict[str, Any] = {}
        if case.scale_format is not None:
            more = {
                "a_scales": stored["a_scale"][i].tolist(),
                "b_scales": stored["b_scale"][:, j].tolist(),
                "scale_format": case.scale_format,
            }
        out.append(
            oracle.dot(
                engine,
                stored["a"][i].tolist(),
                stored["b"][:, j].tolist(),
                int(stored["c"][i, j]),
                a_format=formats[0],
                b_format=formats[1],
                **more,
            )
        )
    bits = np.array(out, np.uint32)
    if engine.output.name == "float16":
        return bits.view(np.float32).astype(np.float16).view(np.uint16)
    return bits


def exact_product(case: Case, engine: Engine) -> np.ndarray:
    shape = arrays()[f"{case.key}:d"].shape
    return exact_dots(case, engine, list(np.ndindex(shape))).reshape(shape)


@pytest.mark.parametrize("cases", programs())
def test_matmul_gives_the_bits_of_mmasim(cases: list[Case]) -> None:
    for case in cases:
        assert_same(product(case), case)


@pytest.mark.parametrize("case", CASES, ids=[case.key for case in CASES])
def test_the_oracle_gives_the_bits_of_mmasim(case: Case) -> None:
    """On one dot of every row and column, since it is slow."""
    size = arrays()[f"{case.key}:d"].shape[0]
    places = [(i, (i * 4 + 1) % size) for i in range(size)]
    assert len({column for _, column in places}) == size
    got = np.zeros_like(arrays()[f"{case.key}:d"])
    at = tuple(np.array(places).T)
    got[at] = exact_dots(case, case.engine, places)
    assert_same(got, case, at)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.key for case in CASES])
def test_the_oracle_gives_all_the_bits_of_mmasim(case: Case) -> None:
    assert_same(exact_product(case, case.engine), case)


def test_every_engine_that_is_modelled_is_there() -> None:
    unknown = {name for name in list_engines() if get_engine(name).accumulation == "unknown"}
    assert {case.engine.name for case in CASES} == set(list_engines()) - UNMODELLED - unknown
    for case in CASES:
        # Every input format stands on either side, and every scale format is used.
        others = [other for other in CASES if other.engine == case.engine]
        for side in (0, 1):
            assert {other.formats[side] for other in others} == set(case.engine.inputs)
        assert {x.scale_format for x in others} == {*case.engine.scale_formats} or {None}


@pytest.mark.parametrize("case", CASES, ids=[case.key for case in CASES])
def test_the_fixture_is_not_degenerate(case: Case) -> None:
    d = arrays()[f"{case.key}:d"]
    floats = d.view(f"f{d.dtype.itemsize}")
    assert d.shape == (15, 15) and len(np.unique(d)) > 90
    assert np.isfinite(floats).mean() > 0.5 and (floats == 0).mean() < 0.3
    c = arrays()[f"{case.key}:c"].view(np.float32)
    assert 0.3 < (c == 0).mean() < 0.7
    assert arrays()[f"{case.key}:a"].shape[1] == 3 * (case.engine.instruction_length or 0)


def test_the_fixture_has_specials() -> None:
    found = [x.view(f"f{x.dtype.itemsize}") for key, x in arrays().items() if key[-2:] == ":d"]
    for count in (
        sum(np.isnan(x).sum() for x in found),
        sum(np.isinf(x).sum() for x in found),
        sum((x == 0).sum() for x in found),
        sum(((x != 0) & (np.abs(x) < np.finfo(x.dtype).smallest_normal)).sum() for x in found),
    ):
        assert count > 200


FLOOR: dict[str, Any] = {"alignment_rounding": "toward_negative"}
LAST: dict[str, Any] = {"accumulator": "last"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hopper.wgmma.fp8.fp32", {"fraction_bits": 12}),
        ("hopper.wgmma.fp8.fp32", {"fraction_bits": 14}),
        ("hopper.wgmma.fp8.fp32", {"fused_length": 16}),
        ("hopper.wgmma.fp8.fp32", {"output_rounding": "nearest_even"}),
        ("hopper.wgmma.fp8.fp32", {"register": get_format("float32")}),
        ("hopper.wgmma.fp8.fp32", FLOOR),
        ("hopper.wgmma.fp8.fp32", LAST),
        ("ampere.mma.bf16.fp32", {"fraction_bits": 23}),
        ("ampere.mma.bf16.fp32", {"fraction_bits": 25}),
        ("ampere.mma.bf16.fp32", {"min_exponent": -133}),
        ("ampere.mma.bf16.fp32", {"min_exponent": None}),
        ("hopper.mma.tf32.fp32", {"fused_length": 4}),
        ("volta.mma.fp16.fp16", {"fused_length": 2}),
        ("volta.mma.fp16.fp16", {"output_rounding": "toward_zero"}),
        ("blackwell.mma.fp8.fp32", {"interleave": 1, "fused_length": 32}),
        ("blackwell.mma.fp8.fp32", {"accumulator": "early"}),
        ("blackwell.mma.fp8.fp32", {"fraction_bits": 24}),
        ("blackwell.tcgen05.mxf8f6f4.fp32", {"fraction_bits": 24}),
        ("blackwell.tcgen05.nvf4.fp32", {"fused_length": 32}),
        ("cdna1.mfma.fp16.fp32", {"fused_length": 2}),
        ("cdna2.mfma.fp16.fp32", {"fused_length": 2}),
        ("cdna3.mfma.bf16.fp32", {"fraction_bits": 23}),
        ("cdna3.mfma.bf16.fp32", {"fraction_bits": 25}),
        ("cdna3.mfma.bf16.fp32", {"fused_length": 4}),
        ("cdna3.mfma.bf8.fp32", {"halves": False}),
    ],
)
def test_a_wrong_parameter_is_noticed(name: str, change: dict[str, Any]) -> None:
    case = next(case for case in CASES if case.engine.name == name)
    assert all(getattr(case.engine, key) != value for key, value in change.items())
    got = exact_product(case, dataclasses.replace(case.engine, **change))
    with pytest.raises(AssertionError, match=r"[0-9]+ of 225 differ"):
        assert_same(got, case)
