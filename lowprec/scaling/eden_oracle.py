"""The exact oracle of MS-EDEN blocks: float32 operations in fractions, rounded once each.

Finite numbers only, as Python floats that hold a float32. It shares no arithmetic with
`lowprec.scaling.eden`.
"""

from fractions import Fraction
from typing import NamedTuple

from lowprec.numerics import oracle
from lowprec.scaling.affine_oracle import round_to
from lowprec.scaling.block import Block


class Coded(NamedTuple):
    """Element codes and scale codes by row, the tensor scale, and the values before the rotation
    is undone."""

    codes: list[list[int]]
    scales: list[list[int]]
    tensor: float
    values: list[list[float]]


def code_rows(rows: list[list[float]], block: Block, words: list[list[int]]) -> Coded:
    """What `lowprec.quantize` makes of a rotated matrix whose rows are contracted."""
    eden = block.eden
    assert eden is not None
    width = block.tile[1]
    assert not isinstance(width, str)
    clip = _rounded(Fraction(block.element.max) / Fraction(eden.scale_override))
    top = _rounded(Fraction(eden.largest_scale))
    largest = max(abs(x) for row in rows for x in row)
    tensor = _divide(_divide(largest, top), clip) if largest else 1.0
    codes, scales, values = [], [], []
    for row, row_words in zip(rows, words, strict=True):
        tiles = [row[i : i + width] for i in range(0, len(row), width)]
        found = [_tile_scale(tile, tensor, clip, block) for tile in tiles]
        y = [
            _divide(x, _multiply(scale, tensor))
            for tile, scale in zip(tiles, found, strict=True)
            for x in tile
        ]
        coded = [_encoded(x, block) for x in y]
        q = [float(oracle.decode(code, block.element)) for code in coded]
        corrected = []
        for i, (scale, word) in enumerate(zip(found, row_words, strict=True)):
            start = i * width // eden.group * eden.group
            group = range(start, min(start + eden.group, len(row)))
            weights = [found[j // width] if eden.weights == "scale" else 1.0 for j in group]
            factor = _factor(
                [_multiply(y[j], w) for j, w in zip(group, weights, strict=True)],
                [_multiply(q[j], w) for j, w in zip(group, weights, strict=True)],
            )
            corrected.append(_stochastic(_multiply(scale, factor), word, block))
        decoded = [float(oracle.decode(code, block.scale_format)) for code in corrected]
        codes.append(coded)
        scales.append(corrected)
        values.append(
            [_multiply(_multiply(x, decoded[i // width]), tensor) for i, x in enumerate(q)]
        )
    return Coded(codes, scales, tensor, values)


def _tile_scale(tile: list[float], tensor: float, clip: float, block: Block) -> float:
    wanted = _divide(_divide(max(map(abs, tile)), clip), tensor)
    code = oracle.encode(wanted, block.scale_format, rounding="nearest_even", overflow="saturate")
    return float(oracle.decode(code, block.scale_format)) or 1.0


def _factor(y: list[float], q: list[float]) -> float:
    below = _tree([_multiply(a, b) for a, b in zip(y, q, strict=True)])
    return _divide(_tree([_multiply(a, a) for a in y]), below) if below else 1.0


def _tree(terms: list[float]) -> float:
    while len(terms) & (len(terms) - 1):
        terms = [*terms, 0.0]
    while len(terms) > 1:
        terms = [
            _rounded(Fraction(terms[i]) + Fraction(terms[i + 1])) for i in range(0, len(terms), 2)
        ]
    return terms[0]


def _encoded(x: float, block: Block) -> int:
    return oracle.encode(x, block.element, rounding=block.rounding, overflow=block.overflow)


def _stochastic(x: float, word: int, block: Block) -> int:
    return oracle.encode(
        x, block.scale_format, rounding="stochastic", overflow="saturate", word=word
    )


def _rounded(x: Fraction, negative: bool = False) -> float:
    return round_to(x, "float32", negative)


def _multiply(a: float, b: float) -> float:
    return _rounded(Fraction(a) * Fraction(b), _negative(a) != _negative(b))


def _divide(a: float, b: float) -> float:
    return _rounded(Fraction(a) / Fraction(b), _negative(a) != _negative(b))


def _negative(x: float) -> bool:
    return str(x).startswith("-")
