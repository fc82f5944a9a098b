"""What emulated engines cost as products grow."""

import numpy as np
import polars as pl

from lowprec.report import style, words

_LEAST = 512
"""Below this size what does not grow with the product counts too."""


def linear_cost(rows: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Seconds of one engine's products over their multiply-adds, beside a line of slope one."""
    if rows.is_empty():
        return None
    rows = rows.sort("size")
    heading = linear_title(rows)
    work, seconds = rows["size"].to_numpy().astype(float) ** 3, rows["seconds"].to_numpy()
    with style.look(narrow):
        figure = style.start(narrow, 4.4, 4.6, heading)
        axes = figure.subplots()
        axes.plot(work, work * seconds[-1] / work[-1], color=style.INK, linestyle="--",
                  linewidth=1.1, label="linear in M N K")  # fmt: skip
        axes.plot(work, seconds, "o-", color=style.PALETTE[0], markersize=5, linewidth=1.3,
                  label=words.label(rows["engine"][0]))  # fmt: skip
        style.powers_of_ten(axes)
        axes.set_xscale("log")
        axes.set_xticks(work, [f"{size}³" for size in rows["size"]])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("multiply-adds of a product, M N K with M = N = K")
        axes.set_ylabel("seconds a product")
        style.legend(figure, axes.get_lines()[::-1], narrow)
    sentence = (
        f"Median time of a whole product inside a caller's jax.jit, N(0, 1) operands, on "
        f"{words.label(rows['device'][0])}; of emulation, and of no hardware that has the engine."
    )
    return style.Picture(figure=figure, title=heading, sentence=sentence)


def linear_title(rows: pl.DataFrame) -> str:
    """The power of M N K that the time grows as, and the rate of the largest product."""
    rows = rows.sort("size")
    last = rows.row(-1, named=True)
    rate = (
        f"{words.number(last['multiply_adds_per_second'] / 1e9, 2)} billion multiply-adds a second"
    )
    fitted = rows.filter(pl.col("size") >= _LEAST)
    fitted = fitted if len(fitted) > 2 else rows
    if len(fitted) < 2:
        return f"{last['engine']} emulates {rate} at {last['size']}"
    work = 3 * np.log(fitted["size"].to_numpy())
    slope = float(np.polyfit(work, np.log(fitted["seconds"].to_numpy()), 1)[0])
    return (
        f"Emulated, {last['engine']} takes (M N K) to the power {words.number(slope, 2)} from "
        f"{fitted['size'][0]} to {last['size']}, and does {rate} there"
    )
