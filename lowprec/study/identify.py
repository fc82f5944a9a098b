"""Which arithmetic gave the bits of a product: engine, promotion, order, scales and rounding."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lowprec.models.tensor_files import read_tensors
from lowprec.numerics.format import list_formats
from lowprec.study.identify_fold import Above, Given, choices, fold, narrowed
from lowprec.study.identify_sums import Dump, Sums, Suspect, suspects

_BLOCK = 4
"""Outputs of the first block, on which everything is tried."""
_FOLLOWED = 8
"""Where nothing fits that block, so many of the closest candidates are compared in full."""
_SHOWN = 4
_OUTPUTS = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An engine, by all names that compute alike, and what happens above it."""

    engines: tuple[str, ...]
    formats: tuple[str, str]
    above: Above

    def __str__(self) -> str:
        read = f" on {self.formats[0]} x {self.formats[1]}"
        return f"{', '.join(self.engines)}{read}: {self.above}"


class Mismatch(NamedTuple):
    """An output that differs: row, column, float32 bits predicted and given."""

    row: int
    column: int
    predicted: int
    given: int


@dataclasses.dataclass(frozen=True)
class Identified:
    """What was found.

    Attributes:
      fitting: every candidate that gives all bits; the bits cannot tell these apart.
      closest: where none fits, the candidate with the fewest mismatches of those compared in full.
      share: of outputs that the closest gets wrong.
      first: the closest's first mismatch, by rows.
      outputs: how many outputs there are.
      tried: how many candidates were tried.
      dropped: engines whose input formats do not hold the operands.
    """

    fitting: tuple[Candidate, ...]
    closest: Candidate | None
    share: float
    first: Mismatch | None
    outputs: int
    tried: int
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        head = f"{self.tried} candidates on {self.outputs} outputs"
        if self.fitting:
            apart = ", and these bits do not tell them apart" if len(self.fitting) > 1 else ""
            lines = [f"{head}: {len(self.fitting)} fit every bit{apart}"]
            return "\n".join([*lines, *self._classes()])
        if self.closest is None or self.first is None:
            return f"{head}: none fits; no engine's input formats hold the operands"
        row, column, predicted, given = self.first
        return "\n".join(
            [
                f"{head}: none fits",
                f"  closest: {self.closest}",
                f"  {self.share:.2%} of outputs differ, the first at ({row}, {column}): "
                f"{predicted:#010x} ({_float(predicted)}) predicted, "
                f"{given:#010x} ({_float(given)}) given",
            ]
        )

    def _classes(self) -> list[str]:
        """The fitting candidates, engines with the same choices above them together."""
        above: dict[tuple[tuple[str, ...], tuple[str, str]], list[Above]] = {}
        for x in self.fitting:
            above.setdefault((x.engines, x.formats), []).append(x.above)
        alike: dict[tuple[Above, ...], list[str]] = {}
        for (engines, formats), ways in above.items():
            read = f"{', '.join(engines)} ({formats[0]} x {formats[1]})"
            alike.setdefault(tuple(ways), []).append(read)
        lines = []
        for ways, engines in alike.items():
            lines += [f"  {engine}" for engine in engines]
            lines += [f"    {way}" for way in ways[:_SHOWN]]
            lines += [f"    and {len(ways) - _SHOWN} more"] if len(ways) > _SHOWN else []
        return lines


def _float(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


def identify(
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    *,
    c: np.ndarray | None = None,
    scales: Sequence[np.ndarray] = (),
) -> Identified:
    """Searches the catalogue's engines, and what may lie above them, for the bits of a product.

    Tried are all engines whose input formats hold the operands; promotion every 32, 64, 128 or 256
    k, or none; `sequential` and `split_k.2`, `.4`, `.8`; scales nowhere, at promotion in three
    ways, on the output in two, on the operands, or by the engine; and outputs rounded to float32,
    bfloat16 or float16. A few outputs refute most; the rest is compared in full.

    Args:
      a: (M, K) numbers as they entered the product, of any float type that float32 holds.
      b: (K, N), the same.
      out: (M, N) float32, bfloat16 or float16: the bits to be explained. float32 may hold narrower
        results. Any NaN fits any other.
      c: (M, N) or None: what the sum started from.
      scales: those of a, (M or 1 or a divisor of it, tiles along K), and of b, (tiles, N, the
        same), as numbers; or none.

    Returns:
      An `Identified`. Many candidates fit where the operands do not tell them apart: few mantissa
      bits, short K.

    Raises:
      ValueError: shapes that do not fit, or another number of scales than 0 or 2.
      TypeError: an array is float64 or not of floats.

    Example:
      >>> import ml_dtypes
      >>> import lowprec as lp
      >>> rng = np.random.default_rng(0)
      >>> a, b = (rng.normal(size=s).astype(ml_dtypes.float8_e4m3fn) for s in ((8, 32), (32, 8)))
      >>> out = np.asarray(lp.matmul(a, b, engine="hopper.wgmma.fp8.fp32"))
      >>> [found.engines for found in identify(a, b, out).fitting]
      [('hopper.wgmma.fp8.fp32',)]
    """
    dump, given = _checked(a, b, c, scales, out)
    named = _named(a), _named(b)
    engines, dropped = suspects(dump, named)
    outputs = (_named(out),) if out.dtype != np.float32 else _OUTPUTS
    search = _Search(dump, given, [x for x in outputs if x is not None])
    return search.run(engines, dropped)


class _Search:
    """One search: a block of outputs for all candidates, then all outputs for those left."""

    def __init__(self, dump: Dump, given: np.ndarray, outputs: list[str]) -> None:
        self.dump, self.given = dump, given
        self.outputs = tuple(x for x in outputs if (narrowed(given, x) == _bits(given)).all())
        m, n = given.shape
        self.all = np.indices((m, n)).reshape(2, -1).T
        rng = np.random.default_rng(0)
        self.block = self.all[np.sort(rng.permutation(m * n)[:_BLOCK])]
        self.tried = 0

    def run(self, engines: list[Suspect], dropped: list[str]) -> Identified:
        ranked: list[tuple[int, Suspect, Above]] = []
        for suspect in engines:
            ranked += self._on_block(suspect)
        ranked.sort(key=lambda x: x[0])
        fewest = ranked[0][0] if ranked else 0
        # Where some fit the block they alone are compared in full; else a few of the closest.
        chosen = [x for x in ranked if x[0] == fewest][: None if fewest == 0 else _FOLLOWED]
        fitting, misses = self._in_full(chosen)
        closest = min(misses, key=lambda x: x[1]) if misses and not fitting else None
        return Identified(
            fitting=tuple(fitting),
            closest=None if closest is None else closest[0],
            share=0.0 if closest is None else closest[1] / self.given.size,
            first=None if closest is None else closest[2],
            outputs=self.given.size,
            tried=self.tried,
            dropped=tuple(dropped),
        )

    def _on_block(self, suspect: Suspect) -> list[tuple[int, Suspect, Above]]:
        """How many outputs of the block each way above an engine gets wrong."""
        found = []
        for sums, options in self._ways(suspect, self.block):
            for above in options:
                self.tried += 1
                found.append((int(self._wrong(sums, above).sum()), suspect, above))
        return found

    def _ways(self, suspect: Suspect, places: np.ndarray) -> Iterable[tuple[Sums, list[Above]]]:
        """The engine's sums, with plain operands and with scaled ones, and what may follow."""
        dump, engine = self.dump, suspect.engine
        tiles = None if dump.a_scale is None else len(dump.a_scale)
        options = {"nowhere": dump, "promotion": dump}
        if tiles == 1:
            options |= {"output": dump, "output, one by one": dump}
        if tiles is not None and not engine.inputs:
            options["operands"] = _scaled_operands(dump)
        if engine.scale_formats:
            options = {"engine": dump}
        for place, operands in options.items():
            if (place == "promotion") and tiles is None:
                continue
            ways = choices(dump.k, tiles, (place,), self.outputs)
            if place == "engine":
                ways = [x for x in ways if x.promote_every is None and x.order == "sequential"]
            yield Sums(operands, suspect, places), list(ways)

    def _wrong(self, sums: Sums, above: Above) -> np.ndarray:
        rows, columns = sums.places[:, 0], sums.places[:, 1]
        dump = self.dump
        given = Given(
            dump.k,
            None if dump.a_scale is None else dump.a_scale[:, rows],
            None if dump.b_scale is None else dump.b_scale[:, columns],
            None if dump.c is None else dump.c[rows, columns].astype(np.float32),
        )
        partials = sums.over(above.chunk(dump.k, sums.suspect.engine.instruction_length))
        predicted = fold(partials, above, given)
        self._last = predicted
        return predicted != _bits(self.given)[rows, columns]

    def _in_full(
        self, chosen: list[tuple[int, Suspect, Above]]
    ) -> tuple[list[Candidate], list[tuple[Candidate, int, Mismatch]]]:
        fitting, misses = [], []
        for suspect in dict.fromkeys(x[1] for x in chosen):
            wanted = {above for _, other, above in chosen if other is suspect}
            for sums, options in self._ways(suspect, self.all):
                for above in (x for x in options if x in wanted):
                    wrong = self._wrong(sums, above)
                    names = suspect.formats[0].name, suspect.formats[1].name
                    candidate = Candidate(suspect.names, names, above)
                    if not wrong.any():
                        fitting.append(candidate)
                        continue
                    place = int(np.argmax(wrong))
                    row, column = self.all[place].tolist()
                    bits = int(self._last[place]), int(_bits(self.given)[row, column])
                    misses.append((candidate, int(wrong.sum()), Mismatch(row, column, *bits)))
        return fitting, misses


def _scaled_operands(dump: Dump) -> Dump:
    """Operands times their scales, rounded to float32."""
    assert dump.a_scale is not None and dump.b_scale is not None
    per_tile = dump.k // len(dump.a_scale)
    a = dump.a.astype(np.float32) * np.repeat(dump.a_scale, per_tile, 0).T
    b = dump.b.astype(np.float32) * np.repeat(dump.b_scale, per_tile, 0)
    return dataclasses.replace(dump, a=a.astype(np.float64), b=b.astype(np.float64))


def _bits(x: np.ndarray) -> np.ndarray:
    return narrowed(x, "float32")


def _named(x: np.ndarray) -> str | None:
    """The format that an array's type names; float32 may hold any."""
    return None if x.dtype == np.float32 else x.dtype.name


def _checked(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray | None,
    scales: Sequence[np.ndarray],
    out: np.ndarray,
) -> tuple[Dump, np.ndarray]:
    arrays = {"a": a, "b": b, "out": out} | ({} if c is None else {"c": c})
    for name, x in arrays.items():
        if x.dtype.name not in (*list_formats(), "float32", "float16", "bfloat16"):
            raise TypeError(
                f"`{name}` is {x.dtype}; a float type that float32 holds is needed, as the "
                f"product had it"
            )
    fits = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0] and a.size and b.size
    if not fits or any(x.shape != (a.shape[0], b.shape[1]) for x in (out, c) if x is not None):
        shapes = ", ".join(f"{name} {x.shape}" for name, x in arrays.items())
        raise ValueError(f"shapes do not fit: {shapes}; a (M, K), b (K, N), out (M, N) are needed")
    if len(scales) not in (0, 2):
        raise ValueError(f"`scales` holds {len(scales)} arrays; those of a and of b are needed")
    a_scale = b_scale = None
    if scales:
        a_scale = _per_tile("a", scales[0], a.shape[0], a.shape[1])
        b_scale = _per_tile("b", scales[1].T, b.shape[1], a.shape[1])
        if len(a_scale) != len(b_scale):
            raise ValueError(
                f"`scales`: {len(a_scale)} tiles of a along K, {len(b_scale)} of b; the same "
                f"number is needed"
            )
    wide = [x.astype(np.float64) for x in (a, b)]
    start = None if c is None else c.astype(np.float64)
    return Dump(wide[0], wide[1], start, a_scale, b_scale), out.astype(np.float32)


def _per_tile(side: str, scale: np.ndarray, rows: int, k: int) -> np.ndarray:
    """Scales (rows or a divisor, tiles) as float32 (tiles, rows)."""
    x = scale.astype(np.float32)
    if x.ndim != 2 or rows % x.shape[0] or k % x.shape[1]:
        raise ValueError(
            f"`scales` of {side} have shape {scale.shape if side == 'a' else scale.T.shape}; "
            f"tiles must divide {rows} {'rows' if side == 'a' else 'columns'} and {k} k evenly"
        )
    return np.repeat(x, rows // x.shape[0], 0).T


def read_dump(path: Path, name: str) -> np.ndarray:
    """The only tensor of a file, or the one of a name.

    Raises:
      ValueError: the file has several tensors, and none of that name.
    """
    tensors = read_tensors(path)
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    if name not in tensors:
        known = ", ".join(sorted(tensors)[:8])
        raise ValueError(f"{path} has several tensors and none is named {name!r}: {known}")
    return tensors[name]


def identify_files(
    a: Path,
    b: Path,
    out: Path,
    *,
    c: Path | None = None,
    scales: Sequence[Path] = (),
) -> Identified:
    """`identify` on files; of several tensors in one, those named a, b, c, a_scale, b_scale, out.

    Raises:
      ValueError, TypeError: as `identify`.
      OSError: a file is missing or unreadable.
    """
    files = [scales[0]] * 2 if len(scales) == 1 else list(scales)
    sides = zip(files, ("a_scale", "b_scale"), strict=False)
    return identify(
        read_dump(a, "a"),
        read_dump(b, "b"),
        read_dump(out, "out"),
        c=None if c is None else read_dump(c, "c"),
        scales=[read_dump(path, name) for path, name in sides],
    )
