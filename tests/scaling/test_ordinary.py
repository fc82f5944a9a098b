"""The short way of quantizing gives the general one's bits, and is taken for ordinary tensors."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.numerics import Format, float32, get_format
from lowprec.scaling import Block, QTensor, get_block, ordinary
from lowprec.scaling.qtensor import _dequantize
from lowprec.scaling.quantize import _quantize as _compiled
from tests.helpers import assert_bits_equal

pytestmark = pytest.mark.slow

BLOCKS = ["fp8_1x128", "fp8_tensor", "mxfp8_e4m3", "mxfp4", "mxfp6_e2m3_rceil", "nvfp4", "mxint8"]
# Untraced, so that they follow what a test has patched.
_quantize, _back = (cast(Any, function).__wrapped__ for function in (_compiled, _dequantize))
Quantizer = Callable[[jax.Array], tuple[QTensor, jax.Array]]


def compiled(block: Block, mode: str = "nearest_even") -> Quantizer:
    """Quantizing and back."""

    def there_and_back(x: jax.Array) -> tuple[QTensor, jax.Array]:
        q = _quantize(x, None, None, None, block, -1, mode, 0)
        return q, _back(q, "float32")

    return jax.jit(there_and_back)


def general(block: Block, monkeypatch: pytest.MonkeyPatch, mode: str = "nearest_even") -> Quantizer:
    """The same by the general way alone."""
    quantizer = compiled(block, mode)
    with monkeypatch.context() as patch:
        patch.setattr(ordinary, "_MODES", ())
        patch.setattr(ordinary, "_is_moderate", lambda element: False)
        jax.block_until_ready(quantizer(tensor(0.0)))
    return quantizer


@pytest.fixture(autouse=True)
def _small_tensors_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordinary, "_WORTHWHILE", 1)


def test_small_tensors_are_not_compiled_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordinary, "_WORTHWHILE", 1 << 19)
    for columns, twice in ((1 << 14, False), (1 << 15, True)):
        x = jax.ShapeDtypeStruct((16, columns), jnp.float32)
        text = str(jax.make_jaxpr(compiled(get_block("fp8_1x128")))(x))
        assert (" cond[" in text) == twice


def test_short_products_are_for_few_bits_and_no_subnormals() -> None:
    def plain(mantissa_bits: int, bias: int, exponent_bits: int = 8) -> bool:
        fields: dict[str, Any] = {"exponent_bits": exponent_bits, "bias": bias}
        fields["mantissa_bits"] = mantissa_bits
        return ordinary._is_short(Format(name="x", **fields))

    # Seven bits at most, and the smallest subnormal a normal float32.
    assert [plain(7, 15, 5), plain(8, 15, 5)] == [True, False]
    assert [plain(1, 126), plain(1, 127)] == [True, False]
    assert not ordinary._is_short(get_format("nf4"))


def test_constants_are_not_multiplied_together() -> None:
    """A tensor that the compiler knows gives what it gives as an argument."""
    x, block = tensor(-2.0), get_block("nvfp4")
    q, values = compiled(block)(x)
    constant = jax.jit(lambda: _back(q, "float32"))()
    assert_bits_equal(constant, values)
    assert_same(jax.jit(lambda: compiled(block)(x))(), (q, values))


def tensor(exponent: float, seed: int = 0) -> jax.Array:
    """Normal numbers times 2^exponent, with a tile of zeros, of which some are negative."""
    x = np.random.default_rng(seed).standard_normal((4, 256)).astype(np.float32)
    x[1, :128] = np.where(x[1, :128] < 0, -0.0, 0.0)
    x[2, 130] = 0.0
    with np.errstate(over="ignore", under="ignore"):
        return jnp.asarray(x * np.float32(2.0**exponent))


def assert_same(one: tuple[QTensor, jax.Array], other: tuple[QTensor, jax.Array]) -> None:
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert_bits_equal(left, right)


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "nearest_even") for name in BLOCKS), ("mxfp4", "toward_zero")]
)
def test_both_ways_give_the_same_bits(
    name: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = get_block(name)
    short, long = compiled(block, mode), general(block, monkeypatch, mode)
    special = np.array(tensor(0.0))
    special[0, 3], special[3, 200], special[2, 7] = np.nan, -np.inf, 1e-40
    sizes = (-149, -126, -60, -48, -40, -8, 0, 8, 40, 48, 60, 126)
    for x in [*(tensor(float(size), size % 7) for size in sizes), jnp.asarray(special)]:
        assert_same(short(x), long(x))
    # One element above the rest, so that the smallest are subnormal where it is not.
    uneven = tensor(0.0).at[0, 0].set(2.0**40) * jnp.float32(2.0**-30)
    assert_same(short(uneven.at[3].multiply(2.0**-80)), long(uneven.at[3].multiply(2.0**-80)))


def test_an_element_whose_smallest_values_are_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subnormal number times a large factor is such a value, and is not flushed."""
    element = Format(name="tiny", exponent_bits=6, mantissa_bits=2, bias=100)
    block = dataclasses.replace(get_block("fp8_1x128"), element=element, min_amax=0.0)
    short, long = compiled(block), general(block, monkeypatch)
    wide = np.asarray(tensor(-83.0), np.float64)
    wide[:, ::7] *= 2.0**-50
    x = jnp.asarray(wide.astype(np.float32))
    assert_same(short(x), long(x))
    assert (np.asarray(short(x)[0].codes)[:, ::7] & 0xFF != 0).mean() > 0.3


@pytest.mark.parametrize("name", BLOCKS)
def test_ordinary_tensors_take_the_short_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = get_block(name), tensor(-3.0)
    want = compiled(block)(x)

    quantizer = compiled(block)
    with monkeypatch.context() as patch:
        # The general way is traced too: it is made wrong, and must not show.
        patch.setattr(ordinary, "encode_number", lambda *_: jnp.zeros(x.shape, want[0].codes.dtype))
        patch.setattr(float32, "multiply", lambda a, b: jnp.zeros_like(a))
        patch.setattr(float32, "multiply_short", lambda a, b: jnp.zeros_like(a))
        if block.tensor_scale == "none":
            assert_same(quantizer(x), want)
        else:
            values = jax.jit(lambda q: _back(q, "float32"))(want[0])
            assert_bits_equal(values, want[1])
    assert len(np.unique(np.asarray(want[1]))) > 5


def test_a_caller_may_map_over_it() -> None:
    x = jnp.stack([tensor(0.0), tensor(-140.0), tensor(100.0)])
    block = get_block("mxfp8_e4m3")
    one = lambda x: _quantize(x, None, None, None, block, -1, "nearest_even", 0)
    mapped, alone = jax.jit(jax.vmap(one))(x), jax.jit(one)
    for i in range(3):
        assert_bits_equal(mapped.codes[i], alone(x[i]).codes)
        assert_bits_equal(mapped.scales[i], alone(x[i]).scales)
