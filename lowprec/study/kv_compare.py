"""KV methods side by side: sizes, errors on keys and values, and what a model loses."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.kv import KVMethod, Rope, get_kv_method
from lowprec.kv.method import Spec
from lowprec.kv.pair import PairSpec
from lowprec.models.copy_spans import PlantedKeys
from lowprec.models.corpus import Windows
from lowprec.models.key_values import KeyValueSample
from lowprec.models.latent_parameters import AnyConfig
from lowprec.models.parameters import TransformerConfig
from lowprec.models.transformer import apply_layer, attention, bfloat16_linear, rotate
from lowprec.study.kv_keys import Found, KvKeyRow, Size, find_keys, key_rows, unanswered
from lowprec.study.kv_latent_model import EXACT as EXACT_LATENTS
from lowprec.study.kv_latent_model import latent_log_probabilities, latent_row, predict_latent
from lowprec.study.kv_model import MODES, fitted_by_layer, log_probabilities, model_row, predict
from lowprec.study.kv_rows import CacheRow, KvModelRow, TensorRow
from lowprec.study.kv_tensors import cache_row, choosing, lacking, tensor_rows
from lowprec.study.model import Predictions

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Samples of one kind, and others that calibrated methods are fitted to.

    Attributes:
      name: such as `synthetic`.
      samples: what is reported, by layer or draw.
      calibration: by the name of a sample, what fits the methods for it.
      rope: of the keys, where samples have those before RoPE.
    """

    name: str
    samples: Sequence[KeyValueSample]
    calibration: Mapping[str, Sequence[KeyValueSample]]
    rope: Rope | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    """A model and text to score.

    Attributes:
      params, config: of the model.
      calibration: (windows, tokens) integers of the calibrate part.
      scored: windows of the report part.
      prompt: tokens of a window that are not scored.
      asked: planted keys in text of the report part, or None.
    """

    params: Any
    config: AnyConfig
    calibration: np.ndarray
    scored: Windows
    prompt: int
    asked: PlantedKeys | None = None

    @property
    def shape(self) -> TransformerConfig:
        """The config of a model with keys and values."""
        assert isinstance(self.config, TransformerConfig)
        return self.config


@dataclasses.dataclass(kw_only=True)
class KvCollected:
    """What has been found so far; a run that is interrupted keeps it.

    Attributes:
      caches, tensors, model: rows.
      latent: those of the model with latents.
      keys: of planted keys, through either model.
      unanswered: (model, distance, share) where bfloat16 finds less than half of the keys.
      left_out: (method, what, why) of what a method cannot do.
      seconds: by method.
    """

    caches: list[CacheRow] = dataclasses.field(default_factory=list)
    tensors: list[TensorRow] = dataclasses.field(default_factory=list)
    model: list[KvModelRow] = dataclasses.field(default_factory=list)
    latent: list[KvModelRow] = dataclasses.field(default_factory=list)
    keys: list[KvKeyRow] = dataclasses.field(default_factory=list)
    unanswered: list[tuple[str, int, float]] = dataclasses.field(default_factory=list)
    left_out: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


def compare_kv(
    methods: Sequence[str | KVMethod],
    sources: Sequence[Source],
    text: Text | None,
    *,
    seed: int,
    latent_text: Text | None = None,
    kept: float = 0.25,
    found: KvCollected | None = None,
    say: Say = lambda line: None,
) -> KvCollected:
    """Every method on every source, and through the model where one is given.

    Behind a method with a window of exact tokens comes the same without it: see `with_window_0`.
    Latent methods have no keys and values, and go through the model of `latent_text` alone. A
    method that refuses a sample or a model, with a ValueError, is left out there, and `left_out`
    says why.

    Args:
      text: a model with keys and values, and what it reads; None for no model.
      seed: of the bootstrap.
      latent_text: a model with latent attention likewise.
      kept: the share of tokens that methods which choose some may keep; of a text's prompt.
      found: what rows are added to.
      say: is told of each method as it is done.
    """
    found = KvCollected() if found is None else found
    whole = None if text is None else _Exact.through(text, get_kv_method("bf16"), kept, found)
    latents = get_kv_method(EXACT_LATENTS)
    beside = None if latent_text is None else _Exact.through(latent_text, latents, kept, found)
    for method, window_0_of in with_window_0(methods):
        begin = time.perf_counter()
        found.caches.append(cache_row(method, window_0_of))
        if method.latent:
            found.left_out.append((method.name, "tensors, model", "it keeps latents"))
        else:
            for source in sources:
                _on_source(method, source, kept, found)
        exact, through = (beside, _through_latents) if method.latent else (whole, _through_model)
        if exact is not None:
            try:
                through(method, exact, seed, kept, found)
            except ValueError as error:
                found.left_out.append((method.name, "model", str(error)))
        found.seconds[method.name] = time.perf_counter() - begin
        say(f"{method.name}: {found.seconds[method.name]:.0f} s")
    return found


def with_window_0(
    methods: Sequence[str | KVMethod],
) -> list[tuple[KVMethod, str | None]]:
    """The methods, and those without their windows of exact tokens that are not among them.

    Returns:
      Pairs of a method, and the name of the one that it is without its window, or None. What is
      added is called `NAME, window 0`, and follows its method.

    Example:
      >>> [(method.name, of) for method, of in with_window_0(["bf16", "qjl"])]
      [('bf16', None), ('qjl', None), ('qjl, window 0', 'qjl')]
    """
    given = [get_kv_method(method) for method in methods]
    known = {_nameless(method.spec) for method in given}
    bare = {method.name: method.spec.without_window() for method in given}
    origin = {_nameless(bare[x.name]): x.name for x in given if bare[x.name] != x.spec}
    found: list[tuple[KVMethod, str | None]] = []
    for method in given:
        found.append((method, origin.get(_nameless(method.spec))))
        spec = bare[method.name]
        if spec != method.spec and _nameless(spec) not in known:
            found.append((KVMethod(spec=_named(spec, f"{method.name}, window 0")), method.name))
    return found


def _nameless(spec: Spec) -> Spec:
    """What two entries of the same method are equal in."""
    return _named(spec, "")


def _named(spec: Spec, name: str) -> Spec:
    # Every family is a dataclass, which its base cannot say.
    return dataclasses.replace(cast(Any, spec), name=name)


def _on_source(method: KVMethod, source: Source, kept: float, found: KvCollected) -> None:
    for sample in source.samples:
        where, reason = f"{source.name} {sample.layer}", lacking(method, sample, source.rope)
        if reason is not None:
            found.left_out.append((method.name, where, reason))
            continue
        given = {"kept": kept, "rope": source.rope}
        try:
            fitted = method
            if method.spec.calibrated:
                fitted = method.fit([_arrays(x) for x in source.calibration[sample.layer]])
            found.tensors += tensor_rows([fitted], sample, source.name, **given)
        except ValueError as error:
            # Such as a head's size that it does not take: the others go on.
            found.left_out.append((method.name, where, str(error)))


def _arrays(sample: KeyValueSample) -> dict[str, np.ndarray]:
    every = {"k": sample.k, "v": sample.v, "q": sample.q, "k_before_rope": sample.k_before_rope}
    return {name: np.asarray(x, np.float32) for name, x in every.items() if x is not None}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Exact:
    """A model, and what it says through an exact cache."""

    text: Text
    predictions: Predictions
    keys: Found | None

    @classmethod
    def through(cls, text: Text, method: KVMethod, kept: float, found: KvCollected) -> "_Exact":
        """What a bfloat16 cache gives, and the distances at which that finds too few keys."""
        keys = None if text.asked is None else _keys(text, method, kept)
        if text.asked is not None and keys is not None:
            kind = _kind(text)
            found.unanswered += [(kind, *x) for x in unanswered(text.asked, keys)]
        predictions = _predicted(text, method, "before_use", kept)
        return cls(text=text, predictions=predictions, keys=keys)


def _kind(text: Text) -> str:
    return "gqa" if isinstance(text.config, TransformerConfig) else "mla"


def _add_keys(
    method: KVMethod, exact: _Exact, size: Size, seed: int, kept: float, found: KvCollected
) -> None:
    """Rows of planted keys, where they are asked for."""
    text = exact.text
    if text.asked is None or exact.keys is None:
        return
    rows = _keys(text, method, kept)
    given = size, text.asked, exact.keys, rows
    found.keys += key_rows(method.name, _kind(text), *given, seed=seed)


def _keys(text: Text, method: KVMethod, kept: float) -> Found:
    """Planted keys asked for through the method's caches, each in place before it is used.

    What chooses tokens does so behind an exact prompt, which ends where the key is asked for.
    """
    assert text.asked is not None
    params, config, asked = text.params, text.config, text.asked
    prompt = asked.tokens.shape[1] - asked.digits
    if not isinstance(config, TransformerConfig):
        score = lambda x: latent_log_probabilities(params, x, method, config, "before_use", prompt)
        return find_keys(score, asked)
    budget = choosing(method, round(kept * prompt), Rope(theta=config.rope_theta)).get("budget")
    return find_keys(
        lambda x: log_probabilities(params, x, method, config, "before_use", prompt, budget), asked
    )


def _through_latents(
    method: KVMethod, exact: _Exact, seed: int, kept: float, found: KvCollected
) -> None:
    text = exact.text
    config = text.config
    assert not isinstance(config, TransformerConfig)
    for mode in MODES:
        other = predict_latent(text.params, config, text.scored, method, mode, prompt=text.prompt)
        found.latent.append(latent_row(method, mode, config, exact.predictions, other, seed=seed))
    row = found.latent[-1]
    _add_keys(method, exact, Size(row.bits, row.bytes_per_token), seed, kept, found)


def _through_model(
    method: KVMethod, exact: _Exact, seed: int, kept: float, found: KvCollected
) -> None:
    text = exact.text
    rope = Rope(theta=text.shape.rope_theta)
    given = choosing(method, round(kept * text.prompt), rope)
    if getattr(method.spec, "decode", "") == "keep":
        given["prompt"] = text.prompt
    fitted = fitted_by_layer(method, text.params, text.shape, text.calibration)
    row = None
    for mode in MODES:
        if mode == "before_use" and not isinstance(method.spec, PairSpec):
            found.left_out.append((method.name, mode, "it is decoded behind an exact prompt alone"))
            continue
        other = _predicted(text, fitted, mode, kept)
        row = model_row(method, mode, text.shape, exact.predictions, other, seed=seed, given=given)
        found.model.append(row)
    assert row is not None
    _add_keys(fitted, exact, Size(row.bits, row.bytes_per_token), seed, kept, found)


def _predicted(text: Text, method: KVMethod, mode: Any, kept: float) -> Predictions:
    if not isinstance(text.config, TransformerConfig):
        given = text.params, text.config, text.scored
        return predict_latent(*given, method, mode, prompt=text.prompt)
    given = text.params, text.config, text.scored
    return predict(*given, method, mode, prompt=text.prompt, kept=kept)


def captured_samples(
    params: Any, tokens: np.ndarray, config: TransformerConfig
) -> list[KeyValueSample]:
    """Queries, keys and values of every layer for one sequence (tokens,) of integers."""
    stream = params["embedding"][jnp.asarray(tokens)[None]].astype(jnp.float32)
    samples = []
    for number in range(config.layers):
        weights = jax.tree.map(lambda x, n=number: x[n], params["layers"])
        stream, kept = _layer(stream, weights, config)
        names = ("q_before_rope", "k_before_rope", "q", "k", "v")
        arrays = dict(zip(names, (np.asarray(x) for x in kept), strict=True))
        samples.append(KeyValueSample(layer=f"layers.{number}", **arrays))
    return samples


def _layer(stream: jax.Array, weights: Any, config: TransformerConfig) -> Any:
    kept: list[jax.Array] = []

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, config: TransformerConfig) -> jax.Array:
        turned = rotate(q, config), rotate(k, config)
        kept.extend((q, k, *turned, v))
        return attention(*turned, v)

    stream = apply_layer(stream, weights, config, lambda name, x, w: bfloat16_linear(x, w), attend)
    return stream, tuple(kept)
