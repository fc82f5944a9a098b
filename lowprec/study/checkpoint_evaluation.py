"""What a checkpoint loses on a user's text under recipes and KV methods, all layers or one by one.

Every pass goes through a layer before any goes through the next, so that weights are read once; a
pass that quantizes one layer alone shares the work of bf16 up to it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lowprec.gemm.recipe import Recipe
from lowprec.kv import KVMethod
from lowprec.models.checkpoints.caches import KEPT, check_method
from lowprec.models.checkpoints.entries import Checkpoint
from lowprec.models.checkpoints.prepared import linear_inputs
from lowprec.models.checkpoints.run import Say, run_layers
from lowprec.models.checkpoints.texts import TokenWindows
from lowprec.study.checkpoint_passes import (
    PROMPT_SHARE,
    Pass,
    Sensitivity,
    Wanted,
    fitted,
    fitted_methods,
    linear_names,
    passes,
)
from lowprec.study.checkpoint_rows import EvaluationRow
from lowprec.study.checkpoint_scores import Scores, scored, sums
from lowprec.study.intervals import paired_interval


def evaluate(
    checkpoint: Checkpoint,
    text: TokenWindows,
    *,
    recipes: Sequence[Recipe] = (),
    mixtures: Mapping[str, Mapping[str, Recipe]] | None = None,
    methods: Sequence[KVMethod] = (),
    wanted: Sequence[str] = (),
    sensitivity: Sensitivity = "none",
    kept: float = KEPT,
    seed: int = 0,
    done: Say | None = None,
) -> list[EvaluationRow]:
    """Rows of bf16, of every recipe, every method and every pair of both, on one text.

    Calibrated methods, and recipes that prepare weights by their layers' inputs, are fitted to the
    first window as bf16 runs it, which then is scored for none. Methods that
    choose tokens see the first half of every window exactly, and choose from it. Scales of whole
    tensors are those of all windows.

    Args:
      checkpoint: a decoder.
      text: two windows or more to score.
      recipes, methods: what to try.
      mixtures: by name, a recipe for each linear layer; bf16 for the others.
      wanted: patterns of the linear layers that recipes quantize, such as `*.mlp.*`; none for all
        but the head.
      sensitivity: what to quantize alone too, with each recipe and each method: `layers` or
        `linear` layers; methods always whole layers.
      kept: the share of a prompt, which is half of a window, kept by methods that choose tokens.
      seed: of the bootstrap, and of stochastic rounding.
      done: called with the number of each layer as it is done.

    Raises:
      ValueError: an encoder; too few windows; a recipe that cannot run without a history; patterns
        that no linear layer matches; weights that give NaN or Inf in bf16.
      TypeError: a method of caches that the model does not have.
    """
    _check(checkpoint, text, recipes, methods, kept)
    chosen = Wanted(patterns=wanted)
    names = []
    if wanted or sensitivity == "linear":
        names = linear_names(checkpoint, text.tokens[:1, :1])
        if not any(chosen.has(name) for own in names for name in own):
            raise ValueError(f"`wanted` = {list(wanted)} match no linear layer")
    first = text.tokens[:1]
    by_layer = fitted_methods(checkpoint, first, methods)
    inputs = linear_inputs(checkpoint, first, chosen.has) if any(map(fitted, recipes)) else {}
    if _fits(recipes, methods):
        text = text[1:]
    tried = list(
        passes(
            checkpoint,
            recipes,
            mixtures or {},
            by_layer,
            wanted=chosen,
            sensitivity=sensitivity,
            names=names,
            inputs=inputs,
            prompt=_prompt(text),
            kept=kept,
            seed=seed,
        )
    )
    named = {f"{x.what} {x.layer}": x.hooks for x in tried}
    streams = run_layers(checkpoint, text.tokens, named, done=done)
    found = scored(checkpoint, list(streams.values()), [x.head for x in tried], text)
    return [
        _row(checkpoint.name, own, scores, found[0], text, seed)
        for own, scores in zip(tried, found, strict=True)
    ]


def _check(
    checkpoint: Checkpoint,
    text: TokenWindows,
    recipes: Sequence[Recipe],
    methods: Sequence[KVMethod],
    kept: float,
) -> None:
    if not checkpoint.architecture.causal:
        raise ValueError(
            f"{checkpoint.name} is an encoder, which predicts no next token: capture its operands "
            f"instead, and compare recipes on these"
        )
    for method in methods:
        check_method(method, checkpoint.architecture, prompt=_prompt(text), kept=kept)
    for kind, given in (("recipes", recipes), ("methods", methods)):
        names = [x.name for x in given]
        if len(set(names)) < len(names):
            raise ValueError(f"`{kind}` = {', '.join(names)}: two share a name; rename one")
    fitting = _fits(recipes, methods)
    if len(text.tokens) - fitting < 2:
        raise ValueError(
            f"an interval needs 2 windows or more to score, and the text leaves "
            f"{len(text.tokens) - fitting}: give a longer text, or shorter windows"
        )


def _fits(recipes: Sequence[Recipe], methods: Sequence[KVMethod]) -> bool:
    """Whether anything is fitted, for which the first window is kept."""
    return any(map(fitted, recipes)) or any(method.spec.calibrated for method in methods)


def _prompt(text: TokenWindows) -> int:
    return max(1, round(PROMPT_SHARE * text.tokens.shape[1]))


def _row(
    architecture: str, own: Pass, scores: Scores, baseline: Scores, text: TokenWindows, seed: int
) -> EvaluationRow:
    mask = text.mask[:, 1:]
    counts = mask.sum(axis=1).astype(np.float64)
    sizes = np.where(text.mask, text.byte_counts, 0)[:, 1:].sum(axis=1).astype(np.float64)
    difference = sums(scores.bits - baseline.bits, mask)
    increase, low, high = paired_interval(difference, sizes, seed=seed)
    kl_mean, kl_low, kl_high = paired_interval(sums(scores.divergence, mask), counts, seed=seed)
    return EvaluationRow(
        architecture=architecture,
        what=own.what,
        layer=own.layer,
        bits_per_byte=float(scores.bits.sum() / sizes.sum()),
        perplexity=float(2.0 ** np.mean(scores.bits)),
        increase=increase,
        low=low,
        high=high,
        kl_mean=kl_mean,
        kl_low=kl_low,
        kl_high=kl_high,
        kl_median=float(np.median(scores.divergence)),
        kl_percentile_99=float(np.quantile(scores.divergence, 0.99)),
        top1_flips=float(np.mean(scores.flipped)),
        windows=len(sizes),
        tokens=int(scores.bits.size),
        bytes=int(sizes.sum()),
    )
