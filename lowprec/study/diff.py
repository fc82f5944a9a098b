"""How far two ways to compute one model are apart, as a trainer and a rollout server are.

A is what is trained and B what has drawn the tokens: importance ratios are p_A / p_B. Both run the
same text layer by layer, and everything but products and attention is the same program.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from lowprec.models.checkpoints.caches import KEPT
from lowprec.study.diff_layers import Differing, Say, Streams, check_finite, through_layers
from lowprec.study.diff_ratios import (
    Compared,
    Floats,
    compare_window,
    joined,
    sequence_rows,
    tail_rows,
)
from lowprec.study.diff_rows import DiffRow, LayerRow, SequenceRow, TailRow
from lowprec.study.diff_sides import Side, side_hooks
from lowprec.study.diff_subjects import Subject
from lowprec.study.intervals import paired_interval

PROMPT_SHARE = 0.5
"""Of a window, the tokens that are a prompt: not scored, as no policy has drawn them."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Difference:
    """The rows of one pair, as `lowprec.study.diff_rows` has them."""

    row: DiffRow
    sequences: list[SequenceRow]
    layers: list[LayerRow]
    tail: list[TailRow]


def compare_sides(
    subject: Subject,
    a: Side,
    b: Side,
    *,
    pair: str = "",
    prompt: int | None = None,
    kept: float = KEPT,
    seed: int = 0,
    done: Say | None = None,
) -> Difference:
    """Runs both sides over a text and tells them apart.

    Args:
      subject: the model and the text.
      a, b: the sides, as `read_side` reads them.
      pair: what rows call the pair; by default both labels.
      prompt: so many first tokens of a window are not scored; by default half of it. Methods that
        choose tokens choose from them, and keep the share `kept`.
      kept: that share.
      seed: of the bootstrap, of tokens that are drawn and of stochastic rounding.
      done: called with the name of each layer as both sides are through it.

    Raises:
      ValueError: a prompt that leaves nothing to score, fewer than two units, or outputs that
        nothing can be said of: not finite, or the same for every token.
      TypeError: a method of caches that the model does not have.
    """
    length = subject.tokens.shape[1]
    prompt = round(PROMPT_SHARE * length) if prompt is None else prompt
    places = subject.places[subject.places >= prompt]
    if prompt < 0 or not places.size:
        raise ValueError(f"`prompt` = {prompt} must leave some of a window's {length} tokens")
    if len(set(subject.unit.tolist())) < 2:
        raise ValueError(f"an interval needs 2 {subject.units} or more; give more windows")
    sides = {"A": a, "B": b}
    hooks = [
        side_hooks(
            side,
            [] if side.method is None else subject.fit(side.method),
            seed=seed,
            prompt=max(1, prompt),
            kept=kept,
        )
        for side in sides.values()
    ]
    name = pair or f"{a.label} | {b.label}"
    streams, layers, first = through_layers(subject, (hooks[0], hooks[1]), name, done)
    compared, logits = _predictions(subject, streams, places, name, seed)
    found = next((n for n, row in enumerate(layers) if row.differing), None)
    return Difference(
        row=_row(name, subject, sides, compared, (found, first), not logits.differing, seed),
        sequences=list(sequence_rows(name, compared, subject.unit, seed=seed)),
        layers=[*layers, logits],
        tail=list(tail_rows(name, compared)),
    )


def _predictions(
    subject: Subject, streams: Streams, places: NDArray[np.intp], pair: str, seed: int
) -> tuple[Compared, LayerRow]:
    """Both sides' predictions of the tokens at `places`; logits are of one window at a time."""
    parts, sums = [], Differing()
    firsts: list[NDArray | None] = [None, None]
    varies = [False, False]
    for window in range(len(subject.tokens)):
        logits = [
            np.asarray(subject.head(x[window : window + 1])[0], np.float32)[places - 1]
            for x in streams
        ]
        check_finite(logits[0], logits[1], "the head")
        for side, x in enumerate(logits):
            first = firsts[side] = x[0] if firsts[side] is None else firsts[side]
            varies[side] |= bool((x != first).any())
        sums.add(*logits)
        came = subject.tokens[window, places].astype(np.int64)
        parts.append(compare_window(logits[0], logits[1], came, seed=seed, window=window))
    for side, varied in zip("AB", varies, strict=True):
        if not varied:
            raise ValueError(
                f"side {side} says the same after every token: its outputs are degenerate, as of a "
                f"product whose operands all round to zero"
            )
    return joined(parts), sums.row(pair, "logits")


def _row(
    pair: str,
    subject: Subject,
    sides: dict[str, Side],
    compared: Compared,
    first: tuple[int | None, str | None],
    identical: bool,
    seed: int,
) -> DiffRow:
    def mean(x: NDArray) -> tuple[float, float, float]:
        """With its interval over units."""
        sums = np.bincount(subject.unit, x.sum(axis=1, dtype=np.float64))
        counts = np.bincount(subject.unit) * float(x.shape[1])
        return paired_interval(sums, counts, seed=seed)

    kl, kl_low, kl_high = mean(compared.divergence)
    delta, delta_low, delta_high = mean(compared.text)
    flips, flip_low, flip_high = mean(compared.flipped)
    percentiles = _quantiles(compared.text, (0.01, 0.05, 0.5, 0.95, 0.99))
    return DiffRow(
        pair=pair,
        model=subject.name,
        a=sides["A"].label,
        b=sides["B"].label,
        windows=len(subject.tokens),
        length=compared.text.shape[1],
        tokens=compared.text.size,
        units=len(set(subject.unit.tolist())),
        unit=subject.units,
        kl_mean=kl,
        kl_low=kl_low,
        kl_high=kl_high,
        kl_median=float(np.median(compared.divergence)),
        kl_percentile_99=_quantiles(compared.divergence, (0.99,))[0],
        kl_largest=float(compared.divergence.max()),
        reverse_kl_mean=float(compared.reverse.mean()),
        delta_mean=delta,
        delta_low=delta_low,
        delta_high=delta_high,
        delta_magnitude=float(np.mean(np.abs(compared.text))),
        delta_percentile_1=percentiles[0],
        delta_percentile_5=percentiles[1],
        delta_median=percentiles[2],
        delta_percentile_95=percentiles[3],
        delta_percentile_99=percentiles[4],
        delta_largest=float(np.max(np.abs(compared.text))),
        flips=int(compared.flipped.sum()),
        flip_share=flips,
        flip_low=flip_low,
        flip_high=flip_high,
        first_layer=first[0],
        first_product=first[1],
        identical=identical,
    )


def _quantiles(x: Floats, places: tuple[float, ...]) -> list[float]:
    return [float(value) for value in np.quantile(x, places)]
