"""A number format as a value: only independent parameters are declared, the rest is derived.

A code is read as sign, exponent field and mantissa field, most significant first, as a two's
complement integer, or is looked up in a table of values. `lowprec.numerics.oracle` spells the same
rules out in exact arithmetic.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import ml_dtypes
import numpy as np

from lowprec import catalogue
from lowprec.numerics import families, html
from lowprec.numerics.spec import check_spec, floats

Encoding = Literal["sign_magnitude", "twos_complement"]

_ALIASES = {
    "e5m2": "float8_e5m2",
    "e2m3": "float6_e2m3fn",
    "e3m2": "float6_e3m2fn",
    "e2m1": "float4_e2m1fn",
    "e8m0": "float8_e8m0fnu",
    "bf16": "bfloat16",
    "fp16": "float16",
    "tf32": "tensorfloat32",
    "fp32": "float32",
}
_AMBIGUOUS = {"e4m3": ("float8_e4m3fn", "float8_e4m3")}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Format:
    """A number format: frozen and hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      name: the format's name, ml_dtypes' where bits agree.
      signed: whether the most significant bit is a sign; of a table, whether a value is negative,
        which is found from the table.
      exponent_bits: width of the exponent field; 0 for integers and fixed point.
      mantissa_bits: width of the mantissa field, the hidden bit not counted.
      bias: the exponent field minus the exponent. With no exponent field the unit in the last place
        is 2^(1 - bias - mantissa_bits), as among subnormals.
      infinity: `ieee` (largest exponent field, zero mantissa), `last` (the largest code that is not
        a NaN) or `none`.
      nan: `ieee` (largest exponent field, other mantissas), `all_ones` (all bits after the sign),
        `negative_zero` (the sign bit alone) or `none`.
      zero: `signed`, `unsigned` (one zero) or `none`.
      subnormals: whether exponent field 0 holds subnormals; where it does not, it is a binade like
        any other, which needs a format without zero.
      encoding: `sign_magnitude`, or `twos_complement` for integers.
      narrow_range: of two's complement, whether its lowest value is never encoded, so that the
        range is symmetric.
      table: instead of all of these but the name, the values by code: 2 to 65536 of them, a power
        of two, each a float32, 0, or not below 2^-100 in magnitude; nan and inf where a code means
        that. exponent_bits, mantissa_bits and bias are then None.
      overflow_value: of a table with nan or inf, the value that would follow the largest: what
        rounds to it overflows.

    Derived: `bits min max min_normal min_subnormal has_inf has_nan dtype values`, each None where
    the format has no such thing; `dtype` is the ml_dtypes or NumPy type of the same name. `min` and
    `max` are infinite, `min_subnormal` 0, where they lie outside a Python float's range.

    A value between two of a table's is rounded to one of them: `nearest_even` prefers the even code
    in a tie (the even rank in ascending order, where neighbouring codes are not even and odd in
    turn). Between two of equal magnitude, a mode that goes by magnitude takes the one with the sign
    of x, for which -0 counts as positive. Below the smallest of unsigned values is that value's
    code, where that is zero and the table has both zeros that of the one that stands first.

    Raises:
      ValueError: a contradiction between the parameters, or a choice that there is not.
      TypeError: a parameter of another type than declared.

    Example:
      >>> e4m3 = Format(name="mine", signed=True, exponent_bits=4, mantissa_bits=3, bias=7,
      ...               infinity="none", nan="all_ones", zero="signed", subnormals=True)
      >>> e4m3.max, e4m3.min_subnormal, e4m3.bits
      (448.0, 0.001953125, 8)
      >>> Format(name="levels", table=(-1.5, -0.25, 0.5, 2.0)).bits
      2
    """

    name: str
    signed: bool = True
    # None in a table format alone, where whoever reads them has looked at `table` first.
    exponent_bits: int = cast(int, None)
    mantissa_bits: int = cast(int, None)
    bias: int = cast(int, None)
    infinity: Literal["none", "ieee", "last"] = "none"
    nan: Literal["none", "ieee", "all_ones", "negative_zero"] = "none"
    zero: Literal["signed", "unsigned", "none"] = "signed"
    subnormals: bool = True
    encoding: Encoding = "sign_magnitude"
    narrow_range: bool = False
    table: tuple[float, ...] | None = None
    overflow_value: float | None = None

    def __post_init__(self) -> None:
        what = f"format {self.name!r}"
        if self.table is not None:
            object.__setattr__(self, "table", floats(what, "table", self.table))
        check_spec(what, self)
        for rule, message in self._table_rules() if self.table else self._field_rules():
            if not rule():
                raise ValueError(f"{what}: {message} (got {self!r})")
        if self.table:
            # One NaN object, so that equal tables are equal and hash alike.
            values = tuple(math.nan if math.isnan(x) else x for x in self.table)
            object.__setattr__(self, "table", values)
            object.__setattr__(self, "signed", any(x < 0 for x in values))
            zeros = {math.copysign(1, x) for x in values if x == 0}
            zero = "signed" if -1.0 in zeros else "unsigned" if zeros else "none"
            object.__setattr__(self, "zero", zero)

    @functools.cached_property
    def _identity(self) -> tuple[Any, ...]:
        """The fields, a table by its bits: those of -0 are not those of 0, to which it is equal."""
        given = (getattr(self, field.name) for field in dataclasses.fields(self))
        return tuple(np.array(x).tobytes() if isinstance(x, tuple) else x for x in given)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Format) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        """What differs from the defaults; a long table by its length."""
        given = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]
        shown = [
            f"{name}=<{len(value)} values>"
            if name == "table" and len(value) > 16
            else f"{name}={value!r}"
            for (name, value), field in zip(given, dataclasses.fields(self), strict=True)
            if value != field.default
        ]
        return f"Format({', '.join(shown)})"

    def _repr_html_(self) -> str:
        names = "bits min max min_normal min_subnormal has_inf has_nan dtype".split()
        figures = {name: getattr(self, name) for name in names}
        return html.spec(self, "format", "elements", get_format, figures)

    def _field_rules(self) -> Iterator[tuple[Callable[[], object], str]]:
        """What must hold of a format of fields, each looked at only where those before it hold."""
        fields = (self.exponent_bits, self.mantissa_bits, self.bias)
        yield lambda: None not in fields, "needs exponent_bits, mantissa_bits and bias, or a table"
        yield lambda: 0 <= self.exponent_bits <= 15, "exponent_bits must be from 0 to 15"
        yield lambda: 0 <= self.mantissa_bits <= 23, "mantissa_bits must be from 0 to 23"
        sign_alone = self.encoding == "twos_complement" and not self.narrow_range
        yield (
            lambda: self.magnitude_bits or sign_alone,
            "a format needs an exponent or a mantissa field",
        )
        yield lambda: self.magnitude_bits <= 31, "a format has at most 31 bits beside the sign"
        yield lambda: abs(self.bias) <= 1 << 15, "bias must be from -32768 to 32768"
        if self.infinity != "none":
            has_field = lambda: self.exponent_bits or self.infinity == "last"
            yield has_field, "infinity = 'ieee' needs an exponent field"
        yield (
            lambda: (self.nan == "ieee") == (self.infinity == "ieee"),
            ("infinity and nan are 'ieee' together or not at all"),
        )
        yield lambda: self.nan != "ieee" or self.mantissa_bits, "nan = 'ieee' needs mantissa bits"
        yield (
            lambda: self.max_code > 0 or (sign_alone and not self.magnitude_bits),
            "no code is left for a finite value above zero",
        )
        yield (
            lambda: self.nan != "negative_zero" or (self.signed and self.zero == "unsigned"),
            "nan = 'negative_zero' needs signed = true and zero = 'unsigned'",
        )
        yield (
            lambda: self.zero != "unsigned" or not self.signed or self._spends_negative_zero,
            "a signed format with zero = 'unsigned' spends the code of -0 on nan = "
            "'negative_zero', or is two's complement",
        )
        yield (
            lambda: self.subnormals == (self.zero != "none"),
            "subnormals = false needs zero = 'none', and subnormals = true a zero",
        )
        yield (
            lambda: self.subnormals or self.exponent_bits,
            "a format without zero needs an exponent field",
        )
        yield (
            lambda: (
                self.encoding == "sign_magnitude"
                or (self.signed and not self.exponent_bits and not (self.has_nan or self.has_inf))
            ),
            "two's complement is for signed integers: exponent_bits = 0, nan and infinity 'none'",
        )
        yield (
            lambda: not self.narrow_range or self.encoding == "twos_complement",
            "narrow_range is for two's complement",
        )
        yield lambda: self.overflow_value is None, "overflow_value is for a table"

    def _table_rules(self) -> Iterator[tuple[Callable[[], object], str]]:
        """What must hold of a format that is a table."""
        values = self.table or ()
        finite = [x for x in values if math.isfinite(x)]
        zeros = [math.copysign(1, x) for x in finite if x == 0]
        others = {
            field.name: getattr(self, field.name) == field.default
            for field in dataclasses.fields(self)
            if field.name not in ("name", "table", "overflow_value", "signed", "zero")
        }
        yield lambda: all(others.values()), "a table leaves the other parameters at their defaults"
        yield (
            lambda: self.signed or min(finite, default=0) >= 0,
            "signed = false, and the table has negative values; leave it out",
        )
        size = len(values)
        yield (
            lambda: 2 <= size <= 1 << 16 and size & (size - 1) == 0,
            ("a table has 2 to 65536 values, a power of two"),
        )
        yield (
            lambda: (
                len(set(finite) - {0.0}) + len(zeros)
                == len(finite)
                == len({x for x in finite if x} | {f"zero {sign}" for sign in zeros})
            ),
            "a table has no value twice",
        )
        yield lambda: len(set(finite)) >= 2, "a table has two finite values or more"
        yield lambda: max(finite) > 0, "a table has a positive value"
        yield (
            lambda: all(_is_float32(x) for x in finite),
            ("a table's values are float32: 0, or of magnitude 2^-100 to 2^126"),
        )
        special = len(finite) < size
        beyond = self.overflow_value
        if special:
            yield lambda: beyond is not None, "a table with nan or inf needs overflow_value"
            yield (
                lambda: beyond is None or beyond > max(map(abs, finite)),
                ("overflow_value lies above every value"),
            )
        yield (
            lambda: beyond is None or (special and _is_float32(beyond)),
            ("overflow_value is a float32, for a table with nan or inf"),
        )

    @property
    def _spends_negative_zero(self) -> bool:
        return self.nan == "negative_zero" or self.encoding == "twos_complement"

    @property
    def magnitude_bits(self) -> int:
        """Bits beside the sign; all bits of a table's code."""
        if self.table is not None:
            return self.bits
        return self.exponent_bits + self.mantissa_bits

    @property
    def bits(self) -> int:
        """Bits in a code."""
        if self.table is not None:
            return (len(self.table) - 1).bit_length()
        return self.magnitude_bits + int(self.signed)

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number (of the subnormals' binade where all are)."""
        return (1 if self.subnormals else 0) - self.bias

    @property
    def sign_mask(self) -> int:
        """The sign bit of a code, 0 where there is none."""
        return 1 << self.magnitude_bits if self.signed and self.table is None else 0

    @property
    def code_mask(self) -> int:
        """All bits of a code."""
        return (1 << self.bits) - 1

    @property
    def max_code(self) -> int:
        """Code of the largest finite number."""
        if self.table is not None:
            return self.table.index(self.max)
        top = (1 << self.magnitude_bits) - 1
        if self.infinity == "ieee":
            return ((1 << self.exponent_bits) - 1 << self.mantissa_bits) - 1
        return top - (self.nan == "all_ones") - (self.infinity == "last")

    @property
    def min_code(self) -> int:
        """Code of the lowest finite number."""
        if self.table is not None:
            return self.table.index(self.min)
        if self.encoding == "twos_complement":
            return self.sign_mask + self.narrow_range
        return self.sign_mask | self.max_code if self.signed else 0

    @property
    def infinity_code(self) -> int | None:
        """Code of +Inf."""
        if self.table is not None:
            return _index(self.table, math.inf)
        return self.max_code + 1 if self.infinity != "none" else None

    @property
    def nan_code(self) -> int | None:
        """Code of the NaN that a cast returns; with a sign bit, the positive one."""
        if self.table is not None:
            return _index(self.table, math.nan)
        if self.nan == "ieee":
            return self.max_code + 1 | 1 << (self.mantissa_bits - 1)
        if self.nan == "negative_zero":
            return self.sign_mask
        return (1 << self.magnitude_bits) - 1 if self.nan == "all_ones" else None

    @property
    def has_inf(self) -> bool:
        return self.infinity_code is not None

    @property
    def has_nan(self) -> bool:
        return self.nan_code is not None

    @property
    def max(self) -> float:
        """The largest finite value."""
        if self.table is not None:
            return max(x for x in self.table if math.isfinite(x))
        return self.magnitude(self.max_code)

    @property
    def min(self) -> float:
        """The lowest finite value; 0 or the smallest value where unsigned."""
        if self.table is not None:
            return min(x for x in self.table if math.isfinite(x))
        if self.encoding == "twos_complement" and not self.narrow_range:
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
        has_any = self.table is None and self.subnormals and self.mantissa_bits
        return self.magnitude(1) if has_any else None

    @property
    def dtype(self) -> np.dtype | None:
        """The ml_dtypes or NumPy type of the same name and the same fields."""
        scalar = getattr(ml_dtypes, self.name, None) or getattr(np, self.name, None)
        if not isinstance(scalar, type) or self.table is not None:
            return None
        found = np.dtype(scalar)
        own = (self.bits, self.min, self.max, self.min_subnormal, self.mantissa_bits)
        return found if _figures(found, integer=not self.exponent_bits) == own else None

    @property
    def code_dtype(self) -> np.dtype:
        """uint8, uint16 or uint32: the narrowest that holds a code."""
        return np.dtype(np.uint8 if self.bits <= 8 else np.uint16 if self.bits <= 16 else np.uint32)

    def magnitude(self, code: int) -> float:
        """The value, a float64 and exact, of a finite code's bits beside the sign.

        Inf or 0 where float64 has no such number, which takes an exponent field above 10 bits.
        """
        if self.table is not None:
            return abs(self.table[code])
        field, mantissa = code >> self.mantissa_bits, code & (1 << self.mantissa_bits) - 1
        if self.encoding == "twos_complement":
            field, mantissa = 0, code
        if self.subnormals and field == 0:
            significand, exponent = mantissa, self.min_exponent - self.mantissa_bits
        else:
            significand = mantissa + (1 << self.mantissa_bits)
            exponent = field - self.bias - self.mantissa_bits
        try:
            return math.ldexp(significand, exponent)
        except OverflowError:
            return math.inf

    def value(self, code: int) -> float:
        """The value of any code as a Python float, exact; NaN and Inf included."""
        if self.table is not None:
            return self.table[code]
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


def _figures(dtype: np.dtype, *, integer: bool) -> tuple[float | None, ...] | None:
    """Bits, lowest and largest value, smallest subnormal and mantissa bits of a NumPy type."""
    try:
        if integer:
            whole = ml_dtypes.iinfo(dtype)
            mantissa = whole.bits - (whole.min < 0)
            step = 1.0 if mantissa else None
            return whole.bits, float(whole.min), float(whole.max), step, mantissa
        found = ml_dtypes.finfo(dtype)
    except ValueError:
        return None
    least = float(found.smallest_subnormal) if found.nmant else None
    return found.bits, float(found.min), float(found.max), least, found.nmant


@functools.cache
def _values(fmt: Format) -> np.ndarray:
    values = np.array([fmt.value(code) for code in range(1 << fmt.bits)], dtype=np.float64)
    values.flags.writeable = False
    return values


def _index(table: tuple[float, ...], value: float) -> int | None:
    """Where a table has a value, NaN included."""
    same = [i for i, x in enumerate(table) if x == value or (x != x and value != value)]
    return same[0] if same else None


def _is_float32(x: float) -> bool:
    return x == 0 or (2.0**-100 <= abs(x) <= 2.0**126 and float(np.float32(x)) == x)


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


def names_format(name: str) -> bool:
    """Whether a name is a format's: the catalogue's, an alias, or spelt as a family's member."""
    return name in list_formats() or name.lower() in aliases() or families.matches(name)


@functools.cache
def _named(name: str) -> Format:
    if name not in catalogue.names("elements") and families.matches(name):
        return Format(**families.fields(name))
    return catalogue.read("elements", name, Format).value


def get_format(fmt: "str | Format | Any") -> Format:
    """Finds a number format by name, alias, path to a TOML file, or passes a `Format` through.

    Aliases: `e5m2 e2m1 e2m3 e3m2 e8m0 bf16 fp16 tf32 fp32`. Bare `e4m3` is refused: it names two
    formats. Families are found by name too: `binary<K>p<P>{s,u}{e,f}` (IEEE P3109; `binary8p4` is
    `binary8p4se`) and `e<E>m<M>` (as IEEE 754 encodes).

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
    return _named(_ALIASES.get(fmt.lower(), fmt))
