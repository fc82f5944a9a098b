"""Bits of quantizers against those of the sources that they follow, on tiles of every sort.

What the sources answered is in fixtures/bit_equality.npz, by experiments/bit_equality.py --write;
packages that are installed are asked again.
"""

import dataclasses
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowprec.numerics import get_format
from lowprec.scaling import get_block
from lowprec.study.bit_equality import (
    ANY_SORT,
    Answer,
    Comparison,
    answer_of,
    compare,
    inputs_of,
    read_comparisons,
    store_answers,
    stored_answers,
)
from lowprec.study.bit_equality_inputs import BESIDE, SORTS
from tests.helpers import load_experiment

ROOT = Path(__file__).parents[2]
FIXTURE = Path(__file__).parent / "fixtures" / "bit_equality.npz"
COMPARISONS = read_comparisons(ROOT / "experiments" / "bit_equality.toml")
ANSWERS = stored_answers(FIXTURE, COMPARISONS)
FAST = (
    "ml_dtypes/astype/float8_e4m3fn",
    "gfloat/quantize_block/mxfp8_e4m3",
    "torchao/to_mx/mxfp8_e4m3",
    "torchao_main/to_mx/mxfp8_e4m3",
    "torchao_main/to_mx/mxfp4_rceil",
    "torchao/nvfp4_quantize/nvfp4_torchao",
    "transformer_engine/NVFP4QuantizerRef/nvfp4",
    "transformer_engine_tests/BlockwiseQuantizerReference/fp8_1x128_te",
    "deepgemm/per_token_cast/fp8_1x128_deepgemm",
    "modelopt/NVFP4QTensor.quantize/nvfp4_modelopt",
    "microxcaling/_quantize_mx/mxfp8_e4m3",
    "jax/quantize/nvfp4_jax",
)
"""A comparison of each kind; the programs of the others take long to compile."""


def parameters(comparisons: list[Comparison]) -> list[Any]:
    return [
        pytest.param(x, id=x.key, marks=[pytest.mark.slow] * (x.key not in FAST))
        for x in comparisons
    ]


@pytest.mark.parametrize("comparison", parameters(COMPARISONS))
def test_bits_are_the_sources_but_for_what_is_explained(comparison: Comparison) -> None:
    inputs, want = inputs_of(comparison.subject), ANSWERS[comparison.key]
    rows = list(compare(comparison, inputs, answer_of(comparison.subject, inputs.x), want))
    found, named = {row.sort for row in rows if row.mismatches}, {*comparison.differs} - {ANY_SORT}
    assert found >= named and (ANY_SORT in comparison.differs or found <= named)
    assert any(row.zero_signs for row in rows) == bool(comparison.zero_signs)
    assert all(row.why for row in rows if row.mismatches)
    # Sources that told nothing, or one code throughout, would agree with anything.
    told = [x for x in (want.codes, want.values, want.scales) if x is not None]
    assert told and len(np.unique(told[0])) > (2 if told[0].dtype == np.uint8 else 20)


def test_every_comparison_is_stored_and_says_why_it_differs() -> None:
    assert set(ANSWERS) == {x.key for x in COMPARISONS} and set(FAST) <= set(ANSWERS)
    assert FIXTURE.stat().st_size < 1_000_000
    for comparison in COMPARISONS:
        known = {**comparison.differs, **comparison.rarely}
        sorts = {sort.removesuffix(BESIDE) for sort in known}
        assert sorts <= {*SORTS, ANY_SORT}
        assert all(len(why) > 60 for why in known.values())
        assert comparison.source.commit or comparison.source.version


load_experiment("bit_equality_loading")  # which the next one imports
SOURCES = load_experiment("bit_equality_sources")
INSTALLED = [
    x
    for x in COMPARISONS
    if x.source.name in SOURCES.INSTALLED and importlib.util.find_spec(x.source.name)
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("comparison", INSTALLED, ids=lambda x: x.key)
def test_packages_still_answer_what_is_stored(comparison: Comparison) -> None:
    source = comparison.source
    try:
        version = importlib.metadata.version(source.package)
    except importlib.metadata.PackageNotFoundError:
        version = "of another package"
    if version != source.version:
        pytest.skip(f"{source.package} {source.version} is stored, {version} is installed")
    got, want = SOURCES.ask(comparison, inputs_of(comparison.subject).x), ANSWERS[comparison.key]
    for field in dataclasses.fields(Answer):
        one, other = getattr(got, field.name), getattr(want, field.name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)


def test_sorts_of_tile_are_what_they_say() -> None:
    inputs = inputs_of(get_block("mxfp8_e4m3"))
    tiles = np.abs(inputs.tiles(inputs.x))
    largest = dict(
        zip(inputs.sorts, tiles.max(axis=-1).reshape(len(inputs.sorts), -1), strict=True)
    )
    mantissas = {sort: set(np.frexp(x)[0].tolist()) for sort, x in largest.items()}
    ulp = 2.0**-24
    assert mantissas["amax 2^k"] == {0.5} and mantissas["amax MAX 2^k"] == {0.875}
    assert mantissas["amax below 2^k"] == {1 - ulp} and mantissas["amax above 2^k"] == {0.5 + ulp}
    assert mantissas["amax at a carry"] == {0.96875}
    assert (largest["subnormal"] < 2.0**-126).all() and (largest["subnormal"] > 0).all()
    assert not largest["zero"].any() and np.signbit(inputs.x).any()
    assert np.isinf(largest["Inf"]).all() and np.isnan(largest["NaN"]).all()
    assert (largest["amax from 2^120"] >= 2.0**120).all()
    fmt = get_format("float8_e4m3fn")
    assert fmt.values is not None
    held = np.unique(np.abs(fmt.values[np.isfinite(fmt.values)]))
    of = inputs.x[inputs.sorts.index("ties")].astype(np.float64).ravel()
    middles = {np.frexp(x)[0] for x in (held[1:] + held[:-1]) / 2}
    assert np.mean([np.frexp(abs(x))[0] in middles for x in of]) > 0.3


def test_another_seed_gives_other_tensors_and_the_same_seed_the_same() -> None:
    block = get_block("nvfp4")
    one, again, other = (inputs_of(block, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.x.view(np.uint32), again.x.view(np.uint32))
    assert one.sorts == other.sorts and (one.x != other.x).mean() > 0.8
    assert f"NaN{BESIDE}" in one.sorts and f"ordinary{BESIDE}" not in one.sorts


def changed(answer: Answer, **changes: np.ndarray) -> Answer:
    return dataclasses.replace(answer, **changes)


def test_one_bit_is_a_mismatch_and_nan_and_zero_signs_are_told_apart() -> None:
    comparison = next(x for x in COMPARISONS if x.key == "torchao_main/to_mx/mxfp8_e4m3")
    inputs = inputs_of(comparison.subject)
    ours = answer_of(comparison.subject, inputs.x)
    codes, scales = ours.codes, ours.scales
    assert codes is not None and scales is not None and ours.values is not None
    first = inputs.sorts.index("ordinary")

    def counts(**changes: np.ndarray) -> tuple[int, int, int, int]:
        rows = list(compare(comparison, inputs, ours, changed(ours, **changes)))
        return (
            sum(row.mismatches for row in rows),
            sum(row.scales for row in rows),
            sum(row.zero_signs for row in rows),
            sum(row.nan_codes for row in rows),
        )

    assert counts() == (0, 0, 0, 0)
    flipped = codes.copy()
    flipped[first, 0, :2] ^= 1
    assert counts(codes=flipped) == (1, 0, 0, 0)
    other = scales.copy()
    other[first, 0, 0] *= 2
    assert counts(scales=other) == (1, 1, 0, 0)
    # A subnormal scale that becomes another one is a difference too.
    tiny = scales.view(np.uint32).copy()
    tiny[inputs.sorts.index("zero"), 0, 0] += 1
    assert counts(scales=tiny.view(np.float32)) == (1, 1, 0, 0)
    signs = codes.copy()
    zero = inputs.sorts.index("zero")
    signs[zero, 0, 0] ^= 0x80
    assert counts(codes=signs) == (0, 0, 1, 0)
    nan = inputs.sorts.index("NaN")
    other_nan, number = codes.copy(), codes.copy()
    other_nan[nan] ^= 0x80
    number[nan, 0, 0] = 0x38
    assert np.isnan(scales[nan]).all() and counts(codes=other_nan) == (0, 0, 0, 0)
    assert counts(codes=number) == (0, 0, 0, 1)
    values = ours.values.copy()
    values[first, 0, 0] = np.nextafter(values[first, 0, 0], np.float32(9e9))
    assert counts(values=values) == (1, 0, 0, 0)


def test_answers_to_other_tensors_are_refused(tmp_path: Path) -> None:
    comparison = COMPARISONS[0]
    path = tmp_path / "answers.npz"
    store_answers(path, [(comparison, ANSWERS[comparison.key])])
    assert set(stored_answers(path, COMPARISONS)) == {comparison.key}
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays[f"{comparison.key}:inputs"] += 1
    np.savez(path, **arrays)  # type: ignore[arg-type] - keywords are arrays, not options
    with pytest.raises(ValueError, match="answers other tensors than are drawn now"):
        stored_answers(path, COMPARISONS)


def test_a_comparison_without_its_explanation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    text = (
        '[source.a]\npackage = "a"\nversion = "1"\n[why]\nknown = "x"\n[[comparison]]\n'
        'source = "a"\ncall = "f"\nfile = "f.py"\nblocks = ["mxfp4"]\ndiffers.known = ["Inf"]\n'
    )
    path.write_text(text)
    (found,) = read_comparisons(path)
    assert found.key == "a/f/mxfp4" and found.differs == {"Inf": "x"}
    assert str(found.source) == "PyPI a 1"
    path.write_text(text.replace("differs.known", "differs.unknown"))
    with pytest.raises(ValueError, match=r"explanations without a table: unknown"):
        read_comparisons(path)
    path.write_text(text.replace('source = "a"', 'source = "b"'))
    with pytest.raises(ValueError, match=r"f of b names a source .* without a table: b"):
        read_comparisons(path)
