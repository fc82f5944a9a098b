"""Which wrong parameters the captured rows reject, and which they cannot see."""

import dataclasses
from typing import Any

import pytest

from lowprec.engines import Engine
from tests.helpers import graded
from tests.silicon.captures import CAPTURES, FORMATS, Capture, capture, engine_of
from tests.silicon.test_oracle import mismatches

pytestmark = pytest.mark.slow
ENOUGH = 100
"""So many of 2500 rows must differ before a parameter counts as rejected."""


FEW = 20
"""And with so few it is not seen."""


def wrong(engine: Engine) -> dict[str, dict[str, Any]]:
    """One parameter wrong at a time."""
    assert engine.fraction_bits is not None and engine.fused_length is not None
    other = "nearest_even" if engine.output_rounding == "toward_zero" else "toward_zero"
    return {
        "F - 1": {"fraction_bits": engine.fraction_bits - 1},
        "F + 1": {"fraction_bits": engine.fraction_bits + 1},
        "L": {"fused_length": engine.fused_length // 2},
        "alignment": {"alignment_rounding": "toward_negative"},
        "output": {"output_rounding": other},
        "c": {"accumulator": "separate" if engine.accumulator == "early" else "early"},
    }


def blind(file: str, output: str) -> set[str]:
    """What a capture cannot see, for a reason that is known beforehand."""
    engine, fmt = engine_of(file, output), file.split("_")[1]
    if ".wgmma." in engine.name:
        return {"c"}  # captured with c = 0
    if engine.through is not None:
        # FP8 products are short: nothing is cut off of a sum that keeps 25 bits, nor rounded in
        # float32 before c is added.
        cut = {"F - 1", "F + 1", "alignment"}
        return cut | {"output"} if output == "f32" else cut
    if output == "f16" and fmt == "fp16":
        # Eleven bits are left of a sum: what happens 23 bits down rarely reaches them.
        return {"F - 1", "F + 1", "alignment"}
    if fmt == "tf32" and engine.fused_length == 8:
        return {"L"}  # captured with K = 4, which fits either length
    return set()


def faint(file: str, output: str) -> set[str]:
    """What fewer than ENOUGH of these rows see: little is cut off of short products."""
    engine, fmt = engine_of(file, output), file.split("_")[1]
    if output == "f16":
        return {"F + 1", "alignment", "c"} if fmt != "fp16" else {"c"}
    found = {"alignment"} if fmt in ("bf16", "tf32") else set()
    if engine.fraction_bits == 25:
        found |= {"F + 1"} if fmt in ("bf16", "tf32") else set()
    return found


@pytest.mark.parametrize(("file", "output"), graded(CAPTURES))
def test_one_wrong_parameter(file: str, output: str) -> None:
    engine, fmt = engine_of(file, output), FORMATS[file.split("_")[1]]
    rows = Capture(*capture(file, output))
    counts = {
        name: mismatches(dataclasses.replace(engine, **change), fmt, rows)
        for name, change in wrong(engine).items()
    }
    print(file, output, engine.name, counts)
    for name, count in counts.items():
        if name in blind(file, output):
            assert count < FEW, (name, counts)
        elif name in faint(file, output):
            assert count >= FEW, (name, counts)
        else:
            assert count >= ENOUGH, (name, counts)
