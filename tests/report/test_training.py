"""The section on training: its tables there and back, titles and findings from the data."""

import dataclasses
from pathlib import Path

import pytest

from lowprec.report import training_figure, training_replay_figure, words
from lowprec.report.training import TABLES, read_training, training_section, write_training
from lowprec.study.collapse import CollapseRow, ValueRow
from lowprec.study.training_gaps import gaps
from lowprec.study.training_replay import ReplayRow
from lowprec.study.training_rows import FinalRow, LossRow

EFFECTS = {"bf16": 0.0, "bf16_null": 0.0, "deepseek_v3": 0.001, "mxfp4": 0.2}
WIGGLE = (0.001, -0.002, 0.0015, -0.0005, 0.0)


def final(seeds: int = 5) -> list[FinalRow]:
    """Arms whose held-out loss is 3 bits and more, with an effect and a wiggle."""
    found = []
    for seed in range(seeds):
        for place, (arm, effect) in enumerate(EFFECTS.items()):
            level = 3 + 0.1 * seed + effect + (WIGGLE[(seed + place) % 5] if place else 0)
            found.append(
                FinalRow(
                    arm=arm, recipe=arm, seed=seed, steps=400, held_out=level,
                    held_out_bf16=level, training=level, step_seconds=0.5,
                )
            )  # fmt: skip
    return found


def losses() -> list[LossRow]:
    return [
        LossRow(arm=arm, seed=0, step=step, bits_per_byte=8 / step + effect * step / 100)
        for arm, effect in EFFECTS.items()
        for step in range(10, 110, 10)
    ]


def replayed() -> list[ReplayRow]:
    return [
        ReplayRow(
            step=step, layer="layers.0.attention.o", role=role, recipe=f"recipe:{recipe}",
            engine="engine:hopper.wgmma.fp8.fp32", promote_every=every, m=8, k=2048, n=4,
            added=(1e-4 if every else 2e-3), largest=0.01, gain=-1e-4, quantization=0.04,
        )
        for step in (0, 100)
        for role in ("fprop", "wgrad")
        for recipe, every in (("deepseek_v3", 128), ("fp8_tensor", 0))
    ]  # fmt: skip


def collapsed() -> list[CollapseRow]:
    return [
        CollapseRow(
            block=block, rule=rule, element="float8_e4m3fn", low=0.875, high=1.0, exponent=0,
            values=1024, left=left, at_maximum=1.0, gain=-0.07, error=0.08, spread_kept=0.0,
        )
        for block, rule, left in (("mxfp8_e4m3", "floor", 1), ("mxfp8_e4m3_ceil", "ceil", 3))
    ]  # fmt: skip


def values() -> list[ValueRow]:
    return [
        ValueRow(block=block, rule="", value=0.9 + i / 100, result=0.875 if flat else 0.9 + i / 100)
        for block, flat in (("mxfp8_e4m3", True), ("mxfp8_e4m3_ceil", False))
        for i in range(4)
    ]


def rows() -> dict[str, list]:
    return {
        "losses": losses(), "final": final(), "replay": replayed(), "collapse": collapsed(),
        "collapse_values": values(),
    }  # fmt: skip


@pytest.mark.slow
def test_there_and_back(tmp_path: Path) -> None:
    assert read_training(tmp_path) is None
    record = {"command": "python experiments/train_recipes.py", "date": "2026-01-02", "seconds": 3}
    written = write_training(rows(), record, tmp_path)
    found = read_training(tmp_path)
    assert found is not None and found == written
    assert {x.stem for x in tmp_path.glob("*.csv")} == set(TABLES) == {x for x in rows()}
    assert {x.stem for x in (tmp_path / "figures").iterdir()} == {
        "training_gaps", "training_curves", "training_replay", "training_collapse",
    }  # fmt: skip
    # What is not written again stays.
    kept = write_training({"final": final(2)}, record, tmp_path)
    assert len(kept.figures) == 4 and [len(table.rows) for table in kept.tables] == [9, 8, 2]


def test_titles_follow_the_data() -> None:
    found = gaps(final(), "bf16", "bf16_null")
    assert training_figure.gaps_title(found) == (
        "1 of 2 recipes are told apart from bf16 after training; mxfp4 is farthest, +0.200 bits "
        "per byte"
    )
    none = [gap for gap in found if gap.arm != "mxfp4"]
    assert training_figure.gaps_title(none) == "No recipe of 1 is told apart from bf16 over 5 seeds"
    some = [dataclasses.replace(none[-1], arm="other", seeds=2), *none]
    assert training_figure.gaps_title(some) == (
        "No recipe of 2 is told apart from bf16 over 2 to 5 seeds"
    )
    assert training_replay_figure.replay_title(replayed()) == (
        "Hopper's 13 bits add up to 0.200 % never promoted and up to 0.010 % promoted every 128, "
        "beside 4.0 % or more of quantization"
    )
    assert training_replay_figure.collapse_title(collapsed()) == (
        "Every number of a block inside (0.875, 1) becomes one under mxfp8_e4m3; the others leave "
        "3 values"
    )


def test_findings_are_of_the_data_and_name_what_was_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lowprec.report.shown.show", lambda *_: None)
    section = training_section(rows(), {"settings": {"seeds": 8, "steps": 400}})
    texts = [finding.text for finding in section.findings]
    assert len(texts) == 5 and "20 of 32 runs are done, every arm of 5 of 8" in section.note
    assert texts[2].startswith("deepseek_v3's relative error of the training loss, 0.0")
    assert texts[2].endswith("is within the published 0.25 %.")
    assert "was not run" in section.findings[2].evidence
    for extra, side in ((0.1, "beyond"), (0.0065, "not told apart from")):
        moved = [dataclasses.replace(x, training=x.training + extra * (x.arm == "deepseek_v3"))
                 for x in final()]  # fmt: skip
        again = training_section({**rows(), "final": moved}, {})
        assert again.findings[2].text.endswith(f"is {side} the published 0.25 %.")
    cells = {(row[0], row[1]): row for row in section.tables[0].rows}
    assert cells["mxfp4", "held out"][-1] == "worse"
    assert cells["bf16_null", "held out"][-1] == "not resolved"
    assert cells["mxfp4", "held out"][3].startswith("+0.2") and len(cells) == 9


def test_a_part_of_the_study_has_a_section() -> None:
    tables: dict[str, list] = {name: [] for name in TABLES}
    empty = training_section(tables, {})
    assert empty.figures == [] and empty.findings == [] and empty.tables == []
    one = [row for row in final(1) if row.arm != "mxfp4"]
    section = training_section({**tables, "final": one}, {"settings": {"seeds": 5, "steps": 400}})
    assert "3 of 15 runs are done, every arm of 1 of 5 seeds" in section.note
    assert len(section.findings) == 2 and "(one seed)" in section.findings[1].text
    half = training_section({**tables, "final": one}, {"settings": {"seeds": 1, "arms": 4}})
    assert "3 of 4 runs are done, every arm of 0 of 1 seeds" in half.note
    assert f"{words.DASH} to" not in section.findings[0].evidence
    assert "(one seed)" in section.findings[0].evidence
