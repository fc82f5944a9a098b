"""A format's codes by what they mean, from which test operands are drawn."""

import functools

from lowprec.engines.oracle_number import Number, decoder, min_exponent
from lowprec.numerics.format import Format

_SPREAD = 3
_CENTRE = 8
"""Exponents of ordinary numbers lie within so many binades of the range's middle, if that is
within so many of 0."""


class Codes:
    """A format's codes, sorted by what they mean."""

    def __init__(self, fmt: Format, cut_to: int | None = None) -> None:
        self.format = fmt
        self.by_exponent: dict[int, list[int]] = {}
        self.subnormals: list[int] = []
        self.zeros: list[int] = []
        self.infinities: list[int] = []
        self.nans: list[int] = []
        self.free_bits = fmt.mantissa_bits if fmt.table is None and fmt.bits > 8 else 0
        if cut_to is not None:
            self.free_bits = min(self.free_bits, cut_to)
        for code in _sample(fmt):
            self._sort(code)
        # e3m0, for instance, has no subnormals; integers have nothing else.
        if not self.by_exponent:
            self.by_exponent[min_exponent(fmt)] = self.subnormals

    def _sort(self, code: int) -> None:
        value, fmt = self.value(code), self.format
        lowest = min_exponent(fmt) if fmt.table is None else 0
        if value.kind == "nan":
            self.nans.append(code)
        elif value.kind == "infinity":
            self.infinities.append(code)
        elif value.is_zero:
            self.zeros.append(code)
        elif fmt.table is None and value.binade < lowest:
            self.subnormals.append(code)
        else:
            self.by_exponent.setdefault(value.binade, []).append(code)

    def value(self, code: int) -> Number:
        return decoder(self.format)(code)

    @functools.cached_property
    def ordinary(self) -> list[int]:
        """Exponents near the middle of the range, or near 0 where that is far away."""
        low, high = min(self.by_exponent), max(self.by_exponent)
        middle = min(max((low + high) // 2, -_CENTRE), _CENTRE)
        return [e for e in self.by_exponent if abs(e - middle) <= _SPREAD]

    @functools.cached_property
    def extremes(self) -> list[int]:
        """The largest and smallest magnitudes: of normal numbers, and of subnormal ones."""
        top, bottom = max(self.by_exponent), min(self.by_exponent)
        found = []
        for group in (self.by_exponent[top], self.by_exponent[bottom], self.subnormals):
            sizes = {abs(self.value(x).significand) * 2.0 ** self.value(x).exponent for x in group}
            ends = {min(sizes), max(sizes)} if sizes else set()
            found += [
                x
                for x in group
                if abs(self.value(x).significand) * 2.0 ** self.value(x).exponent in ends
            ]
        return found

    @functools.cached_property
    def powers(self) -> dict[int, int]:
        """The positive powers of two, subnormal ones too, by exponent."""
        numbers = [*self.subnormals, *(x for group in self.by_exponent.values() for x in group)]
        found = {}
        for code in numbers:
            value = self.value(code)
            if value.significand > 0 and value.significand & (value.significand - 1) == 0:
                found[value.binade] = code
        return found

    def negated(self, code: int) -> int:
        """The code of -x; x itself where the format has none."""
        if self.format.sign_mask and self.format.encoding == "sign_magnitude":
            other = code ^ self.format.sign_mask
            if self.value(other).kind == self.value(code).kind:
                return other
        return code


def _sample(fmt: Format) -> list[int]:
    """All codes of a narrow format; of a wide one every exponent with telling mantissas."""
    if fmt.bits <= 8 or fmt.table is not None:
        return list(range(1 << fmt.bits))
    ones = (1 << fmt.mantissa_bits) - 1
    mantissas = {0, 1, ones, 1 << fmt.mantissa_bits - 1}
    signs = (0, fmt.sign_mask) if fmt.signed else (0,)
    magnitudes = {
        field << fmt.mantissa_bits | mantissa
        for field in range(1 << fmt.exponent_bits)
        for mantissa in mantissas
    }
    magnitudes |= {1 << place for place in range(fmt.mantissa_bits)}
    return [sign | magnitude for sign in signs for magnitude in sorted(magnitudes)]


@functools.cache
def codes_of(fmt: Format, cut_to: int | None = None) -> Codes:
    """A format's codes; random mantissas of wide ones have `cut_to` bits, if that is fewer."""
    return Codes(fmt, cut_to)
