"""The transformer against a plain NumPy one, and the promises of its hook."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.models import transformer
from lowprec.models.parameters import TransformerConfig, linear_shapes
from lowprec.models.transformer import forward
from tests.models.random_parameters import random_parameters

CONFIG = TransformerConfig(
    vocabulary=32, layers=2, width=16, heads=4, kv_heads=2, head_dim=4, hidden=24, context=160
)
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 12)).astype(np.uint8)


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return random_parameters(CONFIG)


def reference_rotate(x: np.ndarray) -> np.ndarray:
    """RoPE as multiplication by complex numbers, x (tokens, head_dim)."""
    half = CONFIG.head_dim // 2
    pairs = x[:, :half] + 1j * x[:, half:]
    angle = [
        [position / CONFIG.rope_theta ** (2 * i / CONFIG.head_dim) for i in range(half)]
        for position in range(len(x))
    ]
    turned = pairs * np.exp(1j * np.array(angle))
    return np.concatenate([turned.real, turned.imag], axis=1)


def reference_norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + CONFIG.norm_epsilon) * gain


def reference_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One query at a time, one head at a time; (tokens, heads * head_dim)."""
    dim, out = CONFIG.head_dim, np.zeros_like(q)
    for head in range(CONFIG.heads):
        shared = head // CONFIG.query_groups
        queries = reference_rotate(q[:, head * dim : (head + 1) * dim])
        keys = reference_rotate(k[:, shared * dim : (shared + 1) * dim])
        for t in range(len(q)):
            scores = np.exp(keys[: t + 1] @ queries[t] / np.sqrt(dim))
            values = v[: t + 1, shared * dim : (shared + 1) * dim]
            out[t, head * dim : (head + 1) * dim] = scores @ values / scores.sum()
    return out


def reference_forward(params: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    """Float64 logits of one sequence (tokens,), no rounding of operands."""
    params = jax.tree.map(lambda array: np.asarray(array, np.float64), params)
    stream = params["embedding"][tokens]
    for layer in range(CONFIG.layers):
        heads, mlp = (
            {name: array[layer] for name, array in params["layers"][group].items()}
            for group in ("attention", "mlp")
        )
        x = reference_norm(stream, heads["norm"])
        mixed = reference_attention(x @ heads["q"], x @ heads["k"], x @ heads["v"])
        stream = stream + mixed @ heads["o"]
        x = reference_norm(stream, mlp["norm"])
        gate = x @ mlp["gate"]
        stream = stream + (gate / (1 + np.exp(-gate)) * (x @ mlp["up"])) @ mlp["down"]
    return reference_norm(stream, params["final_norm"]) @ params["head"]


def exact(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.matmul(x, w, precision=jax.lax.Precision.HIGHEST)


def run(params: dict[str, Any], tokens: np.ndarray = TOKENS, **options: Any) -> np.ndarray:
    """Compiled logits; options are those of `forward`."""
    compiled = jax.jit(forward, static_argnames=("config", "linear", "quantize_head"))
    return np.asarray(compiled(params, jnp.asarray(tokens), config=CONFIG, **options))


def test_forward_agrees_with_a_plain_numpy_transformer(params: dict[str, Any]) -> None:
    logits = run(params, linear=exact, quantize_head=True)
    expected = np.stack([reference_forward(params, row) for row in TOKENS])
    # Float32 against float64: a few hundred roundings of 2^-24 on logits of order one.
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert np.std(expected) > 0.1


def test_blocks_of_queries_do_not_change_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    q, k, v = (random.normal(size=(2, n, 11, 4)).astype(np.float32) for n in (4, 2, 2))
    whole = jax.jit(lambda *heads: transformer.attention(*heads))(q, k, v)
    monkeypatch.setattr(transformer, "_QUERY_BLOCK", 3)
    blocks = jax.jit(lambda *heads: transformer.attention(*heads))(q, k, v)
    np.testing.assert_allclose(whole, blocks, atol=1e-6)


@pytest.mark.slow
def test_jit_gives_the_same_logits(params: dict[str, Any]) -> None:
    eager = forward(params, jnp.asarray(TOKENS), CONFIG)
    # Not bitwise: XLA may fuse the norm and the sums around the scan differently.
    np.testing.assert_allclose(run(params), eager, atol=1e-5)


def test_a_later_token_changes_no_earlier_logits(params: dict[str, Any]) -> None:
    changed = TOKENS.copy()
    changed[:, 7] = (changed[:, 7] + 1) % CONFIG.vocabulary
    before, after = run(params), run(params, changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(axis=(0, 2)).all()


def test_default_linear_rounds_operands_to_bfloat16(params: dict[str, Any]) -> None:
    def rounded(x: jax.Array, w: jax.Array) -> jax.Array:
        return exact(*(array.astype(jnp.bfloat16).astype(jnp.float32) for array in (x, w)))

    default = run(params)
    np.testing.assert_allclose(default, run(params, linear=rounded, quantize_head=True), atol=2e-5)
    unrounded = run(params, linear=exact, quantize_head=True)
    assert np.abs(default - unrounded).max() > 1e-3


def test_rounding_is_nearest_even_and_passes_its_gradient() -> None:
    # 1 + 2^-8 is halfway between two bfloat16 values and 1 + 3 * 2^-8 as well.
    x = jnp.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 3.0], jnp.float32)
    rounded = transformer.round_to_bfloat16(x)
    np.testing.assert_array_equal(rounded, [1.0, 1 + 4 * 2**-8, -1.0, 3.0])
    gradient = jax.grad(lambda x: jnp.sum(transformer.round_to_bfloat16(x) * x[::-1]))(x)
    np.testing.assert_array_equal(gradient, x[::-1] + rounded[::-1])


@pytest.mark.parametrize("quantize_head", [False, True])
def test_the_hook_sees_every_linear_layer(params: dict[str, Any], quantize_head: bool) -> None:
    seen = []

    def linear(x: jax.Array, w: jax.Array) -> jax.Array:
        seen.append((x.shape, w.shape))
        return exact(x, w).astype(jnp.bfloat16)

    logits = run(params, linear=linear, quantize_head=quantize_head)
    shapes = list(linear_shapes(CONFIG).values())
    shapes += [params["head"].shape] * quantize_head
    # The body of the scan may be traced more than once, always whole.
    assert seen[-len(shapes) :] == [((2, 12, w[0]), w) for w in shapes]
    assert logits.dtype == jnp.float32


@pytest.mark.slow
def test_a_bfloat16_checkpoint_gives_what_its_float32_copy_gives(params: dict[str, Any]) -> None:
    stored = jax.tree.map(lambda array: array.astype(jnp.bfloat16), params)
    copy = jax.tree.map(lambda array: array.astype(jnp.float32), stored)
    np.testing.assert_array_equal(run(stored), run(copy))


@pytest.mark.parametrize(
    ("tokens", "kind", "text"),
    [
        (jnp.zeros((1, 4)), TypeError, "`tokens` must be integers, got float32"),
        (jnp.zeros(4, jnp.uint8), ValueError, "got the shape (4,)"),
        (
            jnp.zeros((1, 161), jnp.uint8),
            ValueError,
            "with 1 to 160 tokens, got the shape (1, 161)",
        ),
        (jnp.zeros((1, 0), jnp.uint8), ValueError, "got the shape (1, 0)"),
    ],
)
def test_forward_refuses(
    params: dict[str, Any], tokens: jax.Array, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind) as caught:
        forward(params, tokens, CONFIG)
    assert text in str(caught.value)
