"""The order of a summation, from what is lost between two huge terms that cancel.

The idea is FPRev's (Xie, Gao, Wang and Xue, arXiv 2411.00442): in a sum of units with +M at p and
-M at q, a unit survives unless it was added to a partial sum that held one mask alone. Counting
survivors for every pair gives, where every addition rounds, the number of leaves under the lowest
common node of p and q, and those numbers give the tree. Two things are added: the tree is checked
against the whole table, so a summation that is no tree is never reported as one; and summations
that keep units beside a cancelling mask (exact steps, an accumulator that joins last) are told by
tables of their own.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np

Tree = int | tuple["Tree", ...]
"""A term by its k, or the sum of two terms or more in one rounding."""
Kind = Literal["chain", "last", "exact", "chunked", "pairwise", "tree", "unresolved"]


@dataclasses.dataclass(frozen=True)
class Order:
    """How terms are grouped.

    Attributes:
      kind: `chain`: steps of `length` consecutive products, each with the sum so far; `last`: so,
        but the sum so far is added to a step's sum, and loses nothing beside a pair that cancels
        in it (pairs of products may be dealt to `interleave` steps); `exact`: a step loses nothing;
        `chunked`: runs of `length`, each summed k ascending, then their sums; `pairwise`: so, but
        a run adds neighbours level by level; `tree`: any other tree; `unresolved`: none fits.
      length: products a step takes; None where one step takes all.
      interleave: to how many steps pairs of consecutive products are dealt in turn.
      tree: the sums, where every one of them rounds.
    """

    kind: Kind
    length: int | None = None
    interleave: int = 1
    tree: Tree | None = None

    def __str__(self) -> str:
        if self.kind == "unresolved":
            return "not resolved: the table of lost terms is that of no tree or known step"
        if self.kind == "tree":
            assert self.tree is not None
            return f"tree {render(self.tree)}"
        if self.kind == "chain" and self.length == 1:
            return "sequential: one product after the other, k ascending"
        if self.kind == "pairwise" and self.length is None:
            return "pairwise: neighbours are added, level by level"
        if self.length is None:
            return "one step over all products; nothing is lost between them"
        dealt = f", pairs dealt to {self.interleave} steps in turn" if self.interleave > 1 else ""
        return _KINDS[self.kind].format(self.length) + dealt


_KINDS: dict[str, str] = {
    "chain": "chain of steps, {} products and the sum so far in one rounding",
    "last": "chain of steps of {} products, which the sum so far joins last",
    "exact": "chain of exact steps of {} products, which the sum so far joins",
    "chunked": "chunks of {} products, k ascending in each, then their sums in turn",
    "pairwise": "runs of {} products, neighbours added first, then their sums in turn",
}


def leaves(tree: Tree) -> tuple[int, ...]:
    """The terms of a tree, in its order."""
    return (tree,) if isinstance(tree, int) else tuple(k for x in tree for k in leaves(x))


def order_of(survivors: np.ndarray) -> Order:
    """The order whose table of survivors is the given one.

    Args:
      survivors: (K, K) integers; above the diagonal, how many of the K - 2 units are left with
        masks at p < q; negative where the result was no count.

    Returns:
      The order; `unresolved` where no tree and no known step has this table.

    Example:
      >>> sums = (((0, 1), 2), 3)
      >>> str(order_of(4 - lost_of(sums, 4)))
      'sequential: one product after the other, k ascending'
      >>> str(order_of(4 - lost_of(((0, 2), (1, 3)), 4)))
      'tree ((0 2) (1 3))'
    """
    count = len(survivors)
    upper = np.triu_indices(count, 1)
    if (survivors[upper] < 0).any():
        return Order("unresolved")
    if (survivors[upper] == count - 2).all():
        return Order("exact") if count > 2 else Order("chain", 1, tree=(0, 1))
    tree = _tree_of(count - survivors)
    if tree is not None:
        return _named(tree, count)
    for length in range(2, count + 1):
        if (_exact_table(count, length)[upper] == survivors[upper]).all():
            return Order("exact", length)
    return Order("unresolved")


def _named(tree: Tree, count: int) -> Order:
    """A tree's kind."""
    length = chain_length(tree)
    if length is not None:
        return Order("chain", length, tree=tree)
    if tree == neighbours(range(count)):
        return Order("pairwise", tree=tree)
    for length in range(2, count):
        runs = [range(k, min(k + length, count)) for k in range(0, count, length)]
        if tree == _in_turn([neighbours(run) for run in runs]) and length > 2:
            return Order("pairwise", length, tree=tree)
        if tree == _in_turn([_in_turn(list(run)) for run in runs]):
            return Order("chunked", length, tree=tree)
    for interleave in (1, 2, 4):
        for length in range(3, count // interleave + 1):
            if tree == _joined_last(count, length, interleave):
                return Order("last", length, interleave, tree)
    return Order("tree", tree=tree)


def _in_turn(operands: Sequence[Tree]) -> Tree:
    """Binary sums nested to the left."""
    return functools.reduce(lambda total, x: (total, x), operands)


def _joined_last(count: int, length: int, interleave: int) -> Tree:
    """Instructions whose steps take their own sum so far, and are added to the others' last."""
    sums: list[Tree] = []
    for start in range(0, count, length * interleave):
        members = range(start, min(start + length * interleave, count))
        total: Tree | None = None
        for place in range(interleave):
            dealt = [k for k in members if k // 2 % interleave == place]
            if dealt:
                first: Tree = tuple(dealt) if len(dealt) > 1 else dealt[0]
                total = first if total is None else (total, *dealt)
        assert total is not None
        sums.append(total)
    return _in_turn(sums)


def _tree_of(lost: np.ndarray) -> Tree | None:
    """The tree with so many leaves under the lowest common node of p < q; None without one."""
    count = len(lost)
    table = np.triu(lost, 1)
    table = table + table.T

    def build(members: Sequence[int]) -> Tree:
        first, rest = members[0], np.array(members[1:])
        node: Tree = first
        for size in np.unique(table[first, rest]) if len(rest) else ():
            joining = [int(j) for j in rest if table[first, j] == size]
            parts: list[list[int]] = []
            while joining:
                # Terms that met each other before they met `first` are one operand.
                apart = [j for j in joining[1:] if table[joining[0], j] >= size]
                parts.append([j for j in joining if j not in apart])
                joining = apart
            node = (node, *(build(part) for part in parts))
        return node

    tree = build(range(count))
    upper = np.triu_indices(count, 1)
    same = (lost_of(tree, count)[upper] == table[upper]).all()
    return tree if same else None


def lost_of(tree: Tree, count: int) -> np.ndarray:
    """(K, K): the leaves under the lowest common node of p and q; 0 on the diagonal."""
    lost = np.zeros((count, count), np.int64)

    def walk(node: Tree) -> tuple[int, ...]:
        if isinstance(node, int):
            return (node,)
        parts = [walk(child) for child in node]
        below = tuple(k for part in parts for k in part)
        for index, part in enumerate(parts):
            others = [k for other, x in enumerate(parts) if other != index for k in x]
            lost[np.ix_(part, others)] = len(below)
        return below

    walk(tree)
    return lost


def chain_length(tree: Tree) -> int | None:
    """Products a step takes, where each takes consecutive ones and the sum so far; or None."""
    steps: list[list[int]] = []
    while not isinstance(tree, int):
        inner = [child for child in tree if not isinstance(child, int)]
        if len(inner) > 1 or (inner and tree[0] is not inner[0]):
            return None
        steps.append([child for child in tree if isinstance(child, int)])
        if not inner:
            break
        tree = inner[0]
    steps.reverse()
    if list(itertools.chain.from_iterable(steps)) != list(range(sum(map(len, steps)))):
        return None
    sizes = [len(step) for step in steps]
    if sizes[1:] and set(sizes[1:]) == {1} and sizes[0] == 2:
        # The first addition is to the zero that a chain starts from.
        return 1
    length = sizes[0]
    full = all(size == length for size in sizes[:-1]) and sizes[-1] <= length
    return length if full else None


def neighbours(terms: Sequence[int]) -> Tree:
    """The tree that adds neighbours level by level."""
    level: list[Tree] = list(terms)
    while len(level) > 1:
        paired = itertools.zip_longest(level[::2], level[1::2])
        level = [x if y is None else (x, y) for x, y in paired]
    return level[0]


@functools.cache
def _exact_table(count: int, length: int) -> np.ndarray:
    """What was added before the step of the second mask is lost, unless both are in one step."""
    first, second = np.indices((count, count))
    step = second // length
    return np.where(first // length == step, count - 2, count - 1 - step * length)


def render(tree: Tree) -> str:
    """A tree in a line: `(0 .. 7)` is a chain, `{0 .. 7}` one rounding, other sums in brackets."""
    if isinstance(tree, int):
        return str(tree)
    if all(isinstance(child, int) for child in tree) and len(tree) > 2:
        return f"{{{_run([k for k in tree if isinstance(k, int)])}}}"
    chain = _chain(tree)
    if len(chain) > 2 and all(isinstance(x, int) for x in chain):
        return f"({_run([x for x in chain if isinstance(x, int)])})"
    if len(chain) > 3 and len({len(leaves(x)) for x in chain}) == 1:
        return f"({' + '.join(map(render, chain))})"
    return f"({' '.join(map(render, tree))})"


def _chain(tree: Tree) -> list[Tree]:
    """The operands of binary sums nested to the left, first to last."""
    operands: list[Tree] = []
    while not isinstance(tree, int) and len(tree) == 2:
        tree, last = tree
        operands.append(last)
    return [tree, *reversed(operands)]


def _run(terms: list[int]) -> str:
    steps = set(np.diff(terms).tolist())
    if len(terms) > 3 and len(steps) == 1:
        return f"{terms[0]} {terms[1]} .. {terms[-1]}"
    return " ".join(map(str, terms))
