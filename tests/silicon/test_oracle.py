"""The oracle against bits that GPUs returned."""

import dataclasses

import numpy as np
import pytest

from lowprec.engines import Engine
from lowprec.engines.oracle import dot
from lowprec.numerics import get_format
from tests.silicon.captures import CAPTURES, FORMATS, Capture, capture, engine_of

ONE_IN = 25


def mismatches(engine: Engine, fmt: str, rows: Capture) -> int:
    found = get_format(fmt)
    lists = zip(*(column.tolist() for column in rows), strict=True)
    return sum(
        dot(engine, a, b, c, a_format=found, b_format=found) != want for a, b, c, want in lists
    )


def compare(file: str, output: str, step: int) -> None:
    rows = Capture(*(column[::step] for column in capture(file, output)))
    assert len(np.unique(rows.d)) > len(rows.d) // 4
    assert mismatches(engine_of(file, output), FORMATS[file.split("_")[1]], rows) == 0


@pytest.mark.parametrize(("file", "output"), CAPTURES)
def test_captured_bits(file: str, output: str) -> None:
    compare(file, output, ONE_IN)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "output"), CAPTURES)
def test_all_captured_bits(file: str, output: str) -> None:
    compare(file, output, 1)


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("file", ["v100_fp16", "a100_bf16", "ada_e4m3", "h100_e4m3", "h100_tf32"])
def test_captured_bits_tell_one_fraction_bit(file: str, change: int) -> None:
    engine = engine_of(file, "f32")
    assert engine.fraction_bits is not None
    wrong = dataclasses.replace(engine, fraction_bits=engine.fraction_bits + change)
    rows = Capture(*(column[:100] for column in capture(file, "f32")))
    assert mismatches(wrong, FORMATS[file.split("_")[1]], rows) > 0


def test_one_row_tells_how_float16_is_rounded() -> None:
    # Cut to float32 and then rounded to float16 it would be another number.
    whole = capture("b200_fp16", "f16")
    engine = engine_of("b200_fp16", "f16")
    twice = dataclasses.replace(
        engine, output=get_format("float32"), output_rounding="toward_zero", min_exponent=-133
    )
    fp16 = get_format("float16")
    differing = 0
    for a, b, c, want in zip(*(column[:400].tolist() for column in whole), strict=True):
        start = np.array(c, np.uint32).view(np.float32).astype(np.float16).astype(np.float32)
        cut = dot(twice, a, b, int(start.view(np.uint32)), a_format=fp16, b_format=fp16)
        rounded = np.array(cut, np.uint32).view(np.float32).astype(np.float16).astype(np.float32)
        differing += int(rounded.view(np.uint32)) != want
    assert differing >= 1
