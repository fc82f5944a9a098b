"""The results of experiments/train_recipes.py as files, and the report's section on them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowprec.report import shown, stored, training_figure, training_replay_figure, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section
from lowprec.report.training_figure import BASELINE, NULL
from lowprec.study.collapse import CollapseRow, ValueRow
from lowprec.study.training_gaps import Gap, gaps, smallest_effect
from lowprec.study.training_replay import ReplayRow
from lowprec.study.training_rows import FinalRow, LossRow

SCRIPT = "experiments/train_recipes_report.py"
TABLES: Mapping[str, type] = {
    "losses": LossRow,
    "final": FinalRow,
    "replay": ReplayRow,
    "collapse": CollapseRow,
    "collapse_values": ValueRow,
}
"""Every file of rows by name."""
MEASURES: Mapping[str, str] = {
    "held_out": "held out",
    "held_out_bf16": "held out, weights in bf16",
    "training": "training, last tenth",
}
"""What gaps are of, and how tables say it."""
PUBLISHED = 0.0025
"""DeepSeek-V3's relative error of the loss stays below it (arXiv 2412.19437, appendix B.1)."""
Rows = Mapping[str, Sequence[Any]]


def write_training(rows: Rows, record: dict[str, Any], out: Path) -> Section:
    """Writes the tables of `TABLES`, `manifest.json` and the figures; returns the section.

    A table that is not among `rows` stays as it lies in the directory.
    """
    for name, found in rows.items():
        stored.write_table(found, TABLES[name], out / f"{name}.csv")
    stored.write_manifest(record, out)
    section = read_training(out)
    assert section is not None
    shown.write_figures(section.figures, out)
    return section


def read_training(folder: Path) -> Section | None:
    """The section of what `write_training` wrote; None where the folder has no table of runs.

    Raises:
      ValueError: a table lacks a column, or has another type in it.
    """
    if not (folder / "final.csv").is_file():
        return None
    found = {
        name: stored.read_rows(folder / f"{name}.csv", row, SCRIPT) for name, row in TABLES.items()
    }
    return training_section(found, stored.read_manifest(folder))


def training_section(rows: Rows, record: dict[str, Any]) -> Section:
    """The section of the tables and a manifest, which may be empty, as may tables."""
    final = rows["final"]
    found = [gap for measure in MEASURES for gap in gaps(final, BASELINE, NULL, measure)]
    drawn = [
        shown.show(
            "training_gaps", "Gaps after training", "final", training_figure.gaps_figure, final
        ),
        shown.show(
            "training_curves", "Gaps during training", "losses", training_figure.curves_figure,
            rows["losses"],
        ),
        shown.show(
            "training_replay", "What the accumulator adds", "replay",
            training_replay_figure.replay, rows["replay"],
        ),
        shown.show(
            "training_collapse", "A block that collapses", "collapse_values",
            training_replay_figure.collapse, rows["collapse_values"],
        ),
    ]  # fmt: skip
    tables = [_gap_table(found), _replay_table(rows["replay"]), _collapse_table(rows["collapse"])]
    return Section(
        name="training",
        heading="Training under recipes, paired",
        note=_note(record.get("settings", {}), final),
        command=str(record.get("command", "")),
        date=str(record.get("date", "")),
        seconds=int(record.get("seconds", 0)),
        findings=_findings(rows, found),
        figures=[figure for figure in drawn if figure is not None],
        tables=[table for table in tables if table is not None],
    )


def _note(settings: dict[str, Any], final: Sequence[FinalRow]) -> str:
    """What was trained, and how much of it is done."""
    arms = settings.get("arms", len({row.arm for row in final}))
    done = [row.seed for row in final]
    whole = sum(done.count(seed) == arms for seed in set(done))
    wanted = settings.get("seeds", whole)
    part = f"{words.counted(whole, 'seed')}, every arm of each"
    if len(final) < arms * wanted:
        part = (
            f"{len(final)} of {arms * wanted} runs are done, every arm of {whole} of {wanted} seeds"
        )
    minutes = sum(row.steps * row.step_seconds for row in final) / 60
    shape = f", {settings['model']}" if "model" in settings else ""
    steps = f"{settings['steps']} steps" if "steps" in settings else "some steps"
    return (
        f"A byte-level transformer{shape}, {steps} under each recipe with sums in this machine's "
        f"float32; start, data and step are the same in every arm of a seed; {part}, in "
        f"{words.number(minutes, 0)} minutes of one core."
    )


def _findings(rows: Rows, found: Sequence[Gap]) -> list[Finding]:
    kept = [_gap_finding(found), _null_finding(rows["final"], found), _published_finding(found)]
    kept += [_replay_finding(rows["replay"]), _collapse_finding(rows["collapse"])]
    return [finding for finding in kept if finding is not None]


def _gap_finding(found: Sequence[Gap]) -> Finding | None:
    held_out = [gap for gap in found if gap.measure == "held_out" and gap.arm != NULL]
    if not held_out:
        return None
    return Finding(
        text=f"{training_figure.gaps_title(held_out)}.",
        evidence="held-out bits per byte over bf16, 95 % intervals over seeds: "
        + "; ".join(f"{gap.arm} {_interval(gap)}, {gap.verdict}" for gap in held_out),
    )


def _null_finding(final: Sequence[FinalRow], found: Sequence[Gap]) -> Finding | None:
    null = [gap for gap in found if gap.arm == NULL]
    if not null or null[0].seeds < 2:
        return None
    cells = [
        f"{MEASURES[gap.measure]} {_interval(gap)}, smallest effect "
        f"{words.significant(smallest_effect(final, BASELINE, NULL, gap.measure), 2)}"
        for gap in null
    ]
    least = smallest_effect(final, BASELINE, NULL)
    return Finding(
        text=(
            "Another order of summation alone moves the held-out loss by up to "
            f"{words.significant(max(abs(null[0].low), abs(null[0].high)), 2)} bits per byte; a "
            f"gap of {words.significant(least, 2)} would have been found with a probability of "
            "80 %."
        ),
        evidence=f"bf16 summed in two halves of K, {words.counted(null[0].seeds, 'seed')}: "
        + "; ".join(cells),
    )


def _published_finding(found: Sequence[Gap]) -> Finding | None:
    ours = {gap.measure: gap for gap in found if gap.arm == "deepseek_v3"}
    if not ours:
        return None
    cells = [f"{MEASURES[measure]} {_relative(gap)}" for measure, gap in ours.items()]
    loss = ours["training"]
    return Finding(
        text=(
            f"deepseek_v3's relative error of the training loss, {_relative(loss)}, is "
            f"{_side(loss)} the published {words.percent(PUBLISHED, 2)}."
        ),
        evidence="; ".join(cells)
        + "; published of models of 16B and 230B parameters after 1.33T and 0.9T tokens (arXiv "
        "2412.19437, B.1), where dgrad quantized in blocks of 128 x 128 diverged at 16B (B.2): "
        "outliers that grow with width, depth and tokens do not exist in a model of one layer "
        "after 400 steps, nor does what drifts over 10^5 of them. The instability of student and "
        "teacher of arXiv 2506.20752 needs a GPU and was not run",
    )


def _replay_finding(rows: Sequence[ReplayRow]) -> Finding | None:
    if not rows:
        return None
    cells = [
        f"{row.recipe} {row.layer} {row.role} step {row.step}, K = {row.k}: "
        f"{words.percent(row.added, 3)} " + ("never promoted" if not row.promote_every else
        f"promoted every {row.promote_every}")
        for row in sorted(rows, key=lambda row: -row.added)[:4]
    ]  # fmt: skip
    return Finding(
        text=f"{training_replay_figure.replay_title(rows)}.",
        evidence="relative error in the Frobenius norm against exact sums of the same operands; "
        "the largest: " + "; ".join(cells),
    )


def _collapse_finding(rows: Sequence[CollapseRow]) -> Finding | None:
    if not rows:
        return None
    inside = [row for row in rows if (row.low, row.high) == (0.875, 1.0) and not row.exponent]
    cells = [f"{row.block} {row.left} of {row.values}" for row in inside]
    return Finding(
        text=f"{training_replay_figure.collapse_title(rows)}.",
        evidence="different values left of blocks inside (0.875, 1): " + "; ".join(cells),
    )


def _side(gap: Gap) -> str:
    """Where a gap's interval lies, as a part of the loss, beside what is published."""
    ends = sorted(abs(end / gap.level) for end in (gap.low, gap.high))
    least = 0.0 if gap.low <= 0 <= gap.high else ends[0]
    if ends[1] < PUBLISHED:
        return "within"
    return "beyond" if least > PUBLISHED else "not told apart from"


def _relative(gap: Gap) -> str:
    """A gap in percent of the baseline's loss, with its interval."""
    return _with_ends(gap, lambda value: words.percent(value / gap.level, 3))


def _interval(gap: Gap) -> str:
    """A gap in bits per byte, with its interval."""
    return _with_ends(gap, lambda value: words.signed(value, 4))


def _with_ends(gap: Gap, said: Callable[[float], str]) -> str:
    ends = "one seed" if gap.seeds < 2 else f"{said(gap.low)} to {said(gap.high)}"
    return f"{said(gap.mean)} ({ends})"


def _gap_table(found: Sequence[Gap]) -> Table | None:
    if not found:
        return None
    columns: list[Column] = [
        ("arm", False, lambda row: row["arm"]),
        ("loss", False, lambda row: MEASURES[row["measure"]]),
        ("seeds", True, lambda row: str(row["seeds"])),
        ("gap to bf16, bits/byte (95 %)", True, lambda row: _interval(Gap(**row))),
        ("relative", True, lambda row: words.percent(row["mean"] / row["level"], 3)),
        ("spread over seeds", True, lambda row: words.significant(row["spread"], 2)),
        ("verdict", False, lambda row: row["verdict"]),
    ]
    note = (
        "Paired by seed; intervals are Student's t over seeds. Not resolved: the interval contains "
        "zero, the gap lies inside the null arm's interval, or there are fewer than two pairs of "
        "either. Diverged: a loss that is NaN or a bit per byte above."
    )
    frame = stored.frame(found, Gap)
    return Table.of("final", "Gaps to bf16", note, columns, frame)


def _replay_table(rows: Sequence[ReplayRow]) -> Table | None:
    if not rows:
        return None
    columns: list[Column] = [
        ("step", True, lambda row: str(row["step"])),
        ("layer", False, lambda row: row["layer"]),
        ("role", False, lambda row: row["role"]),
        ("recipe", False, lambda row: row["recipe"]),
        ("promoted every", True, lambda row: str(row["promote_every"] or "never")),
        ("K", True, lambda row: str(row["k"])),
        ("error added", True, lambda row: words.percent(row["added"], 4)),
        ("largest, of the rms", True, lambda row: words.percent(row["largest"], 3)),
        ("gain", True, lambda row: words.percent(row["gain"], 4)),
        ("quantization's error", True, lambda row: words.percent(row["quantization"], 2)),
    ]
    note = (
        "Products of the bf16 arm's first seed, summed again on hopper.wgmma.fp8.fp32 against "
        "exact sums of the same quantized operands; relative errors in the Frobenius norm. "
        "deepseek_v3's scales change every 128 k and are applied at promotion, so that it has no "
        "sum without."
    )
    return Table.of(
        "replay", "Sums again on Hopper's engine", note, columns, stored.frame(rows, ReplayRow)
    )


def _collapse_table(rows: Sequence[CollapseRow]) -> Table | None:
    if not rows:
        return None
    columns: list[Column] = [
        ("block", False, lambda row: row["block"]),
        ("rule", False, lambda row: row["rule"]),
        ("numbers in", False, lambda row: f"({row['low']:g}, {row['high']:g})"),
        ("values", True, lambda row: str(row["values"])),
        ("left", True, lambda row: str(row["left"])),
        ("at the largest element", True, lambda row: words.percent(row["at_maximum"], 0)),
        ("gain", True, lambda row: words.percent(row["gain"], 2)),
        ("error", True, lambda row: words.percent(row["error"], 2)),
        ("spread kept", True, lambda row: words.percent(row["spread_kept"], 0)),
    ]
    note = "Blocks of evenly spread numbers; nothing is drawn at random."
    return Table.of(
        "collapse", "Blocks close to a power of two", note, columns,
        stored.frame(rows, CollapseRow),
    )  # fmt: skip
