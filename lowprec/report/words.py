"""How numbers and names are written in figures and on the page."""

import math
import unicodedata

MINUS, DASH, TIMES = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"


def number(value: float | None, digits: int = 1) -> str:
    """A number with so many decimals.

    Example:
      >>> number(17.25, 1), number(float("inf"))
      ('17.2', '∞')
    """
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    text = f"{abs(value):,.{digits}f}"
    return f"{MINUS}{text}" if value < 0 and float(text.replace(",", "")) else text


def signed(value: float | None, digits: int = 1) -> str:
    """A number with its sign, also where that is plus."""
    text = number(value, digits)
    return f"+{text}" if value is not None and value > 0 else text


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent; what would round to nothing is said to be less than that."""
    if share is None or not math.isfinite(share):
        return number(share)
    least = 10.0**-digits
    if 0 < abs(share) * 100 < least / 2:
        return f"<{least:.{digits}f} %"
    return f"{number(share * 100, digits)} %"


def significant(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, as a power of ten where it is far from 1."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{value:.{digits}g}".replace("-", MINUS)


def label(name: str, limit: int = 44) -> str:
    """A name from anywhere on one line of a figure: no control characters, shortened amid."""
    kept = "".join(" " if unicodedata.category(c).startswith("C") else c for c in name).strip()
    if len(kept) <= limit:
        return kept
    head = limit // 2
    return f"{kept[:head]}…{kept[head + 1 - limit :]}"


def counted(count: int, noun: str) -> str:
    """A count with its noun.

    Example:
      >>> counted(1, "layer"), counted(28, "layer")
      ('1 layer', '28 layers')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(items: list[str]) -> str:
    """A list in words.

    Example:
      >>> listed(["a", "b", "c"])
      'a, b and c'
    """
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
