"""The passes of an evaluation: which product and which cache is quantized in which of them."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import jax
import numpy as np
from numpy.typing import NDArray

from lowprec.gemm.recipe import Recipe
from lowprec.kv import KVMethod
from lowprec.models.checkpoints.architecture import Hooks
from lowprec.models.checkpoints.caches import (
    FittingHooks,
    cached_attention,
    cached_latent_attention,
)
from lowprec.models.checkpoints.entries import Checkpoint
from lowprec.models.checkpoints.prepared import PreparedLinear
from lowprec.models.checkpoints.products import mixed_linear, recipe_linear
from lowprec.models.checkpoints.run import run_layers
from lowprec.models.transformer import NamedLinear

BASELINE, ALL, HEAD = "recipe:bf16", "all", "head"
PROMPT_SHARE = 0.5
"""Of a window, the tokens that methods which choose some choose from."""
Sensitivity = Literal["none", "layers", "linear"]
"""What is quantized alone, besides everything at once: nothing, a layer of the model with all that
is in it, or one linear layer. All experts of a layer count as one."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Pass:
    """One way to run the model.

    Attributes:
      what: `recipe:NAME` or `advice:NAME`, `kv:NAME`, or two with a space between.
      layer: what is quantized of it: `all`, `layers.3`, `layers.3.mlp.up` or `head`.
      hooks: of each layer.
      head: the product of the output head.
    """

    what: str
    layer: str
    hooks: Sequence[Hooks]
    head: NamedLinear


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Wanted:
    """Which linear layers recipes quantize.

    Attributes:
      patterns: as a shell has them; none for all but the head.

    Example:
      >>> Wanted(patterns=()).has("head"), Wanted(patterns=("*.mlp.*", "head")).has("head")
      (False, True)
    """

    patterns: Sequence[str] = ()

    def has(self, name: str) -> bool:
        """Whether a linear layer is among them."""
        if not self.patterns:
            return name != HEAD
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

    def only(self, inside: NamedLinear, outside: NamedLinear) -> NamedLinear:
        """The product of these layers, and that of all others."""

        def linear(name: str, x: jax.Array, w: jax.Array) -> jax.Array:
            return (inside if self.has(name) else outside)(name, x, w)

        return linear


def base_hooks() -> Hooks:
    """Those of the model that all are compared with."""
    return Hooks(linear=recipe_linear("bf16"))


def linear_names(checkpoint: Checkpoint, tokens: np.ndarray) -> list[list[str]]:
    """The linear layers of each layer in the order of their products, and those of the head.

    Experts are one: `layers.3.mlp.experts.*.up` is the name of all of a layer's.

    Args:
      checkpoint: the model, which runs once.
      tokens: (batch, tokens), as few as can be.
    """
    base, found = base_hooks().linear, list[list[str]]()

    def linear(name: str, x: jax.Array, w: jax.Array) -> jax.Array:
        own = re.sub(r"\.experts\.\d+\.", ".experts.*.", name)
        if own not in found[-1]:
            found[-1].append(own)
        return base(name, x, w)

    stream = checkpoint.architecture.embed(checkpoint.weights, tokens)
    for number in range(checkpoint.architecture.layers):
        found.append([])
        hooks = Hooks(linear=linear)
        stream = checkpoint.architecture.layer(checkpoint.weights, number, stream, hooks)
    found.append([])
    checkpoint.architecture.head(checkpoint.weights)(stream, linear)
    return found


def fitted_methods(
    checkpoint: Checkpoint, tokens: np.ndarray, methods: Sequence[KVMethod]
) -> dict[str, list[KVMethod]]:
    """Each method by name, one a layer, fitted to tokens (batch, tokens) where it is calibrated."""
    layers, base = checkpoint.architecture.layers, base_hooks()
    fitting = {x.name: FittingHooks(x) for x in methods if x.spec.calibrated}
    if fitting:
        passes = {name: [x.hooks(base)] * layers for name, x in fitting.items()}
        run_layers(checkpoint, tokens, passes)
    return {x.name: fitting[x.name].methods if x.name in fitting else [x] * layers for x in methods}


def passes(
    checkpoint: Checkpoint,
    recipes: Sequence[Recipe],
    mixtures: Mapping[str, Mapping[str, Recipe]],
    methods: Mapping[str, Sequence[KVMethod]],
    *,
    wanted: Wanted,
    sensitivity: Sensitivity,
    names: Sequence[Sequence[str]],
    inputs: Mapping[str, NDArray],
    prompt: int,
    kept: float,
    seed: int,
) -> Iterator[Pass]:
    """bf16, everything that is tried, every pair of a recipe and a method, and parts alone.

    Args:
      checkpoint: the model.
      recipes: what to multiply with.
      mixtures: by name, recipes of linear layers by theirs; bf16 multiplies the others.
      methods: by name, one a layer, as `fitted_methods` gives them.
      wanted: which linear layers the recipes quantize.
      sensitivity: what is quantized alone, too.
      names: as `linear_names` gives them, where `sensitivity` is "linear".
      inputs: what recipes that prepare weights are fitted to, as
        `lowprec.models.checkpoints.prepared.linear_inputs` gives it.
      prompt, kept: as in `lowprec.models.checkpoints.caches.cached_attention`.
      seed: of stochastic rounding.
    """
    layers, base = checkpoint.architecture.layers, base_hooks()
    linear = {f"recipe:{x.name}": _linear(x, inputs, seed) for x in recipes}
    linear.pop(BASELINE, None)
    caches = {
        f"kv:{name}": _cached(base, own, prompt=prompt, kept=kept) for name, own in methods.items()
    }
    product = {what: wanted.only(x, base.linear) for what, x in linear.items()}
    mixed = {f"advice:{name}": mixed_linear(own, seed=seed) for name, own in mixtures.items()}
    yield Pass(what=BASELINE, layer=ALL, hooks=[base] * layers, head=base.linear)
    for what, own in (product | mixed).items():
        hooks = dataclasses.replace(base, linear=own)
        yield Pass(what=what, layer=ALL, hooks=[hooks] * layers, head=own)
    for name, hooks in caches.items():
        yield Pass(what=name, layer=ALL, hooks=[hooks] * layers, head=base.linear)
    for (name, cached), (what, own) in itertools.product(caches.items(), (product | mixed).items()):
        hooks = dataclasses.replace(cached, linear=own)
        yield Pass(what=f"{what} {name}", layer=ALL, hooks=[hooks] * layers, head=own)
    for what, own in product.items():
        yield from _recipe_alone(what, own, base, layers, wanted, sensitivity, names)
    if sensitivity != "none":
        for name, hooks in caches.items():
            yield from (_alone(name, f"layers.{n}", n, hooks, base, layers) for n in range(layers))


def _linear(recipe: Recipe, inputs: Mapping[str, NDArray], seed: int) -> NamedLinear:
    if recipe.prepare is None:
        return recipe_linear(recipe, seed=seed)
    return PreparedLinear(recipe, inputs, seed=seed).linear


def fitted(recipe: Recipe) -> bool:
    """Whether a recipe's preparation is fitted to inputs of the layer."""
    return recipe.prepare is not None and recipe.prepare.fitted


def _recipe_alone(
    what: str,
    product: NamedLinear,
    base: Hooks,
    layers: int,
    wanted: Wanted,
    sensitivity: Sensitivity,
    names: Sequence[Sequence[str]],
) -> Iterator[Pass]:
    """A recipe in one layer at a time, and in the head where that is wanted."""
    if sensitivity == "none":
        return
    if sensitivity == "layers":
        hooks = dataclasses.replace(base, linear=product)
        yield from (_alone(what, f"layers.{n}", n, hooks, base, layers) for n in range(layers))
    else:
        for number, name in _wanted_names(names[:layers], wanted):
            single = Wanted(patterns=[name]).only(product, base.linear)
            hooks = dataclasses.replace(base, linear=single)
            yield _alone(what, name, number, hooks, base, layers)
    if wanted.has(HEAD):
        yield Pass(what=what, layer=HEAD, hooks=[base] * layers, head=product)


def _wanted_names(names: Sequence[Sequence[str]], wanted: Wanted) -> Iterator[tuple[int, str]]:
    """Linear layers that a recipe would quantize, each with its layer's number."""
    for number, own in enumerate(names):
        yield from ((number, name) for name in own if wanted.has(name))


def _alone(what: str, layer: str, number: int, hooks: Hooks, base: Hooks, layers: int) -> Pass:
    own = [hooks if n == number else base for n in range(layers)]
    return Pass(what=what, layer=layer, hooks=own, head=base.linear)


def _cached(base: Hooks, methods: Sequence[KVMethod], *, prompt: int, kept: float) -> Hooks:
    if methods[0].latent:
        return dataclasses.replace(base, latent_attention=cached_latent_attention(methods))
    attention = cached_attention(methods, prompt=prompt, kept=kept)
    return dataclasses.replace(base, attention=attention)
