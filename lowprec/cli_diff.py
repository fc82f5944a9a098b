"""`lowprec diff A B`: how far apart two ways to compute one model are."""

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lowprec.models.checkpoints import open_checkpoint, read_text
from lowprec.report import words
from lowprec.report.diff import Results, effective, write_diff
from lowprec.study.diff import Difference, compare_sides
from lowprec.study.diff_ratios import CLIP
from lowprec.study.diff_rows import DiffRow, LayerRow, SequenceRow
from lowprec.study.diff_sides import Side, read_side
from lowprec.study.diff_subjects import Subject, checkpoint_subject, small_subject
from lowprec.study.manifest import manifest

CONTEXT = 512
"""Tokens of a window of a user's text, where nothing else is said."""


@dataclass(frozen=True)
class DiffCommand:
    """Tell two sides apart that compute one model, as a trainer (A) and a rollout server (B) do.

    A side is a recipe and, with spaces between, what is changed in it: KEY=VALUE with the keys
    engine, a, b, scales, promote_every (or never), promotion, order (sequential, split_k.PARTS,
    stream_k.WORKERS), output, kv (a method of KV caches) and rows (tokens that share a product).

    Example: lowprec diff deepseek_v3 "deepseek_v3 order=split_k.2 kv=fp8_token"
    """

    a: tyro.conf.Positional[str]
    """The side that is trained."""

    b: tyro.conf.Positional[str]
    """The side that draws tokens."""

    model: Literal["byte_lm", "byte_gqa"] = "byte_lm"
    """A small model of the repository, on its held-out text."""

    checkpoint: Path | None = None
    """Instead: a checkpoint's folder in the layout of Hugging Face, with --text."""

    text: Path | None = None
    """A UTF-8 text for it."""

    windows: int = 16
    """How many windows of the text are scored, at most."""

    context: int | None = None
    """Tokens of a window of --text (512 where nothing is said)."""

    prompt: int | None = None
    """First tokens of a window that are not scored; half of it by default."""

    kept: float = 0.25
    """The share of a prompt that methods which choose tokens may keep."""

    seed: int = 0
    """Of the bootstrap, of drawn tokens and of stochastic rounding."""

    out: Path | None = None
    """A directory to write tables, the figure and a manifest to."""


def run_diff(command: DiffCommand, shown: Callable[[Console], Progress], line: str) -> None:
    """Prints tables, and writes everything where asked to.

    Args:
      command: what was asked for.
      shown: makes a progress bar.
      line: the command as it was typed, for the manifest.
    """
    _check(command)
    begin = time.perf_counter()
    a, b = read_side(command.a, "A"), read_side(command.b, "B")
    subject = _subject(command)
    with shown(Console(stderr=True)) as bar:
        task = bar.add_task("layers", total=subject.layers)
        found = compare_sides(
            subject,
            a,
            b,
            prompt=command.prompt,
            kept=command.kept,
            seed=command.seed,
            done=lambda layer: bar.update(task, description=layer, advance=1),
        )
    _show(found)
    if command.out is not None:
        record = _record(command, (a, b), subject) | {
            "command": line,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "seconds": round(time.perf_counter() - begin),
        }
        write_diff(Results.of([found], record), command.out)
        print(command.out)


def _check(command: DiffCommand) -> None:
    if (command.checkpoint is None) != (command.text is None):
        raise ValueError("`--checkpoint` and `--text` go together: a model and what it reads")
    if command.context is not None and command.text is None:
        raise ValueError("`--context` is of --text; windows of the small models have their own")
    if command.windows < 2:
        raise ValueError(f"`--windows` = {command.windows} must be at least 2")
    if not 0 < command.kept <= 1:
        raise ValueError(f"`--kept` = {command.kept} must be above 0 and at most 1")
    if command.out is not None and not command.out.parent.is_dir():
        raise ValueError(f"cannot write {command.out}: {command.out.parent} is not a directory")


def _subject(command: DiffCommand) -> Subject:
    if command.checkpoint is None or command.text is None:
        return small_subject(command.model, count=command.windows)
    checkpoint = open_checkpoint(command.checkpoint)
    # The first one is what calibrated methods are fitted to.
    sizes = {"length": command.context or CONTEXT, "count": command.windows + 1}
    text = read_text(command.checkpoint, command.text, checkpoint.architecture, **sizes)
    return checkpoint_subject(checkpoint, text)


def _record(command: DiffCommand, sides: tuple[Side, Side], subject: Subject) -> dict[str, Any]:
    used = [side.recipe for side in sides]
    methods = [side.method for side in sides if side.method is not None]
    settings = {
        "a": sides[0].label,
        "b": sides[1].label,
        "model": subject.name,
        "windows": len(subject.tokens),
        "prompt": command.prompt,
        "kept": command.kept,
        "seed": command.seed,
    }
    files = [x for x in (*subject.files, command.text) if x is not None]
    return manifest([*used, *methods], files, settings)


def _show(found: Difference) -> None:
    console = Console()
    if not console.is_terminal:
        # A file, or another program, is no window that a table has to fit in.
        console.width = 140
    console.print(_pair(found.row))
    console.print(_sequences(found.sequences))
    console.print(_layers(found.layers))


def _pair(row: DiffRow) -> Table:
    table = Table(
        title=f"A {row.a}\nB {row.b}\n{row.model}, {row.tokens:,} tokens of {row.windows} windows; "
        f"95 % intervals over {row.units} {row.unit}",
        title_justify="left",
    )
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in _measures(row):
        table.add_row(name, value)
    return table


def _measures(row: DiffRow) -> list[tuple[str, str]]:
    def figure(value: float) -> str:
        return words.significant(value, 3)

    ends = f"{figure(row.kl_low)} to {figure(row.kl_high)}"
    moved = f"{figure(row.delta_low)} to {figure(row.delta_high)}"
    turned = f"{words.percent(row.flip_low, 2)} to {words.percent(row.flip_high, 2)}"
    percentiles = (
        row.delta_percentile_1,
        row.delta_percentile_5,
        row.delta_median,
        row.delta_percentile_95,
        row.delta_percentile_99,
    )
    first = "none: the same bits" if row.first_layer is None else f"layers.{row.first_layer}"
    return [
        ("KL of A to B, whole vocabulary, nats: mean", f"{figure(row.kl_mean)} ({ends})"),
        ("median", figure(row.kl_median)),
        ("99th percentile", figure(row.kl_percentile_99)),
        ("largest", figure(row.kl_largest)),
        ("KL of B to A: mean", figure(row.reverse_kl_mean)),
        ("log p_A - log p_B of the text's tokens: mean", f"{figure(row.delta_mean)} ({moved})"),
        ("1st, 5th, 50th, 95th, 99th percentile", ", ".join(map(figure, percentiles))),
        ("largest magnitude", figure(row.delta_largest)),
        ("tokens that flip", f"{row.flips:,}: {words.percent(row.flip_share, 2)} ({turned})"),
        ("first layer that differs", first),
        ("first product that differs", row.first_product or "none"),
    ]


def _sequences(rows: list[SequenceRow]) -> Table:
    table = Table(title="importance ratios p_A / p_B of sequences, and their effective sample size")
    for heading in ("tokens", "length", "sequences", "effective", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "tokens" else "right")
    for heading in ("least", "1 %", "99 %", "99.9 %", "largest", f"over {CLIP} from 1"):
        table.add_column(heading, justify="right")
    for row in rows:
        ends = f"{effective(row.ess_low)} to {effective(row.ess_high)}"
        tail = (
            row.smallest,
            row.percentile_1,
            row.percentile_99,
            row.percentile_999,
            row.largest,
        )
        table.add_row(
            row.tokens if row.tokens == "text" else "drawn from B",
            f"{row.length:,}",
            f"{row.sequences:,}",
            effective(row.ess),
            ends,
            *(words.significant(x, 3) for x in tail),
            words.percent(row.outside, 2),
        )
    return table


def _layers(rows: list[LayerRow]) -> Table:
    table = Table(title="the residual stream behind each layer")
    for heading in ("behind", "numbers that differ", "relative difference", "largest"):
        table.add_column(heading, justify="left" if heading == "behind" else "right")
    for row in rows:
        table.add_row(
            row.layer,
            words.percent(row.differing, 3),
            words.significant(row.relative, 3),
            words.significant(row.largest, 3),
        )
    return table
