"""The model under a recipe: how much held-out loss it costs, paired with bf16 by document."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.engines import get_engine
from lowprec.gemm.gemm import gemm
from lowprec.gemm.operand import mean_amax
from lowprec.gemm.recipe import OperandPair, Recipe, get_recipe
from lowprec.models.corpus import Windows
from lowprec.models.transformer import TransformerConfig, forward
from lowprec.scaling.cast import cast
from lowprec.study.intervals import paired_interval, tied_ranks
from lowprec.study.rows import ModelRow

Quantized = Literal["weights", "activations", "both"]
QUANTIZED: tuple[Quantized, ...] = ("weights", "activations", "both")
BATCH = 14


class Predictions(NamedTuple):
    """What a model says of every byte to be predicted, flattened.

    Attributes:
      log_probabilities: (bytes, vocabulary) float32, natural.
      targets: (bytes,) the bytes that came.
      document: (bytes,) the document of each.
    """

    log_probabilities: NDArray
    targets: NDArray
    document: NDArray


def activations_only(recipe: Recipe) -> Recipe:
    """The recipe with weights left in bfloat16."""
    recipe = recipe.in_role("fprop")
    bf16 = get_recipe("bf16").fprop.b
    pair = dataclasses.replace(recipe.fprop, b=bf16, b_from=None, b_amax=None)
    # An engine of given formats does not take the weights as they are.
    engine = get_engine("native") if recipe.engine.inputs else recipe.engine
    return dataclasses.replace(recipe, fprop=pair, engine=engine)


def weights_as_given() -> Recipe:
    """The bf16 recipe for weights that are quantized already, and float32 therefore."""
    pair = OperandPair(a=get_recipe("bf16").fprop.a, b=get_recipe("float32").fprop.b)
    return dataclasses.replace(get_recipe("bf16"), fprop=pair)


def quantize_weights(params: Any, recipe: Recipe) -> Any:
    """The parameters with every layer's weights cast to what the recipe makes of them, float32."""

    target = recipe.fprop.b

    def one_layer(w: jax.Array) -> jax.Array:
        return cast(w, target, axis=-2, amax=mean_amax(w, target, -2))

    def one(path: Any, w: jax.Array) -> jax.Array:
        if path[-1].key == "norm":
            return w
        return jax.vmap(lambda w: one_layer(w.astype(jnp.float32)))(w)

    return {**params, "layers": jax.tree.map_with_path(one, params["layers"])}


def predict(
    params: Any, config: TransformerConfig, text: Windows, recipe: Recipe, quantized: Quantized
) -> Predictions:
    """Runs the model over the windows with every linear layer but the head under the recipe.

    `weights` multiplies bfloat16 inputs with quantized weights in float32; `activations` leaves the
    weights in bfloat16, and sums in float32 where the recipe's engine does not take them.
    """
    if quantized == "weights":
        params, recipe = quantize_weights(params, recipe), weights_as_given()
    elif quantized == "activations":
        recipe = activations_only(recipe)
    rows = []
    padded = -len(text.tokens) % BATCH
    tokens = np.pad(text.tokens, [(0, padded), (0, 0)])
    for start in range(0, len(tokens), BATCH):
        batch = jnp.asarray(tokens[start : start + BATCH])
        rows.append(np.asarray(_log_probabilities(params, batch, config, recipe)))
    every = np.concatenate(rows)[: len(text.tokens)]
    return Predictions(
        log_probabilities=every[:, :-1][text.mask],
        targets=text.tokens[:, 1:][text.mask],
        document=np.broadcast_to(text.document[:, None], text.mask.shape)[text.mask],
    )


@functools.partial(jax.jit, static_argnames=("config", "recipe"))
def _log_probabilities(
    params: Any, tokens: jax.Array, config: TransformerConfig, recipe: Recipe
) -> jax.Array:
    def linear(x: jax.Array, w: jax.Array) -> jax.Array:
        return gemm(x, w, recipe)

    logits = forward(params, tokens, config, linear=linear)
    return jax.nn.log_softmax(logits, axis=-1)


def compare_model(
    baseline: Predictions, other: Predictions, recipe: Recipe, quantized: Quantized, *, seed: int
) -> ModelRow:
    """The row of one recipe, its rank still open."""
    index = np.arange(baseline.targets.size)
    bits = [
        -p.log_probabilities[index, p.targets].astype(np.float64) / np.log(2.0)
        for p in (baseline, other)
    ]
    documents = int(baseline.document.max()) + 1
    weight = np.bincount(baseline.document, minlength=documents).astype(np.float64)
    difference = np.bincount(baseline.document, bits[1] - bits[0], minlength=documents)
    increase, low, high = paired_interval(difference, weight, seed=seed)
    p = baseline.log_probabilities.astype(np.float64)
    q = other.log_probabilities.astype(np.float64)
    divergence = np.sum(np.exp(p) * (p - q), axis=-1)
    flips = np.argmax(p, axis=-1) != np.argmax(q, axis=-1)
    return ModelRow(
        recipe=f"recipe:{recipe.name}",
        quantized=quantized,
        bits_per_byte=float(np.mean(bits[1])),
        increase=increase,
        low=low,
        high=high,
        kl_median=float(np.median(divergence)),
        kl_percentile_99=float(np.quantile(divergence, 0.99)),
        top1_flips=float(np.mean(flips)),
        documents=documents,
        bytes=int(weight.sum()),
        rank="",
    )


def ranked(rows: list[ModelRow]) -> list[ModelRow]:
    """Fills in the ranks among rows that quantize the same operands."""
    done = []
    for quantized in QUANTIZED:
        group = [row for row in rows if row.quantized == quantized]
        ranks = tied_ranks([(row.low, row.high) for row in group])
        for row, rank in zip(group, ranks, strict=True):
            done.append(dataclasses.replace(row, rank=rank))
    return done
