"""Figures of training: gaps to bf16 at the end with their intervals, and on the way there."""

from collections.abc import Sequence

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lowprec.report import style, words
from lowprec.study.training_gaps import Gap, curves, gaps, interval, paired
from lowprec.study.training_rows import FinalRow, LossRow

BASELINE, NULL = "bf16", "bf16_null"
_BAND = "#b9bec8"
_SMOOTH = 5
"""Rows of the table of losses that are averaged in the figure."""


def gaps_figure(rows: Sequence[FinalRow], *, narrow: bool = False) -> style.Picture | None:
    """Points and intervals: the held-out loss over bf16's, an arm a line, and the null's band."""
    found = gaps(rows, BASELINE, NULL)
    if not found:
        return None
    others, title = [gap for gap in found if gap.arm != NULL], gaps_title(found)
    low, high = interval(paired(rows, NULL, BASELINE, "held_out"))
    with style.look(narrow):
        tall = 0.36 * len(found)
        figure = style.start(narrow, 1.9 + tall, 2.3 + tall, title)
        axes = figure.subplots()
        if low <= high:
            axes.axvspan(low, high, color=_BAND, alpha=0.6, linewidth=0)
        axes.axvline(0, color=style.INK, linewidth=0.9)
        for place, gap in enumerate(others):
            colour = style.PALETTE[0] if gap.verdict == "not resolved" else style.PALETTE[1]
            each = paired(rows, gap.arm, BASELINE, "held_out")
            dots = np.full(len(each), place + 0.2)
            axes.plot(each, dots, ".", color=style.MUTED, markersize=4)
            axes.plot([gap.low, gap.high], [place, place], color=colour, linewidth=2.2)
            axes.plot(gap.mean, place, "o" if colour == style.PALETTE[0] else "s", color=colour)
        axes.set_yticks(range(len(others)), [words.label(gap.arm) for gap in others])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(_over("held-out", narrow))
        handles = [
            Line2D([], [], color=style.PALETTE[0], marker="o", label="not resolved"),
            Line2D([], [], color=style.PALETTE[1], marker="s", label="resolved"),
            Line2D([], [], color=style.MUTED, marker=".", linestyle="none", label="a seed"),
            Patch(color=_BAND, alpha=0.6, label="null arm's interval"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2 if narrow else 4)
    seeds = max(gap.seeds for gap in found)
    sentence = (
        f"Means and 95 % intervals of Student's t over {words.counted(seeds, 'seed')}, paired with "
        "bf16 by start and data. The band is the interval of bf16 summed in two halves of K: the "
        "same numbers in another sum."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def gaps_title(found: Sequence[Gap]) -> str:
    """Which arms are told apart from bf16, and the largest gap."""
    others = [gap for gap in found if gap.arm != NULL]
    seen = [gap for gap in others if gap.verdict != "not resolved"]
    if not seen:
        few, many = (of(gap.seeds for gap in others) for of in (min, max))
        over = words.counted(many, "seed") if few == many else f"{few} to {many} seeds"
        return f"No recipe of {len(others)} is told apart from bf16 over {over}"
    top = max(seen, key=lambda gap: abs(gap.mean))
    return (
        f"{len(seen)} of {words.counted(len(others), 'recipe')} are told apart from bf16 after "
        f"training; {top.arm} is farthest, {words.signed(top.mean, 3)} bits per byte"
    )


def curves_figure(rows: Sequence[LossRow], *, narrow: bool = False) -> style.Picture | None:
    """Lines: the training loss over bf16's on the same windows against the step, an arm a line."""
    found = curves(rows, BASELINE)
    arms = [arm for arm in found if arm != NULL]
    if not arms:
        return None
    title = _curves_title({arm: found[arm] for arm in arms})
    looks = style.styles(arms)
    with style.look(narrow):
        figure = style.start(narrow, 4.4, 4.6, title)
        axes = figure.subplots()
        if NULL in found:
            steps, each = found[NULL]
            low, high = (_smooth(end) for end in (each.min(0), each.max(0)))
            axes.fill_between(_smooth(steps), low, high, color=_BAND, alpha=0.6, linewidth=0)
        for number, arm in enumerate(arms):
            steps, each = found[arm]
            axes.plot(
                _smooth(steps), _smooth(each.mean(0)), **looks[arm],
                linewidth=1.4, markersize=5, markevery=(number % 4, 8),
            )  # fmt: skip
        axes.axhline(0, color=style.INK, linewidth=0.9)
        axes.set_xlabel("step")
        axes.set_ylabel(_over("training", narrow))
        handles = [style.handle(arm, looks[arm]) for arm in arms]
        handles.append(Line2D([], [], color=_BAND, linewidth=7, label="null arm, all seeds"))
        style.legend(figure, handles, narrow, columns=4)
    seeds = max(len(each) for _, each in found.values())
    every = int(found[arms[0]][0][0])
    sentence = (
        f"Means over up to {words.counted(seeds, 'seed')} of the difference on the same windows, "
        f"averaged over {_SMOOTH * every} steps. The band is the null arm's least to most."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def _curves_title(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    ends = {arm: float(each[:, -_SMOOTH:].mean()) for arm, (_, each) in found.items()}
    top = max(ends, key=lambda arm: abs(ends[arm]))
    most = max(float(each.mean(0).max()) for _, each in found.values())
    return (
        f"On the way the mean gap is at most {words.signed(most, 2)} bits per byte; at the end "
        f"{top} is farthest, {words.signed(ends[top], 3)}"
    )


def _over(loss: str, narrow: bool) -> str:
    """What an axis shows."""
    between = "\n" if narrow else " "
    return f"{loss} loss over bf16's,{between}bits per byte"


def _smooth(values: np.ndarray) -> np.ndarray:
    """Means of neighbours; shorter by as many as are averaged, less one."""
    count = min(_SMOOTH, len(values))
    return np.convolve(values, np.full(count, 1 / count), mode="valid")
