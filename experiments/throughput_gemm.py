"""How long does a product take under a recipe, beside this machine's own float32 product?

    python experiments/throughput_gemm.py [--size 2048] [--rounds 5] [--out DIRECTORY]

`gemm` with its quantizers and its sum, on the `native` engine and for deepseek_v3 on `fp32` too,
whose bits are specified; all are timed once a round, in turn, and a ratio is the median over
rounds, with its quartiles. `plain` is a call inside a caller's own `jax.jit`, `options` one
compiled with `lowprec.compiler_options()`. Operands are standard normal. Times are of emulation:
they say nothing of hardware that has the formats.
"""

import argparse
import datetime
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

import lowprec as lp
from lowprec.report.recipe_speed import keep_manifest
from lowprec.report.stored import write_table
from lowprec.study.manifest import manifest
from lowprec.throughput import Compiled, GemmTime, compiled, in_turn, ratio

Way = Literal["plain", "options"]
GOALS = {
    ("mxfp8", "native"): 2.0,
    ("mxfp4", "native"): 2.0,
    ("nvfp4", "native"): 2.0,
    ("deepseek_v3", "native"): 3.0,
    ("deepseek_v3", "fp32"): 8.0,
}
"""Recipes and engines, and how many times the machine's own product they may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=2048, help="M, N and K")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("reports/throughput"))
    arguments = parser.parse_args()
    start = time.perf_counter()
    rows = timed(arguments.size, arguments.rounds)
    for row in rows:
        print(line(row), flush=True)
    write_table(rows, GemmTime, arguments.out / "recipes" / "gemm.csv")
    record = manifest([], [], {"size": arguments.size, "rounds": arguments.rounds}) | {
        "command": f"python experiments/{Path(__file__).name}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - start),
    }
    keep_manifest("gemm", record, arguments.out / "recipes")


def timed(size: int, rounds: int) -> list[GemmTime]:
    """Every recipe both ways, against the machine's own product in the same rounds."""
    a, b = (jax.random.normal(jax.random.key(seed), (size, size)) for seed in (0, 1))
    own = compiled(lambda a, b: jnp.matmul(a, b, precision="highest"), a, b)
    ways: dict[Way, dict[str, Any] | None] = {"plain": None, "options": lp.compiler_options()}
    programs: dict[tuple[str, str, Way], Compiled] = {
        (recipe, engine, way): compiled(
            lambda a, b, recipe=recipe, engine=engine: lp.gemm(a, b, recipe, engine=engine),
            a,
            b,
            options=options,
        )
        for recipe, engine in GOALS
        for way, options in ways.items()
    }
    calls = {" ".join(key): program.call for key, program in programs.items()}
    times = in_turn({"own": own.call} | calls, rounds, {"own": 3})
    rows = []
    for (recipe, engine, way), program in programs.items():
        seconds = times[f"{recipe} {engine} {way}"]
        middle, low, high = ratio(seconds, times["own"])
        wanted = GOALS[recipe, engine]
        rows.append(
            GemmTime(
                size=size,
                recipe=recipe,
                engine=engine,
                way=way,
                seconds=statistics.median(seconds),
                times_float32=middle,
                low=low,
                high=high,
                wanted=wanted,
                met="met" if middle <= wanted else "missed",
                compile_seconds=program.seconds,
                temporary_bytes=program.temporary_bytes,
                device=jax.devices()[0].device_kind,
            )
        )
    return rows


def line(row: GemmTime) -> str:
    return (
        f"{row.size:5} {row.recipe:12} {row.engine:7} {row.way:8} {row.seconds:7.3f} s  "
        f"{row.times_float32:5.2f} times float32 ({row.low:.2f} to {row.high:.2f})  wanted "
        f"{row.wanted:g}: {row.met}  compiled in {row.compile_seconds:.1f} s"
    )


if __name__ == "__main__":
    main()
