"""Figures beside training: what an accumulator adds to gradients, and a block that collapses."""

import textwrap
from collections.abc import Sequence

from matplotlib.lines import Line2D

from lowprec.report import style, words
from lowprec.study.collapse import CollapseRow, ValueRow
from lowprec.study.training_replay import ReplayRow

COLLAPSING = (0.875, 1.0)
_LETTERS = 92


def series(row: ReplayRow) -> str:
    """What a row is one of: a recipe, and how often it is promoted."""
    recipe = row.recipe.partition(":")[2]
    return f"{recipe}, " + (
        f"promoted every {row.promote_every}" if row.promote_every else "never promoted"
    )


def product_name(row: ReplayRow) -> str:
    """A product of a layer, with its K."""
    return f"{row.layer.rpartition('layers.0.')[2]} {row.role}, K = {row.k}"


def replay(rows: Sequence[ReplayRow], *, narrow: bool = False) -> style.Picture | None:
    """Points: the relative error that the engine adds, a product a line, a panel for each step."""
    if not rows:
        return None
    title, steps = replay_title(rows), sorted({row.step for row in rows})
    products = list(dict.fromkeys(map(product_name, rows)))
    kinds = list(dict.fromkeys(map(series, rows)))
    looks = style.styles(kinds)
    with style.look(narrow):
        tall = 0.3 * len(products)
        figure = style.start(narrow, 2.3 + tall, 2.2 + len(steps) * (0.8 + tall), title, _LETTERS)
        grid = (len(steps), 1) if narrow else (1, len(steps))
        panels = figure.subplots(*grid, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, step in zip(panels, steps, strict=True):
            for row in rows:
                if row.step != step:
                    continue
                place = products.index(product_name(row))
                axes.plot(row.added, place, **looks[series(row)], markersize=6)
                axes.plot(row.quantization, place, "|", color=style.INK, markersize=9)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
            axes.set_title(f"step {step}", loc="left")
            axes.set_yticks(range(len(products)), products)
        panels[0].set_ylim(len(products) - 0.4, -0.6)
        middle = panels[-1 if narrow else len(steps) // 2]
        middle.set_xlabel("relative error in the Frobenius norm")
        handles = [style.handle(kind, looks[kind]) for kind in kinds]
        mark = {"color": style.INK, "marker": "|", "linestyle": "none", "markersize": 9}
        handles.append(Line2D([], [], **mark, label="quantization's own error"))
        style.legend(figure, handles, narrow, columns=2)
    sentence = (
        "Sums on hopper.wgmma.fp8.fp32 against exact sums of the same quantized operands, of the "
        "bf16 arm's first seed at some steps; the bars are what quantizing itself costs."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def replay_title(rows: Sequence[ReplayRow]) -> str:
    """The largest error of each kind of sum, beside what quantizing costs."""
    never = [row for row in rows if not row.promote_every]
    often = [row for row in rows if row.promote_every]
    least = min(row.quantization for row in rows)
    parts = [
        f"up to {words.percent(max(row.added for row in some), 3)} {name}"
        for some, name in ((never, "never promoted"), (often, "promoted every 128"))
        if some
    ]
    return (
        f"Hopper's 13 bits add {words.listed(parts)}, beside {words.percent(least, 1)} or more of "
        "quantization"
    )


def collapse(rows: Sequence[ValueRow], *, narrow: bool = False) -> style.Picture | None:
    """Points: what becomes of each number of one block; scalings that agree are one series."""
    if not rows:
        return None
    title, found = _values_title(rows), _alike(rows)
    looks = style.styles(found)
    with style.look(narrow):
        figure = style.start(narrow, 4.0, 4.6, title, _LETTERS)
        axes = figure.subplots()
        values = sorted({row.value for row in rows})
        axes.plot(values, values, color=style.INK, linewidth=0.9, linestyle=":")
        handles: list[Line2D] = []
        for blocks, points in found.items():
            # The first are seen around the others where they agree.
            shape = {"markersize": 5.0} if handles else {"markersize": 8.5, "fillstyle": "none"}
            name = "\n".join(textwrap.wrap(blocks, 40))
            look = {**looks[blocks], **shape, "linestyle": "none", "label": name}
            handles += axes.plot(values, points, **look)
        axes.set_xlabel("number in the block")
        axes.set_ylabel("what it becomes")
        dotted = Line2D([], [], color=style.INK, linestyle=":", label="what went in")
        style.legend(figure, [*handles, dotted], narrow, 3)
    sentence = "One block of evenly spread numbers; the dotted line is what went in."
    return style.Picture(figure=figure, title=title, sentence=sentence)


def _alike(rows: Sequence[ValueRow]) -> dict[str, tuple[float, ...]]:
    """What a block's numbers become, ascending, by the names of all scalings that say so."""
    found: dict[tuple[float, ...], list[str]] = {}
    for block in dict.fromkeys(row.block for row in rows):
        pairs = sorted((row.value, row.result) for row in rows if row.block == block)
        found.setdefault(tuple(result for _, result in pairs), []).append(block)
    return {words.listed(blocks): results for results, blocks in found.items()}


def _values_title(rows: Sequence[ValueRow]) -> str:
    count = len({row.value for row in rows})
    found = {blocks: len(set(results)) for blocks, results in _alike(rows).items()}
    parts = [
        f"{words.counted(left, 'value')} under {blocks}"
        for blocks, left in sorted(found.items(), key=lambda one: one[1])
    ]
    return f"Of {count} numbers of a block inside (0.875, 1) there remain {'; '.join(parts)}"


def collapse_title(rows: Sequence[CollapseRow]) -> str:
    """Which rules leave one value of a block inside (0.875, 1), and which more."""
    inside = [row for row in rows if (row.low, row.high) == COLLAPSING]
    one = sorted({row.block for row in inside if row.left == 1})
    more = sorted({str(row.left) for row in inside if row.left > 1})
    least = f"; the others leave {words.listed(more)} values" if more else ""
    if not one:
        return "No scaling makes one value of a block inside (0.875, 1)" + least
    return f"Every number of a block inside (0.875, 1) becomes one under {words.listed(one)}{least}"
