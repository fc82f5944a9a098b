"""What is published about the keys and values of trained models, and what was chosen.

A target is published, or it says that it was chosen: then it is what the synthetic generator aims
at, and no claim about trained models.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a statistic should be.

    Attributes:
        name: the statistic.
        low: the least that fits, None for no bound.
        high: the most that fits, None for no bound.
        meaning: what is measured, on each head, and averaged over sequences and heads.
        source: who found it, and what of it was chosen.
    """

    name: str
    low: float | None = None
    high: float | None = None
    meaning: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Statistic(Target):
    """A target and what was measured.

    Attributes:
        value: the mean over sequences and heads; None where the sample lacks what it takes.
    """

    value: float | None

    @property
    def fits(self) -> bool | None:
        """Whether the value lies within the bounds; None where there is no value or no bound."""
        if self.value is None or (self.low is None and self.high is None):
            return None
        above = self.low is None or self.value >= self.low
        return above and (self.high is None or self.value <= self.high)


_KIVI = "KIVI (2402.02750)"
_KVQUANT = "KVQuant (2401.18079)"
_MASSIVE = "Massive Values (2502.01563)"
_SINK = "When Attention Sink Emerges (2410.10781)"
_H2O = "H2O (2306.14048)"

TARGETS = (
    Target(
        name="k_absmax_ratio",
        low=4,
        high=15,
        meaning="keys before RoPE: largest absmax of a channel over the median channel's",
        source=f"{_KIVI} section 3.2, {_KVQUANT} section 3.1; the range was chosen, as in Llama",
    ),
    Target(
        name="k_absmax_ratio_after_rope",
        low=4,
        high=15,
        meaning="the same of keys after RoPE",
        source=f"{_KIVI} section 3.2; the range was chosen, as in Llama",
    ),
    Target(
        name="q_absmax_ratio",
        low=3,
        high=15,
        meaning="the same of queries, before RoPE where known",
        source=f"{_MASSIVE}: in queries too; the range was chosen",
    ),
    Target(
        name="k_norm_ratio",
        low=5,
        meaning="keys: largest L2 norm of a channel over the mean channel's",
        source=f"{_MASSIVE}; the bound was chosen",
    ),
    Target(
        name="q_norm_ratio",
        low=5,
        meaning="the same of queries",
        source=f"{_MASSIVE}; the bound was chosen",
    ),
    Target(
        name="v_norm_ratio",
        high=3,
        meaning="the same of values",
        source=f"{_MASSIVE}, {_KIVI} section 3.2: not in values; the bound was chosen",
    ),
    Target(
        name="k_outlier_pairs",
        low=1,
        meaning="keys: RoPE pairs of at least 3 times the median pair's rms",
        source=f"{_KIVI} section 3.2: a few fixed channels; the threshold was chosen",
    ),
    Target(
        name="k_fastest_outlier",
        low=0.8,
        high=1,
        meaning="keys: place of the fastest outlier pair, 0 the fastest of all, 1 the slowest",
        source=f"{_MASSIVE}, Rotary Outliers (2503.01832): low frequency; the bound was chosen",
    ),
    Target(
        name="k_outlier_steadiness",
        low=3,
        meaning="keys before RoPE: least |mean| / std over tokens of a channel of outlier pairs",
        source=f"{_KIVI} section 3.2: fixed channels; the bound was chosen",
    ),
    Target(
        name="k_outlier_balance",
        low=0.3,
        meaning="keys before RoPE: least smaller over larger |mean| of the halves of such a pair",
        source=f"{_MASSIVE}: both halves of a pair; the bound was chosen",
    ),
    Target(
        name="k_rope_widening",
        low=1.01,
        meaning="keys: median over channels of the range after RoPE over that before",
        source=f"{_KVQUANT} section 3.2: magnitudes less consistent after RoPE; bound chosen",
    ),
    Target(
        name="k_token_norm_ratio",
        low=2,
        high=5,
        meaning="keys: largest over smallest norm of a token",
        source="Outlier Tokens Tracing (2505.10938): tokens of small keys; range chosen",
    ),
    Target(
        name="v_token_norm_spread",
        low=0.3,
        high=0.5,
        meaning="values: std of the log of the tokens' norms, from percentiles",
        source="chosen: tokens' scales of 0.3, and what the content adds",
    ),
    Target(
        name="v_largest_token",
        low=3,
        meaning="values: largest norm of a token over the median",
        source=f"{_KVQUANT} section 3.1: outlier tokens; the bound was chosen",
    ),
    Target(
        name="k_spectral_exponent",
        low=0.6,
        high=0.9,
        meaning="keys before RoPE: fall of log singular value in log rank, first dim / 2",
        source="chosen",
    ),
    Target(
        name="v_spectral_exponent",
        low=0.6,
        high=0.9,
        meaning="the same of values",
        source="chosen",
    ),
    Target(
        name="k_correlation",
        low=0.4,
        high=0.6,
        meaning="keys before RoPE: correlation of consecutive tokens, the median channel's",
        source="CacheGen (2310.07240): neighbours are alike; the range was chosen",
    ),
    Target(
        name="v_correlation",
        low=0.35,
        high=0.6,
        meaning="the same of values",
        source="CacheGen (2310.07240): neighbours are alike; the range was chosen",
    ),
    Target(
        name="sink_mass",
        low=0.3,
        high=0.8,
        meaning="mean attention weight of token 0, over at most 256 later queries",
        source=f"{_SINK}: above 0.3 in a head with a sink; the upper bound was chosen",
    ),
    Target(
        name="sink_key_norm",
        high=0.5,
        meaning="norm of the key of token 0 over the median of the others",
        source=f"{_SINK} section 3.1: small; the bound was chosen",
    ),
    Target(
        name="sink_value_norm",
        high=0.1,
        meaning="norm of the value of token 0 over the median of the others",
        source=f"{_SINK} section 3.1: nearly 0; the bound was chosen",
    ),
    Target(
        name="logit_std",
        low=2,
        high=3,
        meaning="std of a query's scaled logits but the sink's, root mean square over queries",
        source="chosen, for the sparsity that follows",
    ),
    Target(
        name="attention_sparsity",
        low=0.75,
        high=0.9,
        meaning="share of weights below 1 % of their row's largest, without the sink's column",
        source=f"{_KIVI} table 2: 84.3 % in Llama-2-13B, threshold and length not stated; range "
        f"chosen, since it rises with the length; 1 %: {_H2O} section 3.1",
    ),
    Target(
        name="attention_sparsity_with_sink",
        low=0.92,
        high=1,
        meaning="the same with the sink's column",
        source=f"{_H2O} section 3.1: above 95 % in almost all layers of OPT; the bound was chosen",
    ),
    Target(
        name="attention_popularity",
        meaning="share of the logits' variance over keys that all queries have in common",
        source="no target",
    ),
)
"""What a card measures and what is expected, in the order in which a card lists it."""

_STRONG = (
    "norm-separated quantization (github.com/metaSATOKEN/norm-separated-quantization): 8 to 100 "
    "times larger than average, as in Qwen2-7B"
)

STRONG_OUTLIER_TARGETS = tuple(
    replace(target, low=8, high=100, source=_STRONG)
    if target.name in ("k_absmax_ratio", "k_absmax_ratio_after_rope")
    else target
    for target in TARGETS
)
"""The same of layers whose keys have stronger outliers than Llama's."""
