"""Where the elements of a tile lie in shared memory and in registers, for the GPU's instructions.

Every instruction takes 32 bytes of each row of A (64 rows) and of each column of B (8 columns), so
that layouts are those of bytes, alike for all formats. Sections of the PTX ISA 8.7 are named where
they are followed.
"""

import numpy as np

from tests.silicon.hopper_instructions import COLUMNS, ROWS, STEP_BYTES, Instruction

LEADING_OFFSET = 128
"""Bytes from one core matrix to the next along K: a core matrix is 8 rows of 16 bytes, in order.

"Asynchronous Warpgroup Level Matrix Shared Memory Layout", K-major without swizzle. "Matrix
Descriptor Format": the leading dimension byte offset is the distance of core matrices along K, the
stride dimension byte offset that along M or N.
"""
STRIDE_OFFSET = STEP_BYTES // 16 * LEADING_OFFSET
"""Bytes from one core matrix to the next along M or N."""
WARP = 32
THREADS = 4 * WARP


def pack_operands(
    instruction: Instruction, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A and B as the kernel copies them, step by step.

    Args:
      instruction: whose layout is wanted.
      a: (64, K) codes, K a multiple of the instruction's length.
      b: (8, K) codes, a column of B each.

    Returns:
      uint32 of shapes (steps, 512) and (steps, 64).

    Raises:
      ValueError: the shapes are no tile's, or K is no multiple.
    """
    packed = []
    for argument, codes, rows in (("a", a, ROWS), ("b", b, COLUMNS)):
        if codes.ndim != 2 or codes.shape[0] != rows or codes.shape[1] % instruction.length:
            raise ValueError(
                f"`{argument}` has shape {codes.shape}; {instruction.name} takes ({rows}, K) "
                f"codes, K a multiple of {instruction.length}"
            )
        octets = np.ascontiguousarray(codes).view(np.uint8).reshape(rows, -1, STEP_BYTES)
        steps = octets.transpose(1, 0, 2)
        packer = _shared_image if instruction.unit == "wgmma" else _fragments
        image = np.ascontiguousarray(packer(steps)).reshape(len(steps), -1)
        packed.append(image.view("<u4"))
    return packed[0], packed[1]


def _shared_image(steps: np.ndarray) -> np.ndarray:
    """(steps, rows, 32) bytes by core matrices: the two along K side by side."""
    count, rows, _ = steps.shape
    return steps.reshape(count, rows // 8, 8, STEP_BYTES // 16, 16).transpose(0, 1, 3, 2, 4)


def _fragments(steps: np.ndarray) -> np.ndarray:
    """(steps, rows, 32) bytes by warps, lanes and registers.

    "Matrix Fragments for mma.m16n8k16" (16 bits), ".m16n8k8" (.tf32), ".m16n8k32" (8 bits): lane
    4 * g + t holds four bytes of row g from byte 4 * t on, for A also those of row g + 8, then
    the same 16 bytes further. B's columns are dealt as A's rows are, without the second eight.
    """
    count, rows, _ = steps.shape
    halves = 2 if rows == ROWS else 1
    # steps, warps, halves of 8 rows, g, 16-byte halves, t, bytes
    split = steps.reshape(count, rows // (8 * halves), halves, 8, 2, 4, 4)
    return split.transpose(0, 1, 3, 5, 4, 2, 6)


def pack_accumulators(instruction: Instruction, values: np.ndarray) -> np.ndarray:
    """(64, 8) codes of c as (threads, registers) uint32.

    "Register Fragments" of wgmma.m64n8 (D) and of mma.m16n8 (C and D), the same: warp w has rows
    from 16 * w on; its lane 4 * g + t holds columns 2 * t and 2 * t + 1 of row g, then of g + 8.
    """
    if values.shape != (ROWS, COLUMNS) or values.dtype != instruction.output_dtype:
        raise ValueError(
            f"accumulators of shape {values.shape} and type {values.dtype}; {instruction.name} has "
            f"({ROWS}, {COLUMNS}) of {instruction.output_dtype}"
        )
    lanes = values.reshape(4, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(lanes).reshape(THREADS, 4).view("<u4")


def unpack_accumulators(instruction: Instruction, registers: np.ndarray) -> np.ndarray:
    """(threads, registers) uint32 as (64, 8) codes of d."""
    codes = np.ascontiguousarray(registers, "<u4").view(instruction.output_dtype)
    lanes = codes.reshape(4, 8, 4, 2, 2).transpose(0, 3, 1, 2, 4)
    return np.ascontiguousarray(lanes).reshape(ROWS, COLUMNS)
