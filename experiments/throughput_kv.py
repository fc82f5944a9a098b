"""How long does attention over a packed cache take, beside attention over bfloat16?

    python experiments/throughput_kv.py [--tokens 32768] [--rounds 7] [--out DIRECTORY]

One query token of 32 heads over a cache of 8 heads of 128, read from its packed bytes, beside the
fastest of several programs over bfloat16 keys and values; all are timed once a round, in turn, and
a ratio is the median over rounds, with its quartiles. Then `append` of one token inside a `jit`
that donates the cache, at a short capacity and at one 64 times as long. Times are of emulation:
they say nothing of hardware that has the formats.
"""

import argparse
import dataclasses
import datetime
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import lowprec as lp
from lowprec.kv.kivi import KiviSpec
from lowprec.report.recipe_speed import keep_manifest
from lowprec.report.stored import write_table
from lowprec.study.manifest import manifest
from lowprec.throughput import AppendTime, AttendTime, Compiled, compiled, in_turn, ratio

HEADS, DIM, QUERIES = 8, 128, 32
CHUNK = 4096
"""Temporaries are to stay under so many tokens of float32 keys."""

APPENDS = 64
"""Tokens that are appended in one timing."""

SAME = 1.1
"""Appending at a long capacity is to take at most so many times what it takes at a short one."""


class Goal(NamedTuple):
    """A method and the most of bfloat16's time that it may take."""

    name: str
    wanted: float
    arithmetic: str = ""


GOALS = (
    Goal("bf16", 2.0),
    Goal("fp8_tensor", 2.0),
    Goal("fp8_token", 2.0),
    Goal("nvfp4", 3.0),
    Goal("kivi_2bit", 3.0, "float32"),
    Goal("kivi_2bit", 4.0, "float16"),
)
APPENDED = ("bf16", "fp8_token", "nvfp4", "kivi_2bit")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--long", type=int, default=65536, help="capacity of the longer `append`")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("reports/throughput"))
    arguments = parser.parse_args()
    start = time.perf_counter()
    attended = timed(arguments.tokens, arguments.rounds)
    for row in attended:
        print(attend_line(row), flush=True)
    appended = appends(arguments.long // 64, arguments.long, arguments.rounds)
    for row in appended:
        print(append_line(row), flush=True)
    folder = arguments.out / "kv"
    write_table(attended, AttendTime, folder / "attend.csv")
    write_table(appended, AppendTime, folder / "append.csv")
    settings = {name: getattr(arguments, name) for name in ("tokens", "long", "rounds")}
    record = manifest([], [], settings) | {
        "command": f"python experiments/{Path(__file__).name}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - start),
    }
    keep_manifest("kv", record, folder)


def timed(tokens: int, rounds: int) -> list[AttendTime]:
    """Every method and every bfloat16 program, in the same rounds."""
    keys = jax.random.split(jax.random.key(0), 3)
    k, v = (jax.random.normal(key, (1, HEADS, tokens, DIM)) for key in keys[:2])
    q = jax.random.normal(keys[2], (1, QUERIES, 1, DIM))
    rounded = [x.astype(jnp.bfloat16) for x in (k, v)]
    options = lp.compiler_options()
    peers = {name: compiled(peer, q, *rounded, options=options) for name, peer in PEERS.items()}
    caches, programs = {}, {}
    for goal in GOALS:
        method = with_arithmetic(lp.get_kv_method(goal.name), goal.arithmetic)
        caches[goal] = filled(method, k, v)
        programs[goal] = compiled(method.attend, caches[goal], q, options=options)
    names = {goal: f"{goal.name} {goal.arithmetic}" for goal in GOALS}
    calls = {name: peer.call for name, peer in peers.items()}
    calls |= {names[goal]: program.call for goal, program in programs.items()}
    times = in_turn(calls, rounds)
    best = min(peers, key=lambda name: statistics.median(times[name]))
    rows = [
        row(Goal(name, 0.0), tokens, peer, times[name], times[best], best, 4 * k.size)
        for name, peer in peers.items()
    ]
    return rows + [
        row(goal, tokens, program, times[names[goal]], times[best], best, caches[goal].nbytes)
        for goal, program in programs.items()
    ]


def row(
    goal: Goal,
    tokens: int,
    program: Compiled,
    seconds: list[float],
    peer_seconds: list[float],
    peer: str,
    cache_bytes: int,
) -> AttendTime:
    middle, low, high = ratio(seconds, peer_seconds)
    room = 4 * CHUNK * HEADS * DIM
    within = middle <= goal.wanted and program.temporary_bytes < room
    return AttendTime(
        tokens=tokens,
        heads=HEADS,
        dim=DIM,
        queries=QUERIES,
        method=goal.name,
        arithmetic=goal.arithmetic,
        seconds=statistics.median(seconds),
        times_bf16=middle,
        low=low,
        high=high,
        peer=peer,
        wanted=goal.wanted,
        temporary_bytes=program.temporary_bytes,
        wanted_bytes=room,
        met="peer" if not goal.wanted else "met" if within else "missed",
        cache_bytes=cache_bytes,
        compile_seconds=program.seconds,
        device=jax.devices()[0].device_kind,
    )


def with_arithmetic(method: lp.KVMethod, arithmetic: str) -> lp.KVMethod:
    """A KIVI method with its steps rounded to another format than its source's."""
    spec = method.spec
    if not arithmetic:
        return method
    assert isinstance(spec, KiviSpec) and spec.block.affine is not None
    affine = dataclasses.replace(spec.block.affine, arithmetic=arithmetic)
    block = dataclasses.replace(spec.block, affine=affine)
    return dataclasses.replace(method, spec=dataclasses.replace(spec, block=block))


def filled(method: lp.KVMethod, k: jax.Array, v: jax.Array) -> Any:
    """A full cache, appended a chunk at a time."""
    step = jax.jit(method.append, donate_argnums=0)
    cache = method.init(1, HEADS, DIM, k.shape[2])
    for start in range(0, k.shape[2], CHUNK):
        part = slice(start, start + CHUNK)
        cache = step(cache, k[:, :, part], v[:, :, part])
    return jax.block_until_ready(cache)


def softmax_whole(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """In two products over all heads, widened to float32."""
    rows = grouped(q)
    scores = jnp.matmul(rows, widened(k).swapaxes(-1, -2), precision="highest")
    return jnp.matmul(jax.nn.softmax(scores, axis=-1), widened(v), precision="highest")


def bfloat16_products(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """In two bfloat16 products with float32 sums."""
    rows = grouped(q).astype(jnp.bfloat16)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(product("bhgd,bhtd->bhgt", rows, k), axis=-1)
    return product("bhgt,bhtd->bhgd", weights.astype(jnp.bfloat16), v)


def head_by_head(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """One head's keys and values are widened at a time."""

    def one(head: tuple[jax.Array, ...]) -> jax.Array:
        rows, k, v = head
        scores = jnp.matmul(rows, widened(k).T, precision="highest")
        return jnp.matmul(jax.nn.softmax(scores, axis=-1), widened(v), precision="highest")

    return jax.lax.map(one, (grouped(q)[0], integers(k)[0], integers(v)[0]))


def in_tiles(tile: int) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """A loop over tiles with a running maximum, as flash attention has it."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        rows, k, v = grouped(q), integers(k), integers(v)
        tile_of = lambda x, index: widened(
            jax.lax.dynamic_slice_in_dim(x, index * tile, tile, axis=2)
        )

        def step(index: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            maximum, total, output = state
            scores = jnp.matmul(rows, tile_of(k, index).swapaxes(-1, -2), precision="highest")
            new = jnp.maximum(maximum, scores.max(-1, keepdims=True))
            weights, shrink = jnp.exp(scores - new), jnp.exp(maximum - new)
            added = jnp.matmul(weights, tile_of(v, index), precision="highest")
            return new, total * shrink + weights.sum(-1, keepdims=True), output * shrink + added

        nothing = jnp.zeros((*rows.shape[:3], 1))
        start = (nothing - jnp.inf, nothing, jnp.zeros_like(rows))
        _, total, output = jax.lax.fori_loop(0, k.shape[2] // tile, step, start)
        return output / total

    return attend


def grouped(q: jax.Array) -> jax.Array:
    """(batch, heads, rows, dim), scaled."""
    return q.reshape(1, HEADS, -1, DIM) * DIM**-0.5


def integers(x: jax.Array) -> jax.Array:
    """bfloat16 as integers, which XLA slices without widening the whole."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


def widened(x: jax.Array) -> jax.Array:
    """float32 of bfloat16, or of its bits."""
    if x.dtype == jnp.bfloat16:
        return x.astype(jnp.float32)
    return jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)


PEERS: dict[str, Callable[..., jax.Array]] = {
    "whole": softmax_whole,
    "bfloat16 products": bfloat16_products,
    "head by head": head_by_head,
    "tiles of 256": in_tiles(256),
    "tiles of 1024": in_tiles(1024),
}
"""Programs over bfloat16 keys and values, the fastest of which methods are compared with."""


def appends(short: int, long: int, rounds: int) -> list[AppendTime]:
    """Tokens appended one by one to caches of two capacities that are half full."""
    rows = []
    token = jax.random.normal(jax.random.key(3), (1, HEADS, 1, DIM))
    for name in APPENDED:
        method = lp.get_kv_method(name)
        chains = {tokens: Chain(method, tokens, token) for tokens in (short, long)}
        times = in_turn({str(tokens): chain.run for tokens, chain in chains.items()}, rounds)
        middle, low, high = ratio(times[str(long)], times[str(short)])
        rows.append(
            AppendTime(
                method=name,
                heads=HEADS,
                dim=DIM,
                tokens_short=short,
                tokens_long=long,
                seconds_short=statistics.median(times[str(short)]) / APPENDS,
                seconds_long=statistics.median(times[str(long)]) / APPENDS,
                ratio=middle,
                low=low,
                high=high,
                wanted=SAME,
                met="met" if middle <= SAME else "missed",
                compile_seconds=chains[long].compile_seconds,
                device=jax.devices()[0].device_kind,
            )
        )
    return rows


class Chain:
    """A cache that is given away and taken back, token by token."""

    def __init__(self, method: lp.KVMethod, tokens: int, token: jax.Array) -> None:
        half = method.init(1, HEADS, DIM, tokens)
        half = dataclasses.replace(half, length=jnp.int32(tokens // 2))
        step = jax.jit(method.append, donate_argnums=0, compiler_options=lp.compiler_options())
        lowered = step.lower(half, token, token)
        start = time.perf_counter()
        self.program = lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        self.cache, self.token, self.start = half, token, tokens // 2
        self.run()

    def run(self) -> None:
        """Appends tokens, always from the same length on."""
        cache = dataclasses.replace(self.cache, length=jnp.int32(self.start))
        for _ in range(APPENDS):
            cache = self.program(cache, self.token, self.token)
        self.cache = jax.block_until_ready(cache)


def attend_line(row: AttendTime) -> str:
    return (
        f"{row.method:18} {row.arithmetic:8} {1e3 * row.seconds:8.2f} ms  {row.times_bf16:5.2f} "
        f"times {row.peer} ({row.low:.2f} to {row.high:.2f})  wanted {row.wanted:g}  temporaries "
        f"{row.temporary_bytes / 1e6:.1f} MB of {row.wanted_bytes / 1e6:.1f}: {row.met}  compiled "
        f"in {row.compile_seconds:.1f} s"
    )


def append_line(row: AppendTime) -> str:
    return (
        f"append {row.method:12} {1e6 * row.seconds_short:8.1f} us at {row.tokens_short} tokens, "
        f"{1e6 * row.seconds_long:8.1f} us at {row.tokens_long}: {row.ratio:.3f} times "
        f"({row.low:.3f} to {row.high:.3f}): {row.met}  compiled in {row.compile_seconds:.1f} s"
    )


if __name__ == "__main__":
    main()
