"""An engine's sums over chunks of K for chosen outputs, or for all of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.engines.engine import Engine, get_engine, list_engines
from lowprec.engines.matmul import matmul, product
from lowprec.engines.oracle import dot
from lowprec.numerics.format import Format, get_format
from lowprec.study.exact_codes import exact_codes, holds
from lowprec.study.probe_candidates import PLAIN, meaning

_AT_MOST = 200_000
"""Multiply-adds that the exact oracle does; more are computed by `matmul`, which is compiled."""


@dataclasses.dataclass(frozen=True)
class Suspect:
    """An engine with the formats that it may have read the operands in.

    Attributes:
      names: the catalogue's names of engines that compute alike.
      engine: one of them.
      formats: of a and b.
    """

    names: tuple[str, ...]
    engine: Engine
    formats: tuple[Format, Format]


@dataclasses.dataclass(frozen=True)
class Dump:
    """Operands as float64 values: a (M, K), b (K, N), c (M, N) or None; scales by tile.

    Attributes:
      a_scale, b_scale: float32 (tiles, M) and (tiles, N), or None.
    """

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray | None
    a_scale: np.ndarray | None
    b_scale: np.ndarray | None

    @property
    def k(self) -> int:
        return self.a.shape[1]


def suspects(dump: Dump, named: tuple[str | None, str | None]) -> tuple[list[Suspect], list[str]]:
    """The engines whose input formats hold the operands, and the names of those that drop out.

    Args:
      dump: the operands.
      named: the formats that the arrays' types name, None where they name none.
    """
    found: dict[tuple[Engine, tuple[Format, Format]], Suspect] = {}
    dropped = []
    for name in dict.fromkeys([*list_engines(), *PLAIN]):
        engine = get_engine(name)
        if engine.accumulation in ("native", "unknown"):
            continue
        pairs = _formats(engine, dump, named)
        scaled = not engine.scale_formats or _block_scales(engine, dump) is not None
        if not pairs or not scaled:
            dropped.append(name)
        for pair in pairs if scaled else ():
            key = meaning(engine), pair
            names = (*found[key].names, name) if key in found else (name,)
            found[key] = Suspect(names, engine, pair)
    return list(found.values()), dropped


def _formats(
    engine: Engine, dump: Dump, named: tuple[str | None, str | None]
) -> list[tuple[Format, Format]]:
    """The pairs of input formats that hold the operands and read them differently."""
    if not engine.inputs or engine.truncate_operands:
        plain = get_format("float32")
        return [(plain, plain)]
    sides = []
    for x, name in zip((dump.a, dump.b), named, strict=True):
        fitting: dict[int | None, Format] = {}
        for fmt in engine.inputs:
            if (name is None or fmt.name == name) and holds(x, fmt):
                # Formats that hold the same numbers differ in the exponent subnormals are read
                # with, and only there.
                lowest = (engine.through or fmt).min_exponent
                tiny = (x != 0) & (np.abs(x) < 2.0**lowest)
                fitting.setdefault(lowest if tiny.any() else None, fmt)
        sides.append(list(fitting.values()))
    return [(first, second) for first in sides[0] for second in sides[1]]


def _block_scales(engine: Engine, dump: Dump) -> tuple[Format, np.ndarray, np.ndarray] | None:
    """The format and codes of scales that an engine can apply itself: (M, tiles), (tiles, N)."""
    if dump.a_scale is None or dump.b_scale is None or engine.scale_block is None:
        return None
    if len(dump.a_scale) * engine.scale_block != dump.k or len(dump.b_scale) != len(dump.a_scale):
        return None
    for fmt in engine.scale_formats:
        (a, held_a), (b, held_b) = (exact_codes(x, fmt) for x in (dump.a_scale, dump.b_scale))
        if held_a.all() and held_b.all():
            return fmt, a.T, b
    return None


class Sums:
    """An engine's sums over chunks, each computed once: float32 (chunks, outputs)."""

    def __init__(self, dump: Dump, suspect: Suspect, places: np.ndarray) -> None:
        """`places` (outputs, 2) are the rows and columns of the outputs wanted."""
        self.dump, self.suspect, self.places = dump, suspect, places
        self._known: dict[tuple[int, bool], np.ndarray] = {}
        self._codes: tuple[np.ndarray, np.ndarray] | None = None

    def over(self, chunk: int) -> np.ndarray:
        """The sums of every `chunk` k from zero; a single one starts from c."""
        alone = chunk >= self.dump.k
        if (chunk, alone) not in self._known:
            small = len(self.places) * self.dump.k <= _AT_MOST
            compute = self._exactly if small else self._compiled
            self._known[chunk, alone] = compute(min(chunk, self.dump.k), alone)
        return self._known[chunk, alone]

    def _exactly(self, chunk: int, alone: bool) -> np.ndarray:
        dump, engine, (first, second) = self.dump, self.suspect.engine, self.suspect.formats
        if self._codes is None:
            self._codes = exact_codes(dump.a, first)[0], exact_codes(dump.b, second)[0]
        a, b = self._codes
        scales = _block_scales(engine, dump) if engine.scale_formats else None
        starts = range(0, dump.k, chunk)
        out = np.empty((len(starts), len(self.places)), np.uint32)
        for index, (i, j) in enumerate(self.places.tolist()):
            c = 0 if dump.c is None or not alone else int(np.float32(dump.c[i, j]).view(np.uint32))
            row, column = a[i].tolist(), b[:, j].tolist()
            for step, start in enumerate(starts):
                here = slice(start, start + chunk)
                given = {}
                if scales is not None and engine.scale_block is not None:
                    fmt, alphas, betas = scales
                    blocks = slice(start // engine.scale_block, None)
                    given = {
                        "a_scales": alphas[i].tolist()[blocks],
                        "b_scales": betas[:, j].tolist()[blocks],
                        "scale_format": fmt,
                    }
                out[step, index] = dot(
                    engine, row[here], column[here], c, a_format=first, b_format=second, **given
                )
        return out.view(np.float32)

    def _compiled(self, chunk: int, alone: bool) -> np.ndarray:
        dump, engine = self.dump, self.suspect.engine
        a, b = (jnp.asarray(x.astype(np.float32)) for x in (dump.a, dump.b))
        c = None if dump.c is None or not alone else jnp.asarray(dump.c.astype(np.float32))
        known = [None if fmt.name == "float32" else fmt for fmt in self.suspect.formats]
        if engine.scale_formats:
            return self._scaled_product(a, b, c, known)[None]
        if alone:
            return self._chosen(_product(a, b, c, engine, (known[0], known[1])))[None]
        steps = -(-dump.k // chunk)
        padded = steps * chunk - dump.k
        (m, _), (_, n) = a.shape, b.shape
        a = jnp.pad(a, [(0, 0), (0, padded)]).reshape(m, steps, chunk).transpose(1, 0, 2)
        b = jnp.pad(b, [(0, padded), (0, 0)]).reshape(steps, chunk, n)
        parts = _product(a, b, None, engine, (known[0], known[1]))
        return np.stack([self._chosen(part) for part in parts])

    def _scaled_product(
        self, a: jax.Array, b: jax.Array, c: jax.Array | None, known: list[Format | None]
    ) -> np.ndarray:
        engine = self.suspect.engine
        found = _block_scales(engine, self.dump)
        assert found is not None
        fmt, alphas, betas = found
        dtype = np.uint8 if fmt.dtype is None else fmt.dtype
        scales = [x.astype(np.uint8).view(dtype) for x in (alphas.copy(), betas.copy())]
        out = matmul(
            a,
            b,
            c,
            engine=engine,
            a_format=known[0],
            b_format=known[1],
            a_scale=scales[0],
            b_scale=scales[1],
        )
        return self._chosen(out)

    def _chosen(self, out: jax.Array) -> np.ndarray:
        return np.asarray(out).astype(np.float32)[self.places[:, 0], self.places[:, 1]]


_product = jax.jit(product, static_argnames=("engine", "formats"))
