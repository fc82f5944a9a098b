"""Values as small tables of HTML, for notebooks; every room builds its own with these.

Colours are the page's: text inherits, lines are half-transparent grey, so that a table reads on a
light page and on a dark one. Whatever comes from outside is escaped.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from lowprec import catalogue

LONGEST = 16
"""Longer tuples are shown by their ends."""
_LINE = "border-top:1px solid rgba(128,128,128,.4);padding:.15em .8em .15em 0;"
_CELL = f"{_LINE}text-align:left;background:transparent"
_NUMBER = f"{_LINE}text-align:right;background:transparent;font-variant-numeric:tabular-nums"
_TABLE = "border-collapse:collapse;color:inherit;background:transparent"
_CAPTION = "text-align:left;font-weight:bold;color:inherit;caption-side:top"
_NOTE = "color:inherit;opacity:.75;max-width:50em;margin:.3em 0"


def plain(content: Any) -> str:
    """A parameter as text: a spec by its name, a tuple by its items or its ends.

    Example:
      >>> plain((1, "all")), plain(True), plain(0.5)
      ('1, all', 'true', '0.5')
    """
    if dataclasses.is_dataclass(content):
        if hasattr(content, "name"):
            return str(getattr(content, "name"))  # noqa: B009 - narrowed by hasattr alone
        members = dataclasses.fields(content)
        given = {x.name: getattr(content, x.name) for x in members}
        return ", ".join(f"{k} = {plain(v)}" for k, v in given.items() if v is not None)
    if isinstance(content, tuple):
        items = [plain(item) for item in content]
        if len(items) > LONGEST:
            return f"{items[0]}, ..., {items[-1]} ({len(items)} values by code)"
        return ", ".join(items)
    return str(content).lower() if isinstance(content, bool) else str(content)


def pairs(title: str, rows: Mapping[str, Any], note: str = "") -> str:
    """A table of names and values.

    Example:
      >>> "&lt;b&gt;" in pairs("a <b>", {"bits": 8})
      True
    """
    lines = [
        f'<tr><th scope="row" style="{_CELL};font-weight:normal;opacity:.75">{escape(name)}</th>'
        f'<td style="{_CELL}">{escape(plain(value))}</td></tr>'
        for name, value in rows.items()
    ]
    return _table(title, lines, note)


def grid(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[Any]],
    note: str = "",
) -> str:
    """A table with a row of headings; all columns but the first are numbers.

    Example:
      >>> grid("sizes", ["name", "rows"], [["products", 3]]).count("<tr>")
      2
    """
    styles = [_CELL, *[_NUMBER] * (len(headings) - 1)]
    cells = lambda tag, row: "".join(
        f'<{tag} style="{style}">{escape(plain(x))}</{tag}>'
        for style, x in zip(styles, row, strict=True)
    )
    lines = [f"<tr>{cells('th', headings)}</tr>"]
    return _table(title, lines + [f"<tr>{cells('td', row)}</tr>" for row in rows], note)


def spec(
    value: Any,
    kind: str,
    folder: catalogue.Kind,
    find: Callable[[str], Any] | None,
    derived: Mapping[str, Any],
) -> str:
    """An entry of the catalogue, or one like it: what differs from the defaults, and what follows.

    Args:
      value: a dataclass with a `name`.
      kind: what a person calls it.
      folder: of the catalogue; the source is named where the entry there is this very value.
      find: gets that entry by name; without it the source is said to be of the name's entry.
      derived: figures that follow; None is left out.
    """
    declared = {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if field.name != "name" and not _is_default(getattr(value, field.name), field)
    }
    rows = declared | {name: x for name, x in derived.items() if x is not None}
    name, source = f"{kind}:{value.name}", ""
    if value.name in catalogue.names(folder) and (find is None or find(value.name) == value):
        of = "" if find else f" of the catalogue's {name}"
        source = f"Source{of}: {catalogue.lookup(folder, value.name).citation}"
    return pairs(name, rows, source)


def _is_default(value: Any, field: "dataclasses.Field[Any]") -> bool:
    return value is None or value == () or value == field.default


def _table(title: str, lines: list[str], note: str) -> str:
    below = f'<p style="{_NOTE}">{escape(note)}</p>' if note else ""
    body = "".join(lines)
    return (
        f'<div><table style="{_TABLE}"><caption style="{_CAPTION}">{escape(title)}</caption>'
        f"<tbody>{body}</tbody></table>{below}</div>"
    )
