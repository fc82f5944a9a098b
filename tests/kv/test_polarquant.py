"""PolarQuant: angles against their own arctangents, codebooks, errors, bytes."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.kv import get_kv_method
from lowprec.kv.polarquant import PolarCode, PolarQuantSpec, angles, borders
from lowprec.kv.rotations import orthogonal_matrix
from lowprec.numerics.packing import unpack
from tests.helpers import assert_bits_equal
from tests.kv.slow_norm_split import half_products, tree_norm

F = np.float32
CODE = PolarCode(bits=(4, 2, 2, 2), seed=1)
DIM = 32


@functools.cache
def coding(dim: int = DIM) -> Any:
    return jax.jit(lambda x: CODE.encode(x, {})), jax.jit(lambda p: CODE.decode(p, dim, {}))


def slow(x: np.ndarray) -> dict[str, np.ndarray]:
    """Angles by the arctangent in float64, radii in float32."""
    parts = {}
    for level, bits in enumerate(CODE.bits):
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        theta = np.arctan2(pairs[..., 1].astype(np.float64), pairs[..., 0])
        if level == 0:
            code = np.floor(theta % (2 * math.pi) / (2 * math.pi) * (1 << bits))
        else:
            code = np.sum(theta[..., None] >= borders(level, bits), axis=-1)
        parts[f"codes.{level + 1}"] = code.astype(np.uint8)
        x = tree_norm(pairs)[..., 0]
    return parts | {"radii": x.astype(np.float16)}


def test_codes_are_those_of_the_angles() -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, 40, DIM)).astype(F)
    # Rays between sectors belong to the next one.
    x[0, 0, 0, :16] = [1, 0, 0, 1, -1, 0, 0, -1, 1, 1, -1, 1, -1, -1, 1, -1]
    parts, want = coding()[0](x), slow(x)
    for level, bits in enumerate(CODE.bits):
        name = f"codes.{level + 1}"
        codes = unpack(parts[name], f"uint{bits}", DIM >> level + 1)
        # Equal radii lie on a border, which is exact in one of the two ways alone.
        first = 1 if level else 0
        assert_bits_equal(codes[:, :, first:], want[name][:, :, first:])
        if level == 0:
            assert np.asarray(codes)[0, 0, 0, :8].tolist() == [0, 4, 8, 12, 2, 6, 10, 14]
    assert_bits_equal(parts["radii"], want["radii"])
    # The first level's circle is used all around, the others' quarter too.
    assert len(np.unique(want["codes.1"])) == 16 and len(np.unique(want["codes.4"])) == 4


@pytest.mark.slow
def test_values_are_products_of_cosines_and_sines() -> None:
    x = np.random.default_rng(1).normal(size=(1, 1, 20, DIM)).astype(F)
    parts = coding()[0](x)
    want = np.asarray(parts["radii"]).view(np.float16).astype(F)
    for level in (3, 2, 1, 0):
        code = np.asarray(
            unpack(parts[f"codes.{level + 1}"], f"uint{CODE.bits[level]}", DIM >> level + 1)
        )
        theta = angles(level, CODE.bits[level])[code]
        pairs = [want * np.cos(theta).astype(F), want * np.sin(theta).astype(F)]
        want = np.stack(pairs, axis=-1).reshape(1, 1, 20, -1)
    assert_bits_equal(coding()[1](parts), want)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_levels_are_those_of_the_angles_of_normal_numbers(level: int) -> None:
    """Fitted to drawn angles: the radii of 2^level normal numbers against as many others."""
    x = np.random.default_rng(level).normal(size=(200000, 2, 1 << level))
    first, second = np.linalg.norm(x, axis=-1).T
    theta = np.sort(np.arctan2(second, first))
    means = angles(level, 2)
    cells = np.split(theta, np.searchsorted(theta, borders(level, 2)))
    deviation = np.std(theta) / math.sqrt(len(theta) / 8)
    assert np.abs([np.mean(c) for c in cells] - means).max() < 6 * deviation
    # A density that is even about pi/4, and narrower with each level.
    assert np.allclose(means + means[::-1], math.pi / 2, atol=1e-6)
    assert angles(level + 1, 2)[0] > means[0] + 0.05


def test_sixteen_numbers_take_62_bits() -> None:
    assert get_kv_method("polarquant").bits_per_element() == 62 / 16


@pytest.mark.slow
def test_a_token_costs_what_its_levels_cost() -> None:
    x = np.random.default_rng(4).normal(size=(1, 1, 600, DIM)).astype(F)
    error = np.mean((np.asarray(coding()[1](coding()[0](x)), np.float64) - x) ** 2)
    # A sixteenth of a circle costs (pi / 8)^2 / 12 of a pair's square, a level's angles the
    # squared distance from their means.
    cost = (math.pi / 8) ** 2 / 12
    rng = np.random.default_rng(5)
    for level in (1, 2, 3):
        first, second = np.linalg.norm(rng.normal(size=(100000, 2, 1 << level)), axis=-1).T
        theta = np.arctan2(second, first)
        near = angles(level, 2)[np.searchsorted(borders(level, 2), theta)]
        cost += np.average((near - theta) ** 2, weights=first**2 + second**2)
    assert abs(error / cost - 1) < 0.08


@pytest.mark.slow
def test_turned_tokens_come_back() -> None:
    method = get_kv_method("polarquant")
    assert isinstance(method.spec, PolarQuantSpec)
    code = method.spec.layouts()[0].code
    x = np.random.default_rng(6).normal(size=(1, 1, 5, 64)).astype(F)
    turned = code.turn(jnp.asarray(x), {})
    assert_bits_equal(turned, half_products(x, orthogonal_matrix(64, 0).T))
    assert np.allclose(code.turn_back(turned, {}), x, atol=1e-5)
    cache = method.append(method.init(1, 1, 64, 5), x, x)
    keys, values = (np.asarray(y) for y in method.read(cache))
    assert_bits_equal(keys, values)
    assert 0.01 < np.sum((keys - x) ** 2) / np.sum(x * x) < 0.06
    alone = method.append(method.init(1, 1, 64, 5), x[:, :, :1], x[:, :, :1])
    assert_bits_equal(method.read(alone)[0][:, :, 0], keys[:, :, 0])
    with jax.disable_jit():
        eager = code.code(jnp.asarray(x), {})
    for name, want in cache.keys.parts.items():
        assert_bits_equal(eager[name], want)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="a head's 24 numbers are no whole blocks of 16"):
        CODE.encode(jnp.zeros((1, 1, 1, 24)), {})
    with pytest.raises(ValueError, match="`bits` = \\(1, 2\\); use 2 to 8"):
        PolarCode(bits=(1, 2))
