"""lowprec's engines beside PyPI mmasim 2.1.1, dot for dot, bit for bit.

`--dots N` compares at least N dots of every engine that mmasim models and writes
reports/engines/mmasim.csv; `--write` stores a small set with mmasim's bits, which
tests/engines/test_fixture.py repeats without it. Operands are drawn with a fixed seed. Needs
`pip install mmasim==2.1.1`, g++ and ninja.
"""

import argparse
import csv
import dataclasses
import itertools
import math
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engine_peer
import jax
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lowprec.engines import Engine, get_engine, list_engines, matmul
from lowprec.engines.oracle import dot
from lowprec.numerics import Format, decode, get_format

ROOT = Path(__file__).resolve().parent.parent
SEED = 20261122
STEPS = (1, 3)
"""Instructions a dot is long."""

Codes = NDArray[Any]
Rng = np.random.Generator
Bits = Callable[["Dots"], Codes]


@dataclasses.dataclass(frozen=True)
class Dots:
    """M * N dots of one engine: rows of a against columns of b."""

    engine: Engine
    formats: tuple[Format, Format]
    a: Codes
    b: Codes
    c: NDArray[np.float32]
    scale_format: Format | None = None
    scales: tuple[Codes, Codes] | None = None


# Operands: every row of codes is of one kind, so that rows and columns meet in every pair of kinds.


def _values(fmt: Format, x: NDArray[np.float64]) -> Codes:
    """Codes of numbers, nearest even, without overflow."""
    limited = np.clip(x, -float(fmt.max), float(fmt.max))
    if fmt.name == "tensorfloat32":
        return limited.astype(np.float32).view(np.uint32)
    return limited.astype(_dtype(fmt)).view(fmt.code_dtype)


def _dtype(fmt: Format) -> Any:
    return np.dtype(getattr(ml_dtypes, fmt.name, None) or fmt.name)


def _normal(fmt: Format, rng: Rng, k: int) -> Codes:
    return _values(fmt, rng.normal(size=k))


def _sparse(fmt: Format, rng: Rng, k: int) -> Codes:
    kept = rng.random(k) > 0.7
    return _values(fmt, np.where(kept, rng.normal(size=k), np.copysign(0.0, rng.normal(size=k))))


def _spread(fmt: Format, rng: Rng, k: int) -> Codes:
    """Over so many binades that alignment cuts most products."""
    reach = min(24.0, 2.0 ** (fmt.exponent_bits or 2) / 4)
    return _values(fmt, rng.normal(size=k) * np.exp2(rng.uniform(-reach, reach, k)))


def _cancelling(fmt: Format, rng: Rng, k: int) -> Codes:
    """Neighbours alike, the second with the other sign in half of the draws."""
    x = rng.normal(size=k)
    x[1::2] = x[0::2][: k // 2] * rng.choice([1.0, -1.0])
    return _values(fmt, np.where(rng.random(k) < 0.1, rng.normal(size=k) * 0.1, x))


def _tiny(fmt: Format, rng: Rng, k: int) -> Codes:
    """Subnormals, and what lies just above them."""
    mantissa = fmt.mantissa_bits + (13 if fmt.name == "tensorfloat32" else 0)
    low = rng.integers(0, 1 << mantissa, k)
    return _signed(fmt, rng, low | rng.integers(0, 3, k) << mantissa)


def _probe(fmt: Format, rng: Rng, k: int) -> Codes:
    """One product near the smallest result, and one so far below it that the floor may cut it."""
    lead, below = -1, range(-8, -2)
    if fmt.exponent_bits == 8:
        lead, below = -71, range(-81, -76)
    elif fmt.name == "float16":
        lead, below = -13, range(-24, -19)
    x = np.zeros(k)
    x[0] = np.ldexp(rng.choice([1, 3, 5]), lead + rng.integers(0, 2))
    x[1] = np.ldexp(rng.choice([1.0, -1.0]), rng.choice(below))
    return _values(fmt, x)


def _finite_bits(fmt: Format, rng: Rng, k: int) -> Codes:
    drawn = _any_bits(fmt, rng, k)
    return np.where(np.isfinite(_decoded(fmt, drawn)), drawn, _normal(fmt, rng, k))


def _special(fmt: Format, rng: Rng, k: int) -> Codes:
    """Normal numbers with one random code, infinity, NaN or zero among them."""
    out = _normal(fmt, rng, k)
    extremes = _values(fmt, np.array([0.0, -0.0, float(fmt.max), -float(fmt.max)]))
    choices = [extremes, _any_bits(fmt, rng, 2)]
    if fmt.has_inf:
        dtype = np.float32 if fmt.name == "tensorfloat32" else _dtype(fmt)
        choices += [np.array([np.inf, -np.inf], dtype).view(fmt.code_dtype)] * 4
    out[rng.integers(0, k)] = rng.choice(np.concatenate(choices))
    return out


def _any_bits(fmt: Format, rng: Rng, k: int) -> Codes:
    bits = 32 if fmt.name == "tensorfloat32" else fmt.bits
    return rng.integers(0, 1 << bits, k).astype(fmt.code_dtype)


def _signed(fmt: Format, rng: Rng, magnitude: Codes) -> Codes:
    sign = 31 if fmt.name == "tensorfloat32" else fmt.bits - 1
    return (magnitude | rng.integers(0, 2, len(magnitude)) << sign).astype(fmt.code_dtype)


KINDS = (_normal, _spread, _probe, _cancelling, _sparse, _tiny, _probe, _finite_bits, _special)


def _rows(fmt: Format, rng: Rng, count: int, k: int, first: int) -> Codes:
    """Rows of every kind in turn; in a third of them all beyond the first instruction is zero."""
    start = int(rng.integers(0, len(KINDS)))
    rows = [KINDS[(start + i) % len(KINDS)](fmt, rng, k) for i in range(count)]
    for i in range(2, count, 3):
        rows[i][first:] = 0
    return np.stack(rows)


def _plant(formats: tuple[Format, Format], rng: Rng, a: Codes, b: Codes) -> None:
    """Inf times a subnormal, which arithmetic that flushes takes for Inf * 0."""
    infinity, subnormal = [], []
    for fmt in formats:
        wide = fmt.name == "tensorfloat32"
        subnormal.append(1 << 13 if wide else 1)
        if fmt.has_inf:
            dtype = np.float32 if wide else _dtype(fmt)
            infinity.append(np.array(np.inf, dtype).view(fmt.code_dtype))
        else:
            infinity.append(subnormal[-1])
    for place, firsts in enumerate(((infinity[0], subnormal[1]), (subnormal[0], infinity[1]))):
        for side, fmt, first in zip((a[place], b[:, place]), formats, firsts, strict=True):
            side[:] = _normal(fmt, rng, len(side))
            side[0] = first


def _decoded(fmt: Format, codes: Codes) -> NDArray[np.float32]:
    """float32 values; of tf32 the codes are the bits of float32 numbers that are not cut yet."""
    if fmt.name == "tensorfloat32":
        return codes.view(np.float32)
    return codes.view(_dtype(fmt)).astype(np.float32)


def _scale_codes(fmt: Format, rng: Rng, count: int, blocks: int) -> Codes:
    """Scales near one, anywhere, near the floor of products, or at the bottom; few are NaN."""
    if fmt.name == "ue4m3":
        codes = rng.integers(0, 127, (count, blocks))
        codes[rng.random((count, blocks)) < 0.1] = 0
        codes[rng.random((count, blocks)) < 0.005] = 127
        # The bit above the seven is another format's sign, and ignored.
        return (codes | rng.integers(0, 2, codes.shape) << 7).astype(np.uint8)
    ranges = [(120, 135), (0, 255), (50, 63), (118, 137), (52, 61), (0, 4)]
    codes = np.stack([rng.integers(*ranges[i % len(ranges)], blocks) for i in range(count)])
    codes[rng.random((count, blocks)) < 0.005] = 255
    return codes.astype(np.uint8)


def _addends(engine: Engine, rng: Rng, sums: NDArray[np.float64]) -> NDArray[np.float32]:
    """c: half of them zero, others of the sum's size, minus the sum nearly, tiny, any bits."""
    shape = sums.shape
    safe = np.where(np.isfinite(sums), sums, 1.0)
    near = safe * rng.normal(size=shape) * np.exp2(rng.integers(-16, 17, shape))
    cancel = -safe * (1 + rng.normal(size=shape) * np.exp2(rng.integers(-26, -4, shape)))
    if engine.output.name == "float16":
        wild = rng.integers(0, 1 << 16, shape).astype(np.uint16).view(np.float16)
        tiny = np.ldexp(rng.normal(size=shape), -24)
    else:
        wild = rng.integers(0, 1 << 32, shape).astype(np.uint32).view(np.float32)
        tiny = rng.integers(0, 1 << 24, shape).astype(np.uint32).view(np.float32)
    zero = np.copysign(0.0, rng.random(shape) - 0.1)
    chosen = rng.choice(5, shape, p=[0.5, 0.17, 0.17, 0.08, 0.08])
    # Beside any c the floor under the alignment does not tell.
    chosen = np.where((np.abs(safe) < 2.0**-125) & (rng.random(shape) < 0.8), 0, chosen)
    with np.errstate(over="ignore", invalid="ignore"):
        options = [x.astype(np.float32) for x in (zero, near, cancel, tiny, wild)]
    return np.choose(chosen, options)


def draw(
    engine: Engine, formats: tuple[Format, Format], scale: Format | None, size: int, steps: int
) -> Dots:
    """size * size dots of so many instructions."""
    name = "/".join(
        [engine.name, *(x.name for x in formats), scale.name if scale else "", str(steps)]
    )
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    first = engine.instruction_length
    assert first is not None
    k = first * steps
    a, b = (_rows(fmt, rng, size, k, first) for fmt in formats)
    b = b[rng.permutation(size)].T
    _plant(formats, rng, a, b)
    with np.errstate(invalid="ignore"):
        left, right = (_decoded(*x).astype(np.float64) for x in zip(formats, (a, b), strict=True))
    scales = None
    if scale is not None:
        assert engine.scale_block is not None
        blocks = k // engine.scale_block
        alpha, beta = (_scale_codes(scale, rng, size, blocks) for _ in "ab")
        scales = alpha, beta[rng.permutation(size)].T
        factors = [np.asarray(decode(x & scale.code_mask, scale), np.float64) for x in scales]
        left = left * np.repeat(factors[0], engine.scale_block, 1)
        right = right * np.repeat(factors[1], engine.scale_block, 0)
    with np.errstate(invalid="ignore", over="ignore"):
        c = _addends(engine, rng, left @ right)
    return Dots(engine, formats, a, b, c, scale, scales)


# Both sides.


def theirs(dots: Dots) -> Codes:
    """mmasim's bits."""
    return engine_peer.product(
        dots.engine, dots.a, dots.b, dots.c, dots.formats, dots.scales, dots.scale_format
    )


_matmul = jax.jit(matmul, static_argnames=("engine", "a_format", "b_format"))


def ours(dots: Dots) -> Codes:
    """The bits of `lp.matmul`."""
    engine = dots.engine
    more: dict[str, Any] = {}
    if len(engine.inputs) > 1:
        more |= {"a_format": dots.formats[0], "b_format": dots.formats[1]}
    if dots.scales is not None and dots.scale_format is not None:
        engine = dataclasses.replace(engine, scale_formats=(dots.scale_format,))
        more |= {"a_scale": dots.scales[0], "b_scale": dots.scales[1]}
    # Engines that differ in name alone are then compiled once.
    engine = dataclasses.replace(engine, name="fixture", evidence=None)
    left, right = (_decoded(f, x) for f, x in zip(dots.formats, (dots.a, dots.b), strict=True))
    out = np.asarray(_matmul(left, right, dots.c, engine=engine, **more))
    return out.view(f"u{out.dtype.itemsize}")


def exactly(dots: Dots) -> Codes:
    """The oracle's bits, one dot after the other."""
    formats = tuple(
        get_format("float32") if fmt.name == "tensorfloat32" else fmt for fmt in dots.formats
    )
    out = np.zeros(dots.c.shape, np.uint32)
    for i, j in np.ndindex(dots.c.shape):
        scales: dict[str, Any] = {}
        if dots.scales is not None:
            scales = {
                "a_scales": dots.scales[0][i].tolist(),
                "b_scales": dots.scales[1][:, j].tolist(),
                "scale_format": dots.scale_format,
            }
        a, b = dots.a[i].tolist(), dots.b[:, j].tolist()
        c = int(dots.c[i, j].view(np.uint32))
        out[i, j] = dot(dots.engine, a, b, c, a_format=formats[0], b_format=formats[1], **scales)
    if dots.engine.output.name == "float16":
        return out.view(np.float32).astype(np.float16).view(np.uint16)
    return out


# The comparison.


def _floats(bits: Codes) -> NDArray[Any]:
    return bits.view(f"f{bits.dtype.itemsize}")


def dropped(dots: Dots) -> NDArray[np.bool_]:
    """Where mmasim alone may lose c: Inf or NaN beside large CDNA3 products of 8 bits."""
    drops = dots.engine.drop_accumulator_below is not None
    return ~np.isfinite(dots.c) if drops else np.zeros(dots.c.shape, bool)


def compared(dots: Dots, got: Codes, want: Codes) -> dict[str, Any]:
    """Counts of dots, of mismatches, and of what is counted apart."""
    x, y = _floats(got), _floats(want)
    nans, zeros = np.isnan(x) & np.isnan(y), (x == 0) & (y == 0)
    differ, aside = got != want, dropped(dots)
    least = np.finfo(y.dtype).smallest_normal
    with np.errstate(invalid="ignore"):
        subnormal = (np.abs(y) < least) & (y != 0)
    scale = "" if dots.scale_format is None else f" / {dots.scale_format.name}"
    evidence = dots.engine.evidence
    return {
        "engine": dots.engine.name,
        "evidence": "" if evidence is None else evidence.level,
        "operands": " x ".join(fmt.name for fmt in dots.formats) + scale,
        "k": dots.a.shape[1],
        "dots": got.size,
        "mismatches": int(np.sum(differ & ~nans & ~zeros & ~aside)),
        "nan_bits": int(np.sum(differ & nans)),
        "zero_signs": int(np.sum(differ & zeros)),
        "dropped_c": int(np.sum(differ & ~nans & ~zeros & aside)),
        "with_c": int(np.sum(dots.c != 0)),
        "finite": int(np.sum(np.isfinite(y))),
        "nan": int(np.sum(np.isnan(y))),
        "inf": int(np.sum(np.isinf(y))),
        "zero": int(np.sum(y == 0)),
        "subnormal": int(np.sum(subnormal)),
        "distinct": len(np.unique(want)),
    }


def operands(engine: Engine, every: bool) -> Iterator[tuple[tuple[Format, Format], Format | None]]:
    """Pairs of input formats, every format on each side at least once, and a scale format.

    With `every`, of up to two formats all pairs.
    """
    inputs = engine.inputs
    step = min(2, len(inputs) - 1)
    pairs = [(x, inputs[(step * i + 1) % len(inputs)]) for i, x in enumerate(inputs)]
    if every and len(inputs) <= 2:
        pairs = [(x, y) for x in inputs for y in inputs]
    yield from itertools.product(pairs, engine.scale_formats or (None,))


def modelled(pattern: str) -> list[Engine]:
    """The catalogue's engines that mmasim models, of names that contain a text."""
    engines = [get_engine(name) for name in list_engines() if pattern in name]
    return [engine for engine in engines if engine_peer.models(engine)]


def compare(engines: list[Engine], count: int, bits: Bits) -> list[dict[str, Any]]:
    """A row for each engine, operands and K; printed as they come."""
    rows = []
    for engine in engines:
        cases = list(itertools.product(operands(engine, every=True), STEPS))
        size = math.ceil(math.sqrt(count / len(cases)))
        total, start = [], time.perf_counter()
        for (formats, scale), steps in cases:
            dots = draw(engine, formats, scale, size, steps)
            total.append(compared(dots, bits(dots), theirs(dots)))
        rows += total
        keys = ("dots", "mismatches", "nan_bits", "zero_signs", "dropped_c")
        sums = "  ".join(f"{sum(row[key] for row in total):>8}" for key in keys)
        print(f"{engine.name:<32}{sums}  {time.perf_counter() - start:6.1f} s", flush=True)
    return rows


def record(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes the rows; those of engines that were not compared now stay as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {row["engine"] for row in rows}
    kept = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["engine"] not in done]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*kept, *rows], key=lambda row: row["engine"]))


def write(engines: list[Engine], path: Path, size: int) -> None:
    """Every engine with all its operands, dots of one instruction and of three in one product."""
    arrays: dict[str, Codes] = {}
    for engine in engines:
        for formats, scale in operands(engine, every=False):
            dots = draw(engine, formats, scale, size, STEPS[-1])
            if engine.drop_accumulator_below is not None:
                dots = dataclasses.replace(dots, c=np.where(dropped(dots), np.float32(1), dots.c))
            key = "/".join([engine.name, *(fmt.name for fmt in formats)])
            key += f"/{scale.name}" if scale else ""
            arrays |= {f"{key}:a": dots.a, f"{key}:b": dots.b, f"{key}:d": theirs(dots)}
            arrays[f"{key}:c"] = dots.c.view(np.uint32)
            if dots.scales is not None:
                arrays[f"{key}:a_scale"], arrays[f"{key}:b_scale"] = dots.scales
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type] - keywords are arrays, not options
    print(f"wrote {path}, {path.stat().st_size} bytes")


def main() -> None:
    """Compares, or writes the fixture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dots", type=int, help="how many of every engine to compare, at least")
    parser.add_argument("--write", action="store_true", help="write the fixture of the tests")
    parser.add_argument("--engine", default="", help="only engines whose names contain this")
    parser.add_argument("--oracle", action="store_true", help="compare the exact oracle instead")
    parser.add_argument("--out", type=Path, default=ROOT / "reports/engines/mmasim.csv")
    arguments = parser.parse_args()
    engines = modelled(arguments.engine)
    if arguments.write:
        write(engines, ROOT / "tests/engines/fixtures/mmasim.npz", 15)
    if arguments.dots:
        heads = "".join(f"{x:>10}" for x in ("dots", "wrong", "nan bits", "0 signs", "dropped"))
        print(f"{'engine':<30}{heads}", flush=True)
        rows = compare(engines, arguments.dots, exactly if arguments.oracle else ours)
        record(rows, arguments.out)
        wrong = sum(row["mismatches"] for row in rows)
        print(f"{sum(row['dots'] for row in rows)} dots, {wrong} mismatches: {arguments.out}")


if __name__ == "__main__":
    main()
