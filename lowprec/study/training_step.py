"""One step of training under a recipe: loss, gradient, Adam; a pure function of its arguments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.gemm.linear import linear
from lowprec.gemm.recipe import Recipe
from lowprec.models.parameters import Parameters, TransformerConfig, init, linear_shapes
from lowprec.models.scoring import bits_per_byte, log_probabilities
from lowprec.models.transformer import StatefulLinear, forward
from lowprec.study.training_config import Adam, TrainingConfig


class State(NamedTuple):
    """All that the next step follows from, beside its number, its seed and the text.

    Attributes:
      params: float32, as `init` makes them.
      first, second: Adam's moments of the gradient.
      histories: of delayed scaling, by weight, (layers, 3, length); empty for other recipes.
    """

    params: Parameters
    first: Parameters
    second: Parameters
    histories: dict[str, jax.Array]


Step = Callable[[State, jax.Array, jax.Array, jax.Array], tuple[jax.Array, State]]
"""State, tokens (batch, length), seed and number of the step, uint32, to the loss and the state."""


def start(config: TrainingConfig, recipe: Recipe, seed: int) -> State:
    """The state before the first step: the same parameters under every recipe."""
    params = init(jax.random.key(seed), config.model)
    zeros = jax.tree.map(jnp.zeros_like, params)
    shape = (config.model.layers, 3, config.history)
    names = linear_shapes(config.model) if recipe.takes_history else {}
    return State(params, zeros, zeros, {name: jnp.zeros(shape, jnp.float32) for name in names})


def batch_of(text: np.ndarray, config: TrainingConfig, seed: int, step: int) -> np.ndarray:
    """The windows of a step, uint8 (batch, context): the same under every recipe."""
    random = np.random.default_rng((seed, step))
    starts = random.integers(0, len(text) - config.model.context, config.batch)
    return text[starts[:, None] + np.arange(config.model.context)]


def hook(recipe: Recipe) -> StatefulLinear:
    """`lowprec.linear` with what a weight has beside it: a key, a history, or None for each."""
    return lambda x, w, beside: linear(x, w, recipe, key=beside[0], amax_history=beside[1])


def beside(
    config: TransformerConfig, recipe: Recipe, histories: dict[str, jax.Array], key: jax.Array
) -> dict[str, Any]:
    """What each weight's product is handed: a key for each layer, its histories, or None."""
    found = {}
    for number, name in enumerate(linear_shapes(config)):
        keys = None
        if recipe.stochastic:
            keys = jax.random.split(jax.random.fold_in(key, number), config.layers)
        found[name] = keys, histories.get(name)
    return found


def key_of(seed: jax.Array, step: jax.Array) -> jax.Array:
    """The key of a step; nothing else is carried from step to step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), seed), step)


def loss_of(
    params: Parameters,
    histories: dict[str, jax.Array],
    tokens: jax.Array,
    key: jax.Array,
    config: TransformerConfig,
    recipe: Recipe,
) -> jax.Array:
    """Mean bits per byte of windows; the gradient of the histories is the histories after it."""
    states = beside(config, recipe, histories, key)
    logits = forward(params, tokens, config, linear=hook(recipe), states=states)
    return bits_per_byte(log_probabilities(logits, tokens))


def make_step(config: TrainingConfig, recipe: Recipe) -> Step:
    """A step under a recipe, to be compiled."""

    def step(
        state: State, tokens: jax.Array, seed: jax.Array, number: jax.Array
    ) -> tuple[jax.Array, State]:
        gradient = jax.value_and_grad(loss_of, argnums=(0, 1))
        loss, (slopes, histories) = gradient(
            state.params, state.histories, tokens, key_of(seed, number), config.model, recipe
        )
        speed = rate(number, config.optimizer, config.steps)
        params, first, second = moved(slopes, state, number, config.optimizer, speed)
        return loss, State(params, first, second, histories)

    return step


def rate(number: jax.Array, adam: Adam, steps: int) -> jax.Array:
    """The learning rate of a step, counted from zero: a line up, then half a cosine down.

    >>> method = Adam(learning_rate=1.0, final_fraction=0.1, warmup_steps=2, beta1=0.9,
    ...     beta2=0.95, epsilon=1e-8, clip=1.0)
    >>> [round(float(rate(jnp.uint32(i), method, 6)), 3) for i in (0, 1, 5)]
    [0.5, 1.0, 0.1]
    """
    done = number.astype(jnp.float32) + 1
    progress = jnp.clip((done - adam.warmup_steps) / max(steps - adam.warmup_steps, 1), 0, 1)
    cosine = adam.final_fraction + (1 - adam.final_fraction) * (1 + jnp.cos(jnp.pi * progress)) / 2
    return adam.learning_rate * jnp.minimum(done / max(adam.warmup_steps, 1), 1.0) * cosine


def moved(
    slopes: Parameters, state: State, number: jax.Array, adam: Adam, learning_rate: jax.Array
) -> tuple[Parameters, Parameters, Parameters]:
    """Parameters and both moments after a step of Adam; the gradient's norm is clipped first."""
    # Not optax: it would be needed by whatever imports this, and its moments and clipped gradients
    # differ from these in their last bits, so that stored runs would not go on to the same ones.
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(slopes)))
    factor = jnp.minimum(1.0, adam.clip / jnp.maximum(norm, 1e-30))
    count = number.astype(jnp.float32) + 1
    unbias1, unbias2 = 1 - adam.beta1**count, 1 - adam.beta2**count

    def one(w: jax.Array, g: jax.Array, first: jax.Array, second: jax.Array) -> Any:
        g = g * factor
        first = adam.beta1 * first + (1 - adam.beta1) * g
        second = adam.beta2 * second + (1 - adam.beta2) * g * g
        move = (first / unbias1) / (jnp.sqrt(second / unbias2) + adam.epsilon)
        return w - learning_rate * move, first, second

    each = jax.tree.map(one, state.params, slopes, state.first, state.second)
    parts = jax.tree.transpose(jax.tree.structure(slopes), jax.tree.structure((0, 0, 0)), each)
    return parts[0], parts[1], parts[2]
