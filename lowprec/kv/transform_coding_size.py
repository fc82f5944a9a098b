"""How small DEFLATE makes what a cache holds: a size on the host, beside the arrays allocated."""

import dataclasses
import zlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from lowprec.kv.method import KVMethod
from lowprec.kv.pair import SIDES, PairCache, PairSpec
from lowprec.kv.store import Layout, Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class EntropyCodedSize:
    """Bytes of one cache in four senses; those of DEFLATE are no memory that a cache takes.

    Attributes:
      allocated_bytes: of all its arrays, room for tokens to come included: `cache.nbytes`.
      exact_bytes: of the tokens that are kept in 16 bits, sinks and window.
      packed_bytes: of the codes of the other tokens, as they are stored.
      deflated_bytes: of the same codes behind DEFLATE.
      numbers: of keys and values of the tokens held.
      coded_numbers: of those that are not exact.
    """

    allocated_bytes: int
    exact_bytes: int
    packed_bytes: int
    deflated_bytes: int
    numbers: int
    coded_numbers: int

    @property
    def packed_ratio(self) -> float:
        """16 bits a coded number over its packed codes."""
        return 2 * self.coded_numbers / self.packed_bytes

    @property
    def deflated_ratio(self) -> float:
        """16 bits a coded number over its deflated codes, as the paper reports ratios."""
        return 2 * self.coded_numbers / self.deflated_bytes

    @property
    def packed_ratio_with_exact(self) -> float:
        """16 bits a number over packed codes and exact tokens together."""
        return 2 * self.numbers / (self.packed_bytes + self.exact_bytes)

    @property
    def deflated_ratio_with_exact(self) -> float:
        """16 bits a number over deflated codes and exact tokens together."""
        return 2 * self.numbers / (self.deflated_bytes + self.exact_bytes)

    def __str__(self) -> str:
        return (
            f"{self.allocated_bytes} bytes allocated; codes of {self.packed_bytes} bytes as stored "
            f"({self.packed_ratio:.2f}x), {self.deflated_bytes} behind DEFLATE "
            f"({self.deflated_ratio:.2f}x); exact tokens of {self.exact_bytes} bytes"
        )


def entropy_coded_size(
    method: KVMethod, cache: PairCache, *, chunk_bytes: int = 1 << 16, level: int = 9
) -> EntropyCodedSize:
    """What DEFLATE (RFC 1951, zlib's, without a header) makes of the codes that a cache holds.

    Codes of keys and of values, of each member of the batch and of each stored array are taken in
    the order of tokens, all heads of a token together, and cut into chunks that are compressed by
    themselves. Codes that nothing reads, under exact sinks, count nowhere but among the allocated
    bytes.

    Args:
      method: of the cache, one that keeps every token in two layouts.
      cache: with concrete arrays: not inside `jit`.
      chunk_bytes: of a chunk, at most.
      level: of zlib, 0 (stored) to 9 (smallest).

    Raises:
      TypeError: the method keeps no keys and values in two layouts.
      ValueError: nothing is coded yet; `chunk_bytes` below 1.

    Example:
      >>> from lowprec.kv import get_kv_method
      >>> method, x = get_kv_method("fp8_tensor"), np.ones((1, 1, 64, 16), np.float32)
      >>> size = entropy_coded_size(method, method.append(method.init(1, 1, 16, 80), x, x))
      >>> size.allocated_bytes, size.packed_bytes, size.deflated_bytes < 64
      (2560, 2048, True)
      >>> str(size).split(", ")[0]
      '2560 bytes allocated; codes of 2048 bytes as stored (2.00x)'
    """
    spec = method.spec
    if not isinstance(spec, PairSpec):
        raise TypeError(
            f"`method` = {method.name} keeps no keys and values in two layouts, whose codes could "
            f"be deflated"
        )
    if chunk_bytes < 1:
        raise ValueError(f"`chunk_bytes` = {chunk_bytes} must be at least 1")
    length, packed, deflated, exact, coded_numbers = int(cache.length), 0, 0, 0, 0
    batch, heads = np.shape(next(iter(cache.keys.parts.values())))[:2]
    each = batch * heads * cache.dim
    for side, layout in zip(SIDES, spec.layouts(), strict=True):
        coded = max(int(layout.boundary(jnp.int32(length))) - layout.sinks, 0)
        coded_numbers += coded * each
        exact += 2 * (length - coded) * each
        for lines in _lines(getattr(cache, side), layout, length):
            packed += len(lines)
            deflated += _deflated(lines, chunk_bytes, level)
    if not packed:
        raise ValueError(
            f"`cache` holds {length} tokens, all of them exact: there are no codes to deflate"
        )
    return EntropyCodedSize(
        allocated_bytes=cache.nbytes,
        exact_bytes=exact,
        packed_bytes=packed,
        deflated_bytes=deflated,
        numbers=2 * length * each,
        coded_numbers=coded_numbers,
    )


def _lines(store: Store, layout: Layout, length: int) -> Iterator[bytes]:
    """The bytes of each stored array of each member of the batch, unit after unit."""
    first = layout.sinks // layout.code.group
    last = int(layout.boundary(jnp.int32(length))) // layout.code.group
    for name in sorted(store.parts):
        units = np.asarray(store.parts[name])[:, :, first : max(last, first)]
        for member in units.swapaxes(1, 2):
            yield np.ascontiguousarray(member).tobytes()


def _deflated(lines: bytes, chunk_bytes: int, level: int) -> int:
    total = 0
    for start in range(0, len(lines), chunk_bytes):
        coder = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
        total += len(coder.compress(lines[start : start + chunk_bytes])) + len(coder.flush())
    return total
