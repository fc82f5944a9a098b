"""Captured operands against explicit gradients and against what the model multiplied."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.models.capture import (
    KeyValue,
    LayerOperands,
    capture,
    capture_key_values,
    inputs_and_gradients,
    output_zeros,
    perturbed_loss,
)
from lowprec.models.parameters import Parameters, TransformerConfig, linear_shapes
from lowprec.models.scoring import log_probabilities
from lowprec.models.transformer import forward, rotate, round_to_bfloat16
from tests.models.random_parameters import random_parameters

CONFIG = TransformerConfig(
    vocabulary=32, layers=2, width=16, heads=4, kv_heads=2, head_dim=4, hidden=24, context=32
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 9)), jnp.uint8)
MASK = jnp.asarray(np.random.default_rng(1).random((2, 8)) < 0.8)
PARAMS = jax.tree.map(jnp.asarray, random_parameters(CONFIG))
perturbed = jax.jit(perturbed_loss, static_argnums=4)


@pytest.fixture(scope="module")
def captured() -> list[LayerOperands]:
    return capture(PARAMS, TOKENS, CONFIG, mask=MASK)


@pytest.fixture(scope="module")
def key_values() -> list[KeyValue]:
    return capture_key_values(PARAMS, TOKENS[0], CONFIG)


def loss(params: Parameters) -> jax.Array:
    counted = jnp.where(MASK, log_probabilities(forward(params, TOKENS, CONFIG), TOKENS), 0.0)
    return -counted.sum() / MASK.sum(dtype=jnp.float32)


@pytest.fixture(scope="module")
def loss_and_gradients() -> tuple[jax.Array, Any]:
    """What autodiff gives for the weights themselves."""
    return jax.jit(jax.value_and_grad(loss))(PARAMS)


@pytest.fixture(scope="module")
def weight_gradients(loss_and_gradients: tuple[jax.Array, Any]) -> dict[str, np.ndarray]:
    return by_layer(loss_and_gradients[1])


def by_layer(params: Parameters) -> dict[str, np.ndarray]:
    """The weights, or their gradients, under the names that a capture uses."""
    found = {"head": np.asarray(params["head"])}
    for name in linear_shapes(CONFIG):
        group, weight = name.split(".")
        for layer in range(CONFIG.layers):
            found[f"layers.{layer}.{name}"] = np.asarray(params["layers"][group][weight][layer])
    return found


def test_every_linear_layer_is_there_with_its_shapes(captured: list[LayerOperands]) -> None:
    names = [f"layers.{layer}.{name}" for layer in range(2) for name in linear_shapes(CONFIG)]
    assert [operands.layer for operands in captured] == [*names, "head"]
    weights = by_layer(PARAMS)
    for operands in captured:
        rows, columns = weights[operands.layer].shape
        shapes = (operands.x.shape, operands.w.shape, operands.dy.shape)
        assert shapes == ((18, rows), (rows, columns), (18, columns))
        assert operands.x.dtype == operands.w.dtype == operands.dy.dtype == jnp.bfloat16


def test_no_operand_is_degenerate(captured: list[LayerOperands]) -> None:
    for operands in captured:
        for array in (operands.x, operands.w, operands.dy):
            values = np.asarray(array, np.float32)
            assert np.isfinite(values).all()
            assert len(np.unique(values)) > values.size / 4, operands.layer


@pytest.mark.slow
def test_x_transposed_times_dy_is_the_gradient_of_w(
    weight_gradients: dict[str, np.ndarray],
) -> None:
    """In float32, before the capture rounds dy."""
    inputs, gradient = inputs_and_gradients(PARAMS, TOKENS, MASK, CONFIG)
    expected = weight_gradients
    pairs: dict[str, tuple[Any, Any]] = {"head": (inputs["head"], gradient["head"])}
    for name in linear_shapes(CONFIG):
        for layer in range(CONFIG.layers):
            pairs[f"layers.{layer}.{name}"] = tuple(
                tree["layers"][name][layer] for tree in (inputs, gradient)
            )
    assert pairs.keys() == expected.keys()
    for name, (x, dy) in pairs.items():
        rows = np.asarray(round_to_bfloat16(x), np.float64).reshape(18, -1)
        product = rows.T @ np.asarray(dy, np.float64).reshape(18, -1)
        # The sum over 18 tokens is rounded to float32 by one side only.
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(product, expected[name], rtol=0, atol=2e-6 * scale)
        assert scale > 1e-5


def test_captured_dy_is_the_gradient_rounded_once(
    captured: list[LayerOperands], weight_gradients: dict[str, np.ndarray]
) -> None:
    for operands in captured:
        x, dy = np.asarray(operands.x, np.float64), np.asarray(operands.dy, np.float64)
        # Each of the 18 terms is off by at most 2^-8 of itself, half a unit of bfloat16.
        bound = 2**-7.99 * (np.abs(x).T @ np.abs(dy)) + 1e-9
        assert (np.abs(x.T @ dy - weight_gradients[operands.layer]) <= bound).all(), operands.layer


@pytest.mark.slow
def test_dy_of_the_head_agrees_with_finite_differences(captured: list[LayerOperands]) -> None:
    zeros = output_zeros(CONFIG, *TOKENS.shape)
    dy = np.asarray(captured[-1].dy, np.float32).reshape(2, 9, 32)
    row, t, element = 0, 3, int(np.abs(dy[0, 3]).argmax())
    losses = []
    for step in (0.25, -0.25):
        moved = zeros | {"head": zeros["head"].at[row, t, element].set(step)}
        losses.append(float(perturbed(moved, PARAMS, TOKENS, MASK, CONFIG)[0]))
    slope = (losses[0] - losses[1]) / 0.5
    # Central differences of a softmax: third derivative below one eighth, over 14 counted bytes.
    assert slope == pytest.approx(float(dy[row, t, element]), rel=0.02)


def test_the_head_of_a_masked_target_has_no_gradient(captured: list[LayerOperands]) -> None:
    dy = np.asarray(captured[-1].dy, np.float32).reshape(2, 9, 32)
    counted = np.pad(np.asarray(MASK), ((0, 0), (0, 1)))
    assert (dy[~counted] == 0).all() and (dy[counted] != 0).any(axis=1).all()


@pytest.mark.slow
def test_the_perturbed_model_is_the_model(loss_and_gradients: tuple[jax.Array, Any]) -> None:
    zeros = output_zeros(CONFIG, *TOKENS.shape)
    value, _ = perturbed(zeros, PARAMS, TOKENS, MASK, CONFIG)
    assert float(value) == pytest.approx(float(loss_and_gradients[0]), rel=1e-6)


def test_x_and_w_are_what_the_first_layer_multiplied(captured: list[LayerOperands]) -> None:
    stream = np.asarray(PARAMS["embedding"])[np.asarray(TOKENS)].reshape(18, -1)
    normed = stream / np.sqrt(np.mean(stream**2, axis=-1, keepdims=True) + CONFIG.norm_epsilon)
    for operands in captured[:3]:
        np.testing.assert_allclose(np.asarray(operands.x, np.float32), normed, rtol=2**-8)
    w = PARAMS["layers"]["attention"]["q"][0].astype(jnp.bfloat16)
    np.testing.assert_array_equal(captured[0].w, w)


def test_keys_and_values_are_the_outputs_of_their_layers(
    captured: list[LayerOperands], key_values: list[KeyValue]
) -> None:
    assert [entry.layer for entry in key_values] == ["layers.0", "layers.1"]
    products = {operands.layer: operands for operands in captured}
    for entry in key_values:
        for name, heads in (("k", entry.k_before_rope), ("v", entry.v)):
            operands = products[f"{entry.layer}.attention.{name}"]
            y = np.asarray(operands.x, np.float32)[:9] @ np.asarray(operands.w, np.float32)
            expected = y.reshape(9, 2, 4).swapaxes(0, 1)
            assert heads.dtype == jnp.bfloat16
            np.testing.assert_allclose(
                np.asarray(heads, np.float32), expected, rtol=2**-8, atol=1e-5
            )


def test_rope_turns_keys_and_keeps_the_first(key_values: list[KeyValue]) -> None:
    for entry in key_values:
        np.testing.assert_array_equal(entry.k[:, 0], entry.k_before_rope[:, 0])
        turned = rotate(entry.k_before_rope.astype(jnp.float32), CONFIG)
        # Both sides rounded from the same float32 keys: two half units of bfloat16 apart.
        largest = float(jnp.abs(turned).max())
        np.testing.assert_allclose(
            np.asarray(entry.k, np.float32), turned, rtol=0, atol=2**-7 * largest
        )
        assert (np.asarray(entry.k[:, 1:]) != np.asarray(entry.k_before_rope[:, 1:])).any()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`mask` must be .* shape \(2, 9\) for tokens \(2, 9\)"):
        capture(PARAMS, TOKENS, CONFIG, mask=jnp.ones((2, 9), bool))
    with pytest.raises(ValueError, match="at least 2 tokens"):
        capture(PARAMS, TOKENS[:, :1], CONFIG)
    with pytest.raises(TypeError, match="`tokens` must be integers"):
        capture(PARAMS, jnp.zeros((1, 4)), CONFIG)
    with pytest.raises(ValueError, match=r"one sequence \(tokens,\), got the shape \(2, 9\)"):
        capture_key_values(PARAMS, TOKENS, CONFIG)
