"""A number format as a value: only independent parameters are declared, the rest is derived.

A code is read as sign, exponent field and mantissa field, most significant first, or as a two's
complement integer. `lowprec.numerics.oracle` spells the same rules out in exact arithmetic.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import ml_dtypes
import numpy as np

from lowprec import catalogue

Encoding = Literal["sign_magnitude", "twos_complement"]

_ALIASES = {
    "e5m2": "float8_e5m2",
    "e2m3": "float6_e2m3fn",
    "e3m2": "float6_e3m2fn",
    "e2m1": "float4_e2m1fn",
    "e8m0": "float8_e8m0fnu",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
}
_AMBIGUOUS = {"e4m3": ("float8_e4m3fn", "float8_e4m3")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A number format: frozen and hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      name: the format's name, ml_dtypes' where bits agree.
      signed: whether the most significant bit is a sign.
      exponent_bits: width of the exponent field; 0 for integers and fixed point.
      mantissa_bits: width of the mantissa field, the hidden bit not counted.
      bias: the exponent field minus the exponent. With no exponent field the unit in the last place
        is 2^(1 - bias - mantissa_bits), as among subnormals.
      infinity: `ieee` (largest exponent field, zero mantissa) or `none`.
      nan: `ieee` (largest exponent field, other mantissas), `all_ones` (all bits after the sign),
        `negative_zero` (the sign bit alone) or `none`.
      zero: `signed`, `unsigned` (one zero) or `none`.
      subnormals: whether exponent field 0 holds subnormals; where it does not, it is a binade like
        any other, which needs a format without zero.
      encoding: `sign_magnitude`, or `twos_complement` for integers.

    Derived: `bits min max min_normal min_subnormal has_inf has_nan dtype values`, each None where
    the format has no such thing; `dtype` is the ml_dtypes or NumPy type of the same name.

    Raises:
      ValueError: a contradiction between the parameters.

    Example:
      >>> e4m3 = Format(name="mine", signed=True, exponent_bits=4, mantissa_bits=3, bias=7,
      ...               infinity="none", nan="all_ones", zero="signed", subnormals=True)
      >>> e4m3.max, e4m3.min_subnormal, e4m3.bits
      (448.0, 0.001953125, 8)
    """

    name: str
    signed: bool = True
    exponent_bits: int
    mantissa_bits: int
    bias: int
    infinity: Literal["none", "ieee"] = "none"
    nan: Literal["none", "ieee", "all_ones", "negative_zero"] = "none"
    zero: Literal["signed", "unsigned", "none"] = "signed"
    subnormals: bool = True
    encoding: Encoding = "sign_magnitude"

    def __post_init__(self) -> None:
        for rule, message in (
            (0 <= self.exponent_bits <= 8, "exponent_bits must be from 0 to 8"),
            (0 <= self.mantissa_bits <= 23, "mantissa_bits must be from 0 to 23"),
            (1 <= self.magnitude_bits, "a format needs an exponent or a mantissa field"),
            (self.bits <= 32, "a format has at most 32 bits"),
            (self.exponent_bits or self.infinity == "none", "infinity needs an exponent field"),
            (
                (self.nan == "ieee") == (self.infinity == "ieee"),
                "infinity and nan are 'ieee' together or not at all",
            ),
            (self.nan != "ieee" or self.mantissa_bits, "nan = 'ieee' needs mantissa bits"),
            (
                self.nan != "negative_zero" or (self.signed and self.zero == "unsigned"),
                "nan = 'negative_zero' needs signed = true and zero = 'unsigned'",
            ),
            (
                self.zero != "unsigned" or not self.signed or self._spends_negative_zero,
                "a signed format with zero = 'unsigned' spends the code of -0 on nan = "
                "'negative_zero', or is two's complement",
            ),
            (
                self.subnormals == (self.zero != "none"),
                "subnormals = false needs zero = 'none', and subnormals = true a zero",
            ),
            (
                self.encoding == "sign_magnitude"
                or (self.signed and not self.exponent_bits and self.nan == "none"),
                "two's complement is for signed integers: exponent_bits = 0, nan = 'none'",
            ),
            (self._within_float32, "the values must lie within float32's"),
        ):
            if not rule:
                raise ValueError(f"format {self.name!r}: {message} (got {self!r})")

    @property
    def _spends_negative_zero(self) -> bool:
        return self.nan == "negative_zero" or self.encoding == "twos_complement"

    @property
    def _within_float32(self) -> bool:
        # float32's subnormals reach down to 2^-149.
        largest = (self.max_code >> self.mantissa_bits) - self.bias if self.exponent_bits else 0
        return self.min_exponent - self.mantissa_bits >= -149 and largest <= 127

    @property
    def magnitude_bits(self) -> int:
        """Bits beside the sign."""
        return self.exponent_bits + self.mantissa_bits

    @property
    def bits(self) -> int:
        """Bits in a code."""
        return self.magnitude_bits + int(self.signed)

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number (of the subnormals' binade where all are)."""
        return (1 if self.subnormals else 0) - self.bias

    @property
    def sign_mask(self) -> int:
        """The sign bit of a code, 0 where there is none."""
        return 1 << self.magnitude_bits if self.signed else 0

    @property
    def code_mask(self) -> int:
        """All bits of a code."""
        return (1 << self.bits) - 1

    @property
    def max_code(self) -> int:
        """Code of the largest finite number."""
        top = (1 << self.magnitude_bits) - 1
        if self.infinity == "ieee":
            return ((1 << self.exponent_bits) - 1 << self.mantissa_bits) - 1
        return top - 1 if self.nan == "all_ones" else top

    @property
    def infinity_code(self) -> int | None:
        """Code of +Inf."""
        return self.max_code + 1 if self.infinity == "ieee" else None

    @property
    def nan_code(self) -> int | None:
        """Code of the NaN that a cast returns; with a sign bit, the positive one."""
        if self.nan == "ieee":
            return self.max_code + 1 | 1 << (self.mantissa_bits - 1)
        if self.nan == "negative_zero":
            return self.sign_mask
        return (1 << self.magnitude_bits) - 1 if self.nan == "all_ones" else None

    @property
    def has_inf(self) -> bool:
        return self.infinity != "none"

    @property
    def has_nan(self) -> bool:
        return self.nan != "none"

    @property
    def max(self) -> float:
        """The largest finite value."""
        return self.magnitude(self.max_code)

    @property
    def min(self) -> float:
        """The lowest finite value; 0 or the smallest value where unsigned."""
        if self.encoding == "twos_complement":
            return -self.magnitude(1 << self.mantissa_bits)
        return -self.max if self.signed else self.magnitude(0)

    @property
    def min_normal(self) -> float | None:
        """The smallest positive normal value."""
        if not self.exponent_bits:
            return None
        return self.magnitude(1 << self.mantissa_bits if self.subnormals else 0)

    @property
    def min_subnormal(self) -> float | None:
        """The smallest positive subnormal value; the step where there is no exponent field."""
        has_any = self.subnormals and self.mantissa_bits
        return self.magnitude(1) if has_any else None

    @property
    def dtype(self) -> np.dtype | None:
        """The ml_dtypes or NumPy type of the same name."""
        scalar = getattr(ml_dtypes, self.name, None) or getattr(np, self.name, None)
        return np.dtype(scalar) if isinstance(scalar, type) else None

    @property
    def code_dtype(self) -> np.dtype:
        """uint8, uint16 or uint32: the narrowest that holds a code."""
        return np.dtype(np.uint8 if self.bits <= 8 else np.uint16 if self.bits <= 16 else np.uint32)

    def magnitude(self, code: int) -> float:
        """The value, a float64 and exact, of a finite code's bits beside the sign."""
        field, mantissa = code >> self.mantissa_bits, code & (1 << self.mantissa_bits) - 1
        if self.encoding == "twos_complement":
            field, mantissa = 0, code
        if self.subnormals and field == 0:
            return math.ldexp(mantissa, self.min_exponent - self.mantissa_bits)
        return math.ldexp(
            mantissa + (1 << self.mantissa_bits), field - self.bias - self.mantissa_bits
        )

    def value(self, code: int) -> float:
        """The value of any code as a Python float, exact; NaN and Inf included."""
        if self.encoding == "twos_complement":
            signed = code - (1 << self.bits) if code & self.sign_mask else code
            return math.copysign(self.magnitude(abs(signed)), signed or 1)
        if self.nan == "negative_zero" and code == self.sign_mask:
            return math.nan
        magnitude, sign = code & ~self.sign_mask, -1.0 if code & self.sign_mask else 1.0
        if magnitude <= self.max_code:
            return sign * self.magnitude(magnitude)
        return sign * math.inf if magnitude == self.infinity_code else math.nan

    @property
    def values(self) -> np.ndarray | None:
        """The values by code, float64 of shape (2^bits,), for formats of 16 bits or fewer."""
        return _values(self) if self.bits <= 16 else None


@functools.cache
def _values(fmt: Format) -> np.ndarray:
    values = np.array([fmt.value(code) for code in range(1 << fmt.bits)], dtype=np.float64)
    values.flags.writeable = False
    return values


def list_formats() -> tuple[str, ...]:
    """The names of the catalogue's number formats, sorted.

    Example:
      >>> "float8_e4m3fn" in list_formats()
      True
    """
    return catalogue.names("elements")


def aliases() -> tuple[str, ...]:
    """The short names that `get_format` takes beside the catalogue's, the refused ones included."""
    return tuple(sorted((*_ALIASES, *_AMBIGUOUS)))


@functools.cache
def _catalogued(name: str) -> Format:
    return catalogue.read("elements", name, Format).value


def get_format(fmt: "str | Format | Any") -> Format:
    """Finds a number format by name, alias, path to a TOML file, or passes a `Format` through.

    Aliases: `e5m2 e2m1 e2m3 e3m2 e8m0 bf16 fp16 fp32`. Bare `e4m3` is refused: it
    names two formats.

    Raises:
      ValueError: no format has that name; near matches are listed.
      TypeError: `fmt` is neither a string nor a `Format`.

    Example:
      >>> get_format("e5m2").max
      57344.0
    """
    if isinstance(fmt, Format):
        return fmt
    if not isinstance(fmt, str):
        raise TypeError(
            f"`fmt` must be a format's name, a path to a TOML file or a Format, got {type(fmt)}"
        )
    if catalogue.is_path(fmt):
        return catalogue.read("elements", fmt, Format).value
    if fmt.lower() in _AMBIGUOUS:
        raise ValueError(
            f"`fmt` = {fmt!r} is ambiguous: name {' or '.join(_AMBIGUOUS[fmt.lower()])}"
        )
    return _catalogued(_ALIASES.get(fmt.lower(), fmt))
