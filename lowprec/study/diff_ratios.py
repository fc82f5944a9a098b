"""What two models' logits say of the same tokens: divergences, log ratios, effective samples."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lowprec.study.diff_rows import Drawn, SequenceRow, TailRow
from lowprec.study.intervals import RESAMPLES

CLIP = 0.2
"""How far from 1 a ratio may be before PPO clips it (arXiv 1707.06347, 6.1: the best of three)."""
AT_ONCE = 1 << 21
"""Probabilities that are compared at once."""

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Compared:
    """Both models' predictions, of each token that is scored; (windows, tokens) each.

    Attributes:
      divergence, reverse: KL of A to B, and of B to A, in nats, float64.
      text: log p_A - log p_B of the token that stands in the text, float64.
      drawn: the same of a token drawn from B.
      flipped: whether the most probable token differs.
    """

    divergence: Floats
    reverse: Floats
    text: Floats
    drawn: Floats
    flipped: NDArray[np.bool_]

    def log_ratios(self, tokens: Drawn) -> Floats:
        """Those of tokens of the text, or drawn ones."""
        return self.text if tokens == "text" else self.drawn


def compare_window(
    a: NDArray[np.float32], b: NDArray[np.float32], came: NDArray, *, seed: int, window: int
) -> Compared:
    """Both models' logits of one window, in float64 from there on.

    Args:
      a, b: (tokens, vocabulary) float32, finite.
      came: (tokens,) integers, the tokens that they predict.
      seed, window: of the tokens that are drawn.
    """
    places = np.random.default_rng([seed, window]).random(len(came))
    step = max(1, AT_ONCE // a.shape[1])
    parts = [slice(start, start + step) for start in range(0, len(came), step)]
    found = [_compared(a[at], b[at], came[at], places[at]) for at in parts]
    fields = [np.concatenate(x)[None] for x in zip(*found, strict=True)]
    names = [field.name for field in dataclasses.fields(Compared)]
    return Compared(**dict(zip(names, fields, strict=True)))


def _compared(a: NDArray, b: NDArray, came: NDArray, places: Floats) -> tuple[NDArray, ...]:
    """The fields of `Compared` for some tokens."""
    log_p, log_q = (_log_softmax(x) for x in (a, b))
    p, q, difference = np.exp(log_p), np.exp(log_q), log_p - log_q
    cumulative = np.cumsum(q, axis=-1)
    drawn = np.sum(cumulative <= places[:, None] * cumulative[:, -1:], axis=-1)
    drawn = np.minimum(drawn, a.shape[1] - 1)
    flipped = np.argmax(a, axis=-1) != np.argmax(b, axis=-1)
    ratios = [np.take_along_axis(difference, x[:, None], -1)[:, 0] for x in (came, drawn)]
    return _divergence(p, q, difference), _divergence(q, p, -difference), *ratios, flipped


def _log_softmax(x: NDArray) -> Floats:
    wide = x.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.sum(np.exp(wide), axis=-1, keepdims=True))


def _divergence(p: Floats, q: Floats, difference: Floats) -> Floats:
    """KL of p to q. Every term is above 0, and small ones keep their digits.

    The sum of q - p, which is 0, is added term by term: p log(p / q) + q - p.
    """
    # expm1 of what is far from 0 may overflow, and needs no care.
    near = np.abs(difference) < 1
    small = np.where(near, difference, 0.0)
    terms = np.where(near, p * (small + np.expm1(-small)), p * difference + q - p)
    return np.maximum(terms.sum(axis=-1), 0.0)


def joined(parts: list[Compared]) -> Compared:
    """Windows one after another."""
    names = [field.name for field in dataclasses.fields(Compared)]
    return Compared(**{x: np.concatenate([getattr(part, x) for part in parts]) for x in names})


def effective_share(
    log_ratios: Floats, unit: NDArray[np.intp], *, seed: int
) -> tuple[float, float, float]:
    """The effective sample size of importance ratios over their count, with a 95 % interval.

    (sum w)^2 / (count * sum w^2), which is 1 where all ratios are equal and 1 / count where one
    outweighs all others. The interval is a percentile bootstrap over units.

    Args:
      log_ratios: (sequences,) natural logarithms of the ratios w.
      unit: (sequences,) the unit of each, from 0 on.
      seed: of the resampling.

    Example:
      >>> share, _, _ = effective_share(np.log([1.0, 2.0, 3.0]), np.arange(3), seed=0)
      >>> round(share * 3 * 14, 9)
      36.0
    """
    # A factor that all have in common changes nothing, and the largest is 1 then.
    weights = np.exp(log_ratios - log_ratios.max())
    sums = np.stack([np.bincount(unit, x) for x in (weights, weights**2, np.ones(len(unit)))])
    drawn = np.random.default_rng(seed).integers(0, sums.shape[1], (RESAMPLES, sums.shape[1]))
    first, second, count = sums[:, drawn].sum(axis=-1)
    # Resamples of tiny ratios alone may be 0 / 0: one sequence counts then.
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(second > 0, first**2 / (count * second), 1 / count)
    total, squares, sequences = sums.sum(axis=-1)
    found = total**2 / (sequences * squares), *np.quantile(shares, [0.025, 0.975])
    # Cauchy and Schwarz allow no more than 1; rounding may.
    share, low, high = (min(float(x), 1.0) for x in found)
    return share, low, high


def lengths(tokens: int) -> list[int]:
    """Lengths of sequences to look at: 1 and every fourth power of two, and all the tokens."""
    found = [4**n for n in range(16) if 4**n < tokens]
    return [*found, tokens]


def sequence_rows(
    pair: str, compared: Compared, unit: NDArray[np.intp], *, seed: int
) -> Iterator[SequenceRow]:
    """Importance ratios of single tokens and of runs, of the text's tokens and of drawn ones."""
    sources: tuple[Drawn, ...] = ("text", "drawn")
    for source in sources:
        single = compared.log_ratios(source)
        for length in lengths(single.shape[1]):
            runs = single.shape[1] // length
            summed = single[:, : runs * length].reshape(len(single), runs, length).sum(-1)
            ess, low, high = effective_share(summed.ravel(), np.repeat(unit, runs), seed=seed)
            with np.errstate(over="ignore"):
                ratios = np.exp(summed.ravel())
            places = [0.0, 0.01, 0.5, 0.99, 0.999, 1.0]
            tail = np.quantile(ratios, places, method="inverted_cdf").tolist()
            names = "smallest percentile_1 median percentile_99 percentile_999 largest".split()
            yield SequenceRow(
                pair=pair,
                tokens=source,
                length=length,
                sequences=summed.size,
                ess=ess,
                ess_low=low,
                ess_high=high,
                outside=float(np.mean(np.abs(ratios - 1) > CLIP)),
                **dict(zip(names, tail, strict=True)),
            )


def tail_rows(pair: str, compared: Compared) -> Iterator[TailRow]:
    """Magnitudes of log ratios of single tokens that ever smaller shares exceed."""
    sources: tuple[Drawn, ...] = ("text", "drawn")
    for source in sources:
        sizes = np.sort(np.abs(compared.log_ratios(source)).ravel())[::-1]
        counts = np.unique(np.geomspace(1, sizes.size, 33).round().astype(int))
        for count in counts[::-1]:
            # So many tokens have this magnitude or a larger one.
            magnitude = float(sizes[count - 1])
            yield TailRow(pair=pair, tokens=source, share=count / sizes.size, magnitude=magnitude)
