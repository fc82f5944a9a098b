"""One catalogue entry in text: what it declares, what follows from it, and where it comes from."""

import dataclasses
import typing
from typing import Any

import numpy as np

from lowprec import catalogue
from lowprec.engines import families as engine_families
from lowprec.engines.engine import Engine, get_engine
from lowprec.gemm.recipe import ROLES, Recipe, get_recipe, operand_bits
from lowprec.kv import KVMethod, get_kv_method
from lowprec.numerics import families
from lowprec.numerics.format import Format, get_format, names_format
from lowprec.numerics.html import plain
from lowprec.report.terminal import number_line
from lowprec.scaling.block import Block, get_block

Entry = Format | Block | Engine | Recipe | KVMethod

KINDS: dict[str, tuple[catalogue.Kind, Any]] = {
    "format": ("elements", get_format),
    "block": ("blocks", get_block),
    "engine": ("engines", get_engine),
    "recipe": ("recipes", get_recipe),
    "kv": ("kv", get_kv_method),
}
"""What a person calls each kind: its folder, and the function that finds an entry."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "format": families.SPELLINGS,
    "engine": (
        "sequential.<format>.<rounding>",
        "chunked.<length>.<inner>.<outer>",
        "pairwise.<format>",
    ),
}
"""How the entries are spelt that are found by name alone, by kind."""

TABLE_BITS = 8
_COLUMNS = 8
_LENGTHS = (4096, 32768)


def find_entries(name: str, kind: str | None = None) -> list[tuple[str, Entry]]:
    """All entries of that name, or of that TOML file, as (kind, value).

    A qualified name, `recipe:nvfp4`, is of its kind alone.

    Raises:
      ValueError: nothing has that name; near matches of every kind are listed.
    """
    qualifier, _, rest = name.partition(":")
    if rest and qualifier in KINDS and kind in (None, qualifier):
        kind, name = qualifier, rest
    if kind is not None:
        return [(kind, KINDS[kind][1](name))]
    if catalogue.is_path(name):
        return [_from_file(name)]
    found = [(kind, find(name)) for kind, (_, find) in KINDS.items() if _names(kind, name)]
    if not found:
        known = {entry for folder, _ in KINDS.values() for entry in catalogue.names(folder)}
        raise ValueError(catalogue.unknown("entry", name, sorted(known)))
    return found


def _names(kind: str, name: str) -> bool:
    """Whether an entry of the kind is called so: in the catalogue, by an alias or in a family."""
    if kind == "format":
        return names_format(name)
    spelt = kind == "engine" and engine_families.matches(name)
    return spelt or name in catalogue.names(KINDS[kind][0])


def _from_file(path: str) -> tuple[str, Entry]:
    """A user's file is what its keys say it is."""
    keys = {"recipe": "fprop", "kv": "family", "block": "element", "engine": "accumulation"}
    kind = next((kind for kind, key in keys.items() if catalogue.has_key(path, key)), "format")
    return kind, KINDS[kind][1](path)


def describe(kind: str, value: Entry, width: int = 78) -> str:
    """An entry as lines of text: parameters, derived figures, values of a format, citation."""
    parts = [f"{kind}:{value.name}", *_table("declared", _declared(value))]
    parts += _table("derived", _derived(value))
    if isinstance(value, Format):
        parts += ["", number_line(value, width)]
        if value.bits <= TABLE_BITS:
            parts += ["", *_value_table(value)]
    return "\n".join([*parts, *_citation(KINDS[kind][0], value.name)])


def _declared(value: Entry) -> dict[str, str]:
    if isinstance(value, KVMethod):
        value = typing.cast(Any, value.spec)
    shown = {}
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        if field.name == "name" or content is None or content == ():
            continue
        if field.name == "tile":
            shown[field.name] = " x ".join(map(str, content))
        elif isinstance(value, Format) and value.table is not None:
            # The other fields are of formats that are no table.
            if field.name in ("table", "overflow_value", "signed", "zero"):
                shown[field.name] = plain(content)
        else:
            shown[field.name] = plain(content)
    return shown


def _derived(value: Entry) -> dict[str, str]:
    match value:
        case Format():
            names = ("bits", "max", "min", "min_normal", "min_subnormal", "has_inf", "has_nan")
            shown = {name: getattr(value, name) for name in names}
            return {name: plain(x) for name, x in shown.items() if x is not None}
        case Block():
            return {
                "bits_per_element": f"{value.bits_per_element:g}",
                "scale_bits_per_element": f"{value.scale_bits_per_element:g}",
                "element max": f"{value.element.max:g}",
            }
        case Recipe():
            pairs = {role: getattr(value, role) for role in ROLES}
            return {
                f"{role} bits_per_element": f"{operand_bits(pair.a):g} (a), "
                f"{operand_bits(pair.b):g} (b)"
                for role, pair in pairs.items()
            }
        case KVMethod():
            return _cache_sizes(value)
        case Engine():
            return {}


def _cache_sizes(method: KVMethod) -> dict[str, str]:
    """Bits of an element with metadata, and with windows at a few lengths."""
    shown = {"bits_per_element": f"{method.bits_per_element():.4g}"}
    for length in _LENGTHS:
        bits = method.bits_per_element(length)
        shown[f"at {length} tokens"] = f"{bits:.4g} (windows, sinks and padding counted)"
    return shown


def _table(title: str, rows: dict[str, str]) -> list[str]:
    if not rows:
        return []
    width = max(len(name) for name in rows)
    return ["", f"{title}:", *(f"  {name:<{width}}  {text}" for name, text in rows.items())]


def _value_table(fmt: Format) -> list[str]:
    """Values by code, in rows of eight; of sign and magnitude those without the sign bit."""
    values = fmt.values
    assert values is not None
    half = (fmt.encoding == "sign_magnitude" and fmt.sign_mask) or len(values)
    digits = -(-fmt.bits // 4)
    cells = [f"{np.format_float_positional(v, trim='-', precision=7)}" for v in values[:half]]
    least = fmt.min_normal or min((x for x in values if x > 0), default=1.0)
    if fmt.max > 1e6 or least < 1e-6:
        cells = [f"{v:g}" for v in values[:half]]
    width = max(len(cell) for cell in cells)
    rows = [
        f"  0x{start:0{digits}x}  "
        + "  ".join(f"{cell:>{width}}" for cell in cells[start : start + _COLUMNS])
        for start in range(0, half, _COLUMNS)
    ]
    sign = "; the sign bit negates" if fmt.encoding == "sign_magnitude" and fmt.sign_mask else ""
    return [f"values by code{sign}:", *rows]


def _citation(kind: catalogue.Kind, name: str) -> list[str]:
    entry = families.entry_name(name) if kind == "elements" else name
    if kind == "engines" and name not in catalogue.names(kind) and engine_families.matches(name):
        return ["", "source: its name, which spells out its parameters"]
    if entry == name and name not in catalogue.names(kind):
        return ["", "source: the user's own file"]
    cited = catalogue.lookup(kind, entry).citation
    assert cited is not None
    return ["", f"source: {cited}", *([f"note: {cited.note}"] if cited.note else [])]
