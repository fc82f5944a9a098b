"""What a Hopper GPU returned, where a capture lies here; and how one is made, without a GPU."""

import dataclasses
import functools
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowprec.engines import Engine
from lowprec.study.engine_dots import product_codes
from tests.helpers import graded
from tests.silicon.hopper_capture import (
    Captured,
    capture,
    check_layout,
    compare,
    load,
    plan,
    save,
)
from tests.silicon.hopper_groups import GROUPS, ONE_STEP, PROMOTED_GROUP, draw_group
from tests.silicon.hopper_instructions import INSTRUCTIONS, PROMOTED, Instruction
from tests.silicon.hopper_jobs import SOURCE, Dots, Job, build, make_job
from tests.silicon.hopper_stand_in import exact_device, integer_device, read_job

CAPTURES = sorted(Path(__file__).parent.glob("hopper_*.npz"))
MIXED = Instruction("mma", "e5m2", "e4m3", "f16")
TF32 = Instruction("wgmma", "tf32", "tf32", "f32")
LARGEST_FILE = 1_000_000


@pytest.fixture(params=CAPTURES, ids=lambda path: path.stem)
def captured(request: pytest.FixtureRequest) -> list[Captured]:
    return load(request.param)[1]


def assert_equal(groups: list[Captured], record: Callable[[str, object], None]) -> None:
    found = list(compare(groups))
    assert found
    assert not [str(one) for one in found if one.wrong]
    record("captured rows", sum(one.d.size for one in groups))


@pytest.mark.skipif(
    not CAPTURES,
    reason="no capture of a Hopper GPU yet; on a machine that has one: "
    "python -m tests.silicon.capture_hopper",
)
@pytest.mark.parametrize("chains", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_a_gpu_returned(
    captured: list[Captured], chains: bool, record_property: Callable[[str, object], None]
) -> None:
    groups = [one for one in captured if chains == (one.group not in ONE_STEP)]
    assert_equal(groups, record_property)


def test_source_has_every_instruction() -> None:
    text = SOURCE.read_text()
    built = {
        f"{unit.lower()}.{types}" for unit, types in re.findall(r"(\w+?)_ENTRY\((\w+)\)", text)
    }
    built |= set(re.findall(r'\{"(w?g?mma\.\w+)"', text))
    assert built - {"wgmma.TYPES", "mma.TYPES"} == {one.name for one in INSTRUCTIONS}


def test_source_knows_the_sizes() -> None:
    job = make_job(PROMOTED, draw_group(PROMOTED, PROMOTED_GROUP))
    # A header of 68 bytes, 16 steps of A and of B, c, and four scales of either side.
    assert len(job.to_bytes()) == 68 + 4 * (16 * (512 + 64) + 512 + 2 * 4 * 512)


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda one: one.name)
def test_packed_operands_lie_where_instructions_read_them(instruction: Instruction) -> None:
    dots = draw_group(instruction, "normal", rows=64)
    read = read_job(make_job(instruction, dots))
    for got, want in zip(read[:3], dots[:3], strict=True):
        np.testing.assert_array_equal(got, want)


def test_small_integers_pass_in_the_right_layout() -> None:
    assert check_layout(integer_device) == 512 * len(INSTRUCTIONS)


def test_small_integers_find_a_wrong_layout() -> None:
    swapped = functools.partial(integer_device, offsets=(256, 128))
    wgmma = [one for one in INSTRUCTIONS if one.unit == "wgmma"]
    with pytest.raises(ValueError, match=r"layout wrong: .*wgmma\.e4m3_e4m3_f32 \(\d+ of 512\)"):
        check_layout(swapped, wgmma)

    def other_lanes(jobs: Sequence[Job]) -> list[np.ndarray]:
        return [registers[::-1] for registers in integer_device(jobs)]

    with pytest.raises(ValueError, match=r"layout wrong: .*mma\.tf32_tf32_f32"):
        check_layout(other_lanes)


def round_trip(groups: list[tuple[Instruction, str]], path: Path) -> list[Captured]:
    save(path, capture(exact_device, groups, rows=4), {"gpu": "none: the exact oracle"})
    metadata, found = load(path)
    assert metadata == {"gpu": "none: the exact oracle"}
    assert [(one.instruction, one.group) for one in found] == groups
    compared = list(compare(found))
    assert not [str(one) for one in compared if one.wrong]
    for one in found:
        # tf32's zeros and cancelled sums are few different numbers; none is one number alone.
        assert len(np.unique(one.d)) > 1, (one.instruction.name, one.group)
    return found


def one_step_of(instruction: Instruction) -> list[tuple[Instruction, str]]:
    return [(instruction, group) for group in ONE_STEP]


@pytest.mark.slow
def test_the_oracle_in_the_gpus_place_differs_nowhere(tmp_path: Path) -> None:
    groups = sorted([*one_step_of(PROMOTED), *one_step_of(MIXED)], key=plan().index)
    found = round_trip(groups, tmp_path / "hopper_none.npz")
    # One wrong bit is found, and named.
    found[0].d[2, 5] ^= 1
    (first, *others) = compare(found)
    assert first.wrong == 1 and "row 2, column 5: GPU 0x" in str(first)
    assert not any(one.wrong for one in others)


@pytest.mark.slow
def test_the_promoted_product_differs_nowhere(tmp_path: Path) -> None:
    (found,) = round_trip([(PROMOTED, PROMOTED_GROUP)], tmp_path / "hopper_none.npz")
    assert len(np.unique(found.d)) == found.d.size


@pytest.mark.parametrize("instruction", graded(INSTRUCTIONS, every=3, name=lambda one: one.name))
def test_every_group_of_every_instruction(instruction: Instruction, tmp_path: Path) -> None:
    round_trip([(instruction, group) for group in GROUPS], tmp_path / "hopper_none.npz")


@pytest.mark.slow
@pytest.mark.parametrize("types", ["e4m3_e4m3_f32", "bf16_bf16_f32", "f16_f16_f16"])
def test_groups_tell_wrong_parameters(types: str) -> None:
    (instruction,) = (one for one in INSTRUCTIONS if one.name == f"wgmma.{types}")
    engine = instruction.engine
    assert engine.fraction_bits and engine.fused_length and engine.min_exponent
    changes: dict[str, dict[str, Any]] = {
        "F - 1": {"fraction_bits": engine.fraction_bits - 1},
        "F + 1": {"fraction_bits": engine.fraction_bits + 1},
        "L": {"fused_length": engine.fused_length // 2},
        "alignment": {"alignment_rounding": "toward_negative"},
        "c": {"accumulator": "separate"},
        "nan": {"nan": "quiet"},
        "E0 - 1": {"min_exponent": engine.min_exponent - 1},
        "E0 + 1": {"min_exponent": engine.min_exponent + 1},
        "zero": {"zero_sign": "kept"},
    }
    if types == "e4m3_e4m3_f32":
        # Its products are far above the lowest exponents.
        for blind in ("E0 - 1", "E0 + 1", "zero"):
            del changes[blind]
    drawn = [draw_group(instruction, group) for group in ONE_STEP]
    right = [_codes(instruction, engine, dots) for dots in drawn]
    for name, change in changes.items():
        wrong = dataclasses.replace(engine, **change)
        found = [_codes(instruction, wrong, dots) for dots in drawn]
        counts = [int((x != y).sum()) for x, y in zip(found, right, strict=True)]
        print(types, name, dict(zip(ONE_STEP, counts, strict=True)))
        assert sum(counts) >= 8, (name, counts)


def _codes(instruction: Instruction, engine: Engine, dots: Dots) -> np.ndarray:
    c = dots.c
    if c.dtype == np.uint16:
        with np.errstate(invalid="ignore"):  # of signalling NaN
            c = c.view(np.float16).astype(np.float32).view(np.uint32)
    return product_codes(engine, instruction.formats, dots.a, dots.b.T, c)


def test_groups_hold_what_they_are_for() -> None:
    zeros, tiny, specials = (draw_group(TF32, x) for x in ("zeros", "tiny", "specials"))
    assert {0, 0x80000000} <= set(zeros.c.ravel().tolist())
    assert (zeros.a[::2] << 1 == 0).all() and len(np.unique(zeros.a[::2])) == 2
    products = np.abs(tiny.a.view(np.float32).astype(float) @ tiny.b.view(np.float32).T)
    assert (products < 2.0**-110).all() and (tiny.c == 0).mean() > 0.3
    assert (products[products > 0] < 2.0**-149).any()
    values = specials.a.view(np.float32)
    assert np.isnan(values).any() and np.isinf(values).any()
    assert np.isfinite(values).all(1).mean() > 0.4


def test_copies_of_a_row_that_differ_are_an_error() -> None:
    def torn(jobs: Sequence[Job]) -> list[np.ndarray]:
        found = integer_device(jobs)
        found[0][100, 1] ^= 1
        return found

    message = r"wgmma\.tf32_tf32_f32: row \d+ is a copy of row \d+, and column \d came back as 0x"
    with pytest.raises(ValueError, match=message):
        capture(torn, [(TF32, "zeros")])


def test_a_whole_capture_is_a_small_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = []
    for instruction, group in plan():
        dots = draw_group(instruction, group)
        # Nothing that is harder to compress can come back.
        d = rng.integers(0, 1 << 32, dots.c.shape, np.uint32).astype(dots.c.dtype)
        whole.append(Captured(instruction, group, dots, d))
    path = tmp_path / "hopper_random.npz"
    save(path, whole, {})
    assert len(load(path)[1]) == len(plan()) and path.stat().st_size < LARGEST_FILE


def test_no_compiler_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no CUDA compiler 'no_nvcc'.*12\.8 or later.*--nvcc"):
        build(tmp_path, "no_nvcc")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler nvcc on PATH")
def test_source_compiles(tmp_path: Path) -> None:
    assert build(tmp_path).exists()
