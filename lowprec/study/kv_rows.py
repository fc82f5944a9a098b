"""The rows of a comparison of KV methods: tables' columns, in order."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheRow:
    """What a method takes, by formula and as the arrays are.

    Attributes:
      method: `kv:NAME`.
      family: of the method.
      window_0_of: the method, likewise, that this one is without its window of exact tokens; None
        of all others.
      bits: bits of a number, codes and their metadata alone.
      bits_at_length: with windows, sinks and padding, in a cache of `length` tokens.
      length: of that cache.
      exempt: the share of its tokens that stay in 16 bits, the mean of keys and values.
      bytes_llama_3_8b: bytes of a token in 32 layers of 8 heads of 128 numbers, metadata included;
        None of latents, which that model has not.
      measured: bytes of the arrays of one layer of 8 heads of 128, or of a latent, for `length`
        tokens.
    """

    method: str
    family: str
    window_0_of: str | None
    bits: float
    bits_at_length: float
    length: int
    exempt: float
    bytes_llama_3_8b: float | None
    measured: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorRow:
    """A method on the keys, values and queries of one layer or one draw.

    Attributes:
      method: `kv:NAME`.
      source: `captured`, `synthetic` or a file's name.
      sample: the layer, or the seed.
      tokens: of the cache.
      bits: in a cache of that length.
      exempt: the share of its tokens that stay in 16 bits, the mean of keys and values.
      keys, values: relative Frobenius errors of what is read; None where tokens are gone.
      scores: root mean square error of scaled scores; None without queries or keys.
      divergence: mean Kullback-Leibler divergence of attention's weights, nats; None as well.
      output: relative Frobenius error of attention's output; None without queries.
      queries: how many of the newest tokens asked.
    """

    method: str
    source: str
    sample: str
    tokens: int
    bits: float
    exempt: float
    keys: float | None
    values: float | None
    scores: float | None
    divergence: float | None
    output: float | None
    queries: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class KvModelRow:
    """A model that reads through a method's caches.

    Attributes:
      method: `kv:NAME`.
      mode: `before_use`: every token sees what its cache holds by then; `exact_prefill`: the
        prompt's tokens see each other exactly, and later ones are scored.
      bits: of a number in a cache of `context` tokens.
      bytes_per_token: in all layers of the model, in such a cache.
      exempt: the share of its tokens that stay in 16 bits, the mean of keys and values.
      context: tokens of a window.
      bits_per_byte: of held-out text.
      increase, low, high: of it over bf16's, paired by document, with a 95 % interval.
      kl_median, kl_percentile_99: Kullback-Leibler divergence of a prediction from bf16's, nats.
      top1_agreement: share of bytes whose likeliest next byte is bf16's.
      documents, bytes: of the text that was scored.
    """

    method: str
    mode: str
    bits: float
    bytes_per_token: float
    exempt: float
    context: int
    bits_per_byte: float
    increase: float
    low: float
    high: float
    kl_median: float
    kl_percentile_99: float
    top1_agreement: float
    documents: int
    bytes: int
