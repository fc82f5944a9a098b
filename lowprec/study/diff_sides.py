"""A side of `lowprec diff` as it is spelt: a recipe, and what is changed in it."""

import dataclasses
import functools
import typing
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowprec.catalogue import unknown
from lowprec.engines.engine import get_engine
from lowprec.gemm.gemm import check_engine, gemm, summation
from lowprec.gemm.recipe import Promotion, Recipe, ScalePlace, get_recipe
from lowprec.kv import KVMethod, get_kv_method
from lowprec.models.checkpoints.architecture import Hooks
from lowprec.models.checkpoints.caches import cached_attention, cached_latent_attention
from lowprec.models.checkpoints.products import recipe_linear
from lowprec.models.transformer import NamedLinear
from lowprec.numerics.format import get_format
from lowprec.scaling.block import get_format_or_block

NEVER = "never"
"""The word for `promote_every`: all of K in the engine."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Side:
    """How one side computes what the other does too.

    Attributes:
      label: as it was spelt, one space between words.
      recipe: of every linear layer but the head, in the forward pass.
      method: of the KV cache; None attends to exact keys and values in float32.
      rows: how many tokens share a product (its M), as a server's batch has it; None for all. It
        tells where a scale spans all rows, or where `stream_k` deals the tiles of all rows.
    """

    label: str
    recipe: Recipe
    method: KVMethod | None = None
    rows: int | None = None


def read_side(text: str, argument: str = "A") -> Side:
    """A side as it is spelt: a recipe's name or path, then `key=value` with spaces between.

    The keys: `engine`, `a` and `b` (blocks or formats of the forward operands), `scales`,
    `promote_every` (or `never`), `promotion`, `order` (`sequential`, `split_k.<parts>`,
    `stream_k.<workers>`), `output`, in place of the recipe's; `kv`, a method of KV caches; and
    `rows`, how many tokens share a product.

    Args:
      text: such as `deepseek_v3 order=split_k.2 kv=fp8_token`.
      argument: what messages call it.

    Raises:
      ValueError: no recipe at the beginning, an unknown key or value, one that stands twice, or a
        combination that nothing can be computed with.

    Example:
      >>> side = read_side("deepseek_v3  order=split_k.2 kv=fp8_token")
      >>> side.label, side.recipe.order
      ('deepseek_v3 order=split_k.2 kv=fp8_token', 'split_k.2')
    """
    words = text.split()
    if not words or "=" in words[0]:
        raise ValueError(
            f"`{argument}` = {text!r}: begin with a recipe's name or path, such as "
            f"'deepseek_v3 order=split_k.2 kv=fp8_token'"
        )
    given: dict[str, str] = {}
    try:
        for word in words[1:]:
            key, equals, value = word.partition("=")
            _check_word(word, key, equals and value, given)
            given[key] = value
        changes = {key: _FINDERS[key](value) for key, value in given.items()}
        own = {key: changes.pop(key, None) for key in ("kv", "rows")}
        recipe = _changed(get_recipe(words[0]), changes)
    except (ValueError, TypeError) as error:
        raise ValueError(f"`{argument}` = {text!r}: {error}") from error
    return Side(label=" ".join(words), recipe=recipe, method=own["kv"], rows=own["rows"])


def _check_word(word: str, key: str, value: str, given: Mapping[str, str]) -> None:
    if key in ("split_k", "stream_k"):
        raise ValueError(f"{word!r}: {key} is an order; write order={key}.{value or '<parts>'}")
    if key not in _FINDERS:
        raise ValueError(f"{word!r}: {unknown('key', key, _FINDERS)}")
    if not value:
        raise ValueError(f"{word!r}: write {key}=VALUE, without spaces around the equals sign")
    if key in given:
        raise ValueError(f"{key} is given twice; leave one of them out")


def _count(key: str, value: str, *, never: bool = False) -> int | None:
    if never and value == NEVER:
        return None
    if not (value.isascii() and value.isdigit()) or int(value) < 1:
        beside = f", or {NEVER}" if never else ""
        raise ValueError(f"{key} = {value!r}; use a whole number of at least 1{beside}")
    return int(value)


def _one_of(key: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"{key} = {value!r}; use one of {', '.join(choices)}")
    return value


_FINDERS: Mapping[str, Callable[[str], Any]] = {
    "engine": get_engine,
    "a": get_format_or_block,
    "b": get_format_or_block,
    "scales": lambda value: _one_of("scales", value, typing.get_args(ScalePlace)),
    "promote_every": lambda value: _count("promote_every", value, never=True),
    "promotion": lambda value: _one_of("promotion", value, typing.get_args(Promotion)),
    "order": str,
    "output": get_format,
    "kv": get_kv_method,
    "rows": lambda value: _count("rows", value),
}


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe of the forward pass with what the side sets, where that can be computed."""
    if recipe.prepare is not None or recipe.takes_history:
        needs = "a prepared weight" if recipe.prepare is not None else "a history of magnitudes"
        raise ValueError(f"recipe {recipe.name!r} needs {needs}, which a side has no place for")
    recipe = recipe.in_role("fprop")
    operands = {name: changes.pop(name) for name in ("a", "b") if name in changes}
    if operands:
        pair = dataclasses.replace(recipe.fprop, **operands)
        # The gradients are not computed; theirs would have to fit the rest.
        changes |= {"fprop": pair, "dgrad": pair, "wgrad": pair}
    if changes:
        changes = {"dgrad": recipe.fprop, "wgrad": recipe.fprop} | changes
        try:
            recipe = dataclasses.replace(recipe, **changes)
        except ValueError as error:
            raise ValueError(f"{error}{_hint(changes)}") from error
    check_engine(recipe.engine)
    summation(recipe, "fprop")
    return recipe


def _hint(changes: Mapping[str, Any]) -> str:
    """How a recipe whose scales are applied at promotion can do without."""
    if "promote_every" not in changes or changes["promote_every"] is not None:
        return ""
    return (
        ": what never promotes has no place for scales of tiles along K; give operands whose "
        "scales span K, such as a=fp8_channel b=fp8_channel scales=output, or an engine that takes "
        "block scales"
    )


def side_linear(side: Side, *, seed: int) -> NamedLinear:
    """The product of any linear layer on one side, `rows` tokens at a time.

    Tokens are taken in the order of a text; a last product of fewer is filled up with zeros, which
    are never the largest of a tile. Stochastic rounding draws bits of its own for every product.
    """
    if side.rows is None:
        return recipe_linear(side.recipe, seed=seed)
    rows, recipe = side.rows, side.recipe

    def linear(name: str, x: jax.Array, w: jax.Array) -> jax.Array:
        key = None
        if recipe.stochastic:
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        y = _in_parts(x.reshape(-1, x.shape[-1]), w, key, recipe=recipe, rows=rows)
        return y.reshape(*x.shape[:-1], -1)

    return linear


@functools.partial(jax.jit, static_argnames=("recipe", "rows"))
def _in_parts(
    x: jax.Array, w: jax.Array, key: jax.Array | None, *, recipe: Recipe, rows: int
) -> jax.Array:
    """x (tokens, K) @ w (K, N) in float32, every so many rows a product of their own."""
    padded = jnp.pad(x, ((0, -x.shape[0] % rows), (0, 0))).reshape(-1, rows, x.shape[1])
    if key is None:
        parts = jax.lax.map(lambda part: gemm(part, w, recipe), padded)
    else:
        keys = jax.random.split(key, padded.shape[0])
        parts = jax.lax.map(lambda given: gemm(given[0], w, recipe, key=given[1]), (padded, keys))
    return parts.reshape(-1, w.shape[1])[: x.shape[0]].astype(jnp.float32)


def side_hooks(
    side: Side, methods: Sequence[KVMethod], *, seed: int, prompt: int, kept: float
) -> Hooks:
    """What a model is run with on one side.

    Args:
      side: which one.
      methods: one a layer, fitted where they are calibrated; empty without one.
      seed: of stochastic rounding.
      prompt, kept: how many first tokens methods that choose tokens choose from, and which share.
    """
    hooks = Hooks(linear=side_linear(side, seed=seed))
    if not methods:
        return hooks
    if methods[0].latent:
        return dataclasses.replace(hooks, latent_attention=cached_latent_attention(methods))
    attention = cached_attention(methods, prompt=prompt, kept=kept)
    return dataclasses.replace(hooks, attention=attention)
