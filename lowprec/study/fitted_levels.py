"""Blocks whose elements are the levels of least squared error: what any format is measured with."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from lowprec.numerics.format import Format
from lowprec.scaling.block import Block
from lowprec.scaling.codebook import lloyd_max

LLOYD_MAX = "lloyd_max"
_FITTED_TILES = 1 << 15


def lloyd_max_block(base: Block, rng: np.random.Generator) -> Block:
    """The block with its elements replaced by Lloyd-Max levels of as many bits.

    They are fitted to other normal numbers than those that are compared: divided by the scale of
    their tile, 2^E where scales are powers of two (the floor rule, with EMAX = 0), else amax. Tiles
    are drawn with odds of the scale squared, so that the error before the division is the least.
    """
    columns = base.tile[1]
    if columns == "all":
        raise ValueError(f"block {base.name}: Lloyd-Max levels are fitted to tiles of a fixed size")
    tiles = rng.standard_normal((_FITTED_TILES, columns))
    scale = np.max(np.abs(tiles), axis=1)
    scale = 2.0 ** np.floor(np.log2(scale)) if base.power_of_two else scale
    odds = scale**2 / np.sum(scale**2)
    samples = (tiles / scale[:, None])[rng.choice(len(tiles), len(tiles), p=odds)]
    bits, name = base.element.bits, lloyd_max_name(base)
    if base.power_of_two:
        levels = _fitted(samples, bits, name)
        return dataclasses.replace(base, name=name, element=levels, scale_rule="floor")
    levels = lloyd_max(samples, bits, largest=1.0, name=name)
    return dataclasses.replace(base, name=name, element=levels)


def _fitted(samples: NDArray[np.float64], bits: int, name: str) -> Format:
    """Lloyd-Max levels, or those spaced as Panter and Dite's density where they have less error.

    From 6 bits on Lloyd's iteration on samples may stop short of its minimum, and levels with a
    density proportional to the cube root of the samples' are within 0.02 dB of it (Panter and Dite,
    "Quantization distortion in pulse-count modulation", Proc. IRE 39, 1951).
    """
    counts, edges = np.histogram(samples, 1 << 12)
    share = np.concatenate([[0.0], np.cumsum(np.cbrt(counts))])
    middles = (np.arange(1 << bits) + 0.5) / (1 << bits) * share[-1]
    spaced = np.interp(middles, share, edges).astype(np.float32)
    candidates = (
        lloyd_max(samples, bits, name=name),
        Format(name=name, table=tuple(float(level) for level in spaced)),
    )
    return min(candidates, key=lambda levels: _distortion(samples, levels))


def _distortion(samples: NDArray[np.float64], levels: Format) -> float:
    table = np.asarray(levels.table, np.float64)
    nearest = np.searchsorted((table[1:] + table[:-1]) / 2, samples.ravel())
    return float(np.mean((table[nearest] - samples.ravel()) ** 2))


def lloyd_max_name(base: Block) -> str:
    """The name of `lloyd_max_block`: of bits, tile and scale format alone."""
    shape = "x".join(map(str, base.tile))
    return f"{LLOYD_MAX}_{base.element.bits}bit_{shape}_{base.scale_format.name}"
