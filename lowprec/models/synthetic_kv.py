"""Keys, values and queries drawn after the published statistics of attention layers.

No model is needed, every statistic is a parameter, and `key_value_cards.card` measures what came
out. One seed is one layer: its fixed channels and bases and one batch of sequences. What is drawn:

- keys = fixed mean + scale of the token * content, before RoPE. The mean is large in a few channels
  of low frequency and small elsewhere. The content has a power-law spectrum in a random basis and
  is correlated from token to token. A few tokens have less of the mean.
- queries = fixed mean + content, with a mean of their own in the same channels. The content has the
  keys' basis, the leading components in an order of each head's own: heads look at few directions.
- values = scale of the token * content.
- token 0 is the attention sink: its key points along the mean query, its value is almost zero.

Two means in the same channels would add a term to every logit that drowns the content. A trained
layer has learnt to avoid that; here the outlier pairs come in twos of neighbouring frequency, in
which the query's mean stands at a right angle to the key's, once to the left and once to the right.
The term then vanishes at distance 0 and to first order in the distance.
"""

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from lowprec.models.key_values import KeyValueSample

Floats = NDArray[np.float64]

LARGEST_TURN = math.pi / 2
"""Radians that an outlier pair turns over the sequence, at most: "partial cycles", 2503.01832."""
SLOWEST_SHARE = 8
"""Outlier pairs are among the slowest 1/8 of all pairs."""
PHASE_SPREAD = math.pi / 12
"""Radians from the diagonal that a key's mean points in its pair: both halves are large."""
LEADING = 8
"""Components of the keys that all query heads look at, each in an order of its own."""
CALIBRATION_ROWS = 256
"""Queries, at most, on which the scale of the logits and the length of the sink's key are found."""
BISECTIONS = 60


@dataclass(frozen=True, kw_only=True)
class SyntheticKV:
    """What to draw. Every default is a published value or says that it was chosen.

    Attributes:
        heads: query heads; `kv_heads` divides it.
        kv_heads: key and value heads.
        dim: elements of a head, even.
        tokens: length of a sequence, at least 32.
        batch: sequences; they share what belongs to the layer.
        rope_theta: base of the RoPE frequencies, as in Llama and Llama 2.
        outlier_channels: channels of a key head with a large mean, a multiple of 4 (two pairs of
            two halves); 0 for none. A few fixed channels: KIVI (2402.02750) section 3.2; in
            queries too, in low-frequency dimensions: 2502.01563. The count is chosen.
        key_outlier: the mean of the largest such channel, in units of the content's rms (about:
            the angle is random). Chosen: gives an absmax 4 to 15 times that of other channels.
        query_outlier: the same of the queries. Chosen likewise.
        channel_mean: standard deviation of the other channels' fixed means of the keys, in the
            same unit. Chosen: RoPE then widens the ranges of channels, as KVQuant (2401.18079)
            sections 3.1 and 3.2 find.
        key_token_spread: standard deviation of the log of the scale of a token's content in the
            keys. Chosen.
        weak_key_share: share of tokens whose keys have less of the fixed mean. Outlier Tokens
            Tracing (2505.10938) finds tokens whose keys are small in the outlier channels. Chosen:
            norms then vary 2 to 5 times between tokens.
        weak_key_factor: what those tokens have of the mean. Chosen.
        value_token_spread: the same of the values. Chosen.
        value_outlier_share: share of tokens whose value is an outlier; KVQuant section 3.1 reports
            outlier tokens in values. The number is chosen.
        value_outlier_factor: how much larger such a value is. Chosen.
        logit_std: standard deviation, in natural units, of the scaled logits of one query over the
            keys, but for the sink's: root of the mean square over queries, the same for each head.
            Chosen: with it attention is about as sparse as KIVI and H2O report.
        sink_mass: mean attention weight of token 0 over the later queries, from 0 (no sink) to
            below 1. Sinks take more than 0.3 in most heads of Llama models: 2410.10781.
        sink_value: norm of the sink's value over that of an ordinary one. Nearly 0: 2410.10781.
        spectral_exponent: the singular values of the content fall as rank ** -spectral_exponent.
            Chosen: methods that project on principal components need such a fall.
        correlation: of a token's content with that of the next (an AR(1) process), from 0 to below
            1. That neighbours are alike: CacheGen (2310.07240). The number is chosen.

    Raises:
        TypeError: a count is no integer.
        ValueError: a parameter out of its range, or a sequence so long that fewer pairs than the
            outliers need turn by less than a quarter.

    Example:
        >>> SyntheticKV(tokens=1 << 20)
        Traceback (most recent call last):
            ...
        ValueError: over `tokens` = 1048576 0 of 64 RoPE pairs turn by less than a quarter, and \
`outlier_channels` = 4 needs 2: raise `rope_theta` = 10000.0 (Llama 3 has 500000)
    """

    heads: int = 8
    kv_heads: int = 2
    dim: int = 128
    tokens: int = 1024
    batch: int = 1
    rope_theta: float = 10000.0
    outlier_channels: int = 4
    key_outlier: float = 24.0
    query_outlier: float = 8.0
    channel_mean: float = 1.0
    key_token_spread: float = 0.25
    weak_key_share: float = 0.005
    weak_key_factor: float = 0.3
    value_token_spread: float = 0.3
    value_outlier_share: float = 0.005
    value_outlier_factor: float = 5.0
    logit_std: float = 2.1
    sink_mass: float = 0.45
    sink_value: float = 0.02
    spectral_exponent: float = 0.7
    correlation: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and type(value) is not int:
                raise TypeError(f"`{field.name}` must be an integer, got {value!r}")
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"`{field.name}` must be finite and not negative, got {value}")
        for name, wanted, holds in (
            ("kv_heads", "at least 1", self.kv_heads >= 1),
            ("heads", f"a multiple of `kv_heads` = {self.kv_heads}", _divides(self)),
            ("dim", "even and at least 4", self.dim >= 4 and self.dim % 2 == 0),
            ("tokens", "at least 32", self.tokens >= 32),
            ("batch", "at least 1", self.batch >= 1),
            ("rope_theta", "above 1", self.rope_theta > 1),
            ("outlier_channels", "a multiple of 4", self.outlier_channels % 4 == 0),
            ("weak_key_share", "at most 1", self.weak_key_share <= 1),
            ("value_outlier_share", "at most 1", self.value_outlier_share <= 1),
            ("logit_std", "above 0", self.logit_std > 0),
            ("sink_mass", "below 1", self.sink_mass < 1),
            ("correlation", "below 1", self.correlation < 1),
        ):
            if not holds:
                raise ValueError(f"`{name}` must be {wanted}, got {getattr(self, name)}")
        if self.sink_mass and not (self.outlier_channels and self.query_outlier):
            raise ValueError(
                f"`sink_mass` = {self.sink_mass} needs a mean that the queries share, from "
                "`outlier_channels` and `query_outlier`; without these pass `sink_mass=0`"
            )
        wanted, slow = self.outlier_channels // 2, len(_slow_pairs(self))
        if slow < wanted:
            raise ValueError(
                f"over `tokens` = {self.tokens} {slow} of {self.dim // 2} RoPE pairs turn by less "
                f"than a quarter, and `outlier_channels` = {self.outlier_channels} needs {wanted}: "
                f"raise `rope_theta` = {self.rope_theta} (Llama 3 has 500000)"
            )

    @property
    def frequencies(self) -> Floats:
        """(dim / 2,) radians per token of each RoPE pair, falling; pair i is (i, i + dim / 2)."""
        half = self.dim // 2
        return self.rope_theta ** (-np.arange(half) / half)


def generate(spec: SyntheticKV, seed: int) -> KeyValueSample:
    """One layer's keys, values and queries, before and after RoPE.

    The streams of keys, queries, values and fixed means are separate: a parameter of one leaves the
    others' draws as they are.

    Args:
        spec: the shapes and statistics.
        seed: a layer; not negative. The same seed gives the same bits on one machine and version
            of NumPy.

    Returns:
        Float32 arrays without NaN or Inf, named `synthetic SEED`; k and v are
        (batch, kv_heads, tokens, dim), q is (batch, heads, tokens, dim).

    Raises:
        ValueError: no key, however long, would draw `sink_mass` (a tiny `query_outlier`).

    Example:
        >>> sample = generate(SyntheticKV(tokens=64, dim=32), seed=0)
        >>> sample.k.shape, sample.q.shape, sample.v.dtype.name
        ((1, 2, 64, 32), (1, 8, 64, 32), 'float32')
    """
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)]
    for_layer, for_keys, for_queries, for_values = streams
    pairs = [_means(spec, for_layer) for _ in range(spec.kv_heads)]
    key_means, query_means = (np.stack(each)[:, None] for each in zip(*pairs, strict=True))
    bases = _bases(spec, for_layer)
    orders = np.stack([_order(spec, for_layer) for _ in range(spec.heads)])[:, None]
    keys = _keys(spec, key_means, bases, for_keys)
    groups = spec.heads // spec.kv_heads
    queries = np.repeat(query_means, groups, axis=0) + _content(
        spec, np.repeat(bases, groups, axis=0), _spectrum(spec)[orders], for_queries
    )
    scale = spec.logit_std / _logit_std(_turned(queries, spec), _turned(keys, spec))
    queries *= scale[:, None, None]
    if spec.sink_mass:
        keys[:, :, 0] = _sink_keys(_turned(queries, spec), _turned(keys, spec), spec.sink_mass)
    k_before_rope, q_before_rope = keys.astype(np.float32), queries.astype(np.float32)
    return KeyValueSample(
        layer=f"synthetic {seed}",
        k=_turned(k_before_rope, spec),
        v=_values(spec, for_values),
        q=_turned(q_before_rope, spec),
        k_before_rope=k_before_rope,
        q_before_rope=q_before_rope,
    )


def _divides(spec: SyntheticKV) -> bool:
    return spec.heads >= 1 and spec.heads % max(spec.kv_heads, 1) == 0


def _slow_pairs(spec: SyntheticKV) -> NDArray[np.intp]:
    """The pairs that may hold outliers, slowest first."""
    half = spec.dim // 2
    count = max(half // SLOWEST_SHARE, spec.outlier_channels // 2)
    turns = spec.frequencies * (spec.tokens - 1)
    return np.flatnonzero(turns < LARGEST_TURN)[::-1][:count]


def _means(spec: SyntheticKV, stream: np.random.Generator) -> tuple[Floats, Floats]:
    """The fixed means of the keys of one head and of its queries, (dim,) each, before RoPE."""
    keys = stream.normal(scale=spec.channel_mean, size=spec.dim)
    queries = np.zeros(spec.dim)
    slow = _slow_pairs(spec)
    # Neighbours in frequency, so that the second can undo what the first adds.
    twos = slow[: len(slow) // 2 * 2].reshape(-1, 2)
    for two in twos[stream.permutation(len(twos))[: spec.outlier_channels // 4]]:
        key_lengths = math.sqrt(2) * spec.key_outlier * np.array([1, stream.uniform(0.6, 1)])
        query_lengths = 1 / (spec.frequencies[two] * key_lengths)
        query_lengths *= math.sqrt(2) * spec.query_outlier / query_lengths.max()
        diagonal = math.pi / 4 + math.pi / 2 * stream.integers(4, size=2)
        angles = diagonal + stream.uniform(-PHASE_SPREAD, PHASE_SPREAD, size=2)
        right = stream.choice([-1, 1]) * np.array([1, -1]) * math.pi / 2
        halves = np.concatenate([two, two + spec.dim // 2])
        keys[halves] = _at(angles, key_lengths)
        queries[halves] = _at(angles + right, query_lengths)
    return keys, queries


def _at(angles: Floats, lengths: Floats) -> Floats:
    return np.concatenate([lengths * np.cos(angles), lengths * np.sin(angles)])


def _token_scales(spec: SyntheticKV, spread: float, stream: np.random.Generator) -> Floats:
    return np.exp(spread * stream.normal(size=(spec.batch, spec.kv_heads, spec.tokens, 1)))


def _spectrum(spec: SyntheticKV) -> Floats:
    """(dim,) the rms of the principal components, falling, of mean square 1."""
    rms = np.arange(1, spec.dim + 1, dtype=np.float64) ** -spec.spectral_exponent
    return np.asarray(rms * math.sqrt(spec.dim / np.sum(rms**2)), np.float64)


def _bases(spec: SyntheticKV, stream: np.random.Generator) -> Floats:
    """(kv_heads, dim, dim): the principal components of each head, as orthonormal rows."""
    bases = np.linalg.qr(stream.normal(size=(spec.kv_heads, spec.dim, spec.dim)))[0]
    return bases.astype(np.float64)


def _order(spec: SyntheticKV, stream: np.random.Generator) -> NDArray[np.intp]:
    """(dim,) the keys' components, the leading ones in the order of one query head."""
    order = np.arange(spec.dim)
    order[:LEADING] = stream.permutation(order[:LEADING])
    return order


def _content(spec: SyntheticKV, bases: Floats, rms: Floats, stream: np.random.Generator) -> Floats:
    """(batch, heads, tokens, dim): components of that rms, in (heads, dim, dim) bases."""
    series = stream.normal(size=(spec.batch, len(bases), spec.tokens, spec.dim))
    innovation = math.sqrt(1 - spec.correlation**2)
    for token in range(1, spec.tokens):
        series[:, :, token] *= innovation
        series[:, :, token] += spec.correlation * series[:, :, token - 1]
    return (series * rms) @ bases


def _keys(spec: SyntheticKV, means: Floats, bases: Floats, stream: np.random.Generator) -> Floats:
    """(batch, kv_heads, tokens, dim) before RoPE, without a sink."""
    scales = _token_scales(spec, spec.key_token_spread, stream)
    weak = stream.random(scales.shape) < spec.weak_key_share
    steady = np.where(weak, spec.weak_key_factor, 1) * means
    return steady + scales * _content(spec, bases, _spectrum(spec), stream)


def _values(spec: SyntheticKV, stream: np.random.Generator) -> NDArray[np.float32]:
    scales = _token_scales(spec, spec.value_token_spread, stream)
    outliers = stream.random(scales.shape) < spec.value_outlier_share
    values = np.where(outliers, spec.value_outlier_factor, 1) * scales
    values = values * _content(spec, _bases(spec, stream), _spectrum(spec), stream)
    if spec.sink_mass:
        first = values[:, :, 0]
        norms = np.linalg.norm(first, axis=-1, keepdims=True)
        values[:, :, 0] = spec.sink_value * math.sqrt(spec.dim) * first / norms
    return values.astype(np.float32)


def _turned(x: np.ndarray, spec: SyntheticKV) -> np.ndarray:
    """RoPE on (..., tokens, dim), in the dtype of `x`, as `transformer.rotate` has it."""
    angles = np.outer(np.arange(spec.tokens), spec.frequencies)
    cosine, sine = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def _logits(
    queries: Floats, keys: Floats, rows: NDArray[np.intp]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Scaled logits of the queries of some rows, (batch, heads, rows, tokens), and which count.

    Those of the sink and of later tokens do not.
    """
    batch, heads, tokens, dim = queries.shape
    picked = queries[:, :, rows].reshape(batch, keys.shape[1], -1, dim)
    logits = picked @ keys.swapaxes(-1, -2) / math.sqrt(dim)
    places = np.arange(tokens)
    counted = (places > 0) & (places <= rows[:, None])
    return logits.reshape(batch, heads, len(rows), tokens), counted


def _logit_std(queries: Floats, keys: Floats) -> Floats:
    """(heads,) what `logit_std` means, of queries that see an eighth of the tokens or more."""
    tokens = queries.shape[2]
    logits, counted = _logits(queries, keys, _spread_rows(tokens // 8, tokens))
    counts = counted.sum(axis=-1)
    means = np.sum(logits * counted, axis=-1) / counts
    squares = np.sum(np.square(logits - means[..., None]) * counted, axis=-1) / counts
    return np.sqrt(squares.mean(axis=(0, 2)))


def _sink_keys(queries: Floats, keys: Floats, mass: float) -> Floats:
    """(batch, kv_heads, dim): keys for token 0, along the mean query, that draw a mean weight."""
    batch, kv_heads, tokens, dim = keys.shape
    means = queries.reshape(batch, kv_heads, -1, dim).mean(axis=(0, 2))
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    rows = _spread_rows(1, tokens)
    logits, counted = _logits(queries, keys, rows)
    others = np.logaddexp.reduce(np.where(counted, logits, -np.inf), axis=-1)
    toward = np.einsum(
        "bkgrd,kd->bkgr", queries[:, :, rows].reshape(batch, kv_heads, -1, len(rows), dim), means
    ) / math.sqrt(dim)
    others = others.reshape(toward.shape)

    def drawn(lengths: Floats) -> Floats:
        logits = lengths[:, None, None] * toward
        return np.mean(1 / (1 + np.exp(np.clip(others - logits, -500, 500))), axis=(0, 2, 3))

    # Where few tokens compete a key of zeros draws too much already: then it points the other way.
    low, high = np.full(kv_heads, -1000.0), np.full(kv_heads, 1000.0)
    if np.any(drawn(high) < mass):
        raise ValueError(f"no key draws `sink_mass` = {mass}; raise `query_outlier`")
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = drawn(middle) >= mass
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.broadcast_to(high[:, None] * means, (batch, kv_heads, dim))


def _spread_rows(first: int, tokens: int) -> NDArray[np.intp]:
    """At most `CALIBRATION_ROWS` rows from `first` to the last, evenly spaced."""
    count = min(CALIBRATION_ROWS, tokens - first)
    return first + np.arange(count) * (tokens - 1 - first) // max(count - 1, 1)


STRONG_OUTLIERS = SyntheticKV(outlier_channels=8, key_outlier=64.0, sink_mass=0.6)
"""Keys with the outliers reported of Qwen2, 8 to 100 times the other channels: an absmax 15 to 18
times theirs, where the defaults, after Llama, have 6 to 8. Eight channels: of Qwen2-7B's first
layer, with the range, in "A Training-Free Fix for KV Cache INT4 Failures" (metaSATOKEN,
norm-separated-quantization). The rest was chosen: so large a term that all keys share levels the
other weights, and a stronger sink (Sink: above 0.3) keeps attention as sparse as H2O reports. Its
card is held against `key_value_targets.STRONG_OUTLIER_TARGETS`.
"""
