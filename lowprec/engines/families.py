"""Engines that a name spells out: plain accumulators in any format.

This file knows no `Engine`: it gives the fields of one.
"""

from typing import Any

from lowprec.numerics.format import get_format, names_format
from lowprec.numerics.rounding import ROUNDINGS

_FAMILIES = ("sequential", "chunked", "pairwise")


def matches(name: str) -> bool:
    """Whether a name is spelt as a family's member, be it a possible one or not."""
    return name.split(".")[0] in _FAMILIES and "." in name


def fields(name: str) -> dict[str, Any]:
    """The fields of the `Engine` that a member's name spells out.

    `sequential.<format>.<rounding>`: k ascending, each product rounded to the format, then added
    and rounded again. `chunked.<length>.<inner>.<outer>`: so over every <length> k from zero in the
    inner format, then the sums of chunks from c in the outer one (arXiv 1812.08011), to nearest
    even. `pairwise.<format>`: products rounded to the format, neighbours added level by level, then
    c. Formats with 8 exponent bits flush subnormals, as float32 arithmetic does on most machines:
    operands below 2^-126, and what rounds to less in 24 bits; others keep them.

    Raises:
      ValueError: no family has such a member.
    """
    family, *rest = name.split(".")
    wanted = {"sequential": 2, "chunked": 3, "pairwise": 1}[family]
    if len(rest) != wanted:
        raise ValueError(
            f"{name!r} is none of sequential.<format>.<rounding>, "
            f"chunked.<length>.<inner>.<outer>, pairwise.<format>"
        )
    plain = {"name": name, "output": get_format("float32")}
    if family == "chunked":
        if not rest[0].isdigit() or not 1 <= int(rest[0]) <= 1024:
            raise ValueError(f"{name!r}: the length of a chunk is a number from 1 to 1024")
        inner, outer = (_register(name, x) for x in rest[1:])
        return plain | {
            "accumulation": "chunked",
            "fused_length": int(rest[0]),
            "register": inner,
            "outer": outer,
            "subnormals": "flush" if max(inner.exponent_bits, outer.exponent_bits) >= 8 else "keep",
        }
    register = _register(name, rest[0])
    plain |= {
        "register": register,
        "subnormals": "flush" if register.exponent_bits >= 8 else "keep",
    }
    if family == "pairwise":
        return plain | {"accumulation": "tree"}
    if rest[1] not in ROUNDINGS:
        raise ValueError(f"{name!r}: the rounding is one of {', '.join(ROUNDINGS)}")
    if register.name == "float32" and rest[1] != "nearest_even":
        raise ValueError(f"{name!r}: float32 accumulates to nearest_even only; e8m21 as you like")
    return plain | {"accumulation": "sequential", "output_rounding": rest[1]}


def _register(name: str, fmt: str) -> Any:
    if not names_format(fmt):
        raise ValueError(f"{name!r}: no format is named {fmt!r}")
    found = get_format(fmt)
    plain = found.table is None and found.exponent_bits >= 2 and found.signed
    plain = plain and found.infinity == "ieee" and found.exponent_bits <= 8
    if not plain or (found.mantissa_bits > 21 and found.name != "float32"):
        raise ValueError(
            f"{name!r}: {fmt} cannot accumulate; a signed format with 2 to 8 exponent bits, at "
            f"most 21 mantissa bits and an Inf can, such as float16, bfloat16 or e6m9, and float32"
        )
    return found
