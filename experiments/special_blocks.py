"""Prints what quantizers make of tiles of zeros, of subnormals, with one NaN, with one Inf.

Each beside the answer of the source that the entry cites, from special_blocks.toml:

    python experiments/special_blocks.py
"""

import dataclasses
import sys
import tomllib
from itertools import groupby
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import lowprec as lp

CASES = Path(__file__).with_suffix(".toml")
TILES = {
    "zeros": "0, 0, ...",
    "subnormals": "2^-127, 2^-127, ...",
    "one NaN": "NaN, 1, 1, ...",
    "one Inf": "Inf, 1, 1, ...",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A tile under a block, and what the block's source makes of it.

    Attributes:
      block, tile: names.
      scale, values: what we expect of ourselves, as `answer` words it.
      source: where the source's answer is from.
      source_scale, source_values: the source's answer in the same words.
      note: why they differ, where they do.
    """

    block: str
    tile: str
    scale: str
    values: str
    source: str
    source_scale: str
    source_values: str
    note: str = ""


def cases() -> list[Case]:
    """The table of special_blocks.toml."""
    return [Case(**case) for case in tomllib.loads(CASES.read_text())["case"]]


def tile(kind: str, size: int) -> np.ndarray:
    """One tile of float32 numbers."""
    if kind == "zeros":
        return np.zeros((1, size), np.float32)
    if kind == "subnormals":
        return np.full((1, size), 1 << 22, np.uint32).view(np.float32)
    x = np.ones((1, size), np.float32)
    x[0, 0] = np.nan if kind == "one NaN" else np.inf
    return x


def answer(block: str, kind: str) -> tuple[str, str]:
    """The scale of the tile (a code or a float32) and its values, in words."""
    size = int(lp.get_block(block).tile[1])
    q = lp.quantize(jnp.asarray(tile(kind, size)), block)
    scale = np.asarray(q.scales).item()
    words = f"code {scale}" if q.scales.dtype == jnp.uint8 else f"{scale:.9g}"
    if q.tensor_scale is not None:
        words += f", tensor {q.tensor_scale.item():.9g}"
    # As float64, since a subnormal may be flushed wherever it is computed with.
    bits = np.asarray(q.dequantize()).view(np.uint32)[0]
    values = [_word(int(x)) for x in bits]
    runs = [(word, len(list(run))) for word, run in groupby(values)]
    return words, ", ".join(f"{word} x {count}" for word, count in runs)


def _word(bits: int) -> str:
    exponent = bits & 0x7F800000
    if 0 < bits < 1 << 23:
        return f"{bits * 2.0**-149:.6g}"
    value = np.array(bits, np.uint32).view(np.float32).item()
    return "NaN" if exponent == 0x7F800000 and bits & 0x7FFFFF else f"{value:.6g}"


def main() -> int:
    """Prints the table; 1 where an answer is not the one that special_blocks.toml records."""
    wrong = 0
    for name, of_block in groupby(cases(), key=lambda case: case.block):
        print(f"\nblock:{name}")
        for case in of_block:
            got = answer(name, case.tile)
            same = (case.source_scale, case.source_values) == got
            wrong += got != (case.scale, case.values)
            print(f"  {case.tile:10s} ({TILES[case.tile]})")
            print(f"    ours    {got[0]}: {got[1]}")
            print(f"    source  {case.source_scale}: {case.source_values}   [{case.source}]")
            if not same or case.note:
                print(f"    {'same' if same else 'differs'}{': ' if case.note else ''}{case.note}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
