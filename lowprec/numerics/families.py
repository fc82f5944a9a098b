"""Formats that a name spells out: the parameters of a family's member from its name.

The rule of a family is its source's, and is here; its citation, and figures that the source quotes,
are in `formats/elements/families/`. This file knows no `Format`: it gives the fields of one.
"""

import re
from typing import Any

from lowprec import catalogue

SPELLINGS = ("binary<K>p<P>{s,u}{e,f}", "e<E>m<M>")
"""How members are spelt; see `fields`."""
_P3109 = re.compile(r"binary(\d+)p(\d+)(?:([su])([ef]))?")
_IEEE = re.compile(r"e(\d+)m(\d+)")


def family_of(name: str) -> str | None:
    """The file in `formats/elements/families/` that a name belongs to, if any."""
    if _P3109.fullmatch(name):
        return "p3109"
    return "ieee_interchange" if _IEEE.fullmatch(name) else None


def entry_name(name: str) -> str:
    """The catalogue entry that a format's citation stands in: its own, or its family's."""
    family = family_of(name)
    own = family is None or name in catalogue.names("elements")
    return name if own else f"families/{family}"


def matches(name: str) -> bool:
    """Whether a name is spelt as a family's member, be it a possible one or not."""
    return family_of(name) is not None


def fields(name: str) -> dict[str, Any]:
    """The fields of the `Format` that a member's name spells out.

    `binary<K>p<P>{s,u}{e,f}`, IEEE P3109: K bits, of which P are precision (the hidden bit
    counted); signed or unsigned; extended, with Inf, or finite. `binary<K>p<P>` is signed and
    extended, and is named in full. `e<E>m<M>`: E exponent and M mantissa bits with the bias, the
    subnormals, Inf and NaN of IEEE 754.

    Raises:
      ValueError: no family has such a member.
    """
    found = _P3109.fullmatch(name)
    if found:
        return _p3109(int(found[1]), int(found[2]), found[3] or "s", found[4] or "e")
    found = _IEEE.fullmatch(name)
    if not found:
        raise ValueError(f"{name!r} is spelt like no family's member")
    exponent_bits, mantissa_bits = int(found[1]), int(found[2])
    if not (2 <= exponent_bits <= 11 and 1 <= mantissa_bits <= 23):
        raise ValueError(f"{name!r}: e<E>m<M> has E from 2 to 11 and M from 1 to 23")
    return {
        "name": name,
        "exponent_bits": exponent_bits,
        "mantissa_bits": mantissa_bits,
        "bias": (1 << exponent_bits - 1) - 1,
        "infinity": "ieee",
        "nan": "ieee",
    }


def _p3109(width: int, precision: int, sign: str, domain: str) -> dict[str, Any]:
    name = f"binary{width}p{precision}{sign}{domain}"
    signed = sign == "s"
    if not (3 <= width <= 15 and 1 <= precision <= width):
        raise ValueError(f"{name!r}: binary<K>p<P> has K from 3 to 15 and P from 1 to K")
    exponent_bits = width - precision + (not signed)
    return {
        "name": name,
        "signed": signed,
        "exponent_bits": exponent_bits,
        "mantissa_bits": precision - 1,
        # 2^(K-P-1) where signed, 2^(K-P) where not; a signed format without exponent has 0.
        "bias": 1 << exponent_bits >> 1,
        "infinity": "last" if domain == "e" else "none",
        "nan": "negative_zero" if signed else "all_ones",
        "zero": "unsigned",
    }
