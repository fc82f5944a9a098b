"""A figure as it stands on a page."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lowprec.report import style

Draw = Callable[..., style.Picture | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A figure as it stands on the page, drawn for a screen and for a phone."""

    name: str
    heading: str
    title: str
    sentence: str
    data: str
    wide: str
    narrow: str


def show(name: str, heading: str, data: str, draw: Draw, *frames: Any) -> Shown | None:
    """A figure in both widths, or None where its data are missing."""
    wide, narrow = draw(*frames), draw(*frames, narrow=True)
    if wide is None or narrow is None:
        return None
    return Shown(
        name=name,
        heading=heading,
        title=wide.title,
        sentence=wide.sentence,
        data=data,
        wide=style.svg(wide.figure, name),
        narrow=style.svg(narrow.figure, f"{name}-narrow", narrow=True),
    )


def standalone(drawn: str) -> str:
    """An `<svg>` element as a file of its own."""
    return f'<?xml version="1.0" encoding="utf-8"?>\n{drawn}'


def write_figures(figures: Sequence[Shown], out: Path) -> None:
    """Writes figures, as they are on a screen, into the folder `figures` of a directory."""
    drawn = out / "figures"
    drawn.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        (drawn / f"{figure.name}.svg").write_text(standalone(figure.wide), encoding="utf-8")
