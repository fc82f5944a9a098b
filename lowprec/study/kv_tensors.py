"""KV methods on keys, values and queries: what is read back, and what attention makes of it."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.kv import KVMethod, Rope
from lowprec.kv.expected_attention import ExpectedAttention
from lowprec.kv.latent import LatentSpec
from lowprec.kv.pair import PairSpec
from lowprec.kv.pair_cache import array_bytes
from lowprec.kv.selection import SelectionSpec
from lowprec.metrics import relative_frobenius
from lowprec.models.key_values import KeyValueSample
from lowprec.study.kv_rows import CacheRow, TensorRow

QUERIES = 64
"""At most so many of the newest tokens ask."""

HEADS, DIM, LAYERS, LENGTH = 8, 128, 32, 32768


def cache_row(method: KVMethod, window_0_of: str | None = None) -> CacheRow:
    """A method's sizes in a cache of 32768 tokens of 8 heads of 128 numbers.

    A latent method's are of one head, the latent and rotary key of its source.

    Args:
      method: any.
      window_0_of: the name of the method that this one is without its window, if it is one.
    """
    heads, dim = method.spec.usual_shape if method.latent else (HEADS, DIM)
    shape = {"kv_heads": heads, "dim": dim}
    llama = None if method.latent else method.bytes_per_token(layers=LAYERS, **shape)
    return CacheRow(
        method=f"kv:{method.name}",
        family=getattr(method.spec, "family", ""),
        window_0_of=None if window_0_of is None else f"kv:{window_0_of}",
        bits=method.bits_per_element(**shape),
        bits_at_length=method.bits_per_element(LENGTH, **shape),
        length=LENGTH,
        exempt=exempt(method, LENGTH),
        bytes_llama_3_8b=llama,
        measured=allocated(method, heads, dim, LENGTH),
    )


def allocated(method: KVMethod, heads: int, dim: int, tokens: int) -> int:
    """Bytes of the arrays of a cache that is really made for so many tokens, and given back.

    Args:
      method: any; nothing need be fitted. A latent method has one head.
      heads, dim, tokens: of the cache; of a latent method dim is its latent and its rotary key.
    """
    spec = getattr(method.spec, "base", method.spec)
    shape = (heads, dim)
    if isinstance(spec, LatentSpec):
        shape = (dim - spec.rope_dim, spec.rope_dim)
    cache = method.spec.init({}, 1, *shape, tokens)
    # Lengths are single numbers, and no cost of a token.
    arrays = [leaf for leaf in jax.tree.leaves(cache) if leaf.ndim]
    total = sum(array.nbytes for array in arrays)
    for array in arrays:
        array.delete()
    return total


def exempt(method: KVMethod, length: int, given: Mapping[str, Any] | None = None) -> float:
    """The share of what is kept of `length` tokens that stays in 16 bits, as windows and sinks.

    Args:
      method: any; 0 of those without windows, a cache that is 16 bits throughout among them.
      length: tokens.
      given: what `init` is given beside sizes.
    """
    spec = getattr(method.spec, "store", method.spec)
    if not isinstance(spec, PairSpec):
        return 0.0
    if isinstance(method.spec, SelectionSpec):
        options = given or {}
        cache = jax.eval_shape(lambda: method.spec.init({}, 1, HEADS, DIM, length, **options))
        length = cache.capacity
    shares = []
    for layout in spec.layouts():
        waiting = length - int(layout.boundary(jnp.int32(length)))
        shares.append((waiting + min(layout.sinks, length - waiting)) / length)
    return float(np.mean(shares))


def tensor_rows(
    methods: Sequence[KVMethod],
    sample: KeyValueSample,
    source: str,
    *,
    kept: float,
    rope: Rope | None = None,
) -> list[TensorRow]:
    """The methods on one sample; those that need what it lacks are left out, as `lacking` says.

    Args:
      methods: of keys and values, fitted where they need it.
      kept: the share of tokens that methods which choose some may keep.
      rope: of the sample's keys, for methods that keep them as they are before it.
    """
    reference = None if sample.q is None else _attention(sample)
    rows = []
    for method in methods:
        if lacking(method, sample, rope) is not None:
            continue
        given = choosing(method, round(kept * sample.k.shape[2]), rope)
        if _before_rope(method):
            given = {"rope": rope}
        rows.append(_row(method, sample, source, given, reference))
    return rows


def lacking(method: KVMethod, sample: KeyValueSample, rope: Rope | None) -> str | None:
    """What a sample lacks that a method needs, in words; None where nothing is missing."""
    if method.latent:
        return "it keeps latents"
    if _before_rope(method):
        if sample.k_before_rope is None:
            return "it needs keys before RoPE, which the sample has not"
        return "it needs the base of RoPE" if rope is None else None
    if not isinstance(method.spec, SelectionSpec):
        return None
    if sample.q is None:
        return "it needs queries, which the sample has not"
    if method.spec.rule.asks and sample.q.shape[2] != sample.k.shape[2]:
        return "it needs the queries of all tokens"
    if isinstance(method.spec.rule, ExpectedAttention) and rope is None:
        return "it needs the base of RoPE"
    return None


def _before_rope(method: KVMethod) -> bool:
    return isinstance(method.spec, PairSpec) and method.spec.before_rope


def choosing(method: KVMethod, budget: int, rope: Rope | None) -> dict[str, Any]:
    """What `init` is given where a method chooses tokens: how many, and RoPE if it looks there.

    The budget is raised to what the method's rule keeps in any case.
    """
    if not isinstance(method.spec, SelectionSpec):
        return {}
    looks = isinstance(method.spec.rule, ExpectedAttention)
    return {"budget": method.spec.raised(budget)} | ({"rope": rope} if looks else {})


def bits_of(method: KVMethod, heads: int, dim: int, tokens: int, given: dict[str, Any]) -> float:
    """Bits of a number of K and V in the arrays of a cache of so many tokens."""
    fitted = method.fitted or {}
    cache = jax.eval_shape(lambda: method.spec.init(fitted, 1, heads, dim, tokens, **given))
    # The length itself is a single number, and no cost of a token.
    arrays = [leaf for leaf in jax.tree.leaves(cache) if leaf.ndim]
    return 8 * array_bytes(arrays) / (2 * heads * dim * tokens)


@functools.partial(jax.jit, static_argnames=("given", "queries"))
def _through(
    method: KVMethod, k: Any, v: Any, q: Any, given: tuple[tuple[str, Any], ...], queries: int
) -> tuple[Any, Any, Any]:
    batch, heads, tokens, dim = k.shape
    cache = method.init(batch, heads, dim, tokens, **dict(given))
    asked = None if method.keeps_all or q.shape[2] != tokens else q
    cache = method.append(cache, k, v, q=asked)
    k, v = method.read(cache) if method.keeps_all else (None, None)
    return k, v, None if q is None else method.attend(cache, q[:, :, -queries:])


def _row(
    method: KVMethod,
    sample: KeyValueSample,
    source: str,
    given: dict[str, Any],
    reference: tuple[NDArray, NDArray] | None,
) -> TensorRow:
    stored = sample.k_before_rope if _before_rope(method) else sample.k
    queries = 0 if sample.q is None else min(QUERIES, sample.q.shape[2])
    arrays = [
        None if x is None else np.asarray(x, np.float32) for x in (stored, sample.v, sample.q)
    ]
    k, v, out = _through(method, *arrays, given=tuple(given.items()), queries=queries)
    scores = divergence = output = None
    if reference is not None:
        output = relative_frobenius(np.asarray(out), reference[1])
        if k is not None:
            scores, divergence = _score_errors(np.asarray(k), sample, reference[0])
    tokens = sample.k.shape[2]
    return TensorRow(
        method=f"kv:{method.name}",
        source=source,
        sample=sample.layer,
        tokens=tokens,
        bits=bits_of(method, sample.k.shape[1], sample.k.shape[3], tokens, given),
        exempt=exempt(method, tokens, given),
        keys=None if k is None else relative_frobenius(np.asarray(k), sample.k),
        values=None if v is None else relative_frobenius(np.asarray(v), sample.v),
        scores=scores,
        divergence=divergence,
        output=output,
        queries=queries,
    )


def _scores(k: NDArray, sample: KeyValueSample) -> NDArray:
    """Scaled scores of the newest queries, -Inf where a query does not look, float64."""
    assert sample.q is not None
    q = np.asarray(sample.q, np.float64)[:, :, -QUERIES:]
    batch, heads, tokens, dim = k.shape
    grouped = q.reshape(batch, heads, -1, q.shape[2], dim)
    scores = np.einsum("bhgqd,bhsd->bhgqs", grouped, k.astype(np.float64)) * dim**-0.5
    own = np.arange(tokens - q.shape[2], tokens)
    return np.where(np.arange(tokens) <= own[:, None], scores, -np.inf)


def _weights(scores: NDArray) -> NDArray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _attention(sample: KeyValueSample) -> tuple[NDArray, NDArray]:
    """Scores and output of exact attention in float64."""
    scores = _scores(np.asarray(sample.k, np.float32), sample)
    mixed = np.einsum("bhgqs,bhsd->bhgqd", _weights(scores), np.asarray(sample.v, np.float64))
    batch, heads, groups, queries, dim = mixed.shape
    return scores, mixed.reshape(batch, heads * groups, queries, dim)


def _score_errors(k: NDArray, sample: KeyValueSample, exact: NDArray) -> tuple[float, float]:
    """Root mean square error of scores, and mean divergence of weights in nats."""
    found, seen = _scores(k, sample), np.isfinite(exact)
    error = float(np.sqrt(np.mean(np.square(found[seen] - exact[seen]))))
    p, log_p, log_q = _weights(exact), _log_weights(exact), _log_weights(found)
    terms = np.where(seen, p * (np.where(seen, log_p, 0) - np.where(seen, log_q, 0)), 0.0)
    return error, float(terms.sum(-1).mean())


def _log_weights(scores: NDArray) -> NDArray:
    moved = scores - scores.max(-1, keepdims=True)
    return moved - np.log(np.exp(moved).sum(-1, keepdims=True))
