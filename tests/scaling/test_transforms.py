"""Transforms against exact arithmetic, their inverses, and what a quantizer does with them."""

import dataclasses
import re
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowprec as lp
from lowprec.numerics import decode
from lowprec.scaling import get_block, quantize, transforms, transforms_oracle
from lowprec.scaling.codings import Transform
from tests.helpers import STRICT_SLOW, UInts, as_bits, assert_bits_equal, floats, random_words

pytestmark = pytest.mark.slow

ROWS, COLUMNS = 6, 32
SIGNS = np.where(np.random.default_rng(0).random(16) < 0.5, -1.0, 1.0)
SMOOTHING = np.exp(np.random.default_rng(1).normal(size=COLUMNS)).astype(np.float32)
APPLY = jax.jit(transforms.apply, static_argnums=(1, 2))
UNDO = jax.jit(transforms.undo, static_argnums=(1, 2))
TRANSFORMS: dict[str, tuple[Transform, Any]] = {
    "hadamard": (Transform(kind="hadamard", size=32), None),
    "signs": (Transform(kind="hadamard", size=16, signs="given"), SIGNS),
    "bfloat16": (get_block("nvfp4_rht16").transform or Transform(kind="mean"), None),
    "smoothing": (Transform(kind="smoothing"), SMOOTHING),
    "inverse": (Transform(kind="smoothing", inverse=True, output="float16"), SMOOTHING),
    "mean": (Transform(kind="mean"), None),
}


def numbers(kind: str) -> UInts:
    """float32 bits: sizes that cancel, subnormals, or everything that is finite and not huge."""
    words = random_words(ROWS * COLUMNS, 3).reshape(ROWS, COLUMNS)
    if kind == "tiny":
        return words & np.uint32(0x80FFFFFF)
    if kind == "any":
        return words & np.uint32(0xBFFFFFFF)
    near = (words & np.uint32(0x80FFFFFF)) | np.uint32(0x3F000000)
    near[:, 1::4] = near[:, ::4] ^ np.uint32(1 << 31)
    near[:, 3::8] = words[:, 3::8] & np.uint32(0x807FFFFF)
    return near


def listed(bits: UInts) -> list[list[float]]:
    return [[float(x) for x in row] for row in floats(bits)]


@pytest.mark.parametrize("kind", ["near", "tiny", "any"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_exact_there_and_back(name: str, kind: str) -> None:
    transform, vector = TRANSFORMS[name]
    bits = numbers(kind)
    given = None if vector is None else jnp.asarray(vector, jnp.float32)
    got, state = APPLY(jnp.asarray(bits), transform, -1, given)
    known = None if vector is None else [float(x) for x in vector]
    want = transforms_oracle.apply_rows(listed(bits), transform, known)
    assert_bits_equal(floats(got), np.array(want, np.float32), inputs=floats(bits))
    back = UNDO(got, transform, -1, state)
    if transform.kind == "mean":
        assert state is not None
        known = [float(x) for x in np.asarray(state).ravel()]
    elif transform.kind == "hadamard" and known is None:
        known = [float(x) for x in transform.signs or (1,) * transform.size]
    assert known is not None
    want_back = transforms_oracle.undo_rows(listed(np.asarray(got)), transform, known)
    assert_bits_equal(floats(back), np.array(want_back, np.float32))
    if kind == "near" and transform.output == "float32":
        np.testing.assert_allclose(floats(back), floats(bits), atol=2e-6)


def test_large_sums_do_not_overflow() -> None:
    """A finite H x / sqrt(n) stays finite, however large the sums of x would be."""
    words = random_words(ROWS * COLUMNS, 5).reshape(ROWS, COLUMNS)
    bits = (words & np.uint32(0x80FFFFFF)) | np.uint32(0x7D000000)  # 2^123 to 2^125
    bits[:, 5::8] &= np.uint32(0x80FFFFFF)  # subnormal, or next to it
    bits[1, :16], bits[2] = 0x7EFFFFFF, words[2] & np.uint32(0x80FFFFFF)  # large apart, none large
    bits[3, ::2] = bits[3, 1::2] ^ np.uint32(1 << 31)  # cancels
    for name in ("signs", "hadamard"):
        transform, vector = TRANSFORMS[name]
        given = None if vector is None else jnp.asarray(vector, jnp.float32)
        known = None if vector is None else [float(x) for x in vector]
        used = bits if name == "signs" else np.delete(bits, 1, axis=0)
        got = APPLY(jnp.asarray(used), transform, -1, given)[0]
        want = np.array(transforms_oracle.apply_rows(listed(used), transform, known), np.float32)
        assert_bits_equal(floats(got), want, inputs=floats(used))
        assert np.isfinite(want).all() and (np.abs(want).max(axis=-1) > 2.0**124).sum() >= 4
        scaled = transforms_oracle.apply_rows(
            listed(np.ldexp(floats(used), -20).view(np.uint32)), transform, known
        )
        large = np.abs(want) > 2.0**120
        np.testing.assert_array_equal(np.ldexp(np.array(scaled), 20)[large], want[large])


def test_sylvester_order() -> None:
    """The columns of H / sqrt(n) are the transforms of the unit vectors."""
    unit = jnp.asarray(np.eye(COLUMNS, dtype=np.float32).view(np.uint32))[:ROWS]
    got = np.asarray(APPLY(unit, Transform(kind="hadamard", size=32), -1, None)[0])
    root = np.float32(transforms_oracle.inverse_root(32))
    want = np.array(transforms_oracle.matrix(32), np.float32)[:ROWS] * root
    assert_bits_equal(floats(got), want)
    assert abs(Fraction(float(root)) ** 2 * 32 - 1) < Fraction(1, 2**23)


def test_every_size_is_orthogonal_in_exact_numbers() -> None:
    for size in (1, 2, 8, 64):
        matrix = np.array(transforms_oracle.matrix(size))
        np.testing.assert_array_equal(matrix @ matrix.T, size * np.eye(size))


@pytest.mark.slow
def test_bits_do_not_depend_on_shape_or_options() -> None:
    transform, vector = TRANSFORMS["signs"]
    given = jnp.asarray(vector, jnp.float32)
    bits = jnp.asarray(numbers("near"))
    want = APPLY(bits, transform, -1, given)[0]
    assert_bits_equal(APPLY(bits[2:3], transform, -1, given)[0], want[2:3])
    assert_bits_equal(APPLY(bits.T, transform, -2, given)[0].T, want)
    assert_bits_equal(APPLY(bits[:, 16:], transform, -1, given)[0], want[:, 16:])
    strict = jax.jit(transforms.apply, static_argnums=(1, 2), compiler_options=STRICT_SLOW)
    assert_bits_equal(strict(bits, transform, -1, given)[0], want)
    batched = jax.vmap(lambda row: transforms.apply(row, transform, -1, given)[0])(bits)
    assert_bits_equal(batched, want)
    # XLA's own sums, which flush subnormals, are other bits: the integers are needed.
    x = floats(np.asarray(bits)).reshape(ROWS, 2, 16) * SIGNS.astype(np.float32)
    matrix = np.array(transforms_oracle.matrix(16), np.float32) / 4
    plain = jnp.matmul(x, matrix, precision="highest").reshape(ROWS, COLUMNS)
    assert np.any(as_bits(plain) != np.asarray(want))


def test_nan_and_inf_spread_over_their_block() -> None:
    bits = numbers("near")
    bits[0, 3], bits[1, 20], bits[2, 5] = 0x7F800000, 0x7FC00000, 0
    got = floats(APPLY(jnp.asarray(bits), TRANSFORMS["signs"][0], -1, jnp.asarray(SIGNS))[0])
    assert np.isinf(got[0, :16]).all() and np.isfinite(got[0, 16:]).all()
    assert np.isnan(got[1, 16:]).all() and np.isfinite(got[1, :16]).all()
    assert np.isfinite(got[2]).all()


def test_a_random_orthogonal_matrix() -> None:
    transform = Transform(kind="orthogonal", size=16, seed=7)
    matrix = transforms.orthogonal_matrix(transform).astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(16), atol=1e-6)
    other = transforms.orthogonal_matrix(dataclasses.replace(transform, seed=8))
    assert not np.allclose(matrix, other, atol=0.01)
    x = np.random.default_rng(2).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    turned, _ = APPLY(jnp.asarray(x.view(np.uint32)), transform, -1, None)
    want = (x.reshape(ROWS, 2, 16) @ matrix.T).reshape(ROWS, COLUMNS)
    np.testing.assert_allclose(floats(turned), want, atol=2e-6)
    np.testing.assert_allclose(floats(UNDO(turned, transform, -1, None)), x, atol=3e-6)
    block = dataclasses.replace(get_block("nvfp4_rht16"), transform=transform)
    assert block.reproducibility == "same_backend"
    assert get_block("nvfp4_rht16").reproducibility == "bit_exact"


def test_the_training_recipe_quantizes_the_rotated_tensor() -> None:
    """nvfp4_rht16 is nvfp4 of the rotated bfloat16 tensor, and turns back what it decodes."""
    x = jnp.asarray(np.random.default_rng(3).normal(size=(4, 32)), jnp.bfloat16)
    block = get_block("nvfp4_rht16")
    assert block.transform is not None
    rotated, _ = APPLY(jnp.asarray(as_bits(x).astype(np.uint32) << 16), block.transform, -1, None)
    exact = np.asarray(x, np.float64).reshape(4, 2, 16) * np.array(block.transform.signs)
    exact = (exact @ np.array(transforms_oracle.matrix(16)) / 4).reshape(4, 32)
    assert_bits_equal(floats(rotated), exact.astype(jnp.bfloat16).astype(np.float32))
    q, plain = quantize(x, block), quantize(floats(rotated), "nvfp4")
    assert_bits_equal(q.codes, plain.codes)
    assert_bits_equal(q.scales, plain.scales)
    with pytest.raises(ValueError, match="quantizes a transformed tensor"):
        q.scaled_bits()
    inside = np.asarray(plain.dequantize()).view(np.uint32)
    assert_bits_equal(q.dequantize(), floats(UNDO(jnp.asarray(inside), block.transform, -1, None)))
    error = np.linalg.norm(np.asarray(q.dequantize() - x.astype(jnp.float32)))
    assert 0.05 < error / np.linalg.norm(np.asarray(x, np.float32)) < 0.15


@pytest.mark.slow
def test_a_rotation_spreads_an_outlier() -> None:
    """Even levels over a range suffer from one large element; a rotation shares it out."""
    x = np.random.default_rng(4).normal(size=(24, 32)).astype(np.float32)
    x[:, 5] = 15
    plain = get_block("int4_vllm_token")
    rotated = dataclasses.replace(plain, transform=Transform(kind="hadamard", size=32))
    errors = [
        float(np.linalg.norm(np.asarray(quantize(jnp.asarray(x), block).dequantize()) - x))
        for block in (plain, rotated)
    ]
    assert errors[1] < 0.85 * errors[0]


@pytest.mark.slow
def test_smoothing_moves_the_difficulty() -> None:
    """x / s of the activation and w * s of the weight: the product stays, the outlier goes."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    x[:, 3] *= 100
    w = rng.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    smoothing = np.sqrt(np.abs(x).max(0) / np.abs(w).max(0))
    activation = get_block("int8_smoothquant")
    weight = dataclasses.replace(activation, transform=Transform(kind="smoothing", inverse=True))
    plain = dataclasses.replace(activation, transform=None)

    def error(left: Any, right: Any, **options: Any) -> float:
        made = [quantize(a, block, **options) for a, block in ((x, left), (w, right))]
        a, b = (np.asarray(q.dequantize(), np.float64) for q in made)
        return float(np.linalg.norm(a @ b.T - x @ w.T.astype(np.float64)))

    assert error(activation, weight, smoothing=smoothing) < 0.5 * error(plain, plain)


@pytest.mark.slow
def test_means_are_stored_and_counted() -> None:
    block = dataclasses.replace(get_block("mxfp4"), transform=Transform(kind="mean"))
    x = np.random.default_rng(6).normal(size=(ROWS, COLUMNS)).astype(np.float32) + 50
    q = quantize(jnp.asarray(x), block)
    assert q.transform_state is not None and q.transform_state.shape == (1, COLUMNS)
    assert q.nbytes == quantize(jnp.asarray(x), "mxfp4").nbytes + 4 * COLUMNS
    assert q.bits_per_element == pytest.approx(4.25 + 32 / ROWS)
    plain = np.abs(np.asarray(quantize(jnp.asarray(x), "mxfp4").dequantize()) - x).max()
    assert np.abs(np.asarray(q.dequantize()) - x).max() < plain / 4
    columns = quantize(jnp.asarray(x.T), block, axis=-2)
    assert_bits_equal(columns.dequantize().T, q.dequantize())


@pytest.mark.slow
def test_cast_passes_through_a_transform() -> None:
    x = jnp.asarray(np.random.default_rng(7).normal(size=(4, 32)).astype(np.float32))
    assert_bits_equal(lp.cast(x, "nvfp4_rht16"), quantize(x, "nvfp4_rht16").dequantize())
    np.testing.assert_array_equal(jax.grad(lambda x: lp.cast(x, "nvfp4_rht16").sum())(x), 1.0)
    with pytest.raises(ValueError, match="`grad` = 'clipped'"):
        lp.cast(x, "nvfp4_rht16", grad="clipped")
    # In the rotated tensor the codes alone say nothing of x.
    q = quantize(x, "nvfp4_rht16")
    assert np.abs(np.asarray(decode(q.codes, "float4_e2m1fn")) / np.asarray(x)).std() > 0.5


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("needs `signs`, an array of 128 or 256 numbers", {}),
        ("`signs` has shape (3,)", {"signs": np.ones(3)}),
        ("takes `signs`", {"smoothing": np.ones(256)}),
        ("not a whole number of the transform's blocks", {"signs": np.ones(128), "width": 200}),
    ],
)
def test_errors(message: str, options: dict[str, Any]) -> None:
    width = options.pop("width", 256)
    with pytest.raises(ValueError, match=re.escape(message)):
        quantize(jnp.ones((1, width)), "nvfp4_ms_eden", **options)


@pytest.mark.parametrize(
    ("message", "parameters"),
    [
        ("power of two", {"kind": "hadamard", "size": 12}),
        ("need size >= 1", {"kind": "hadamard"}),
        ("3 signs for size = 4", {"kind": "hadamard", "size": 4, "signs": (1, 1, -1)}),
        ("signs are 1 or -1", {"kind": "hadamard", "size": 2, "signs": (1, 2)}),
        ("signs are for", {"kind": "mean", "signs": "given"}),
        ("a seed go together", {"kind": "orthogonal", "size": 4}),
        ("inverse is for", {"kind": "mean", "inverse": True}),
    ],
)
def test_contradictions(message: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        Transform(**parameters)
