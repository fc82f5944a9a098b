"""The main job: recipes compared on the operands of the small model, or on the user's own."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lowprec.gemm.recipe import Recipe, get_recipe
from lowprec.models.capture import capture
from lowprec.models.cards import card
from lowprec.models.checkpoint import default_checkpoint, load_checkpoint
from lowprec.models.corpus import Windows, load_held_out, windows
from lowprec.models.operands import LoneTensor, Operands, as_narrow, load_operands
from lowprec.scaling.block import Block
from lowprec.study.fate import value_histogram
from lowprec.study.model import QUANTIZED, Predictions, Quantized, compare_model, predict, ranked
from lowprec.study.products import blocks_of, compare_products, compare_tensors, qualified
from lowprec.study.rows import HistogramRow, ModelRow, ProductRow, TensorRow, TimingRow

WORKERS = 2
BASELINES = ("float32", "bf16")
RECIPES = (
    "deepseek_v3",
    "deepseek_v3_inference",
    "fp8_tensor",
    "mxfp4",
    "mxfp6",
    "mxfp8",
    "nvfp4",
)
"""What is compared unless recipes are named: a few of the catalogue, which takes hours in whole."""
BASELINE_LOSS = "bf16: held-out loss"
HISTOGRAM_LAYER = "layers.0.mlp.down"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How much of the held-out text a comparison reads.

    Attributes:
      name: `quick` or `full`.
      windows_per_document: windows scored of each report document.
      captured_windows: windows whose operands are captured.
      seed: of the bootstrap.
    """

    name: str
    windows_per_document: int
    captured_windows: int
    seed: int = 0


PRESETS = {
    "quick": Preset(name="quick", windows_per_document=1, captured_windows=2),
    "full": Preset(name="full", windows_per_document=64, captured_windows=4),
}


@dataclasses.dataclass
class Collected:
    """Finished rows, kept also when a run is interrupted."""

    products: list[ProductRow] = dataclasses.field(default_factory=list)
    tensors: list[TensorRow] = dataclasses.field(default_factory=list)
    cards: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    model: list[ModelRow] = dataclasses.field(default_factory=list)
    histogram: list[HistogramRow] = dataclasses.field(default_factory=list)
    timings: list[TimingRow] = dataclasses.field(default_factory=list)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Records how long a step took, compilation included."""
        start = time.perf_counter()
        yield
        self.timings.append(TimingRow(step=step, seconds=time.perf_counter() - start))


class LossResult(NamedTuple):
    """The predictions of one run of the model."""

    recipe: Recipe
    quantized: Quantized
    predictions: Predictions


class _Losses:
    """Pairs each run of the model with the baseline, whichever of the two ends first."""

    def __init__(self, recipes: list[str]) -> None:
        self._order = recipes
        self._baseline: Predictions | None = None
        self._waiting: list[LossResult] = []
        self._rows: dict[tuple[str, str], ModelRow] = {}

    def set_baseline(self, predictions: Predictions, seed: int) -> None:
        self._baseline = predictions
        for result in self._waiting:
            self.add(result, seed)
        self._waiting = []

    def add(self, result: LossResult, seed: int) -> None:
        if self._baseline is None:
            self._waiting.append(result)
            return
        row = compare_model(
            self._baseline, result.predictions, result.recipe, result.quantized, seed=seed
        )
        self._rows[result.recipe.name, result.quantized] = row

    def rows(self) -> list[ModelRow]:
        wanted = ((name, quantized) for name in self._order for quantized in QUANTIZED)
        return [self._rows[key] for key in wanted if key in self._rows]


Progress = Callable[[str, int, int], None]
"""Told what finished last, how many steps are done, and how many there are."""


def with_baselines(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The recipes with float32 and bf16 in front, whose errors are the floor of every figure."""
    named = [get_recipe(name) for name in BASELINES]
    return [*named, *(recipe for recipe in recipes if recipe not in named)]


def check_comparable(recipe: Recipe) -> None:
    """ValueError for a recipe that needs more than its operands, and what to call instead."""
    if recipe.stochastic:
        raise ValueError(
            f"recipe {recipe.name!r} rounds stochastically, which takes a key besides operands; "
            f"call lowprec.gemm with one"
        )
    if recipe.prepare is not None:
        raise ValueError(
            f"recipe {recipe.name!r} prepares its weight from calibration rows, which it takes "
            f"besides operands; call lowprec.study.prepared.compare_prepared"
        )
    if recipe.takes_history:
        raise ValueError(
            f"recipe {recipe.name!r} scales by the magnitudes of earlier steps, which it takes "
            f"besides operands; call lowprec.linear with an amax_history"
        )


def compare_captured(
    recipes: Sequence[Recipe], preset: Preset, into: Collected, progress: Progress
) -> list[Path]:
    """Compares recipes on the operands and the loss of the model under experiments/checkpoints.

    Rows arrive in `into` as steps finish and are put in order at the end. Returns the files read.
    """
    checkpoint = default_checkpoint()
    text_file = checkpoint.with_name("held_out.jsonl")
    params, config = load_checkpoint(checkpoint)
    documents = load_held_out(text_file, "report")
    with into.timed("capture"):
        text = _first_windows(windows(documents, config.context), preset.windows_per_document)
        tokens = jnp.asarray(text.tokens[: preset.captured_windows])
        layers = capture(params, tokens, config)
        operands = [
            Operands(x.layer, x=np.asarray(x.x), w=np.asarray(x.w), dy=np.asarray(x.dy))
            for x in layers
        ]
    recipes = with_baselines(recipes)
    steps: dict[str, Callable[[], Any]] = {"cards": lambda: _cards(operands, "captured")}
    steps["histogram"] = lambda: _histogram(operands, recipes)
    for recipe in recipes:
        steps[f"{recipe.name}: products"] = _products_step(operands, recipe, "captured")
    bf16 = get_recipe("bf16")
    scored = [recipe for recipe in recipes if recipe.name not in BASELINES]
    steps[BASELINE_LOSS] = lambda: predict(params, config, text, bf16, "both")
    for recipe in scored:
        for quantized in QUANTIZED:
            steps[f"{recipe.name}: held-out loss, {quantized} quantized"] = _loss_step(
                params, config, text, recipe, quantized
            )
    losses = _Losses([recipe.name for recipe in scored])
    for name, value in _run(steps, into, progress):
        if name == "cards":
            into.cards.extend(value)
        elif name == "histogram":
            into.histogram.extend(value)
        elif name == BASELINE_LOSS:
            losses.set_baseline(value, preset.seed)
        elif isinstance(value, LossResult):
            losses.add(value, preset.seed)
        else:
            into.products.extend(value)
        into.model = ranked(losses.rows())
    _in_order(into, [recipe.name for recipe in recipes])
    return [checkpoint, text_file]


def compare_files(
    files: Sequence[Path],
    recipes: Sequence[Recipe],
    into: Collected,
    progress: Progress,
    *,
    a: str | None = None,
    b: str | None = None,
) -> None:
    """Compares recipes on the products and lone tensors of the user's files."""
    loaded = [(path.name, load_operands(path, a=a, b=b)) for path in files]
    recipes = with_baselines(recipes)
    steps: dict[str, Callable[[], Any]] = {}
    for source, found in loaded:
        operands = [x for x in found if isinstance(x, Operands)]
        tensors = [x for x in found if isinstance(x, LoneTensor)]
        with into.timed(f"cards: {source}"):
            into.cards += _cards([*operands, *tensors], source)
        if not into.histogram:
            into.histogram = _histogram(operands, recipes)
        if operands:
            for recipe in recipes:
                steps[f"{recipe.name}: products of {source}"] = _products_step(
                    operands, recipe, source
                )
        if tensors:
            for target in blocks_of(recipes):
                steps[f"{target.name}: tensors of {source}"] = _tensors_step(
                    tensors, target, source
                )
    for _, rows in _run(steps, into, progress):
        for row in rows:
            if isinstance(row, ProductRow):
                into.products.append(row)
            else:
                into.tensors.append(row)
    _in_order(into, [recipe.name for recipe in recipes])


def _products_step(operands: list[Operands], recipe: Recipe, source: str) -> Callable[[], Any]:
    return lambda: list(compare_products(operands, recipe, source=source))


def _tensors_step(tensors: list[LoneTensor], target: Any, source: str) -> Callable[[], Any]:
    return lambda: list(compare_tensors(tensors, target, source=source))


def _loss_step(
    params: Any, config: Any, text: Windows, recipe: Recipe, quantized: Quantized
) -> Callable[[], LossResult]:
    return lambda: LossResult(recipe, quantized, predict(params, config, text, recipe, quantized))


def _run(
    steps: dict[str, Callable[[], Any]], into: Collected, progress: Progress
) -> Iterator[tuple[str, Any]]:
    """Runs the steps two at a time, since compiling uses one core, and yields them as they end."""
    progress("starting", 0, len(steps))
    pool = ThreadPoolExecutor(WORKERS)
    try:
        started: dict[Future, str] = {
            pool.submit(_timed, step): name for name, step in steps.items()
        }
        for done, future in enumerate(as_completed(started), start=1):
            value, seconds = future.result()
            into.timings.append(TimingRow(step=started[future], seconds=seconds))
            yield started[future], value
            progress(started[future], done, len(steps))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _timed(step: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return step(), time.perf_counter() - start


def _first_windows(text: Windows, count: int) -> Windows:
    """The first `count` windows of every document."""
    order = np.arange(text.document.size)
    first = np.searchsorted(text.document, text.document)
    kept = order - first < count
    return dataclasses.replace(
        text, tokens=text.tokens[kept], mask=text.mask[kept], document=text.document[kept]
    )


def _cards(found: Sequence[Operands | LoneTensor], source: str) -> list[dict[str, Any]]:
    rows = []
    for item in found:
        if isinstance(item, LoneTensor):
            members = {item.name: (item.x, -1)}
        else:
            # x and dy are contracted along their last axis in fprop and dgrad, w along its first.
            members = {
                f"{item.layer}.{name}": (value, axis)
                for name, value, axis in (("x", item.x, -1), ("w", item.w, 0), ("dy", item.dy, -1))
                if value is not None
            }
        for name, (value, axis) in members.items():
            columns = card(value, axis).to_dict()
            for key in ("shape", "dtype", "axis"):
                columns.pop(key)
            size = {"rows": value.shape[0], "columns": value.shape[1]}
            rows.append({"source": source, "tensor": name, **columns, **size})
    return rows


def _histogram(operands: Sequence[Operands], recipes: Sequence[Recipe]) -> list[HistogramRow]:
    """Where the scaled inputs of one layer fall on each block's values."""
    inputs = {layer.layer: layer.x for layer in operands if layer.x is not None}
    if not inputs:
        return []
    name = HISTOGRAM_LAYER if HISTOGRAM_LAYER in inputs else next(iter(inputs))
    x = as_narrow(inputs[name])
    return [
        HistogramRow(layer=name, operand="x", block=qualified(block), value=v, count=count)
        for block in blocks_of(recipes)
        if isinstance(block, Block)
        for v, count in value_histogram(x, block)
    ]


def _in_order(into: Collected, recipes: list[str]) -> None:
    """The order of the recipes as asked for, whatever order the steps ended in."""
    place = {f"recipe:{name}": index for index, name in enumerate(recipes)}
    into.products.sort(key=lambda row: (row.source, place[row.recipe]))
    into.tensors.sort(key=lambda row: (row.source, row.name, row.block))
    into.timings.sort(key=lambda row: row.step)
