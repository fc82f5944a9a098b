"""What stands in for a Hopper GPU where there is none: it reads jobs as the hardware reads them.

Where each element lies is written out here element by element, after the formulas of the PTX ISA,
and shares nothing with hopper_layout.py, which packs whole arrays.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lowprec.engines.oracle import dot
from lowprec.engines.oracle_number import add, decoder, multiply, round_to, to_float32_bits
from lowprec.numerics.format import get_format
from tests.silicon.hopper_groups import to_codes, to_values
from tests.silicon.hopper_instructions import Instruction, format_of
from tests.silicon.hopper_jobs import Job

_FLOAT32 = get_format("float32")
Place = tuple[int, int]


class Read(NamedTuple):
    """A job's matrices: a (64, K), b (8, K) and c (64, 8) as codes, scales (chunks, 64, 8)."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    scales: list[np.ndarray]


def read_job(job: Job, offsets: tuple[int, int] = (128, 256)) -> Read:
    """Reads the operands from where the instruction looks for them.

    Args:
      job: as it is sent to the GPU.
      offsets: the descriptor's leading and stride dimension byte offsets.
    """
    one = job.instruction
    if one.unit == "wgmma":
        a, b = (_from_shared(one, x, offsets) for x in (job.a, job.b))
    else:
        a, b = _from_fragments(one, job.a, _a_places), _from_fragments(one, job.b, _b_places)
    scales = [_from_accumulators(x, np.dtype(np.uint32)) for kind in job.scales for x in kind]
    return Read(a, b, _from_accumulators(job.c, one.output_dtype), scales)


def _from_shared(one: Instruction, images: np.ndarray, offsets: tuple[int, int]) -> np.ndarray:
    leading, stride = offsets
    dtype = one.formats[0].code_dtype
    steps = []
    for image in images:
        octets = image.view(np.uint8)
        rows = len(octets) // 32
        places = [
            [
                row // 8 * stride + octet // 16 * leading + row % 8 * 16 + octet % 16
                for octet in range(32)
            ]
            for row in range(rows)
        ]
        steps.append(octets[np.array(places) % len(octets)].view(dtype))
    return np.concatenate(steps, 1)


def _a_places(one: Instruction, lane: int) -> Iterator[Place]:
    """Row and k of a lane's elements of A, in the order of its registers."""
    group, thread = lane >> 2, lane % 4
    match one.length:
        case 32:
            for i in range(16):
                row = group if 0 <= i < 4 or 8 <= i < 12 else group + 8
                yield row, thread * 4 + (i & 3) + (16 if i >= 8 else 0)
        case 16:
            for i in range(8):
                row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
                yield row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)
        case _:
            for i in range(4):
                yield (group if i in (0, 2) else group + 8), (thread if i < 2 else thread + 4)


def _b_places(one: Instruction, lane: int) -> Iterator[Place]:
    """Column and k of a lane's elements of B."""
    group, thread = lane >> 2, lane % 4
    match one.length:
        case 32:
            for i in range(8):
                yield group, thread * 4 + (i & 3) + (16 if i >= 4 else 0)
        case 16:
            for i in range(4):
                yield group, thread * 2 + (i & 1) + (8 if i >= 2 else 0)
        case _:
            for i in range(2):
                yield group, thread + 4 * i


def _from_fragments(
    one: Instruction, images: np.ndarray, places: Callable[[Instruction, int], Iterator[Place]]
) -> np.ndarray:
    codes = images.view(one.formats[0].code_dtype)
    dealt = [list(places(one, lane)) for lane in range(32)]
    warps = codes.shape[1] // (32 * len(dealt[0]))
    height = 16 if warps == 4 else 8
    out = np.zeros((warps * height, len(images) * one.length), codes.dtype)
    for step, image in enumerate(codes.reshape(len(images), warps, 32, -1)):
        for warp in range(warps):
            for lane in range(32):
                for i, (row, k) in enumerate(dealt[lane]):
                    out[warp * height + row, step * one.length + k] = image[warp, lane, i]
    return out


def _accumulator_places() -> Iterator[tuple[int, int, Place]]:
    """Thread, number and place of every accumulator."""
    for thread in range(128):
        warp, lane = thread // 32, thread % 32
        for i in range(4):
            row = lane // 4 if i < 2 else lane // 4 + 8
            yield thread, i, (16 * warp + row, lane % 4 * 2 + (i & 1))


def _from_accumulators(registers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    codes, out = registers.view(dtype), np.zeros((64, 8), dtype)
    for thread, i, place in _accumulator_places():
        out[place] = codes[thread, i]
    return out


def _to_accumulators(d: np.ndarray) -> np.ndarray:
    codes = np.zeros((128, 4), d.dtype)
    for thread, i, place in _accumulator_places():
        codes[thread, i] = d[place]
    return codes.view(np.uint32)


def exact_device(jobs: Sequence[Job]) -> list[np.ndarray]:
    """Runs jobs by the exact oracle of each instruction's engine."""
    return [_to_accumulators(_exact(job, read_job(job))) for job in jobs]


def _exact(job: Job, read: Read) -> np.ndarray:
    one, chunks = job.instruction, len(job.scales[0])
    remembered = functools.cache(functools.partial(_promoted_dot if chunks else _dot, one))
    d = np.zeros((64, 8), one.output_dtype)
    for row in range(64):
        for column in range(8):
            scales = tuple(int(x[row, column]) for x in read.scales)
            codes = bytes(read.a[row]), bytes(read.b[column]), int(read.c[row, column])
            d[row, column] = remembered(*codes, scales)
    return d


def _dot(one: Instruction, a: bytes, b: bytes, c: int, scales: tuple[int, ...] = ()) -> int:
    left, right = (
        np.frombuffer(x, fmt.code_dtype).tolist()
        for x, fmt in zip((a, b), one.formats, strict=True)
    )
    output = format_of(one.output)
    start = c if output.name == "float32" else _widened(c)
    a_format, b_format = one.formats
    bits = dot(one.engine, left, right, start, a_format=a_format, b_format=b_format)
    return bits if output.name == "float32" else _narrowed(bits)


def _widened(code: int) -> int:
    with np.errstate(invalid="ignore"):
        return int(np.array(code, np.uint16).view(np.float16).astype(np.float32).view(np.uint32))


def _narrowed(bits: int) -> int:
    """float16 codes of float32 bits that float16 holds; a NaN keeps what fits."""
    if bits & 0x7FFFFFFF > 0x7F800000:
        return (bits >> 16 & 0x8000) | 0x7C00 | (bits >> 13 & 0x3FF)
    return int(np.array(bits, np.uint32).view(np.float32).astype(np.float16).view(np.uint16))


def _promoted_dot(one: Instruction, a: bytes, b: bytes, c: int, scales: tuple[int, ...]) -> int:
    read, total = decoder(_FLOAT32), decoder(_FLOAT32)(c)
    count = len(scales) // 2
    length = len(a) // count
    for chunk in range(count):
        part = slice(chunk * length, (chunk + 1) * length)
        partial = read(_dot(one, a[part], b[part], 0))
        product = multiply(read(scales[chunk]), read(scales[count + chunk]))
        scale = round_to(product, _FLOAT32, "nearest_even")
        total = round_to(add(multiply(scale, partial), total), _FLOAT32, "nearest_even")
    return to_float32_bits(total, 0x7FFFFFFF)


def integer_device(jobs: Sequence[Job], offsets: tuple[int, int] = (128, 256)) -> list[np.ndarray]:
    """Runs jobs whose sums are small integers, in float64."""
    returned = []
    for job in jobs:
        read, output = read_job(job, offsets), format_of(job.instruction.output)
        a, b, c = (
            to_values(x, fmt)
            for x, fmt in zip(read[:3], (*job.instruction.formats, output), strict=True)
        )
        returned.append(_to_accumulators(to_codes(a @ b.T + c, output)))
    return returned
