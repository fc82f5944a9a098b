"""How figures look: one palette, one set of sizes, and SVG that is the same bytes every time."""

import contextlib
import dataclasses
import io
import math
import re
import textwrap
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lowprec.report import words

INK, MUTED, GRID = "#1f2430", "#5b6270", "#e3e5ea"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#882255", "#6b6b6b")
"""Okabe and Ito's colours without yellow and black, which vanish on white or are the floors'."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "d")
WIDE, NARROW = 10.4, 3.75
"""Widths of a figure in inches: of the page, and of a phone."""
_RAISED = "\N{SUPERSCRIPT MINUS}⁰¹²³⁴⁵⁶⁷⁸⁹"
Look = dict[str, Any]
"""Colour and marker of a series, as keywords of matplotlib."""

_RC: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.handletextpad": 0.4,
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with what it says: the finding, its title, and a sentence on how to read it.

    Attributes:
      figure: the drawing.
      title: the finding, computed from the data.
      sentence: what is shown and over what.
    """

    figure: Figure
    title: str
    sentence: str

    def _repr_html_(self) -> str:
        # The ids within must differ from those of another figure on the page.
        name = f"figure-{zlib.crc32(f'{self.title}{self.sentence}'.encode()):08x}"
        narrow = self.figure.get_figwidth() <= NARROW
        drawn = svg(self.figure, name, narrow=narrow)
        # Text and lines are dark: a dark page needs white beneath them.
        below = f'<figcaption style="color:inherit">{escape(self.sentence)}</figcaption>'
        return (
            f'<figure style="margin:0"><div style="background:white">{drawn}</div>{below}</figure>'
        )


@contextlib.contextmanager
def look(narrow: bool = False, salt: str = "lowprec") -> Iterator[None]:
    """Sets matplotlib's parameters while a figure is made or written."""
    size = 9.0 if narrow else 10.0
    sizes: dict[Any, Any] = {
        "font.size": size,
        "axes.labelsize": size,
        "axes.titlesize": size + 0.5,
        "legend.fontsize": size,
        "xtick.labelsize": size - 0.5,
        "ytick.labelsize": size - 0.5,
    }
    with matplotlib.rc_context({**_RC, **sizes, "svg.hashsalt": salt}):
        yield


def start(
    narrow: bool, height: float, narrow_height: float, title: str, letters: int = 100
) -> Figure:
    """An empty figure with its finding as the title, at the left, `letters` a line where wide."""
    lines = textwrap.wrap(
        words.label(title, 400), 40 if narrow else letters, break_on_hyphens=False
    )
    width, tall = (NARROW, narrow_height) if narrow else (WIDE, height)
    tall += 0.2 * len(lines) - 0.4
    figure = Figure(figsize=(width, tall), layout="constrained")
    size = 10.0 if narrow else 12.5
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=size, fontweight="bold")
    return figure


def styles(names: Iterable[str]) -> dict[str, Look]:
    """Colour and marker of each series: the same in every figure of a report."""
    return {
        name: {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(sorted(set(names)))
    }


def handle(name: str, look: Look) -> Line2D:
    """The legend's entry of a series of points."""
    return Line2D([], [], **look, linestyle="none", markersize=6.5, label=words.label(name))


def legend(figure: Figure, handles: Sequence[Line2D], narrow: bool, columns: int = 6) -> None:
    """A legend below the axes."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = min(len(handles), (2 if longest <= 20 else 1) if narrow else columns)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def powers_of_ten(axes: Axes) -> None:
    """A logarithmic axis upward, its powers written out: mathematical text is switched off."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    axes.yaxis.set_minor_locator(NullLocator())


def _power(value: float) -> str:
    exponent = round(math.log10(value))
    if -3 <= exponent <= 3:
        return f"{value:g}"
    return f"10{str(exponent).translate(str.maketrans('-0123456789', _RAISED))}"


def floor_line(axes: Axes, value: float | None, name: str, dashes: str) -> None:
    """A reference line where it lies within the axes, else a line at their edge that says so.

    To be called when the limits stand: a float32 floor some 80 dB away would flatten all else.
    """
    if value is None or math.isnan(value):
        return
    low, high = axes.get_ylim()
    outside = value > high
    at = high - 0.004 * (high - low) if outside else value
    size = "exact" if math.isinf(value) else f"{value:.1f} dB"
    text = f"{name} {size}{', off scale ↑' if outside else ''}"
    axes.axhline(at, color=INK, linewidth=1.1, linestyle=dashes, zorder=1)
    axes.annotate(
        text,
        (0.995, at),
        (0, -3),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="top",
        ha="right",
        color=INK,
        fontsize=matplotlib.rcParams["xtick.labelsize"],
    )


def svg(figure: Figure, name: str, *, narrow: bool = False) -> str:
    """The figure as an `<svg>` element that can stand in a page beside others.

    No date, no metadata, and ids that begin with `name`, which must differ between figures.
    """
    buffer = io.StringIO()
    metadata: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with look(narrow, salt=name), warnings.catch_warnings():
        # The reader's browser draws the text, with whatever fonts have the glyph.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata=metadata)
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"\s*<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"\s*<!--.*?-->", "", drawn, flags=re.DOTALL)
    drawn = drawn.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    drawn = re.sub(r'(?<=\sid=")(?=[^"]+")', f"{name}-", drawn)
    drawn = drawn.replace("url(#", f"url(#{name}-")
    drawn = re.sub(r'\sxlink:href="#', f' href="#{name}-', drawn)
    drawn = _lean(drawn)
    return drawn.replace("<svg ", f'<svg id="{name}" ', 1)


def _lean(drawn: str) -> str:
    """The same picture in two thirds of the bytes.

    Numbers have two decimals, since hundredths of a point cannot be seen; names that nothing refers
    to and space between elements are left out.
    """
    drawn = re.sub(r'\s(?:d|transform|x|y)="[^"]*"', lambda found: _hundredths(found[0]), drawn)
    wanted = set(re.findall(r'(?:href="|url\()#([^")]+)', drawn))
    drawn = re.sub(r'\sid="([^"]+)"', lambda x: x[0] if x[1] in wanted else "", drawn)
    return re.sub(r">\s+<", "><", drawn)


def _hundredths(attribute: str) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", attribute)
