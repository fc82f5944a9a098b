"""Training with `linear`: a small network, and the transformer with keys and histories."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.gemm import Recipe, get_recipe, linear
from lowprec.models.parameters import TransformerConfig, linear_shapes
from lowprec.models.transformer import forward
from tests.gemm.linear_cases import KEY, on
from tests.helpers import assert_bits_equal
from tests.models.random_parameters import random_parameters

CONFIG = TransformerConfig(
    vocabulary=32, layers=2, width=32, heads=2, kv_heads=2, head_dim=16, hidden=48, context=32
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 16)), jnp.uint8)


def losses(recipe: Recipe, steps: int = 30) -> np.ndarray:
    """A network of two layers learns another one's outputs, by steps of one size."""
    keys = jax.random.split(KEY, 5)
    shapes = ((32, 64), (64, 16))
    start, teacher = (
        [
            jax.random.normal(key, shape) / shape[0] ** 0.5
            for key, shape in zip(jax.random.split(keys[i]), shapes, strict=True)
        ]
        for i in range(2)
    )
    x = jax.random.normal(keys[2], (96, 32))
    target = jnp.tanh(x @ teacher[0]) @ teacher[1]

    def loss(weights: Any, key: jax.Array) -> jax.Array:
        first, second = jax.random.split(key)
        hidden = jnp.tanh(linear(x, weights[0], recipe, key=first).astype(jnp.float32))
        y = linear(hidden, weights[1], recipe, key=second).astype(jnp.float32)
        return jnp.mean((y - target) ** 2)

    def step(weights: Any, key: jax.Array) -> Any:
        value, gradient = jax.value_and_grad(loss)(weights, key)
        return [w - 2.0 * g for w, g in zip(weights, gradient, strict=True)], value

    values = jax.jit(lambda w: jax.lax.scan(step, w, jax.random.split(keys[3], steps))[1])(start)
    return np.asarray(values)


@pytest.mark.slow
def test_a_small_network_learns_under_recipes() -> None:
    found = {
        name: losses(on(name, "native")) for name in ("bf16", "deepseek_v3", "mxfp4_stochastic")
    }
    for values in found.values():
        assert np.isfinite(values).all() and len(np.unique(values)) == 30
        assert values[-1] < 0.5 * values[0]
    gap = np.abs(found["deepseek_v3"] / found["bf16"] - 1)
    assert 0 < gap.max() < 0.05
    assert np.abs(found["mxfp4_stochastic"] / found["bf16"] - 1).max() > gap.max()


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return random_parameters(CONFIG)


def states(kind: str) -> dict[str, Any]:
    """A key, or a history, for each layer's weights."""
    names = linear_shapes(CONFIG)
    if kind == "histories":
        return {name: jnp.zeros((CONFIG.layers, 3, 4)) for name in names}
    return {
        name: jax.random.split(jax.random.fold_in(KEY, i), CONFIG.layers)
        for i, name in enumerate(names)
    }


@pytest.mark.slow
def test_each_product_of_the_transformer_is_handed_what_is_its(params: dict[str, Any]) -> None:
    names = linear_shapes(CONFIG)
    factors = {name: jnp.array([1.0 + i, 0.25], jnp.float32) for i, name in enumerate(names)}
    scaled = jax.tree.map(lambda array: array, params)
    for name in names:
        group, weight = name.split(".")
        scaled["layers"][group][weight] *= factors[name][:, None, None]
    product = lambda x, w: jnp.matmul(x, w, precision="highest")
    want = jax.jit(lambda p: forward(p, TOKENS, CONFIG, linear=product))(scaled)
    hook = lambda x, w, factor: product(x, w * factor)
    run = jax.jit(lambda p, given: forward(p, TOKENS, CONFIG, linear=hook, states=given))
    np.testing.assert_allclose(run(params, factors), want, rtol=1e-5, atol=1e-5)
    assert not np.allclose(want, run(params, {name: jnp.ones(2) for name in names}), atol=1e-2)


@pytest.mark.slow
def test_the_transformer_takes_the_gradient_of_its_hook(params: dict[str, Any]) -> None:
    recipe = get_recipe("bf16")

    def loss(params: Any, hook: Any) -> jax.Array:
        return jnp.mean(forward(params, TOKENS, CONFIG, linear=hook) ** 2)

    gradient = jax.jit(jax.grad(loss), static_argnames="hook")
    got = gradient(params, hook=lambda x, w: linear(x, w, recipe))
    plain = gradient(params, hook=None)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(plain), strict=True):
        assert one.dtype == jnp.float32 and np.any(one)
        scale = np.max(np.abs(other))
        np.testing.assert_allclose(one, other, rtol=0, atol=0.05 * scale)
        assert not np.array_equal(one, other)


@pytest.mark.slow
def test_the_transformer_hands_each_layer_its_history(params: dict[str, Any]) -> None:
    recipe = on("te_delayed", "native")

    def loss(params: Any, seen: Any) -> jax.Array:
        hook = lambda x, w, history: linear(x, w, recipe, amax_history=history)
        return jnp.mean(forward(params, TOKENS, CONFIG, linear=hook, states=seen) ** 2)

    step = jax.jit(jax.grad(loss, argnums=(0, 1)))
    seen = states("histories")
    gradient, seen = step(params, seen)
    gradient, seen = step(params, seen)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    for name in linear_shapes(CONFIG):
        group, weight = name.split(".")
        history = np.asarray(seen[name])
        largest = np.max(np.abs(params["layers"][group][weight]), axis=(1, 2))
        assert_bits_equal(history[:, 1, -1], largest)
        assert_bits_equal(history[:, 1, -2], largest)
        assert (history[:, :, -1] > 0).all() and (history[:, :, 1] == 0).all()


@pytest.mark.slow
def test_the_transformer_hands_each_layer_its_key(params: dict[str, Any]) -> None:
    recipe = on("mxfp4_stochastic", "native")

    def loss(embedding: jax.Array, keys: Any) -> jax.Array:
        hook = lambda x, w, key: linear(x, w, recipe, key=key)
        logits = forward(
            {**params, "embedding": embedding},
            TOKENS,
            CONFIG,
            linear=hook,
            states=keys,
            quantize_head=True,
        )
        return jnp.mean(logits**2)

    gradient = jax.jit(jax.grad(loss))
    given = {**states("keys"), "head": KEY}
    one = gradient(params["embedding"], given)
    assert_bits_equal(gradient(params["embedding"], given), one)
    assert np.isfinite(one).all() and np.any(one)
    for name in ("attention.q", "mlp.down", "head"):
        other = jax.random.fold_in(KEY, 99) if name == "head" else given[name][::-1]
        assert not np.array_equal(gradient(params["embedding"], {**given, name: other}), one)
