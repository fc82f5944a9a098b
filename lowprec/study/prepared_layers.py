"""The small model's layers for a comparison of preparations, and the recipes that are compared."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.engines import get_engine
from lowprec.gemm.recipe import Recipe, get_recipe
from lowprec.models.capture import output_zeros, perturbed_loss
from lowprec.models.checkpoint import default_checkpoint, load_checkpoint
from lowprec.models.corpus import Windows, load_held_out, windows
from lowprec.models.parameters import Parameters, TransformerConfig
from lowprec.study.prepared import GainRow, PreparedRow, Sample, compare_prepared, gains

FITTED_ON, REPORTED_ON = "calibrate", "report"
"""The parts of the held-out text that preparations are fitted to, and reported on."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PreparedLayer:
    """One linear layer.

    Attributes:
      name: such as `layers.0.mlp.down`.
      w: (K, N) bfloat16, its weight.
      calibration, report: its inputs (tokens, K) bfloat16 in documents of the two parts.
    """

    name: str
    w: NDArray
    calibration: Sample
    report: Sample


def captured_layers(
    calibration_windows: int, report_windows: int, prefixes: Sequence[str] = ("",)
) -> list[PreparedLayer]:
    """The linear layers of the stored model whose names have one of the prefixes."""
    checkpoint = default_checkpoint()
    params, shape = load_checkpoint(checkpoint)
    inputs: dict[str, dict[str, Sample]] = {FITTED_ON: {}, REPORTED_ON: {}}
    for part, count in ((FITTED_ON, calibration_windows), (REPORTED_ON, report_windows)):
        documents = load_held_out(checkpoint.with_name("held_out.jsonl"), part)
        text = windows(documents, shape.context)
        chosen = whole_windows(text, count)
        names = tuple(sorted({documents[i][0] for i in text.document[chosen]}))
        for name, x in layer_inputs(params, text.tokens[chosen], shape).items():
            inputs[part][name] = Sample(x=x, documents=names)
    return [
        PreparedLayer(
            name=name,
            w=np.asarray(_weight(params, name).astype(jnp.bfloat16)),
            calibration=calibration,
            report=inputs[REPORTED_ON][name],
        )
        for name, calibration in inputs[FITTED_ON].items()
        if name.startswith(tuple(prefixes))
    ]


def layer_inputs(
    params: Parameters, tokens: NDArray, config: TransformerConfig
) -> dict[str, NDArray]:
    """What every linear layer multiplies, (tokens, in) bfloat16 by name.

    The same as `lowprec.models.capture.capture` has, without the gradients.
    """
    text = jnp.asarray(tokens)
    found = _inputs(params, text, config)
    flat = {
        f"layers.{layer}.{name}": x[layer]
        for layer in range(config.layers)
        for name, x in found["layers"].items()
    } | {"head": found["head"]}
    return {name: np.asarray(x).reshape(-1, x.shape[-1]) for name, x in flat.items()}


@functools.partial(jax.jit, static_argnames="config")
def _inputs(params: Parameters, tokens: jax.Array, config: TransformerConfig) -> dict[str, Any]:
    zeros = output_zeros(config, *tokens.shape)
    mask = jnp.ones((tokens.shape[0], tokens.shape[1] - 1), bool)
    _, inputs = perturbed_loss(zeros, params, tokens, mask, config)
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), inputs)


def _weight(params: Parameters, name: str) -> jax.Array:
    """The weight of a layer by its name."""
    if name == "head":
        return params["head"]
    _, layer, group, weight = name.split(".")
    return params["layers"][group][weight][int(layer)]


def whole_windows(text: Windows, count: int) -> NDArray[np.intp]:
    """The places of so many windows without padding, the first of every document first."""
    whole = np.flatnonzero(text.mask.all(axis=1))
    first = np.unique(text.document[whole], return_index=True)[1]
    rest = np.setdiff1d(np.arange(whole.size), first)
    return whole[np.concatenate([first, rest])[:count]]


def variants(
    base: str, donors: Sequence[str], seeds: Sequence[int], engine: str
) -> Iterator[Recipe]:
    """A recipe summed by an engine, and with the preparations of others put into it.

    A random rotation comes once with every seed, under one name.

    Raises:
      ValueError: a donor has no preparation.

    Example:
      >>> [recipe.name for recipe in variants("mxfp4", ["gptq_mxfp4"], [0], "native")]
      ['mxfp4', 'mxfp4 + gptq_mxfp4']
    """
    plain = dataclasses.replace(get_recipe(base), engine=get_engine(engine))
    yield plain
    for donor in donors:
        steps = get_recipe(donor).prepare
        if steps is None:
            raise ValueError(f"recipe {donor!r} has no preparation to put into {base!r}")
        name = f"{base} + {donor}"
        if steps.rotation is None or steps.rotation.seed is None:
            yield dataclasses.replace(plain, name=name, prepare=steps)
            continue
        for seed in seeds:
            rotation = dataclasses.replace(steps.rotation, seed=seed)
            turned = dataclasses.replace(steps, rotation=rotation)
            yield dataclasses.replace(plain, name=name, prepare=turned)


def layer_rows(
    layers: Sequence[PreparedLayer], recipe: Recipe, *, in_sample: bool
) -> list[PreparedRow]:
    """A recipe's product on every layer, each prepared on its own calibration rows.

    In sample, what it was fitted to is what is reported, and the rows say so.
    """
    return [
        compare_prepared(
            layer.calibration,
            layer.calibration if in_sample else layer.report,
            layer.w,
            recipe,
            layer=layer.name,
            source="captured",
            in_sample=in_sample,
        )
        for layer in layers
    ]


def gain_rows(
    rows: Sequence[PreparedRow], base: str, donors: Sequence[str], *, seed: int
) -> list[GainRow]:
    """What each preparation keeps over the recipe without, paired by layer."""
    plain = f"recipe:{base}"
    return [gains(rows, plain, f"{plain} + {donor}", seed=seed) for donor in donors]
