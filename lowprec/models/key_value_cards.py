"""Cards of keys and values: what was measured, beside what is published about trained models.

A synthetic sample is only as good as its card, and a card of a user's own sample says where it
differs from what the methods were made for.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np

from lowprec.models import key_value_statistics as measures
from lowprec.models.array_checks import check_values, is_float, quoted
from lowprec.models.key_value_statistics import Attention, Floats
from lowprec.models.key_value_targets import TARGETS, Statistic, Target
from lowprec.models.key_values import MEMBERS, KeyValueSample


@dataclass(frozen=True, kw_only=True)
class KeyValueCard:
    """Measured statistics of one layer's keys, values and queries.

    Attributes:
        layer: the sample's name.
        shape: of the keys: batch, kv_heads, tokens, dim.
        groups: query heads per key head, None without queries.
        statistics: every target with its value, in a fixed order.
    """

    layer: str
    shape: tuple[int, int, int, int]
    groups: int | None
    statistics: tuple[Statistic, ...]

    def __getitem__(self, name: str) -> Statistic:
        """The statistic of that name; KeyError where there is none."""
        for statistic in self.statistics:
            if statistic.name == name:
                return statistic
        raise KeyError(name)

    def to_dict(self) -> dict[str, object]:
        """Of plain Python types, as JSON has them; each statistic says whether it `fits`."""
        rows = [{**asdict(each), "fits": each.fits} for each in self.statistics]
        return {**asdict(self), "shape": list(self.shape), "statistics": rows}


T = TypeVar("T")
Measure = Callable[[Floats], float | None]

_BEFORE_ROPE: dict[str, Measure] = {
    "k_absmax_ratio": measures.absmax_ratio,
    "k_outlier_steadiness": measures.steadiness,
    "k_outlier_balance": measures.balance,
    "k_spectral_exponent": measures.spectral_exponent,
    "k_correlation": measures.correlation,
}
_KEYS: dict[str, Measure] = {
    "k_absmax_ratio_after_rope": measures.absmax_ratio,
    "k_norm_ratio": measures.norm_ratio,
    "k_outlier_pairs": lambda keys: float(measures.outlier_pairs(keys).size),
    "k_fastest_outlier": measures.fastest_outlier,
    "k_token_norm_ratio": lambda keys: measures.largest_over_smallest(_norms(keys)),
}
_VALUES: dict[str, Measure] = {
    "v_norm_ratio": measures.norm_ratio,
    "v_token_norm_spread": lambda values: measures.log_spread(_norms(values)),
    "v_largest_token": lambda values: measures.largest_over_median(_norms(values)),
    "v_spectral_exponent": measures.spectral_exponent,
    "v_correlation": measures.correlation,
}
_QUERIES: dict[str, Measure] = {
    "q_absmax_ratio": measures.absmax_ratio,
    "q_norm_ratio": measures.norm_ratio,
}
_ATTENTION: dict[str, Callable[[Attention], float | None]] = {
    "sink_mass": measures.sink_mass,
    "logit_std": measures.logit_std,
    "attention_sparsity": lambda found: measures.sparsity(found, skip=1),
    "attention_sparsity_with_sink": lambda found: measures.sparsity(found, skip=0),
    "attention_popularity": measures.popularity,
}


def card(sample: KeyValueSample, *, targets: tuple[Target, ...] = TARGETS) -> KeyValueCard:
    """The card of one layer's keys and values.

    Token 0 counts as the sink and is left out of all other statistics.

    Args:
        sample: finite floats, at least 8 tokens. What needs queries, or keys before RoPE, is None
            without them.
        targets: what is expected, some or all of `TARGETS` with other bounds where a layer is of
            another kind.

    Returns:
        Every target beside its value, the mean over sequences and heads.

    Raises:
        TypeError: an array is not of floats.
        ValueError: NaN or Inf, an empty array, an odd dim, or fewer than 8 tokens; a target that
            nothing measures.

    Example:
        >>> from lowprec.models.synthetic_kv import SyntheticKV, generate
        >>> found = card(generate(SyntheticKV(tokens=256, dim=64), seed=0))["sink_mass"]
        >>> found.low, round(found.value, 1), found.high, found.fits
        (0.3, 0.4, 0.8, True)
    """
    _check(sample)
    unknown = {target.name for target in targets} - {target.name for target in TARGETS}
    if unknown:
        raise ValueError(
            f"`targets`: nothing measures {', '.join(sorted(unknown))}; use the names of "
            "key_value_targets.TARGETS"
        )
    collected: dict[str, list[float]] = {target.name: [] for target in TARGETS}
    batch, kv_heads = sample.k.shape[:2]
    for sequence in range(batch):
        for head in range(kv_heads):
            for name, value in _head(sample, sequence, head):
                if value is not None:
                    collected[name].append(value)
    statistics = [
        Statistic(**asdict(target), value=float(np.mean(values)) if values else None)
        for target in targets
        for values in (collected[target.name],)
    ]
    shape = sample.k.shape
    return KeyValueCard(
        layer=sample.layer,
        shape=(shape[0], shape[1], shape[2], shape[3]),
        groups=sample.groups,
        statistics=tuple(statistics),
    )


def _check(sample: KeyValueSample) -> None:
    for name in MEMBERS:
        array = getattr(sample, name)
        if array is None:
            continue
        if not is_float(array.dtype):
            raise TypeError(f"`{name}` is {array.dtype}; a card needs float arrays")
        check_values(f"{sample.layer}.{name}", array)
    tokens, dim = sample.k.shape[2:]
    if tokens < 8 or dim % 2:
        raise ValueError(
            f"layer {quoted(sample.layer)} has {tokens} tokens of dim {dim}; a card needs at least "
            "8 tokens, and pairs of elements"
        )


def _head(sample: KeyValueSample, sequence: int, head: int) -> Iterator[tuple[str, float | None]]:
    """Every statistic of one key head, those of its query heads one after another."""
    keys, values = (_exact(array, sequence, head) for array in (sample.k, sample.v))
    yield from _each(_KEYS, keys[1:])
    yield from _each(_VALUES, values[1:])
    yield "sink_key_norm", _first_over_median(keys)
    yield "sink_value_norm", _first_over_median(values)
    if sample.k_before_rope is not None:
        before = _exact(sample.k_before_rope, sequence, head)
        yield from _each(_BEFORE_ROPE, before[1:])
        yield "k_rope_widening", measures.widening(before[1:], keys[1:])
    if sample.q is None or sample.groups is None:
        return
    unturned = sample.q if sample.q_before_rope is None else sample.q_before_rope
    for query_head in range(head * sample.groups, (head + 1) * sample.groups):
        yield from _each(_QUERIES, _exact(unturned, sequence, query_head))
        found = measures.attention(_exact(sample.q, sequence, query_head), keys)
        if found is not None:
            yield from _each(_ATTENTION, found)


def _each(
    table: Mapping[str, Callable[[T], float | None]], x: T
) -> Iterator[tuple[str, float | None]]:
    return ((name, measure(x)) for name, measure in table.items())


def _exact(array: np.ndarray, sequence: int, head: int) -> Floats:
    return array[sequence, head].astype(np.float64)


def _norms(x: Floats) -> Floats:
    return np.linalg.norm(x, axis=1)


def _first_over_median(x: Floats) -> float | None:
    norms = _norms(x)
    median = float(np.median(norms[1:]))
    return float(norms[0]) / median if median else None
