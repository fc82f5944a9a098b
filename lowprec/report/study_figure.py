"""The means of a study: SQNR by recipe and by kind of operands."""

from typing import Any

import polars as pl

from lowprec.report import style, words

LINES, KINDS = 40, 12
"""Recipes and kinds of operands that a figure shows, at most."""


def series(row: dict[str, Any]) -> str:
    """A recipe with what the study sets for its sums: what tells its rows from another's."""
    name = f"recipe:{row['recipe']} on engine:{row['engine']}"
    if row["promote_every"] is not None:
        name += f", promoted every {row['promote_every']}"
    return name if row["order"] == "sequential" else f"{name}, {row['order']}"


def kind(row: dict[str, Any]) -> str:
    """The distributions of both operands, without the arguments that a sample draws."""
    a, b = (row[side].partition("(")[0] for side in "ab")
    return a if a == b else f"{a} by {b}"


def sqnr(table: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """A line a recipe, a point for every mean, its marker by the kind of operands."""
    rows = [(series(row), kind(row), row["sqnr_db"]) for row in table.iter_rows(named=True)]
    if not rows:
        return None
    kinds = sorted({of for _, of, _ in rows})[:KINDS]
    rows = [row for row in rows if row[1] in kinds]
    medians = {
        name: float(pl.Series([x for other, _, x in rows if other == name]).median())  # type: ignore[arg-type] - numbers
        for name in {name for name, _, _ in rows}
    }
    names = sorted(medians, key=lambda name: (medians[name], name))[:LINES]
    rows = [row for row in rows if row[0] in names]
    values = [value for _, _, value in rows]
    title = (
        f"Mean SQNR over {words.counted(len(kinds), 'kind')} of operands: from "
        f"{words.number(min(values))} to {words.number(max(values))} dB"
    )
    looks = style.styles(kinds)
    with style.look(narrow):
        tall = 0.3 * len(names)
        figure = style.start(narrow, 1.9 + tall, 2.6 + tall, title)
        axes = figure.subplots()
        for name, of, value in rows:
            axes.plot(value, names.index(name), **looks[of], markersize=5.5, linestyle="none")
        axes.set_yticks(range(len(names)), [words.label(x, 24 if narrow else 60) for x in names])
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("SQNR of the product, dB")
        style.legend(figure, [style.handle(of, look) for of, look in looks.items()], narrow, 4)
    sentence = (
        "A point is the mean over the seeds of one setting, against the float64 product; the table "
        "has the intervals."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)
