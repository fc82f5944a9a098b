"""The error of products taken apart: what it is made of, and how large each term is."""

from collections.abc import Mapping

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lowprec.report import style, words

GROUPS: Mapping[str, tuple[str, ...]] = {
    "grid of a": ("a_grid",),
    "grid of b": ("b_grid",),
    "gain": ("a_gain", "b_gain"),
    "clipping": ("a_clipping", "b_clipping"),
    "dead zone": ("a_dead_zone", "b_dead_zone"),
    "cross": ("cross",),
    "output rounding": ("output_rounding",),
    "engine, scales, transform": (
        "alignment",
        "accumulator_rounding",
        "promotion",
        "scaling",
        "transform",
    ),
}
"""Terms that are drawn as one."""
ARITHMETIC = ("alignment", "accumulator_rounding", "promotion", "scaling", "transform")


def grouped(frame: pl.DataFrame) -> pl.DataFrame:
    """Parts of the error by recipe, role and group, means over layers."""
    of = {term: group for group, terms in GROUPS.items() for term in terms}
    rows = frame.filter(pl.col("term") != "total").with_columns(
        group=pl.col("term").replace_strict(of)
    )
    whole = rows.group_by("recipe", "role", "layer", "group", maintain_order=True).agg(
        pl.col("part").sum()
    )
    return whole.group_by("recipe", "role", "group", maintain_order=True).agg(pl.col("part").mean())


def parts(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Stacked bars of <term, error> / <error, error>, a panel for each role, a bar a recipe."""
    if frame.is_empty():
        return None
    rows, title = grouped(frame), parts_title(frame)
    recipes, roles = _recipes_and_roles(frame)
    with style.look(narrow):
        tall = 0.34 * len(recipes)
        figure = style.start(narrow, 2.0 + tall, 2.2 + len(roles) * (0.7 + tall), title)
        panels = _panels(figure, roles, narrow)
        for axes, role in zip(panels, roles, strict=True):
            _stack(axes, rows.filter(pl.col("role") == role), recipes)
            axes.set_title(role, loc="left")
            axes.set_yticks(range(len(recipes)), [_short(name) for name in recipes])
            axes.grid(axis="y", visible=False)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panels[0].invert_yaxis()
        panels[-1].set_xlabel(
            "part of the error's energy" + ("" if narrow else ", by inner product")
        )
        handles = [
            Line2D([], [], color=colour, linewidth=7, label=group)
            for group, colour in zip(GROUPS, style.PALETTE, strict=True)
        ]
        style.legend(figure, handles, narrow, columns=4)
    sentence = (
        "A term's part is its inner product with the error over the error's energy: parts add up "
        "to 100 %, and one that counteracts the others is negative, left of zero. Their energies "
        f"do not add up. {_scope(frame)}"
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def _recipes_and_roles(frame: pl.DataFrame) -> tuple[list[str], list[str]]:
    recipes, roles = (frame[x].unique(maintain_order=True).to_list() for x in ("recipe", "role"))
    return recipes, roles


def _panels(figure: Figure, roles: list[str], narrow: bool) -> list[Axes]:
    """Axes for every role: beside each other, or on a phone one below the other."""
    grid = (len(roles), 1) if narrow else (1, len(roles))
    return list(figure.subplots(*grid, sharex=True, sharey=True, squeeze=False).ravel())


def _stack(axes: Axes, rows: pl.DataFrame, recipes: list[str]) -> None:
    """Bars from zero to both sides: what is positive, and what is negative."""
    found = {(row["recipe"], row["group"]): row["part"] for row in rows.to_dicts()}
    for place, recipe in enumerate(recipes):
        ends = {True: 0.0, False: 0.0}
        for group, colour in zip(GROUPS, style.PALETTE, strict=True):
            part = found.get((recipe, group), 0.0)
            axes.barh(place, part, left=ends[part > 0], height=0.72, color=colour, linewidth=0)
            ends[part > 0] += part
    axes.axvline(0, color=style.INK, linewidth=0.9)


def parts_title(frame: pl.DataFrame) -> str:
    """How much of the error the grid is, and what else is largest, in means over layers."""
    rows = grouped(frame)
    grids = (
        rows.filter(pl.col("group").str.starts_with("grid"))
        .group_by("recipe", "role", maintain_order=True)
        .agg(pl.col("part").sum())
    )
    least, most = min(grids["part"]), max(grids["part"])
    others = rows.filter(~pl.col("group").str.starts_with("grid"))
    top = others.sort("part", descending=True).row(0, named=True)
    return (
        f"In the mean over layers rounding to the grid is {words.percent(least, 0)} to "
        f"{words.percent(most, 0)} of the error; the largest other part is {top['group']} in "
        f"{top['recipe']}, {top['role']}, {words.percent(top['part'], 0)}"
    )


def energies(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Points: the energy of every term over the exact product's, in dB, a panel for each role."""
    if frame.is_empty():
        return None
    rows, title = loudness(frame), energies_title(frame)
    recipes, roles = _recipes_and_roles(frame)
    terms = [x for x in frame["term"].unique(maintain_order=True) if x in set(rows["term"])]
    looks = style.styles(recipes)
    with style.look(narrow):
        tall = 0.2 * len(terms)
        figure = style.start(narrow, 1.9 + tall, 2.0 + len(roles) * (0.6 + tall), title)
        panels = _panels(figure, roles, narrow)
        for axes, role in zip(panels, roles, strict=True):
            for row in rows.filter(pl.col("role") == role).to_dicts():
                aside = recipes.index(row["recipe"]) - (len(recipes) - 1) / 2
                place = terms.index(row["term"]) + 0.13 * aside
                axes.plot(row["decibels"], place, **looks[row["recipe"]], markersize=5)
            axes.set_title(role, loc="left")
            axes.set_yticks(range(len(terms)), [x.replace("_", " ") for x in terms])
        panels[0].invert_yaxis()
        panels[-1].set_xlabel("energy over the exact product's, dB")
        style.legend(figure, [style.handle(name, looks[name]) for name in recipes], narrow)
    sentence = (
        "Medians over layers; a term that is zero in a layer has no point there. Of a and b, each "
        f"alone. {_scope(frame)}"
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def loudness(frame: pl.DataFrame) -> pl.DataFrame:
    """The median over layers of each term's dB, of those that are not zero."""
    some = frame.filter(pl.col("decibels").is_finite())
    return some.group_by("recipe", "role", "term", maintain_order=True).agg(
        pl.col("decibels").median()
    )


def energies_title(frame: pl.DataFrame) -> str:
    """The loudest term of the arithmetic, and how far below the error it is, in medians."""
    rows = loudness(frame)
    arithmetic = rows.filter(pl.col("term").is_in(ARITHMETIC))
    if arithmetic.is_empty():
        return "Engines, scales and transforms add no error"
    top = arithmetic.sort("decibels", descending=True).row(0, named=True)
    same = (pl.col("recipe") == top["recipe"]) & (pl.col("role") == top["role"])
    total = rows.filter(same, pl.col("term") == "total")["decibels"][0]
    return (
        f"The loudest term of engines, scales and transforms is {top['term'].replace('_', ' ')} in "
        f"{top['recipe']}, {top['role']}: {words.number(top['decibels'], 0)} dB in the median over "
        f"layers, {words.number(total - top['decibels'], 0)} dB below the error as a whole"
    )


def _scope(frame: pl.DataFrame) -> str:
    layers = frame["layer"].unique(maintain_order=True).to_list()
    engines = frame.select("recipe", "engine").unique(maintain_order=True).rows()
    listed = words.listed([f"{_short(recipe)} on {_short(engine)}" for recipe, engine in engines])
    return f"Operands captured in {words.listed(layers)}; {listed}."


def _short(name: str) -> str:
    return words.label(name.partition(":")[2] or name)
