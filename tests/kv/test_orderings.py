"""The seven orderings that sources agree on, paired over drawn layers of 2048 tokens.

Of keys the divergence of attention's weights is compared, of values the error of its output, for
the newest 64 queries. Two kinds of layers are drawn: with the outlier channels of Llama (the
default) and with the stronger ones of Qwen2. Both are held to their cards in `tests/models`.

What each comparison asks for, here and where it was first made (4 layers of another generator):

- (i) values by channel: 2 times the output error at a near equal error of values, which holds in
  the median of heads; 3.3 there.
- (ii) keys in 2 bits by token: 10 times the divergence of those by channel; 21 there. Strong
  outliers give that on every layer; those of Llama do not, see the test.
- (iii) a random Hadamard rotation divides the divergence of 4 bits by token by 3; 4.3 there.
- (iv) to (vi) say what is larger, (vii) how large errors are.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from numpy.typing import NDArray

from lowprec.kv import KVMethod, get_kv_method
from lowprec.kv.codes import BlockCode, Code
from lowprec.kv.norm_split import NormSplitCode
from lowprec.kv.pair import PairSpec
from lowprec.kv.turboquant import TurboQuantSpec
from lowprec.models.key_values import KeyValueSample
from lowprec.models.synthetic_kv import STRONG_OUTLIERS, SyntheticKV, generate
from lowprec.scaling import get_block

pytestmark = pytest.mark.slow

Array = NDArray[np.float64]
SEEDS = range(5)
QUERIES = 64
LLAMA = SyntheticKV(tokens=2048, batch=2)
QWEN = dataclasses.replace(STRONG_OUTLIERS, tokens=2048, batch=2)


@functools.cache
def layer(spec: SyntheticKV, seed: int) -> KeyValueSample:
    return generate(spec, seed)


def codes_of(name: str) -> tuple[Code, Code]:
    """How an entry codes keys and values."""
    spec = get_kv_method(name).spec
    assert isinstance(spec, PairSpec)
    keys, values = spec.layouts()
    return keys.code, values.code


@functools.cache
def reading(code: Code) -> Callable[[NDArray[np.float32]], jax.Array]:
    def read(x: jax.Array) -> jax.Array:
        parts = code.code(x, {})
        return code.turn_back(code.decode(parts, x.shape[-1], {}), {})

    return jax.jit(read)


def through(code: Code, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a cache without a window gives back; neither the same, nor zeros, nor anything else."""
    read = np.asarray(reading(code)(x))
    assert np.isfinite(read).all()
    assert 1e-3 < relative(read, x) < 0.9
    # Scales that are powers of two leave few numbers: E2M1's three of each binade, and zero.
    assert all(len(np.unique(head)) > 30 for head in read[0])
    return read


def relative(read: NDArray[Any], x: NDArray[Any]) -> float:
    """The relative Frobenius error."""
    exact = x.astype(np.float64)
    return float(np.linalg.norm(read - exact) / np.linalg.norm(exact))


def log_weights(sample: KeyValueSample, k: NDArray[np.float32]) -> Array:
    """Logs of the weights of the newest queries of the first sequence, (heads, queries, tokens)."""
    assert sample.q is not None and sample.groups is not None
    q = sample.q[0, :, -QUERIES:].astype(np.float64)
    keys = np.repeat(k[0].astype(np.float64), sample.groups, axis=0)
    scores = q @ keys.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    tokens = k.shape[2]
    own = np.arange(tokens - QUERIES, tokens)[:, None]
    scores = np.where(np.arange(tokens) <= own, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    return scores - top - np.log(np.exp(scores - top).sum(axis=-1, keepdims=True))


@functools.cache
def exact_logs(spec: SyntheticKV, seed: int) -> Array:
    """Of the keys as drawn; neither even nor all on one token, for else anything would do."""
    sample = layer(spec, seed)
    logs = log_weights(sample, sample.k)
    weights = np.exp(logs)
    seen = np.where(weights > 0, logs, 0.0)
    spread = np.exp(-np.sum(weights * seen, axis=-1)).mean()
    assert 2 < spread < LLAMA.tokens / 8
    return logs


def divergence(spec: SyntheticKV, seed: int, k: NDArray[np.float32]) -> float:
    """Mean Kullback-Leibler divergence of the weights, in nats."""
    exact, other = exact_logs(spec, seed), log_weights(layer(spec, seed), k)
    seen = np.isfinite(exact)
    terms = np.exp(exact[seen]) * (exact[seen] - other[seen])
    found = float(terms.sum() / math.prod(exact.shape[:-1]))
    assert 1e-5 < found < 100
    return found


def divergences(spec: SyntheticKV, *codes: Code) -> Array:
    """(codes, seeds) what each code of keys does to each layer's first sequence."""
    found = [
        [divergence(spec, seed, through(code, layer(spec, seed).k[:1])) for seed in SEEDS]
        for code in codes
    ]
    return np.array(found)


def mean_of(ratios: Array) -> float:
    """The geometric mean."""
    return float(np.exp(np.log(ratios).mean()))


KIVI_KEYS, KIVI_VALUES = codes_of("kivi_2bit_w0")
"""2 bits in groups of 32: along tokens, and along a token's numbers."""


def test_i_values_by_channel_lose_more_output() -> None:
    """The output error of each head of keys and values; ten layers of two, 0.4 to 6.8 times.

    Keys are exact, as their own error hides that of values: with KIVI's 2-bit keys the ratios are
    1.2 to 1.5, and the source has 3.3 with them. Below 1 is a head whose queries look at one of the
    few tokens with large values: a channel's range holds those well, and ordinary tokens badly.
    """
    groups, ratios = LLAMA.heads // LLAMA.kv_heads, []
    for seed in range(10):
        v = layer(LLAMA, seed).v[:1]
        weights = np.exp(exact_logs(LLAMA, seed))
        exact = weights @ np.repeat(v[0].astype(np.float64), groups, axis=0)
        errors = []
        for code in (KIVI_KEYS, KIVI_VALUES):
            read = through(code, v)
            out = weights @ np.repeat(read[0].astype(np.float64), groups, axis=0)
            lost = np.linalg.norm((out - exact).reshape(LLAMA.kv_heads, -1), axis=1)
            errors.append((relative(read, v), relative(out, exact), lost))
        (by_channel, _, channel_lost), (by_token, token_output, token_lost) = errors
        assert 0.9 < by_channel / by_token < 1.25
        assert 0.1 < token_output < 0.6
        ratios.extend(channel_lost / token_lost)
    assert np.median(ratios) > 2 and np.quantile(ratios, 0.1) > 1, ratios


@pytest.mark.parametrize(
    ("spec", "least", "mean"),
    [pytest.param(LLAMA, 2.5, 6.0, marks=pytest.mark.thorough), (QWEN, 10.0, 25.0)],
    ids=["llama", "qwen"],
)
def test_ii_keys_by_token_diverge_more(spec: SyntheticKV, least: float, mean: float) -> None:
    """Strong outliers: 14 to 93 times, 40 in the mean. Those of Llama: 5 to 15 times, mean 8.

    The bound, 10 on every layer, is the strong ones'. The source's own generator errs in keys as
    our default (0.118 by channel, 0.524 by token) but has half the error of logits. Two published
    statistics that it seems to lack cost what is missing. Tokens whose keys are small in the
    outlier channels (2505.10938) widen those channels' ranges: without them four layers of four
    heads gave 10 to 24. Queries are large there, too (2502.01563): of half that size, 15 to 26.
    And by token the divergence, of more than a nat, has ceased to grow as the error's square.
    """
    by_token, by_channel = divergences(spec, KIVI_VALUES, KIVI_KEYS)
    ratios = by_token / by_channel
    assert ratios.min() > least and mean_of(ratios) > mean, ratios


def test_iii_a_rotation_makes_4_bits_by_token_diverge_less() -> None:
    plain, turned = divergences(LLAMA, codes_of("int4_token")[0], codes_of("int4_token_rht")[0])
    assert (plain / turned).min() > 3, plain / turned


@pytest.mark.parametrize(
    "name", ["kvquant_3bit", pytest.param("kvquant_4bit", marks=pytest.mark.thorough)]
)
def test_iv_keys_err_less_before_rope(name: str) -> None:
    """The source has 1.12 and 1.11 times the error after RoPE."""
    method, ratios = get_kv_method(name), []
    for seed in SEEDS:
        sample, errors = layer(LLAMA, seed), []
        assert sample.k_before_rope is not None
        for k in (sample.k_before_rope, sample.k):
            fitted = method.fit([{"k_before_rope": k[1:], "v": sample.v[1:]}])
            errors.append(relative(np.asarray(kept(fitted, k[:1], sample.v[:1])), k[:1]))
        assert all(0.005 < error < 0.2 for error in errors)
        ratios.append(errors[1] / errors[0])
    assert min(ratios) > 1.03, ratios


@jax.jit
def kept(method: KVMethod, k: jax.Array, v: jax.Array) -> jax.Array:
    """Keys read from a cache; without `rope` as they came."""
    _, heads, tokens, dim = k.shape
    return method.read(method.append(method.init(1, heads, dim, tokens), k, v))[0]


def test_v_a_sketch_of_the_rest_diverges_more_at_equal_bits() -> None:
    """Unbiased products vary more, and softmax sees the variance; least so of orthogonal rows."""
    spec = get_kv_method("turboquant_prod").spec
    assert isinstance(spec, TurboQuantSpec) and isinstance(spec.keys, NormSplitCode)
    levels = dataclasses.replace(spec.keys, bits=spec.keys.bits + 1, sketch=None)
    orthogonal = dataclasses.replace(spec.keys, sketch="orthogonal")
    assert stored_bits(spec.keys) == stored_bits(orthogonal) >= stored_bits(levels)
    plain, rows, normal = divergences(LLAMA, levels, orthogonal, spec.keys)
    assert (rows / plain).min() > 1.3, rows / plain
    assert (normal / rows).min() > 1.3, normal / rows


def stored_bits(code: Code, dim: int = 128) -> int:
    """Of a token."""
    parts = jax.eval_shape(lambda: code.empty(1, 1, dim, 1, {}))
    return 8 * sum(part.size * part.dtype.itemsize for part in parts.values())


def test_vi_divergence_follows_the_format() -> None:
    names = ("fp8_token", "fp8_tensor", "nvfp4", "mxfp4")
    eight, unscaled, nvfp4, mxfp4 = divergences(LLAMA, *(codes_of(name)[0] for name in names))
    assert (np.maximum(eight, unscaled) * 4 < nvfp4).all(), (eight, unscaled, nvfp4)
    assert (nvfp4 * 1.2 < mxfp4).all(), mxfp4 / nvfp4


def test_vii_levels_for_normal_numbers_barely_beat_their_range() -> None:
    """Squared errors of normal numbers: three bits in groups of 32 beat Lloyd-Max over the row."""
    x = np.random.default_rng(0).normal(size=(1, 1, 1000, 128)).astype(np.float32)
    spec = get_kv_method("turboquant_prod").spec
    assert isinstance(spec, TurboQuantSpec) and isinstance(spec.keys, NormSplitCode)
    found = {}
    for bits in (3, 4):
        code = dataclasses.replace(spec.keys, bits=bits, sketch=None)
        found["levels", bits] = relative(through(code, x), x) ** 2
    for bits, size in ((3, 32), (4, "all")):
        block = dataclasses.replace(get_block(f"int{bits}_turboquant_token"), tile=(1, size))
        found["range", bits] = relative(through(BlockCode(block=block), x), x) ** 2
    # 128000 squares vary by 0.4 %; coordinates of 128 are not quite normal: 1.5 %.
    assert found["levels", 3] == pytest.approx(0.0345, rel=0.03)
    assert found["range", 3] == pytest.approx(0.0281, rel=0.03)
    assert found["levels", 4] == pytest.approx(0.0095, rel=0.03)
    assert found["range", 4] == pytest.approx(0.0100, rel=0.03)
    assert found["range", 3] < found["levels", 3] and found["levels", 4] < found["range", 4]
