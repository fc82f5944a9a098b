"""Number lines against values that are known."""

import pytest

from lowprec.numerics import Format, get_format
from lowprec.report import number_line
from tests.helpers import FORMATS


def test_e2m1() -> None:
    fmt = next(fmt for fmt in FORMATS if fmt.name == "float4_e2m1fn")
    assert number_line(fmt, 40).split("\n") == [
        "float4_e2m1fn: 7 positive values, 0.5 to 6",
        ":         |     |    |     |   |     |",
        "+---------+----------+---------+--------",
        "0.5       1          2         4",
        "| one value  : one subnormal",
    ]


def test_columns_that_hold_several_values() -> None:
    fmt = next(fmt for fmt in FORMATS if fmt.name == "float8_e4m3fn")
    first, marks, axis, labels, legend = number_line(fmt).split("\n")
    assert first == "float8_e4m3fn: 126 positive values, 0.00195312 to 448"
    # Seven subnormals, the last of them alone in its column still.
    assert marks.count(":") == 7 and "#" in marks and legend.endswith("# several")
    assert axis.count("+") == len(labels.split()) and "2^0" in labels


@pytest.mark.parametrize("width", [24, 40, 72, 120])
@pytest.mark.parametrize("fmt", [f for f in FORMATS if f.max > 0], ids=lambda f: f.name)
def test_every_format_fits(fmt: Format, width: int) -> None:
    first, *lines = number_line(fmt, width).split("\n")
    assert first.startswith(f"{fmt.name}: ") and len(lines) == 4
    assert all(len(line) <= width or line is lines[-1] for line in lines)
    assert lines[0][0] != " "
    # Every tick has a whole name below it.
    assert lines[1].count("+") == len(lines[2].split())


@pytest.mark.parametrize(
    "fmt", [f for f in FORMATS if f.bits <= 8 and f.max > 0], ids=lambda f: f.name
)
def test_the_count_is_of_all_positive_values(fmt: Format) -> None:
    assert fmt.values is not None
    positive = {value for value in fmt.values if 0 < value < float("inf")}
    assert f": {len(positive)} positive value" in number_line(fmt)


def test_a_format_without_positive_values() -> None:
    assert number_line(get_format("int1")) == "int1: no positive values"


def test_a_format_with_one_value() -> None:
    fmt = Format(name="one", exponent_bits=0, mantissa_bits=1, bias=0)
    assert number_line(fmt).startswith("one: 1 positive value, 1 to 1\n")


def test_a_narrow_line_is_refused() -> None:
    with pytest.raises(ValueError, match="`width` = 10; a number line needs at least 24"):
        number_line(FORMATS[0], 10)
