"""The colours of figures on a dark page.

Figures are drawn with the colours of `style` alone. In a page each of these is a variable, which
the page sets for light and for dark; files of figures keep the colours as they are.
"""

import re
from collections.abc import Mapping

from lowprec.report import style

CARD = "#1a1e26"
"""What figures lie on in the dark."""
DARK: Mapping[str, str] = {
    style.INK: "#e4e7ec",
    style.MUTED: "#a2aab8",
    style.GRID: "#2e3540",
    "#ffffff": CARD,
    "#b9bec8": "#59616f",
    **dict(
        zip(
            style.PALETTE,
            (
                "#4aa8ea",
                "#ff8a45",
                "#2fc79b",
                "#e39ac3",
                "#a5dafc",
                "#f5b83d",
                "#d76a95",
                "#9d9d9d",
            ),
            strict=True,
        )
    ),
}
"""The dark page's colour for each of the light one's, as figures write it."""
_COLOUR = re.compile("|".join(DARK), re.IGNORECASE)


def colours() -> list[tuple[str, str, str]]:
    """The variables with their light and dark colours.

    Example:
      >>> colours()[0]
      ('--1f2430', '#1f2430', '#e4e7ec')
    """
    return [(_variable(light), light, dark) for light, dark in DARK.items()]


def themed(drawn: str) -> str:
    """An `<svg>` element whose colours are the page's variables.

    Example:
      >>> themed('<path style="fill: #1f2430"/>')
      '<path style="fill: var(--1f2430)"/>'
    """
    return _COLOUR.sub(lambda found: f"var({_variable(found[0])})", drawn)


def _variable(colour: str) -> str:
    return f"--{colour.lower().removeprefix('#')}"
