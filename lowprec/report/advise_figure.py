"""What was chosen for each product under one goal, beside its runner-up."""

import polars as pl

from lowprec.report import style, words

CHOSEN, SECOND = "chosen", "runner-up: an entry, as the table says of which bits"


def chosen(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows of products for which there is a recipe."""
    return frame.filter(pl.col("recipe") != "", pl.col("sqnr_db").is_finite())


def choices(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Points with intervals: the SQNR of what was chosen, a line a product, a panel a goal."""
    rows = chosen(frame)
    if rows.is_empty():
        return None
    goals = rows["goal"].unique(maintain_order=True).to_list()
    places = [
        f"{x} {y}" for x, y in rows.select("layer", "role").unique(maintain_order=True).rows()
    ]
    looks = dict(zip((CHOSEN, SECOND), style.styles((CHOSEN, SECOND)).values(), strict=True))
    title = choices_title(frame)
    with style.look(narrow):
        tall = 0.27 * len(places)
        figure = style.start(narrow, 1.8 + tall, 1.6 + len(goals) * (0.6 + tall), title)
        grid = (len(goals), 1) if narrow else (1, len(goals))
        panels = figure.subplots(*grid, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, goal in zip(panels, goals, strict=True):
            for row in rows.filter(pl.col("goal") == goal).to_dicts():
                place = places.index(f"{row['layer']} {row['role']}")
                ends = [[row["sqnr_db"] - row["low_db"]], [row["high_db"] - row["sqnr_db"]]]
                point = looks[CHOSEN]
                axes.errorbar(row["sqnr_db"], place, xerr=ends, **point, linestyle="none")
                if row["runner_up"]:
                    second = row["sqnr_db"] - row["gap_db"]
                    axes.plot(second, place, **looks[SECOND], markersize=4, linestyle="none")
            axes.set_title(goal, loc="left")
            axes.set_yticks(range(len(places)), [words.label(x) for x in places])
        panels[0].invert_yaxis()
        panels[-1].set_xlabel("SQNR of the product, dB")
        style.legend(figure, [style.handle(name, look) for name, look in looks.items()], narrow)
    groups = sorted(set(rows["groups"]))
    sentence = (
        "On tokens that the recipes were not chosen on, as they run, with 95 % intervals over "
        f"{words.listed([str(x) for x in groups])} groups of tokens (by role)."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def choices_title(frame: pl.DataFrame) -> str:
    """For each goal how many products have a recipe, of how many bits, and what it keeps."""
    cells = []
    for goal in frame["goal"].unique(maintain_order=True).to_list():
        every = frame.filter(pl.col("goal") == goal)
        rows = chosen(every)
        if rows.is_empty():
            cells.append(
                f"{goal}: nothing satisfies in any of {words.counted(len(every), 'product')}"
            )
            continue
        kept = span(rows["sqnr_db"], 1)
        cells.append(
            f"{goal}: {len(rows)} of {words.counted(len(every), 'product')} keep {kept} dB in "
            f"{span(rows['bits_per_element'], 2)} bits"
        )
    title = "; ".join(cells)
    return title[:1].upper() + title[1:]


def span(values: pl.Series, digits: int) -> str:
    """The least and the greatest of some numbers, or the one that there is."""
    ends = [words.number(float(x), digits) for x in (values.min(), values.max())]  # type: ignore[arg-type] - numbers
    return " to ".join(dict.fromkeys(ends))
