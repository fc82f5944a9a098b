"""Sums and products of float32 numbers rounded once to a narrower format, in float32 arithmetic.

XLA fuses a product into the sum after it, which drops a rounding, and its CPU backend flushes
subnormals. Both are dealt with here: a comparison keeps a product apart from a sum, and formats
whose range reaches float32's flush by definition.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.engines.narrowing import has_units, nearest_even, to_format
from lowprec.numerics import float32
from lowprec.numerics.format import Format
from lowprec.numerics.rounding import is_stochastic

_MIN_NORMAL = np.float32(2.0**-126)


@dataclasses.dataclass(frozen=True)
class Register:
    """Arithmetic whose every result is rounded to a format.

    Attributes:
      format: of at most 8 exponent bits, and at most 21 mantissa bits or float32's.
      rounding: of every result.
      exact_products: whether the operands' products are exact in float32.
      flushes: whether results below 2^-126 are zeros.
      held_products: whether they are numbers of the format too.
      added: the format of what is added to numbers of `format`; None where it is that.
    """

    format: Format
    rounding: str
    exact_products: bool
    flushes: bool
    held_products: bool = False
    added: Format | None = None

    def rounded(self, x: jax.Array, words: jax.Array | None = None) -> jax.Array:
        """float32 numbers rounded to the format."""
        if self.format.name == "float32":
            return x
        if self._by_sums:
            return nearest_even(x, self.format)
        return float32.from_bits(to_format(float32.to_bits(x), self.format, self.rounding, words))

    def multiply(self, a: jax.Array, b: jax.Array, words: jax.Array | None = None) -> jax.Array:
        """a * b rounded once."""
        if self.held_products:
            return a * b
        if self.native:
            return apart(flush(a * b))
        if self.exact_products:
            product = flush(a * b)
            # Fused into a sum, an exact product changes nothing.
            return self.rounded(product if self._by_sums else apart(product), words)
        return self.rounded(cut_product(a, b, self.flushes, self._stochastic), words)

    def add(self, a: jax.Array, b: jax.Array, words: jax.Array | None = None) -> jax.Array:
        """a + b rounded once."""
        bits, added = self.format.mantissa_bits, self.added or self.format
        # Rounding sums of p bits twice to nearest does no harm where the first has 2 p + 2 bits.
        twice = self.rounding == "nearest_even" and added.mantissa_bits <= bits <= 10
        if self.native or twice:
            total = flush(a + b)
            if self._by_sums and added == self.format:
                return nearest_even(total, self.format, within=True)
            return self.rounded(total, words)
        return self._rounded_sum(a, b, words)

    def multiply_add(
        self, a: jax.Array, b: jax.Array, c: jax.Array, words: jax.Array | None = None
    ) -> jax.Array:
        """a * b + c rounded once."""
        if self.exact_products and self.format.name != "float32":
            return self._rounded_sum(apart(flush(a * b)), c, words)
        if not self.native:
            raise ValueError(
                f"fused_multiply in {self.format.name} needs operands whose products float32 "
                f"holds: pass arrays of a narrower type, or a_format and b_format"
            )
        bits = float32.fused_multiply_add(*(float32.to_bits(x) for x in (a, b, c)))
        total = float32.from_bits(bits)
        return flush_operand(total) if self.flushes else total

    def _rounded_sum(self, a: jax.Array, b: jax.Array, words: jax.Array | None) -> jax.Array:
        deep = self.format.min_exponent - self.format.mantissa_bits < -126
        cut = _cut_sum(a, b, flush(a + b), self._stochastic, deep)
        total = self.rounded(cut, words)
        if self.rounding != "toward_negative":
            return total
        # IEEE 754-2019, 6.3: x - x is -0 in this mode alone.
        opposite = float32.to_bits(a) ^ float32.to_bits(b) == float32.SIGN
        return jnp.where(opposite & (total == 0), np.float32(-0.0), total)

    @property
    def _by_sums(self) -> bool:
        return self.rounding == "nearest_even" and has_units(self.format)

    @property
    def _stochastic(self) -> bool:
        return is_stochastic(self.rounding)

    @property
    def native(self) -> bool:
        """Whether it is float32's own."""
        return self.format.name == "float32" and self.rounding == "nearest_even"


def flush(x: jax.Array) -> jax.Array:
    """Subnormals become zeros of their sign; a CPU's arithmetic has done it already."""
    return lax.platform_dependent(x, cpu=lambda x: x, default=flush_operand)


def flush_operand(x: jax.Array) -> jax.Array:
    """The same of what no arithmetic has touched yet."""
    return jnp.where(jnp.abs(x) < _MIN_NORMAL, x * 0, x)


def apart(x: jax.Array) -> jax.Array:
    """x, out of reach for a compiler that would fuse the product x into a sum; NaN made quiet."""
    return jnp.where(x == x, x, np.float32(np.nan))


def two_sum(a: jax.Array, b: jax.Array, total: jax.Array | None = None) -> tuple[jax.Array, ...]:
    """a + b to nearest, and its error: their sum is exactly a + b, unless one overflows."""
    total = a + b if total is None else total
    other = total - a
    return total, (a - (total - other)) + (b - other)


def _cut_sum(
    a: jax.Array, b: jax.Array, total: jax.Array, toward_zero: bool, deep: bool
) -> jax.Array:
    """a + b rounded to odd, or toward zero, from `total`, to nearest.

    After rounding to odd a second rounding is safe, but for a stochastic one, which would take the
    odd bit for a part of the fraction. `deep`: last places may lie below 2^-126.
    """
    if deep:
        # A subnormal error would be a zero to the processor; that of larger numbers is none.
        small = jnp.maximum(jnp.abs(a), jnp.abs(b)) < 1
        scale = jnp.where(small, np.float32(2.0**64), np.float32(1.0))
        _, error = two_sum(a * scale, b * scale)
    else:
        _, error = two_sum(a, b, total)
    bits = float32.to_bits(total)
    inexact = (jnp.abs(error) > 0) & (bits & float32.MAGNITUDE < float32.INFINITY)
    away = (float32.to_bits(error) ^ bits) >> 31 == 0
    if toward_zero:
        bits = jnp.where(inexact & ~away, bits - 1, bits)
    else:
        step = jnp.where(away, np.uint32(1), np.uint32(0xFFFFFFFF))
        bits = jnp.where(inexact & (bits & 1 == 0), bits + step, bits)
    return float32.from_bits(_not_beyond(bits, float32.to_bits(a), float32.to_bits(b)))


def cut_product(a: jax.Array, b: jax.Array, flushes: bool, toward_zero: bool = False) -> jax.Array:
    """a * b of any float32 numbers rounded to odd, or toward zero.

    What lies below 2^-126 is a zero of its sign where that `flushes`, else a tiny number, as good
    as any other for rounding to a format that ends well above.
    """
    a_bits, b_bits = float32.to_bits(a), float32.to_bits(b)
    nearest = float32.to_bits(flush(a * b))
    (_, _, x), (_, _, y) = float32.unpack(a_bits), float32.unpack(b_bits)
    high, low = float32.product(x, y)
    # The 48-bit product has its leading bit at 2^47 or 2^46: 24 bits are kept.
    wide = high >> 15
    kept = jnp.where(wide == 1, (high << 8) | (low >> 24), (high << 9) | (low >> 23))
    rest = jnp.where(wide == 1, low & 0xFFFFFF, low & 0x7FFFFF)
    # Nearest is the truncated product, or the number after it.
    truncated = nearest - ((nearest ^ kept) & 1)
    inexact = truncated if toward_zero else truncated | 1
    odd = jnp.where(rest != 0, inexact, nearest)
    size = nearest & float32.MAGNITUDE
    tiny = nearest if flushes else nearest | jnp.where(high | low != 0, np.uint32(0x800001), 0)
    odd = jnp.where(size == 0, tiny, jnp.where(size >= float32.INFINITY, nearest, odd))
    return float32.from_bits(_not_beyond(odd, a_bits, b_bits))


def _not_beyond(total: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Bits of the largest number where finite operands gave Inf: odd, so rounded again rightly."""
    finite = (a & float32.MAGNITUDE < float32.INFINITY) & (b & float32.MAGNITUDE < float32.INFINITY)
    beyond = finite & (total & float32.MAGNITUDE == float32.INFINITY)
    return jnp.where(beyond, total - 1, total)
