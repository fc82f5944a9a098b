"""How fast are casts and block quantizers, beside the machine's memory and beside their peers?

    python experiments/throughput_casts.py [--sizes 20 22 24] [--rounds 9] [--out DIRECTORY]

Every function of a group is timed once a round, in turn, so that what else the machine does falls
on all alike; a ratio is the median over rounds, with its quartiles. `plain` is a call inside a
caller's own `jax.jit`, `options` one compiled with `lowprec.compiler_options()`. Times are of
emulation: they say nothing of hardware that has the formats. Peers that are not installed are
listed as missing: `pip install gfloat torch torchao triton qtorch pychop` gives them but
microxcaling, which is installed from its repository.
"""

import argparse
import datetime
import importlib
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import lowprec as lp
from lowprec.throughput import Compiled, compiled, in_turn, ratio, write_table

Call = Callable[[], Any]
COLUMNS = 1024
"""The length of a row, along which blocks lie."""
OURS = ("lowprec, plain", "lowprec, options")
REFERENCE = "multiply by a constant"
FORMAT = "float8_e4m3fn"
BLOCKS = {"fp8_1x128": 5.0, "mxfp8_e4m3": 5.0, "mxfp4": 5.0, "nvfp4": 5.0}
"""Block scalings, and how many times faster than torchao and microxcaling each is wanted."""
MICROXCALING = {"mxfp8_e4m3": "fp8_e4m3", "mxfp4": "fp4_e2m1"}
"""Its names of the elements of those that it has."""


class Contest(NamedTuple):
    """One operation with everybody who does it; missing peers have a reason instead of a call."""

    operation: str
    calls: dict[str, Call]
    missing: dict[str, str]
    bytes_per_element: float


class Goal(NamedTuple):
    """A ratio of elements per second that is wanted at 2^22 elements."""

    operation: str
    ours: str
    other: str
    at_least: float


class Row(NamedTuple):
    """A line of the table."""

    elements: int
    operation: str
    implementation: str
    elements_per_second: float
    ratio_to_multiply: float
    ratio_low: float
    ratio_high: float
    compile_seconds: float | None
    temporary_per_input: float | None
    note: str


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 22, 24], metavar="LOG2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("reports/throughput"))
    arguments = parser.parse_args()
    rows: list[Row] = []
    ratios: dict[tuple[int, str], dict[str, list[float]]] = {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for size in arguments.sizes:
        for contest, programs in contests(1 << size):
            times = in_turn(contest.calls, arguments.rounds)
            ratios[1 << size, contest.operation] = times
            for name, seconds in times.items():
                rows.append(_row(1 << size, contest, name, seconds, times, programs.get(name)))
                print(_line(rows[-1]), flush=True)
            for name, reason in contest.missing.items():
                rows.append(_missing(1 << size, contest.operation, name, reason))
                print(f"{contest.operation:<34} {name:<24} missing: {reason}")
        # What is done stays, whatever comes.
        _write(arguments.out / "casts.csv", rows)
    if 1 << 22 in {elements for elements, _ in ratios}:
        _write_goals(arguments.out / "goals.csv", ratios)


def contests(elements: int) -> Iterator[tuple[Contest, dict[str, Compiled]]]:
    """Every operation on standard normal numbers of several binades, with what was compiled."""
    shape = (elements // COLUMNS, COLUMNS)
    x = jax.random.normal(jax.random.key(0), shape, jnp.float32) * 8
    multiply = compiled(lambda x: x * jnp.float32(1.7), x)
    round_trips = _round_trips(np.asarray(x))
    yield _contest("cast to float8_e4m3fn and back", x, lambda x: lp.cast(x, FORMAT), multiply, 8, {
        "XLA astype": lambda: compiled(lambda x: x.astype(FORMAT).astype(jnp.float32), x).call,
        **round_trips,
    })  # fmt: skip
    yield _contest("encode float8_e4m3fn", x, lambda x: lp.encode(x, FORMAT), multiply, 5, {
        "torch": lambda: _torch_encode(np.asarray(x)),
        "ml_dtypes": lambda: lambda: np.asarray(x).astype(ml_dtypes.float8_e4m3fn),
    })  # fmt: skip
    for name in BLOCKS:
        there_and_back = lambda x, name=name: lp.cast(x, name)
        peer = {"torchao": lambda name=name: _torchao(name, np.asarray(x))}
        if name in MICROXCALING:
            peer["microxcaling"] = lambda name=name: _microxcaling(name, np.asarray(x))
        yield _contest(f"quantize, dequantize {name}", x, there_and_back, multiply, 8, peer)
    for name in ("float4_e2m1fn", "float6_e2m3fn"):
        codes = jax.block_until_ready(lp.encode(x, name))
        packed = jax.block_until_ready(lp.pack(codes, name))
        cast = {"lowprec cast": lambda name=name: compiled(lambda x: lp.cast(x, name), x).call}
        pack = lambda codes, name=name: lp.pack(codes, name)
        unpack = lambda packed, name=name: lp.unpack(packed, name, COLUMNS)
        yield _contest(f"pack {name}", codes, pack, multiply, 2, cast)
        yield _contest(f"unpack {name}", packed, unpack, multiply, 2, cast)


def _contest(
    operation: str,
    x: jax.Array,
    ours: Callable[[jax.Array], Any],
    multiply: Compiled,
    bytes_per_element: float,
    peers: dict[str, Callable[[], Call]],
) -> tuple[Contest, dict[str, Compiled]]:
    programs = {
        REFERENCE: multiply,
        OURS[0]: compiled(ours, x),
        OURS[1]: compiled(ours, x, options=lp.compiler_options()),
    }
    calls, missing = {name: one.call for name, one in programs.items()}, {}
    for name, make in peers.items():
        try:
            calls[name] = make()
            calls[name]()
        except Exception as error:  # A peer may fail in any way: that is its result.
            calls.pop(name, None)
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    return Contest(operation, calls, missing, bytes_per_element), programs


def _round_trips(x: np.ndarray) -> dict[str, Callable[[], Call]]:
    """float32 to float8_e4m3fn and back by the peers, in their fastest way."""

    def by_ml_dtypes() -> Call:
        return lambda: x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)

    def by_torch() -> Call:
        torch = importlib.import_module("torch")
        tensor = torch.from_numpy(x.copy())
        return lambda: tensor.to(torch.float8_e4m3fn).to(torch.float32)

    def by_gfloat() -> Call:
        gfloat = importlib.import_module("gfloat")
        formats = importlib.import_module("gfloat.formats")
        info, mode = formats.format_info_ocp_e4m3, gfloat.RoundMode.TiesToEven
        return compiled(
            lambda x: gfloat.round_ndarray(info, x, mode, sat=True), jnp.asarray(x)
        ).call

    def by_qtorch() -> Call:
        torch, quant = importlib.import_module("torch"), importlib.import_module("qtorch.quant")
        tensor = torch.from_numpy(x.copy())
        return lambda: quant.float_quantize(tensor, exp=4, man=3, rounding="nearest")

    def by_pychop() -> Call:
        pychop = importlib.import_module("pychop")
        pychop.backend("numpy")
        chop = pychop.Chop(exp_bits=4, sig_bits=3, rmode=1)
        return lambda: chop(x)

    return {
        "ml_dtypes": by_ml_dtypes,
        "torch": by_torch,
        "gfloat, jit": by_gfloat,
        "qtorch": by_qtorch,
        "pychop": by_pychop,
    }


def _torch_encode(x: np.ndarray) -> Call:
    torch = importlib.import_module("torch")
    tensor = torch.from_numpy(x.copy())
    return lambda: tensor.to(torch.float8_e4m3fn)


def _torchao(block: str, x: np.ndarray) -> Call:
    """Quantizing and back by torchao, on the CPU and as it stands."""
    torch = importlib.import_module("torch")
    tensor = torch.from_numpy(x.copy())
    if block == "fp8_1x128":
        kernels = importlib.import_module("torchao.prototype.blockwise_fp8_training.kernels")

        def by_tiles() -> Any:
            codes, scales = kernels.torch_blockwise_scale_act_quant_lhs(tensor, 128)
            tiles = codes.to(torch.float32).reshape(*scales.shape, -1)
            return (tiles * scales.unsqueeze(-1)).reshape(tensor.shape)

        return by_tiles
    if block == "nvfp4":
        nvfp4 = importlib.import_module("torchao.prototype.mx_formats.nvfp4_tensor")

        def by_levels() -> Any:
            level = nvfp4.per_tensor_amax_to_scale(tensor.abs().max())
            return nvfp4.NVFP4Tensor.to_nvfp4(tensor, per_tensor_scale=level).dequantize()

        return by_levels
    mx = importlib.import_module("torchao.prototype.mx_formats.mx_tensor")
    element = torch.float8_e4m3fn if block == "mxfp8_e4m3" else torch.float4_e2m1fn_x2

    def by_powers() -> Any:
        scales, codes = mx.to_mx(tensor, element, 32)
        return mx.to_dtype(codes, scales, element, 32, torch.float32)

    return by_powers


def _microxcaling(block: str, x: np.ndarray) -> Call:
    """Quantizing and back by microxcaling, which is on no package index, on the CPU."""
    torch = importlib.import_module("torch")
    operators, tensor = importlib.import_module("mx.mx_ops"), torch.from_numpy(x)
    options = {"axes": [-1], "block_size": 32}
    return lambda: operators._quantize_mx(tensor, 8, MICROXCALING[block], **options)


def _row(
    elements: int,
    contest: Contest,
    name: str,
    seconds: list[float],
    times: dict[str, list[float]],
    program: Compiled | None,
) -> Row:
    middle, low, high = ratio(times[REFERENCE], seconds)
    note = ""
    if jax.default_backend() != "cpu":
        moved = contest.bytes_per_element / statistics.median(seconds)
        copied = 8.0 / statistics.median(times[REFERENCE])
        note = f"{moved / copied:.2f} of the bandwidth of a multiply"
    return Row(
        elements,
        contest.operation,
        name,
        elements / statistics.median(seconds),
        middle,
        low,
        high,
        None if program is None else program.seconds,
        None if program is None else program.temporary_bytes / (4 * elements),
        note,
    )


def _missing(elements: int, operation: str, name: str, reason: str) -> Row:
    nan = float("nan")
    return Row(elements, operation, name, nan, nan, nan, nan, None, None, f"missing: {reason}")


def _line(row: Row) -> str:
    text = (
        f"{row.operation:<34} {row.implementation:<24} 2^{row.elements.bit_length() - 1} "
        f"{row.elements_per_second / 1e6:9.1f} M/s  x{row.ratio_to_multiply:.2f} of a multiply "
        f"({row.ratio_low:.2f} to {row.ratio_high:.2f})"
    )
    if row.compile_seconds is not None:
        text += (
            f"  compiled in {row.compile_seconds:.2f} s, temporary {row.temporary_per_input:.2f}x"
        )
    return f"{text}  {row.note}".rstrip()


def _write(path: Path, rows: list[Row]) -> None:
    today = datetime.date.today().isoformat(), jax.devices()[0].device_kind
    write_table(path, [*Row._fields, "date", "device"], [(*row, *today) for row in rows])


def _write_goals(path: Path, ratios: dict[tuple[int, str], dict[str, list[float]]]) -> None:
    """The goals at 2^22 elements, each met or missed in this run."""
    trip, code = "cast to float8_e4m3fn and back", "encode float8_e4m3fn"
    fastest = [name for name in ("ml_dtypes", "torch", "gfloat, jit", "qtorch", "pychop")]
    goals = [Goal(trip, OURS[1], REFERENCE, 0.8), Goal(trip, OURS[0], REFERENCE, 0.4)]
    goals += [Goal(trip, OURS[0], name, 8.0) for name in fastest]
    goals += [Goal(trip, OURS[0], "XLA astype", 2.0), Goal(code, OURS[0], "torch", 1.5)]
    goals += [
        Goal(f"quantize, dequantize {name}", OURS[0], peer, times)
        for name, times in BLOCKS.items()
        for peer in ("torchao", *["microxcaling"] * (name in MICROXCALING))
    ]
    for name in ("float4_e2m1fn", "float6_e2m3fn"):
        for way in ("pack", "unpack"):
            goals.append(Goal(f"{way} {name}", OURS[0], "lowprec cast", 0.5))
    lines = []
    for goal in goals:
        times = ratios[1 << 22, goal.operation]
        if goal.other not in times:
            lines.append([*goal, "", "", "", "peer missing"])
            continue
        middle, low, high = ratio(times[goal.other], times[goal.ours])
        verdict = "met" if middle >= goal.at_least else "missed"
        lines.append([*goal, f"{middle:.3g}", f"{low:.3g}", f"{high:.3g}", verdict])
    write_table(path, [*Goal._fields, "ratio", "low", "high", "verdict"], lines)
    print("\nGoals at 2^22 elements: elements per second of ours over the other's")
    for operation, ours, other, wanted, middle, low, high, verdict in lines:
        print(
            f"{operation:<34} {ours:<18} / {other:<24} {middle:>6} ({low} to {high}), "
            f"wanted {wanted}: {verdict}"
        )


if __name__ == "__main__":
    main()
