"""The rows of an evaluation of a checkpoint."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """What a checkpoint loses on a text where its products or its caches are quantized.

    Attributes:
      architecture: as config.json names it.
      what: `recipe:NAME` of linear layers or `advice:NAME` of a recipe for each, `kv:NAME` of the
        caches, or two of them.
      layer: the one that is quantized: a layer of the model, such as `layers.3`, a linear layer,
        such as `layers.3.mlp.up` or the `head`, the experts of a layer, as in
        `layers.3.mlp.experts.*.up`; or `all` that was asked for.
      bits_per_byte: of the text.
      perplexity: exp of the mean loss in nats a token.
      increase, low, high: bits per byte over those of bf16, and their 95 % interval: a bootstrap
        over windows, paired with bf16.
      kl_mean, kl_median, kl_percentile_99: divergence of this distribution of the next token from
        bf16's, KL(bf16 || this), over tokens, in nats.
      kl_low, kl_high: the 95 % interval of the mean, a bootstrap over windows.
      top1_flips: the share of tokens whose most probable successor is another.
      windows, tokens, bytes: how much text was scored.
    """

    architecture: str
    what: str
    layer: str
    bits_per_byte: float
    perplexity: float
    increase: float
    low: float
    high: float
    kl_mean: float
    kl_low: float
    kl_high: float
    kl_median: float
    kl_percentile_99: float
    top1_flips: float
    windows: int
    tokens: int
    bytes: int
