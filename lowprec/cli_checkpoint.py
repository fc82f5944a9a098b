"""`lowprec capture` and `lowprec evaluate`: a user's own checkpoint, on the user's own text."""

import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lowprec.gemm.recipe import get_recipe
from lowprec.kv import get_kv_method
from lowprec.models.card_files import read_cards, write_cards
from lowprec.models.checkpoints import Checkpoint, open_checkpoint, read_text
from lowprec.models.checkpoints.capture import CapturedLayer, capture_checkpoint
from lowprec.models.checkpoints.small_models import as_folder
from lowprec.models.key_value_cards import KeyValueCard
from lowprec.models.key_value_cards import card as key_value_card
from lowprec.models.key_values import MEMBERS
from lowprec.models.operands import Operands
from lowprec.models.synthetic_operands import synthetic_operands
from lowprec.models.tensor_writing import write_tensors
from lowprec.report import words
from lowprec.study.advise_files import read_recipes
from lowprec.study.checkpoint_evaluation import evaluate
from lowprec.study.checkpoint_passes import ALL, BASELINE, Sensitivity
from lowprec.study.checkpoint_rows import EvaluationRow

CARDS = "cards.json"
Shown = Callable[[Console], Progress]


@dataclass(frozen=True)
class CaptureCommand:
    """Write the operands that a checkpoint multiplies on a text, and their cards.

    The checkpoint is a folder in the layout of Hugging Face (config.json, tokenizer.json,
    safetensors). A file for each layer goes to `lowprec compare --operands`, one of latents (MLA)
    too; one for each cache of keys and values goes to `lowprec kv compare --kv`. cards.json holds
    statistics and names of layers only, and can be shared: --cards draws operands after it.

    Example: lowprec capture --checkpoint Qwen3-0.6B --text notes.txt --layers 'layers.3.*'
    """

    checkpoint: Path | None = None
    """The checkpoint's folder, or the file of a small model of the repository; with --text."""

    text: Path | None = None
    """A UTF-8 text."""

    cards: Path | None = None
    """Instead of both: cards to draw operands after."""

    layers: tuple[str, ...] = ("*",)
    """Patterns of linear layers, such as layers.*.mlp.down."""

    tokens: int = 512
    """How many of the text's first tokens; with --cards, how many rows of each input."""

    cards_only: bool = False
    """Write no operands."""

    seed: int = 0
    """Of operands drawn after cards."""

    out: Path = Path("lowprec-capture")
    """The directory to write to."""


@dataclass(frozen=True)
class EvaluateCommand:
    """Measure what a checkpoint loses on a text under recipes and KV methods.

    Bits per byte, perplexity and the divergence from bf16, with everything quantized and, with
    --sensitivity, each layer alone. Intervals are a bootstrap over windows, paired with bf16.

    Example: lowprec evaluate --checkpoint Qwen3-0.6B --text notes.txt --recipe mxfp8 nvfp4
    """

    checkpoint: Path
    """The checkpoint's folder, or the file of a small model of the repository."""

    text: Path
    """A UTF-8 text."""

    recipe: tuple[str, ...] = ()
    """Recipes by name or path."""

    layers: tuple[str, ...] = ()
    """Patterns of the linear layers that recipes quantize; by default all but the head."""

    advice: tuple[Path, ...] = ()
    """Folders that lowprec advise --out wrote a recipe for each linear layer to."""

    kv: tuple[str, ...] = ()
    """KV methods by name or path."""

    sensitivity: Sensitivity = "none"
    """Quantize each layer of the model, or each linear layer, alone, too: `lowprec advise
    --sensitivity` takes the CSV file."""

    context: int = 512
    """Tokens of a window, at most the model's context. A method that keeps its newest tokens exact
    loses nothing within so many."""

    windows: int = 8
    """How many windows of the text, at most."""

    kept: float = 0.25
    """The share of a prompt, the first half of a window, that methods which choose tokens keep."""

    seed: int = 0
    """Of the bootstrap, and of stochastic rounding."""

    out: Path | None = None
    """A CSV file to write all figures to."""


CheckpointCommand = (
    Annotated[CaptureCommand, tyro.conf.subcommand("capture")]
    | Annotated[EvaluateCommand, tyro.conf.subcommand("evaluate")]
)


def run_checkpoint(command: CaptureCommand | EvaluateCommand, shown: Shown) -> None:
    """Runs either command.

    Args:
      command: what was asked for.
      shown: makes a progress bar.
    """
    if isinstance(command, EvaluateCommand):
        run_evaluate(command, shown)
    elif command.cards is not None:
        run_synthesis(command, command.cards)
    else:
        run_capture(command, shown)


def run_capture(command: CaptureCommand, shown: Shown) -> None:
    """Writes operands and caches layer by layer, and all cards at the end."""
    if command.checkpoint is None or command.text is None:
        raise ValueError("`capture` takes --checkpoint and --text, or --cards")
    if command.tokens < 2:
        raise ValueError(f"`--tokens` = {command.tokens} must be at least 2")
    with as_folder(command.checkpoint) as folder:
        _capture(command, open_checkpoint(folder), command.text, shown)


def _capture(command: CaptureCommand, checkpoint: Checkpoint, path: Path, shown: Shown) -> None:
    architecture = checkpoint.architecture
    sizes = {"length": command.tokens, "count": 1}
    text = read_text(checkpoint.directory, path, architecture, **sizes)
    _make_directory(command.out)
    cards, key_values = {}, []
    with shown(Console(stderr=True)) as bar:
        task = bar.add_task("layers", total=architecture.layers + 1)
        for layer in capture_checkpoint(checkpoint, text.tokens, wanted=command.layers):
            cards |= layer.cards()
            key_values += _key_value_cards(layer)
            if not command.cards_only:
                _write_layer(layer, command.out)
            bar.update(task, description=layer.layer, advance=1)
    about = _about(checkpoint) | {"tokens": int(text.tokens.size)}
    write_cards(command.out / CARDS, cards, about=about, key_values=key_values)
    print(command.out / CARDS)


def run_synthesis(command: CaptureCommand, cards: Path) -> None:
    """Writes operands drawn after cards, a file for each layer of the model."""
    if command.checkpoint is not None or command.text is not None:
        raise ValueError("`capture` takes --checkpoint and --text, or --cards, not both")
    layers = synthetic_operands(read_cards(cards), seed=command.seed, rows=command.tokens)
    if not layers:
        raise ValueError(f"{cards}: has cards of no layer: names end in .x, .w and .dy")
    _make_directory(command.out)
    groups: dict[str, list[Operands]] = {}
    for layer in layers:
        groups.setdefault(".".join(layer.layer.split(".")[:2]), []).append(layer)
    for name, own in groups.items():
        print(_write(command.out / f"{name}.safetensors", _tensors(own)))


def run_evaluate(command: EvaluateCommand, shown: Shown) -> None:
    """Prints a table, and writes it as CSV where asked to."""
    if not (command.recipe or command.advice or command.kv):
        raise ValueError("`evaluate` takes --recipe, --advice, --kv: what is compared with bf16")
    if command.windows < 2 or command.context < 2:
        raise ValueError("`--windows` and `--context` must be at least 2")
    if not 0 < command.kept <= 1:
        raise ValueError(f"`--kept` = {command.kept} must be above 0 and at most 1")
    if command.out is not None and not command.out.parent.is_dir():
        raise ValueError(f"cannot write {command.out}: {command.out.parent} is not a directory")
    recipes = [get_recipe(name) for name in command.recipe]
    mixtures = {path.name: read_recipes(path) for path in command.advice}
    methods = [get_kv_method(name) for name in command.kv]
    sizes = {"length": command.context, "count": command.windows}
    with as_folder(command.checkpoint) as folder, shown(Console(stderr=True)) as bar:
        checkpoint = open_checkpoint(folder)
        text = read_text(folder, command.text, checkpoint.architecture, **sizes)
        task = bar.add_task("layers", total=checkpoint.architecture.layers)
        rows = evaluate(
            checkpoint,
            text,
            recipes=recipes,
            mixtures=mixtures,
            methods=methods,
            wanted=command.layers,
            sensitivity=command.sensitivity,
            kept=command.kept,
            seed=command.seed,
            done=lambda _: bar.advance(task),
        )
    _show(rows)
    if command.out is not None:
        write_rows(rows, command.out)
        print(command.out)


def write_rows(rows: Sequence[EvaluationRow], out: Path) -> None:
    """Rows as CSV, floats with the fewest digits that read back as they are."""
    with out.open("w", newline="", encoding="utf-8") as file:
        names = [field.name for field in dataclasses.fields(EvaluationRow)]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def _show(rows: Sequence[EvaluationRow]) -> None:
    first = next(row for row in rows if (row.what, row.layer) == (BASELINE, ALL))
    table = Table(
        title=f"{first.architecture} on {first.tokens} tokens, {first.bytes} bytes, in "
        f"{first.windows} windows"
    )
    headings = (
        "layer", "bits per byte", "perplexity", "increase", "95 % interval", "KL (95 %)", "flips",
    )  # fmt: skip
    table.add_column("what")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for row in rows:
        table.add_row(
            row.what,
            row.layer,
            words.number(row.bits_per_byte, 4),
            words.significant(row.perplexity, 5),
            words.signed(row.increase, 4),
            f"{words.signed(row.low, 4)} to {words.signed(row.high, 4)}",
            f"{words.significant(row.kl_mean, 2)} ({words.significant(row.kl_low, 2)} to "
            f"{words.significant(row.kl_high, 2)})",
            words.percent(row.top1_flips),
        )
    console = Console()
    if not console.is_terminal:
        # A file, or another program, is no window that a table has to fit in.
        console.width = 160
    console.print(table)


def _about(checkpoint: Checkpoint) -> dict[str, object]:
    model = checkpoint.architecture
    shape = {name: getattr(model, name) for name in ("layers", "width", "vocabulary")}
    return {"architecture": checkpoint.name, **shape}


def _key_value_cards(layer: CapturedLayer) -> list[KeyValueCard]:
    # Too few tokens have no statistics worth a card.
    if layer.key_values is None or layer.key_values.k.shape[2] < 8:
        return []
    return [key_value_card(layer.key_values)]


def _write_layer(layer: CapturedLayer, out: Path) -> None:
    if layer.operands:
        _write(out / f"{layer.layer}.safetensors", _tensors(layer.operands))
    if layer.key_values is not None:
        held = {name: getattr(layer.key_values, name) for name in MEMBERS}
        tensors = {f"{layer.layer}.{name}": x for name, x in held.items() if x is not None}
        _write(out / f"{layer.layer}.kv.safetensors", tensors)
    if layer.latents:
        tensors = {f"{layer.layer}.{name}": x for name, x in layer.latents.items()}
        _write(out / f"{layer.layer}.latents.safetensors", tensors)


def _tensors(layers: Sequence[Operands]) -> dict[str, np.ndarray]:
    return {
        f"{layer.layer}.{name}": x
        for layer in layers
        for name in ("x", "w", "dy")
        if (x := getattr(layer, name)) is not None
    }


def _write(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    write_tensors(path, tensors)
    return path


def _make_directory(out: Path) -> None:
    if not out.parent.is_dir():
        raise ValueError(f"cannot write to {out}: {out.parent} is not a directory")
    out.mkdir(exist_ok=True)
