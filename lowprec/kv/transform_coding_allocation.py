"""Which principal components get how many bits: dynamic programming over groups of them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Group(NamedTuple):
    """Neighbouring components that are coded alike: how many, and in how many bits each."""

    size: int
    bits: int


def allocate(
    variances: ArrayLike, budget: int, *, sizes: tuple[int, ...], most_bits: int, overhead: int
) -> tuple[Group, ...]:
    """The groups, first components first, that leave the least error within a budget of bits.

    The error of a component of variance v in b bits is v 4^-b; components behind the last group are
    dropped, which leaves v. A group costs its overhead and size * bits. Of equal errors the cheaper
    is taken, then that of fewer components.

    Args:
      variances: (components,), the largest first.
      budget: bits of a token.
      sizes: that groups may have; the last group may also end with the components.
      most_bits: of a component, at least 1.
      overhead: bits of a group's scale and shift.

    Returns:
      Groups from the first component on; none where the budget holds none.

    Example:
      >>> allocate([64.0, 16.0, 1.0, 0.1], 12, sizes=(1, 2), most_bits=4, overhead=2)
      (Group(size=2, bits=4),)
    """
    values = np.asarray(variances, np.float64)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    count, sizes = len(values), tuple(sorted(sizes))
    # By components coded and bits spent: the least error, and the last group.
    errors = np.full((count + 1, budget + 1), np.inf)
    errors[0, 0] = 0.0
    last = np.zeros((count + 1, budget + 1, 2), np.int32)
    for start in range(count):
        if not np.isfinite(errors[start]).any():
            continue
        for end in dict.fromkeys(min(start + size, count) for size in sizes):
            _extend(errors, last, sums, (start, end), most_bits, overhead)
    totals = errors + (sums[-1] - sums)[:, None]
    # Bits first, so that the first of equal ones is the cheapest.
    spent, end = np.unravel_index(int(np.argmin(totals.T)), totals.T.shape)
    return _traced(last, int(end), int(spent), overhead)


def _extend(
    errors: NDArray[np.float64],
    last: NDArray[np.int32],
    sums: NDArray[np.float64],
    ends: tuple[int, int],
    most_bits: int,
    overhead: int,
) -> None:
    """Tries a group of the components between two ends, in every number of bits."""
    start, end = ends
    budget = errors.shape[1] - 1
    for bits in range(1, most_bits + 1):
        cost = overhead + (end - start) * bits
        if cost > budget:
            return
        found = errors[start, : budget + 1 - cost] + (sums[end] - sums[start]) * 4.0**-bits
        better = found < errors[end, cost:]
        errors[end, cost:][better] = found[better]
        last[end, cost:][better] = (end - start, bits)


def _traced(last: NDArray[np.int32], end: int, spent: int, overhead: int) -> tuple[Group, ...]:
    groups = []
    while end:
        group = Group(*(int(x) for x in last[end, spent]))
        groups.append(group)
        end, spent = end - group.size, spent - overhead - group.size * group.bits
    return tuple(reversed(groups))


class Stream(NamedTuple):
    """Where a token's bits come from, and what belongs to which group; NumPy arrays.

    A token has a symbol a component, then a float16 scale and a float16 shift a group, all scales
    first, then a zero.

    Attributes:
      symbol, place: (bits of a token,) int32: the symbol, and which of its bits, the lowest first.
      group: (components,) int32, of a component; as many as there is room for where it is dropped.
      largest: (groups there is room for,) float32, a group's largest code.
    """

    symbol: NDArray[np.int32]
    place: NDArray[np.int32]
    group: NDArray[np.int32]
    largest: NDArray[np.float32]


def stream(groups: tuple[Group, ...], components: int, room: int, length: int) -> Stream:
    """The stream of a token: a group's scale, its shift and its codes, then the next; then zeros.

    Args:
      groups: of `allocate`.
      components: in all.
      room: the most groups that there may be.
      length: bits of a token.

    Example:
      >>> found = stream((Group(2, 1),), components=3, room=1, length=35)
      >>> found.group.tolist(), found.symbol[[0, 16, 32, 33, 34]].tolist()
      ([0, 0, 1], [3, 4, 0, 1, 5])
    """
    symbols, places = [], []
    group = np.full(components, room, np.int32)
    largest = np.ones(room, np.float32)
    start = 0
    for number, (size, bits) in enumerate(groups):
        for symbol in (components + number, components + room + number):
            symbols += [symbol] * 16
            places += range(16)
        for component in range(start, start + size):
            symbols += [component] * bits
            places += range(bits)
        group[start : start + size] = number
        largest[number] = 2.0**bits - 1
        start += size
    missing = length - len(symbols)
    symbols += [components + 2 * room] * missing
    places += [0] * missing
    return Stream(np.array(symbols, np.int32), np.array(places, np.int32), group, largest)
