"""How fast are emulated matrix engines, beside this machine's own float32 matrix product?

    python experiments/throughput_engines.py [--sizes 1024 2048] [--rounds 5] [--out DIR]
    python experiments/throughput_engines.py --linear [256 512 1024 2048 4096]

A square product in every engine of the table, and the machine's float32 product, are timed once a
round, in turn, so that what else the machine does falls on both; a ratio is the median over rounds,
with its quartiles. `plain` is a call inside a caller's own `jax.jit`, `options` one compiled with
`lowprec.compiler_options()`. `--linear` times one engine over sizes and draws it, and leaves the
table as it is but where `--sizes` are given too. Both are in the report's page when it is next
written; `manifest.json` has when and where each was made. PyPI mmasim, the reference model, is
timed where it is installed, on 128 x 128 x 512. Times are of emulation: they say nothing of the
hardware that has the engines.
"""

import argparse
import datetime
import importlib
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import lowprec as lp
from lowprec.report import engine_speed
from lowprec.report.recipe_speed import keep_manifest
from lowprec.report.shown import standalone
from lowprec.study.manifest import manifest
from lowprec.throughput import Compiled, compiled, in_turn, ratio, write_table

HOPPER_FP8 = "hopper.wgmma.fp8.fp32"
GOALS: dict[str, tuple[str, float, float]] = {
    HOPPER_FP8: ("float8_e4m3fn", 15, 25),
    "hopper.wgmma.fp16.fp32": ("float16", 20, 30),
    "blackwell.tcgen05.mxf8f6f4.fp32": ("float8_e4m3fn", 20, 30),
    "hopper.wgmma.bf16.fp32": ("bfloat16", 30, 45),
    "hopper.wgmma.tf32.fp32": ("tensorfloat32", 30, 45),
    "blackwell.tcgen05.mxf4.fp32": ("float4_e2m1fn", 25, 25),
    "blackwell.tcgen05.nvf4.fp32": ("float4_e2m1fn", 25, 25),
    "fp32": ("float32", 8, 8),
    "sequential.float16.nearest_even": ("float16", 60, 60),
    "sequential.bfloat16.nearest_even": ("bfloat16", 60, 60),
    "chunked.64.e6m9.e6m9": ("float8_e5m2", 60, 60),
}
"""Engines with the format of their operands, and how many times the machine's own product they may
take: compiled with options, and plain."""
WITHOUT_GOAL = {"native": "float32"}
SLOW = {
    "sequential.float16.stochastic": "float16",
    "fp32_fma": "float32",
    "cdna3.mfma.fp16.fp32": "float16",
}
"""Engines that are timed when asked for, at a small size: `--engines fp32_fma --sizes 256`."""
SIZES = (1024, 2048)
LINEAR = (256, 512, 1024, 2048, 4096)


class Row(NamedTuple):
    """A line of the table: times in seconds, ratios to the machine's float32 product."""

    size: int
    engine: str
    way: str
    seconds: float
    multiply_adds_per_second: float
    times_float32: float
    low: float
    high: float
    wanted: float | None
    met: str
    compile_seconds: float
    temporary_bytes: int
    device: str


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", nargs="+", default=[*GOALS, *WITHOUT_GOAL])
    parser.add_argument("--linear", type=int, nargs="*", metavar="SIZE")
    parser.add_argument("--out", type=Path, default=Path("reports/throughput"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    if arguments.linear is None or arguments.sizes:
        sizes = arguments.sizes or SIZES
        table(arguments.engines, sizes, arguments.rounds, arguments.out)
        record("engines", sizes, time.perf_counter() - start, arguments.out)
    if arguments.linear is not None:
        start, sizes = time.perf_counter(), arguments.linear or LINEAR
        linear(sizes, arguments.out)
        record("linear", sizes, time.perf_counter() - start, arguments.out)
        draw(arguments.out)


def record(name: str, sizes: Sequence[int], seconds: float, out: Path) -> None:
    """Writes when and where a table was made beside what is known of the other."""
    made = manifest([], [], {"sizes": list(sizes)}) | {
        "command": f"{engine_speed.COMMAND}{' --linear' if name == 'linear' else ''}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(seconds),
    }
    keep_manifest(name, made, out)


def table(engines: list[str], sizes: Sequence[int], rounds: int, out: Path) -> None:
    """Times the engines at every size, and writes the table after each."""
    rows: list[Row] = []
    for size in sizes:
        for engine in engines:
            for row in timed(engine, size, rounds):
                rows.append(row)
                print(line(row), flush=True)
            write_table(out / "engines.csv", Row._fields, rows)
    if HOPPER_FP8 in engines:
        ours = [row for row in rows if row.engine == HOPPER_FP8]
        print(beside_mmasim(max(row.multiply_adds_per_second for row in ours)))


def linear(sizes: Sequence[int], out: Path) -> None:
    """Times one engine over sizes, two rounds each, and writes the table after each."""
    rows: list[Row] = []
    for size in sizes:
        rows += timed(HOPPER_FP8, size, 2, ("plain",))
        print(line(rows[-1]), flush=True)
        write_table(out / "linear.csv", Row._fields, rows)


def draw(out: Path) -> None:
    """Draws what the report draws of the tables."""
    section = engine_speed.read_speed(out)
    assert section is not None
    (out / "figures").mkdir(exist_ok=True)
    for figure in section.figures:
        drawn = out / "figures" / f"{figure.name}.svg"
        drawn.write_text(standalone(figure.wide), encoding="utf-8")
        print(figure.title)


def timed(
    engine: str, size: int, rounds: int, ways: tuple[str, ...] = ("plain", "options")
) -> list[Row]:
    """One engine at one size, both ways, against the machine's own product in the same rounds."""
    given, arrays = operands(engine, size)
    multiply = lambda *x: lp.matmul(x[0], x[1], engine=engine, **with_scales(given, x))
    a = jax.random.normal(jax.random.key(2), (size, size))
    own = compiled(lambda x, y: jnp.matmul(x, y, precision="highest"), a, a)
    options = {"plain": None, "options": lp.compiler_options()}
    programs = {way: compiled(multiply, *arrays, options=options[way]) for way in ways}
    calls = {"own": own.call} | {way: program.call for way, program in programs.items()}
    times = in_turn(calls, rounds, {"own": 5})
    return [row(engine, size, way, times, programs[way]) for way in ways]


def operands(engine: str, size: int) -> tuple[dict[str, Any], tuple[jax.Array, ...]]:
    """Standard normal operands in the engine's format, with scales near 1 where it takes them."""
    fmt = GOALS[engine][0] if engine in GOALS else (WITHOUT_GOAL | SLOW)[engine]
    found = lp.get_engine(engine)
    values = [
        lp.cast(jax.random.normal(jax.random.key(seed), (size, size)), fmt) for seed in (0, 1)
    ]
    # A narrower type says that products are exact.
    if fmt in ("float16", "bfloat16"):
        values = [x.astype(fmt) for x in values]
    named = bool(found.inputs) or fmt not in ("float32", "float16", "bfloat16")
    given: dict[str, Any] = {"a_format": fmt, "b_format": fmt} if named else {}
    if found.output_rounding == "stochastic":
        given["key"] = jax.random.key(0)
    if found.scale_block is None:
        return given, tuple(values)
    one = 127 if found.scale_formats[0].name == "float8_e8m0fnu" else 56
    blocks = size // found.scale_block
    scales = jnp.full((size, blocks), one, jnp.uint8), jnp.full((blocks, size), one, jnp.uint8)
    return given, (*values, *scales)


def with_scales(given: dict[str, Any], arrays: tuple[jax.Array, ...]) -> dict[str, Any]:
    return given | dict(zip(("a_scale", "b_scale"), arrays[2:], strict=False))


def row(
    engine: str,
    size: int,
    way: str,
    times: dict[str, list[float]],
    program: Compiled,
) -> Row:
    middle, low, high = ratio(times[way], times["own"])
    seconds = statistics.median(times[way])
    _, with_options, plain = GOALS.get(engine, ("", None, None))
    wanted = with_options if way == "options" else plain
    met = "" if wanted is None else "met" if middle <= wanted else "missed"
    device = jax.devices()[0].device_kind
    rate = size**3 / seconds
    return Row(
        size, engine, way, seconds, rate, middle, low, high, wanted, met, *program[1:], device
    )


def line(row: Row) -> str:
    wanted = "" if row.wanted is None else f"  wanted {row.wanted:g}: {row.met}"
    return (
        f"{row.size:5} {row.engine:34} {row.way:8} {row.multiply_adds_per_second:9.2e} multiply-"
        f"adds/s  {row.times_float32:6.1f} times float32 ({row.low:.1f} to {row.high:.1f}){wanted}"
        f"  compiled in {row.compile_seconds:.1f} s"
    )


def beside_mmasim(ours: float) -> str:
    """How many times faster than the reference model, on its own largest instruction."""
    try:
        torch = importlib.import_module("torch")
        model = importlib.import_module("mmasim.nv_ptx.sim")
    except ImportError as error:
        return f"mmasim is missing: {error}"
    op = model.WGMMA("Hopper", "m64n256k32.f32.e4m3.e4m3")
    a, b = (torch.randn(shape).to(torch.float8_e4m3fn) for shape in ((128, 512), (512, 128)))
    c = torch.zeros(128, 128)
    op(a, b, c)
    start = time.perf_counter()
    op(a, b, c)
    theirs = 128 * 128 * 512 / (time.perf_counter() - start)
    return f"mmasim 2.1.1: {theirs:.2e} multiply-adds/s; ours is {ours / theirs:.0f} times as fast"


if __name__ == "__main__":
    main()
