"""Finished products on disk: their time over several runs, and what makes them stale."""

import dataclasses
import time
from pathlib import Path

import pytest

import lowprec as lp
from lowprec.study import gemm_recipes_units
from lowprec.study.gemm_recipes import UnitRow
from lowprec.study.gemm_recipes_units import Units, fingerprint


def row(unit: str) -> UnitRow:
    return UnitRow(
        family="gaussian", role="fprop", k=64, unit=unit, pair="mxfp4", sqnr_db=18.0, gain=0.0,
        residual_sqnr_db=18.0, product_error=0.01,
    )  # fmt: skip


def test_the_time_is_of_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"perf_counter": 100.0, "process_time": 3.0}
    for name in clock:
        monkeypatch.setattr(time, name, lambda name=name: clock[name])
    first = Units(tmp_path / "units.csv")
    clock |= {"perf_counter": 107.0, "process_time": 8.0}
    first.add([row("seed 0")])
    # What is not finished is measured again, and so its time counts for nothing.
    clock |= {"perf_counter": 150.0, "process_time": 50.0}
    del first
    clock |= {"perf_counter": 20.0, "process_time": 1.0}
    second = Units(tmp_path / "units.csv")
    assert len(second.rows) == 1
    clock |= {"perf_counter": 30.0, "process_time": 4.0}
    second.add([row("seed 1")])
    clock |= {"perf_counter": 31.0, "process_time": 4.5}
    assert second.spent() == {"seconds": 18.0, "processor_seconds": 12.5}
    second.discard()
    assert list(tmp_path.iterdir()) == []
    fresh = Units(tmp_path / "units.csv")
    assert fresh.rows == [] and fresh.spent() == {"seconds": 0.0, "processor_seconds": 4.5}


def test_parameters_operands_and_code_make_another_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, config = lp.get_recipe("weight_only_nf4"), tmp_path / "some.toml"
    config.write_text("seed = 0")
    before = fingerprint([recipe], [config])
    assert fingerprint([recipe], [config]) == before
    config.write_text("seed = 1")
    found = {before, fingerprint([recipe], [config])}
    config.write_text("seed = 0")

    block = recipe.fprop.b
    assert isinstance(block, lp.Block) and block.element.table
    # One level of sixteen, and of a table so long that a format's repr leaves its values out.
    for table in (block.element.table, tuple(float(x) for x in range(32))):
        for moved in (table, (table[0] - 0.25, *table[1:])):
            element = dataclasses.replace(block.element, table=moved)
            pair = dataclasses.replace(recipe.fprop, b=dataclasses.replace(block, element=element))
            other = dataclasses.replace(recipe, wgrad=pair)
            found.add(fingerprint([other], [config]))
    assert len(found) == 2 + 4

    for path in ("metrics.py", "numerics/float32.py", "scaling/quantize.py"):
        assert (gemm_recipes_units._PACKAGE / path).is_file()
        copy = tmp_path / "lowprec" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("one = 1")
    monkeypatch.setattr(gemm_recipes_units, "_PACKAGE", tmp_path / "lowprec")
    own = {fingerprint([recipe], [config])}
    for path in ("metrics.py", "numerics/float32.py", "scaling/quantize.py"):
        (tmp_path / "lowprec" / path).write_text("one = 2")
        own.add(fingerprint([recipe], [config]))
    assert len(own) == 4
