"""Which wrong parameters the captured rows reject, and which they cannot see."""

import dataclasses
from typing import Any

import pytest

from lowprec.engines import Engine
from tests.silicon.captures import CAPTURES, FORMATS, Capture, capture, engine_of
from tests.silicon.test_oracle import mismatches

pytestmark = pytest.mark.slow
ENOUGH = 100
"""So many of 2500 rows must differ before a parameter counts as rejected."""


def wrong(engine: Engine) -> dict[str, dict[str, Any]]:
    """One parameter wrong at a time."""
    assert engine.fraction_bits is not None and engine.fused_length is not None
    other = "nearest_even" if engine.output_rounding == "toward_zero" else "toward_zero"
    return {
        "F - 1": {"fraction_bits": engine.fraction_bits - 1},
        "F + 1": {"fraction_bits": engine.fraction_bits + 1},
        "L / 2": {"fused_length": engine.fused_length // 2},
        "alignment": {"alignment_rounding": "toward_negative"},
        "output": {"output_rounding": other},
        "c last": {"accumulator": "last" if engine.accumulator == "early" else "early"},
    }


def blind(file: str, output: str, change: str) -> bool:
    """What a capture cannot see, for a reason that is known beforehand."""
    engine = engine_of(file, output)
    emulated = engine.through is not None
    if ".wgmma." in engine.name:
        # Captured with c = 0; the sum is cut to as many bits as are aligned, so F + 1 shows little.
        return change == "c last"
    if output == "f16":
        # Eleven bits are left of a sum: what happens in bits 23 to 26 rarely reaches them.
        return change in ("F - 1", "F + 1", "alignment", "output", "c last", "L / 2")
    return emulated and change in ("F - 1", "F + 1", "alignment")


@pytest.mark.parametrize(("file", "output"), CAPTURES)
def test_one_wrong_parameter(file: str, output: str) -> None:
    engine, fmt = engine_of(file, output), FORMATS[file.split("_")[1]]
    rows = Capture(*capture(file, output))
    counts = {
        name: mismatches(dataclasses.replace(engine, **change), fmt, rows)
        for name, change in wrong(engine).items()
    }
    print(file, output, engine.name, counts)
    for name, count in counts.items():
        if blind(file, output, name):
            assert count < ENOUGH, (name, counts)
        else:
            assert count >= ENOUGH, (name, counts)
