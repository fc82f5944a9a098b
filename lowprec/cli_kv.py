"""`lowprec kv compare`: what methods of KV caches lose, and how many bits they take."""

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import polars as pl
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lowprec.kv import KVMethod, get_kv_method, list_kv_methods
from lowprec.models.checkpoint import default_checkpoint
from lowprec.report import words
from lowprec.report.kv import Results, write_kv
from lowprec.report.kv_figure import MODE_NAMES, summed
from lowprec.study.kv_compare import KvCollected, Source, Text, compare_kv, with_window_0
from lowprec.study.kv_sources import (
    GQA,
    HELD_OUT,
    MLA,
    KeyQuestions,
    captured_source,
    file_source,
    small_model_text,
    synthetic_source,
)
from lowprec.study.manifest import manifest

DEFAULT = (
    "bf16",
    "fp8_tensor",
    "fp8_token",
    "int8_token",
    "int4_token",
    "int4_token_rht",
    "mxfp8",
    "nvfp4",
    "kivi_4bit",
    "kivi_2bit",
    "kvquant_3bit",
    "streaming",
)
SCORED, CALIBRATION, CAPTURED, PROMPT = 16, 2, 1, 256
"""Windows of the small model's text to score, to fit to, to look at; tokens of a prompt."""

KEYS = KeyQuestions(distances=(256, 768), cases=16, digits=8, seed=1)
"""Planted keys that are asked for."""

SEEDS, TOKENS = (0, 1), 1024
"""Layers that are drawn, and their tokens."""


@dataclass(frozen=True)
class KvCommand:
    """Compare methods of KV caches: on the small model, or on your own keys and values.

    With --kv methods that are calibrated are fitted to the first half of a layer's tokens, and
    every method is reported on the second half. Without it on the small models that the repository
    carries, one with keys and values and one with latents: their held-out loss, planted keys that
    they are asked for, and errors on captured and on drawn keys and values.

    Example: lowprec kv compare --kv cache.safetensors --methods kivi_2bit mine.toml --out kv
    """

    action: Annotated[Literal["compare"], tyro.conf.Positional]
    """What to do."""

    kv: Path | None = None
    """A file (.npz .safetensors) with keys LAYER.k, LAYER.v, and LAYER.q where known."""

    methods: tuple[str, ...] = ()
    """Names or paths to TOML files, or `all`; by default about a dozen."""

    rope_theta: float | None = None
    """The base of RoPE, for methods that need keys before it (LAYER.k_before_rope)."""

    kept: float = 0.25
    """The share of tokens that methods which choose some may keep."""

    seed: int = 0
    """Of the bootstrap over documents."""

    out: Path | None = None
    """A directory to write tables, figures and a manifest to."""


def run_kv(command: KvCommand, shown: Callable[[Console], Progress], line: str) -> None:
    """Prints a line for each method as it is done, and tables at the end.

    Args:
      command: what was asked for.
      shown: makes a progress bar.
      line: the command as it was typed, for the manifest.
    """
    if not 0 < command.kept <= 1:
        raise ValueError(f"`--kept` = {command.kept} must be above 0 and at most 1")
    if command.rope_theta is not None and command.kv is None:
        raise ValueError("`--rope-theta` is of a file's keys; give it with --kv")
    methods = _methods(command.methods)
    total = len(with_window_0(methods))
    if command.out is not None and not command.out.parent.is_dir():
        raise ValueError(f"cannot write {command.out}: {command.out.parent} is not a directory")
    begin, console, found = time.perf_counter(), Console(stderr=True), KvCollected()
    finished = False
    try:
        with shown(console) as bar:
            task = bar.add_task("loading", total=None)
            sources, text, latent_text = _sources(command, methods)

            def say(step: str) -> None:
                done = len(found.caches)
                bar.update(task, description=step, completed=done, total=total)
                if not console.is_terminal:
                    console.print(step, soft_wrap=True, highlight=False)
                # A method's programs are of no use to the next one, and there are many.
                jax.clear_caches()

            options = {"seed": command.seed, "kept": command.kept, "found": found, "say": say}
            compare_kv(methods, sources, text, latent_text=latent_text, **options)
        finished = True
    finally:
        # What has finished is shown and written whatever ended the run.
        if found.caches:
            record = _record(command, methods, found, line, finished)
            record["seconds"] = round(time.perf_counter() - begin)
            _finish(command, Results.of(found, record), found)


def _methods(names: Sequence[str]) -> list[KVMethod]:
    """The methods, found before any work is done."""
    chosen = list_kv_methods() if tuple(names) == ("all",) else names or DEFAULT
    found = [get_kv_method(name) for name in chosen]
    own = [method.name for method in found]
    for name in own:
        if own.count(name) > 1:
            raise ValueError(f"two methods share the name {name!r}; rename one of them")
    return found


def _sources(
    command: KvCommand, methods: Sequence[KVMethod]
) -> tuple[list[Source], Text | None, Text | None]:
    """What to compare on: samples, and models with keys and values, and with latents."""
    if command.kv is not None:
        return [file_source(command.kv, command.rope_theta)], None, None
    given: dict[str, Any] = {"scored": SCORED, "calibration": CALIBRATION, "prompt": PROMPT}
    text = small_model_text(**given, keys=KEYS)
    latent = any(method.latent for method in methods)
    latent_text = small_model_text(**given, model=MLA, keys=KEYS) if latent else None
    return [captured_source(text, CAPTURED), synthetic_source(SEEDS, TOKENS)], text, latent_text


def _record(
    command: KvCommand, methods: Sequence[KVMethod], found: KvCollected, line: str, finished: bool
) -> dict[str, Any]:
    files = [command.kv]
    if command.kv is None:
        models = [GQA, MLA] if any(method.latent for method in methods) else [GQA]
        checkpoints = [default_checkpoint(model) for model in models]
        files = [*checkpoints, checkpoints[0].with_name(HELD_OUT)]
    settings = {"kept": command.kept, "seed": command.seed, "rope_theta": command.rope_theta}
    settings["complete"] = finished
    return manifest(methods, [x for x in files if x is not None], settings) | {
        "methods": [row.method.partition(":")[2] for row in found.caches],
        "left_out": [" | ".join(x) for x in found.left_out],
        "unanswered": [list(x) for x in found.unanswered],
        "command": line,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _finish(command: KvCommand, results: Results, found: KvCollected) -> None:
    console = Console()
    if not console.is_terminal:
        # A file, or another program, is no window that a table has to fit in.
        console.width = 140
    frames = results.frames
    models = _model(pl.concat([frames["model"], frames["latent"]]))
    for table in (_tensors(frames["tensors"]), models, _keys(frames["keys"])):
        if table.row_count:
            console.print(table)
    for line in _remarks(command, found):
        print(line)
    if command.out is not None:
        write_kv(results, command.out)
        print(command.out)


def _remarks(command: KvCommand, found: KvCollected) -> list[str]:
    """On what the figures rest, and what is missing."""
    lines = []
    if command.kv is not None:
        lines.append(
            "fitted to the first half of each layer's tokens where a method is calibrated; every "
            "method is reported on the second half"
        )
    windowless = [row for row in found.caches if row.window_0_of is not None]
    if windowless:
        lines.append(
            "exempt: the share of tokens that stay in 16 bits; 'NAME, window 0' is the method "
            "without its window of exact tokens"
        )
    reasons: dict[tuple[str, str], None] = dict.fromkeys(
        (name, reason) for name, _, reason in found.left_out if reason
    )
    return [*lines, *(f"left out in part or whole: {name}: {why}" for name, why in reasons)]


def _keys(frame: pl.DataFrame) -> Table:
    """Planted keys that are found through each method's caches."""
    table = Table(title="planted keys found through caches, of those asked for at a distance")
    for heading in ("method", "bits", "distance", "found whole", "by bfloat16", "bits a digit"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in frame.iter_rows(named=True):
        table.add_row(
            row["method"],
            words.number(row["bits"], 2),
            str(row["distance"]),
            words.percent(row["exact"], 0),
            words.percent(row["exact_bf16"], 0),
            words.number(row["bits_per_digit"], 2),
        )
    return table


def _tensors(frame: pl.DataFrame) -> Table:
    """Medians over layers, by source and method."""
    table = Table(title="errors of K, V and of attention's output, medians over layers")
    for heading, right in (
        ("source", False),
        ("method", False),
        ("bits", True),
        ("exempt", True),
        ("K", True),
        ("V", True),
        ("KL of weights", True),
        ("output", True),
    ):
        table.add_column(heading, justify="right" if right else "left")
    for row in summed(frame).iter_rows(named=True):
        table.add_row(
            row["source"],
            row["method"],
            words.number(row["bits"], 2),
            words.percent(row["exempt"], 1),
            words.percent(row["keys"], 2),
            words.percent(row["values"], 2),
            words.significant(row["divergence"], 2),
            words.percent(row["output"], 2),
        )
    return table


def _model(frame: pl.DataFrame) -> Table:
    """The small model's loss through each method's caches."""
    table = Table(title="held-out loss of the small model over that with an exact cache")
    for heading in ("method", "mode", "bits", "exempt", "increase, bits per byte", "95 % interval"):
        table.add_column(heading, justify="left" if heading in ("method", "mode") else "right")
    for row in frame.iter_rows(named=True):
        table.add_row(
            row["method"],
            MODE_NAMES[row["mode"]],
            words.number(row["bits"], 2),
            words.percent(row["exempt"], 1),
            words.signed(row["increase"], 4),
            f"{words.signed(row['low'], 4)} to {words.signed(row['high'], 4)}",
        )
    return table
