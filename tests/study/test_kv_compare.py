"""KV methods compared: errors re-derived in NumPy, honest fits, and what the small model loses."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lowprec.kv import KVMethod, Rope, get_kv_method, list_kv_methods
from lowprec.kv.blocks import BlocksSpec
from lowprec.kv.codes import Fitted
from lowprec.models.capture import capture_key_values
from lowprec.models.corpus import Windows
from lowprec.models.key_value_gradients import key_value_gradients
from lowprec.models.key_values import KeyValueSample
from lowprec.models.parameters import TransformerConfig
from lowprec.numerics.format import get_format
from lowprec.study.kv_compare import (
    KvCollected,
    Source,
    Text,
    captured_samples,
    compare_kv,
    with_window_0,
)
from lowprec.study.kv_model import fitted_by_layer
from lowprec.study.kv_sources import file_source, halves, synthetic_source
from lowprec.study.kv_tensors import (
    allocated,
    bits_of,
    cache_row,
    choosing,
    exempt,
    lacking,
    tensor_rows,
)
from tests.models.random_parameters import random_parameters

HEADS, KV_HEADS, TOKENS, DIM = 4, 2, 10, 16
PLAIN = get_kv_method("bf16")
CONFIG = TransformerConfig(
    vocabulary=32, layers=1, width=32, heads=2, kv_heads=1, head_dim=16, hidden=32, context=16
)


def sample(
    tokens: int = TOKENS, seed: int = 0, layer: str = "one", dim: int = DIM
) -> KeyValueSample:
    """Keys with a large channel, values and queries; before RoPE and after it."""
    rng = np.random.default_rng(seed)
    k, v = (rng.normal(size=(1, KV_HEADS, tokens, dim)).astype(np.float32) for _ in "kv")
    k[..., 3] += 8
    q = rng.normal(size=(1, HEADS, tokens, dim)).astype(np.float32)
    places = jnp.arange(tokens)
    given = {"k": jnp.asarray(k), "q": jnp.asarray(q)}
    after = {name: np.asarray(Rope().turn(x, places)) for name, x in given.items()}
    return KeyValueSample(layer=layer, v=v, k_before_rope=k, q_before_rope=q, **after)


def text() -> Text:
    """A random model of one layer, and windows of two documents."""
    rng = np.random.default_rng(2)
    windows = Windows(
        tokens=rng.integers(0, 32, (3, CONFIG.context)).astype(np.uint8),
        mask=np.ones((3, CONFIG.context - 1), bool),
        document=np.array([0, 0, 1], np.int32),
        document_count=2,
    )
    return Text(
        params=random_parameters(CONFIG),
        config=CONFIG,
        calibration=rng.integers(0, 32, (2, CONFIG.context)),
        scored=windows,
        prompt=6,
    )


def attended(found: KeyValueSample, k: np.ndarray, v: np.ndarray) -> tuple[Any, Any, Any]:
    """Scores, weights and outputs by loops over heads and queries, in float64."""
    assert found.q is not None
    scores, weights, outputs = [], [], []
    for head in range(HEADS):
        keys, values = (x[0, head // (HEADS // KV_HEADS)].astype(np.float64) for x in (k, v))
        for token in range(found.q.shape[2]):
            row = keys[: token + 1] @ found.q[0, head, token].astype(np.float64) / np.sqrt(DIM)
            share = np.exp(row) / np.exp(row).sum()
            scores.append(row)
            weights.append(share)
            outputs.append(share @ values[: token + 1])
    return scores, weights, np.stack(outputs)


def frobenius(got: np.ndarray, want: np.ndarray) -> float:
    difference = got.astype(np.float64) - want.astype(np.float64)
    return float(np.sqrt((difference**2).sum() / (want.astype(np.float64) ** 2).sum()))


def test_errors_are_those_of_numpy() -> None:
    given = sample()
    (row,) = tensor_rows([PLAIN], given, "here", kept=0.25)
    read = [x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in (given.k, given.v)]
    assert (row.keys, row.values) == pytest.approx(
        (frobenius(read[0], given.k), frobenius(read[1], given.v)), rel=1e-12
    )
    scores, weights, outputs = attended(given, given.k, given.v)
    found, shares, seen = attended(given, *read)
    squares = np.concatenate([(a - b) ** 2 for a, b in zip(found, scores, strict=True)])
    divergences = [(p * np.log(p / q)).sum() for p, q in zip(weights, shares, strict=True)]
    assert row.scores == pytest.approx(np.sqrt(squares.mean()), rel=1e-9)
    assert row.divergence == pytest.approx(np.mean(divergences), rel=1e-6)
    # The output is this machine's float32 one: its own rounding is 2^-24 of what bfloat16 makes.
    assert row.output == pytest.approx(frobenius(seen, outputs), rel=1e-3)
    assert (row.method, row.tokens, row.queries, row.bits) == ("kv:bf16", TOKENS, TOKENS, 16.0)
    assert row.keys is not None and 1e-4 < row.keys < 2**-8


def test_keeping_all_tokens_is_the_store() -> None:
    methods = [get_kv_method("streaming"), PLAIN]
    chosen, plain = tensor_rows(methods, sample(), "here", kept=1.0)
    assert chosen.output == pytest.approx(plain.output, rel=1e-6) and chosen.keys is None
    # A position of 32 bits for each token of a head, beside 2 * 16 numbers.
    assert chosen.bits == plain.bits + 32 / (2 * DIM)
    (fewer,) = tensor_rows(methods[:1], sample(), "here", kept=0.6)
    assert fewer.bits == pytest.approx(0.6 * chosen.bits) and fewer.output != plain.output


@pytest.mark.parametrize("name", ["bf16", "fp8_tensor", "kivi_2bit", "streaming"])
def test_sizes_are_those_of_real_arrays(name: str) -> None:
    method = get_kv_method(name)
    row = cache_row(method)
    cache = method.init(1, 8, 128, row.length)
    assert row.measured == cache.nbytes == allocated(method, 8, 128, row.length)
    assert row.bits_at_length == pytest.approx(8 * cache.nbytes / (2 * 8 * 128 * row.length))
    assert bits_of(method, 8, 128, row.length, {}) == pytest.approx(row.bits_at_length)
    assert row.bytes_llama_3_8b == pytest.approx(32 * 2 * 8 * 128 * row.bits / 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boasting(BlocksSpec):
    """Says that it takes nothing."""

    def nbytes(self, fitted: Fitted, *, kv_heads: int, dim: int, length: int | None) -> float:
        return 0.0


def test_what_is_measured_is_no_formula() -> None:
    half = get_format("bfloat16")
    row = cache_row(KVMethod(spec=Boasting(name="boasting", keys=half, values=half)))
    assert (row.bits, row.bits_at_length, row.measured) == (0, 0, 2 * 2 * 8 * 128 * 32768)


@pytest.mark.parametrize("name", ["mla_fp8_656", "dsa", "fp8_head", "h2o", "nsa"])
def test_any_method_is_allocated(name: str) -> None:
    method = get_kv_method(name)
    heads, dim = method.spec.usual_shape if method.latent else (2, 64)
    shape = {"kv_heads": heads, "dim": dim}
    whole = method.bytes_per_token(layers=1, **shape, length=96) * 96
    assert allocated(method, heads, dim, 96) == whole


def test_a_latent_method_counts_its_latent() -> None:
    row = cache_row(get_kv_method("mla_bf16"))
    assert (row.bits, row.measured, row.bytes_llama_3_8b) == (16.0, 2 * 576 * 32768, None)


def test_windows_are_exempt() -> None:
    # KIVI's 129 newest values and 128 keys of 32768 tokens at most, here 128 that wait and 129.
    assert cache_row(get_kv_method("kivi_2bit")).exempt == pytest.approx(
        (128 + 129) / 2 / 32768, abs=1e-12
    )
    assert cache_row(PLAIN).exempt == 0
    # Of 300 tokens SnapKV keeps 200 here, of which 72 keys wait and 129 values are exact.
    chosen = get_kv_method("snapkv_kivi_2bit")
    assert exempt(chosen, 300, {"budget": 200}) == pytest.approx((72 + 129) / 2 / 200)


def test_every_window_has_a_variant_without_it() -> None:
    pairs = with_window_0(list_kv_methods())
    names = [method.name for method, _ in pairs]
    assert len(set(names)) == len(names) and set(list_kv_methods()) <= set(names)
    origin = {method.name: of for method, of in pairs if of is not None}
    windowed = {method.name for method, _ in pairs if exempt(method, 1024)}
    assert windowed == set(origin.values()) >= {"kivi_2bit", "kvquant_3bit", "qjl"}
    # The catalogue's own entry stands for itself, in whichever order.
    assert origin["kivi_2bit_w0"] == "kivi_2bit" and "kivi_2bit, window 0" not in names
    given = with_window_0(["kivi_2bit_w0", "kivi_2bit"])
    assert [of for _, of in given] == ["kivi_2bit", None]
    both = {method.name: method for method, _ in pairs}
    assert all(names.index(bare) > names.index(whole) for bare, whole in origin.items())
    for whole in ("kvquant_3bit", "qjl"):
        bare = both[f"{whole}, window 0"]
        assert bare.bits_per_element() == both[whole].bits_per_element()
        assert bare.bits_per_element(1024) < both[whole].bits_per_element(1024)


def test_a_variant_has_the_codes_of_its_method_and_no_exact_tokens() -> None:
    given = sample(64, dim=64)
    found = compare_kv(
        ["kivi_4bit"], [Source(name="here", samples=[given], calibration={})], None, seed=0
    )
    assert [row.window_0_of for row in found.caches] == [None, "kv:kivi_4bit"]
    whole, bare = found.tensors
    assert (whole.method, bare.method) == ("kv:kivi_4bit", "kv:kivi_4bit, window 0")
    # All 64 tokens wait for 128: nothing is coded but in the variant.
    assert (whole.exempt, bare.exempt) == (1.0, 0.0)
    assert whole.bits is not None and bare.bits is not None and whole.bits > 16 > bare.bits
    assert whole.values is not None and whole.values < 2**-11
    groups = np.asarray(given.v, np.float64).reshape(-1, 32)
    least = groups.min(axis=1, keepdims=True)
    width = (groups.max(axis=1, keepdims=True) - least) / 15
    coded = np.rint((groups - least) / width) * width + least
    # KIVI's float16 steps move its error by a small share.
    want = frobenius(coded.ravel(), given.v.ravel())
    assert bare.values is not None and bare.values > 0.05
    assert bare.values == pytest.approx(want, rel=0.01)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NotedSpec(BlocksSpec):
    """Calibrated, as it says; notes what it is fitted to."""

    @property
    def calibrated(self) -> bool:
        return True

    def fit(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Fitted:
        NOTED.extend(samples)
        return {}


NOTED: list[Mapping[str, np.ndarray]] = []


def noted() -> KVMethod:
    """A method that notes its samples, anew."""
    NOTED.clear()
    half = get_format("bfloat16")
    return KVMethod(spec=NotedSpec(name="noted", keys=half, values=half))


def test_methods_are_fitted_to_other_samples_than_reported(tmp_path: Path) -> None:
    path, given = tmp_path / "cache.npz", sample()
    arrays = {name: np.asarray(getattr(given, name)) for name in ("k", "v", "q")}
    np.savez(path, allow_pickle=False, **arrays)
    found = compare_kv([noted()], [file_source(path)], None, seed=0)
    assert len(NOTED) == 1 and [row.tokens for row in found.tensors] == [TOKENS // 2]
    half = TOKENS // 2
    for name in ("k", "v", "q"):
        whole = getattr(given, name)
        assert np.array_equal(NOTED[0][name], whole[:, :, :half])
        second = getattr(file_source(path).samples[0], name)
        assert np.array_equal(second, whole[:, :, half:])
    drawn = synthetic_source([0], 32)
    (reported,), (fitted,) = drawn.samples, drawn.calibration["seed 0"]
    assert abs(np.corrcoef(reported.v.ravel(), fitted.v.ravel())[0, 1]) < 0.1
    # Of one layer all the same: the large channels are the same ones.
    means = [np.asarray(x.k_before_rope).mean(axis=(0, 2)) for x in (reported, fitted)]
    assert np.corrcoef(means[0].ravel(), means[1].ravel())[0, 1] > 0.9


def test_halves_stand_at_position_zero() -> None:
    whole = sample()
    first, second = halves(whole, Rope())
    assert np.array_equal(first.k, whole.k[:, :, :5])
    assert second.k_before_rope is not None and second.q is not None
    places = jnp.arange(5)
    want = np.asarray(Rope().turn(jnp.asarray(second.k_before_rope), places))
    assert np.abs(second.k - want).max() < 1e-5 * np.abs(want).max()
    # Fewer queries than tokens are those of the last ones.
    assert whole.q is not None and whole.q_before_rope is not None
    last = dataclasses.replace(
        whole, q=whole.q[:, :, -3:], q_before_rope=whole.q_before_rope[:, :, -3:]
    )
    first, second = halves(last, None)
    assert first.q is None and second.q is not None
    assert np.array_equal(second.q, whole.q[:, :, -3:])


def test_a_wrong_base_of_rope_is_told(tmp_path: Path) -> None:
    given, path = sample(), tmp_path / "cache.npz"
    names = ("k", "v", "k_before_rope")
    arrays = {name: np.asarray(getattr(given, name)) for name in names}
    np.savez(path, allow_pickle=False, **arrays)
    assert file_source(path, 10000.0).rope == Rope()
    with pytest.raises(ValueError, match="`rope_theta` = 500000 turns k_before_rope into keys"):
        file_source(path, 500000.0)


def test_what_a_sample_lacks() -> None:
    whole = sample()
    bare = KeyValueSample(layer="bare", k=whole.k, v=whole.v)
    few = dataclasses.replace(bare, q=whole.q[:, :, -2:] if whole.q is not None else None)
    rope = Rope()
    cases = [
        ("bf16", bare, None, None),
        ("mla_bf16", whole, rope, "latents"),
        ("kvquant_3bit", bare, rope, "keys before RoPE"),
        ("kvquant_3bit", whole, None, "base of RoPE"),
        ("streaming", bare, rope, "needs queries"),
        ("snapkv", few, rope, "queries of all tokens"),
        ("streaming", few, None, None),
        ("expected_attention", whole, None, "base of RoPE"),
    ]
    for name, given, turned, word in cases:
        reason = lacking(get_kv_method(name), given, turned)
        assert (reason is None) if word is None else word in str(reason), (name, reason)
    (row,) = tensor_rows([PLAIN], bare, "here", kept=0.5)
    assert row.keys is not None and (row.output, row.scores, row.queries) == (None, None, 0)


def test_a_budget_is_never_below_what_a_rule_keeps() -> None:
    assert choosing(PLAIN, 3, None) == {}
    assert choosing(get_kv_method("streaming"), 2, None)["budget"] >= 4
    assert choosing(get_kv_method("expected_attention"), 30, Rope())["rope"] == Rope()
    # H2O keeps so many newest tokens as are half of its budget, whatever that is.
    assert choosing(get_kv_method("h2o"), 128, None) == {"budget": 128}


def test_kvquant_is_fitted_with_gradients_of_the_loss() -> None:
    given, method = text(), get_kv_method("kvquant_2bit")
    got = fitted_by_layer(method, given.params, CONFIG, given.calibration).ready()
    samples: list[dict[str, Any]] = []
    names = ("v", "k_before_rope")
    for row in given.calibration:
        (own,) = capture_key_values(given.params, jnp.asarray(row), CONFIG)
        samples.append({x: np.asarray(getattr(own, x), np.float32)[None] for x in names})
        gradients = key_value_gradients(given.params, jnp.asarray(row), CONFIG)
        samples[-1] |= dict(zip(("k_grad", "v_grad"), map(np.asarray, gradients), strict=True))
    plain = method.fit([{x: sample[x] for x in names} for sample in samples]).ready()
    weighted = method.fit(samples).ready()
    for side in ("keys", "values"):
        assert np.array_equal(got[side]["levels"][0], weighted[side]["levels"])
        assert not np.array_equal(got[side]["levels"][0], plain[side]["levels"])
    # Layers are stacked: this model has one.
    assert got["keys"]["lower"].shape == (1, 1, 16)


def test_the_model_behind_bf16_is_itself() -> None:
    found = compare_kv([PLAIN], [], text(), seed=0)
    before, prefill = found.model
    assert (before.increase, before.low, before.high) == (0.0, 0.0, 0.0)
    assert (before.kl_median, before.kl_percentile_99, before.top1_agreement) == (0.0, 0.0, 1.0)
    assert (before.mode, prefill.mode) == ("before_use", "exact_prefill")
    # Three windows, of which tokens 6 to 15 are scored.
    assert (before.documents, before.bytes, before.context) == (2, 30, 16)
    assert 0 < before.bits_per_byte < 20 and before.bits == 16
    # Keys and values of 16 numbers in two bytes each, of the one layer.
    assert (before.bytes_per_token, before.exempt) == (2 * 16 * 2, 0)


@pytest.mark.slow
def test_the_model_behind_other_methods() -> None:
    methods = ["fp8_tensor", "streaming", "fp8_tensor_calibrated", "mla_bf16", "nsa"]
    found = compare_kv(methods, [], text(), seed=0)
    rows = {(row.method, row.mode): row for row in found.model}
    assert ("kv:streaming", "before_use") not in rows and ("kv:nsa", "before_use") not in rows
    assert rows["kv:fp8_tensor", "before_use"].kl_median > 0
    assert ("kv:fp8_tensor_calibrated", "exact_prefill") in rows
    assert ("mla_bf16", "tensors, model", "it keeps latents") in found.left_out
    assert {row.method for row in found.caches} == {f"kv:{name}" for name in methods}


def test_captured_samples_are_what_the_model_attends_to() -> None:
    given = text()
    (found,) = captured_samples(given.params, given.scored.tokens[0], CONFIG)
    assert found.q is not None and found.k_before_rope is not None
    assert found.k.shape == (1, 1, 16, 16) and found.q.shape == (1, 2, 16, 16)
    turned = np.asarray(Rope().turn(jnp.asarray(found.k_before_rope), jnp.arange(16)))
    assert np.abs(found.k - turned).max() < 1e-5 * np.abs(turned).max()


class Interrupted(NotedSpec):
    def fit(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Fitted:
        raise KeyboardInterrupt


class Refusing(NotedSpec):
    def fit(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Fitted:
        raise ValueError("of another size")


def test_a_method_that_refuses_is_left_out() -> None:
    given = sample()
    source = Source(name="here", samples=[given], calibration={"one": [given]})
    half = get_format("bfloat16")
    refused = KVMethod(spec=Refusing(name="refused", keys=half, values=half))
    found = compare_kv([refused, PLAIN], [source], None, seed=0)
    assert found.left_out == [("refused", "here one", "of another size")]
    assert [row.method for row in found.tensors] == ["kv:bf16"]


def test_an_interrupted_run_keeps_its_rows() -> None:
    given = sample()
    source = Source(name="here", samples=[given], calibration={"one": [given]})
    half = get_format("bfloat16")
    ended = KVMethod(spec=Interrupted(name="ended", keys=half, values=half))
    found = KvCollected()
    with pytest.raises(KeyboardInterrupt):
        compare_kv([PLAIN, ended], [source], None, seed=0, found=found)
    assert [row.method for row in found.tensors] == ["kv:bf16"] and "bf16" in found.seconds
