"""The ledger in fractions, output by output: slow, obvious, and without its arithmetic.

Quantizers are those of `tests.gemm.exact`, sums those of `lowprec.engines.oracle`, watched as they
are rounded.
"""

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import pytest
from numpy.typing import NDArray

from lowprec.engines import matmul, oracle, oracle_fused, oracle_two_step
from lowprec.engines.oracle_number import Number
from lowprec.gemm.operand import random_signs, random_words
from lowprec.gemm.recipe import Recipe
from lowprec.numerics import Format, get_format
from lowprec.numerics import oracle as numbers
from lowprec.scaling import Block
from lowprec.scaling import transforms_oracle as transforms
from tests.gemm import exact

ONE = exact.ONE
Terms = dict[str, Fraction]


class Operand:
    """Rows along K of one operand, (rows, K) lists of fractions and of float32 bits."""

    def __init__(
        self,
        x: NDArray[np.float32],
        recipe: Recipe,
        side: str,
        key: jax.Array | None,
        gain: float,
    ) -> None:
        pair = recipe.fprop
        target, copy = getattr(pair, side), getattr(pair, f"{side}_from")
        bits = np.pad(x, [(0, 0), (0, -x.shape[1] % exact._whole(pair))]).view(np.uint32)
        copied = np.ascontiguousarray(exact.exact_copy(np.ascontiguousarray(bits.T), copy).T)
        own = None if key is None else jax.random.split(key)[0 if side == "a" else 1]
        drawn = _drawn(copied, target, side, own, key)
        turned = pair.transforms_cancel
        self.rows = exact.exact_operand(copied, target, drawn, turned=turned)
        self.given = _fractions(bits)
        self.turned = self.given
        transform = target.transform if isinstance(target, Block) else None
        if transform is not None and turned:
            made = transforms.apply_rows(exact._listed(bits), transform, drawn.signs)
            self.turned = [[Fraction(v) for v in row] for row in made]
        elements, scales = (_fractions(v) for v in (self.rows.elements, self.rows.scales))
        self.tensor = [_value(t) for t in self.rows.tensor]
        self.stands = [
            [e * s * t for e, s in zip(*row, strict=True)]
            for *row, t in zip(elements, scales, self.tensor, strict=True)
        ]
        self.gain = Fraction(gain)
        self.fate = [
            [_fate(target, turned, *place) for place in zip(*row, strict=True)]
            for row in zip(self.turned, self.stands, elements, scales, strict=True)
        ]
        for row, t in zip(self.fate, self.tensor, strict=True):
            assert t == 1 or "clipping" not in row, "an oracle of clipping knows no tensor scale"


def _drawn(bits: exact.Bits, target: Format | Block, side: str, own: Any, key: Any) -> exact.Drawn:
    shape = bits.shape if side == "a" else bits.shape[::-1]
    words = None
    if isinstance(target, Block):
        words = random_words(shape, target, -1 if side == "a" else -2, own)
    words = None if words is None else np.asarray(words if side == "a" else words.T)
    signs = random_signs(target, key)
    listed = None if signs is None else np.asarray(signs, float).tolist()
    return exact.Drawn(words, listed, exact._means(bits, target))


def _fate(
    target: Format | Block, turned: bool, x: Fraction, stands: Fraction, e: Fraction, s: Fraction
) -> str:
    """What became of an element."""
    if isinstance(target, Block) and target.transform is not None and not turned:
        return "grid"
    if x != 0 and stands == 0:
        return "dead_zone"
    if isinstance(target, Block) and target.coding == "scaled":
        values = sorted(_finite(target.element))
        limit = (Fraction(values[-1]) + (Fraction(values[-1]) - Fraction(values[-2])) / 2) * s
        at_end = e in (Fraction(values[0]), Fraction(values[-1]))
        return "clipping" if at_end and abs(x) > limit else "grid"
    return "grid"


def _fractions(bits: exact.Bits) -> list[list[Fraction]]:
    return [[_value(v) for v in row] for row in bits.tolist()]


def _value(bits: int) -> Fraction:
    return Fraction(float(np.uint32(bits).view(np.float32)))


def product(a: list[Fraction], b: list[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def exact_ledger(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    recipe: Recipe,
    gains: tuple[float, float],
    key: jax.Array | None = None,
) -> list[list[Terms]]:
    """The terms of every output, and `output`; `recipe` is of one role, whose pair is fprop."""
    x = Operand(np.ascontiguousarray(a), recipe, "a", key, gains[0])
    y = Operand(np.ascontiguousarray(b.T), recipe, "b", key, gains[1])
    return [[_entry(x, i, y, j, recipe) for j in range(b.shape[1])] for i in range(a.shape[0])]


def _entry(a: Operand, i: int, b: Operand, j: int, recipe: Recipe) -> Terms:
    exactly = product(a.given[i], b.given[j])
    turned = product(a.turned[i], b.turned[j])
    terms = {"transform": turned - exactly}
    for name, (x, m), (y, n) in (("a", (a, i), (b, j)), ("b", (b, j), (a, i))):
        terms[f"{name}_gain"] = x.gain * turned
        for fate in ("clipping", "dead_zone", "grid"):
            error = [
                (q - v - x.gain * v) * (found == fate)
                for q, v, found in zip(x.stands[m], x.turned[m], x.fate[m], strict=True)
            ]
            terms[f"{name}_{fate}"] = product(error, y.turned[n])
    of_a = [q - v for q, v in zip(a.stands[i], a.turned[i], strict=True)]
    of_b = [q - v for q, v in zip(b.stands[j], b.turned[j], strict=True)]
    terms["cross"] = product(of_a, of_b)
    quantized = product(a.stands[i], b.stands[j])
    return terms | _engine(a, i, b, j, recipe, quantized)


def _engine(a: Operand, i: int, b: Operand, j: int, recipe: Recipe, quantized: Fraction) -> Terms:
    x, y = a.rows.elements[i].tolist(), b.rows.elements[j].tolist()
    scales = [a.rows.scales[i].tolist(), b.rows.scales[j].tolist()]
    tensor = a.tensor[i] * b.tensor[j]
    if recipe.scale_place == "operands":
        x, y = (list(map(numbers.multiply, *pair)) for pair in ((x, scales[0]), (y, scales[1])))
    promoted = recipe.scale_place == "promotion" and recipe.promote_every is not None
    last = Fraction(1)
    if recipe.scale_place in ("promotion", "output") and not promoted:
        last = _value(scales[0][0]) * _value(scales[1][0])
    terms = dict.fromkeys(
        ("scaling", "alignment", "accumulator_rounding", "promotion"), Fraction(0)
    )
    total, sums = 0, Fraction(0)
    for start, stop in _parts(recipe, len(x)):
        part = slice(start, stop)
        found = _dot(recipe, x[part], y[part], [s[part] for s in scales])
        weight = _value(scales[0][start]) * _value(scales[1][start]) if promoted else Fraction(1)
        for name in ("alignment", "accumulator_rounding"):
            terms[name] += weight * found[name] * last * tensor
        sums += weight * found["product"]
        added, after = _promote(recipe, found["bits"], scales[0][start], scales[1][start], total)
        if (start, stop) == (0, len(x)) and recipe.promote_every is None:
            added, after = _value(found["bits"]), found["bits"]
        terms["scaling"] += (added - weight * _value(found["bits"])) * last * tensor
        terms["promotion"] += (_value(after) - _value(total) - added) * last * tensor
        total = after
    terms["scaling"] += sums * last * tensor - quantized
    if last != 1 or (recipe.scale_place in ("promotion", "output") and not promoted):
        scaled = numbers.multiply(numbers.multiply(scales[0][0], scales[1][0]), total)
        terms["scaling"] += (_value(scaled) - last * _value(total)) * tensor
        total = scaled
    scaled = numbers.multiply(numbers.multiply(a.rows.tensor[i], b.rows.tensor[j]), total)
    terms["scaling"] += _value(scaled) - tensor * _value(total)
    output = _rounded(scaled, recipe.output)
    return terms | {"output_rounding": output - _value(scaled), "output": output}


def _rounded(bits: int, fmt: Format) -> Fraction:
    x = float(_value(bits))
    code = numbers.encode(x, fmt, rounding="nearest_even", overflow="nonsaturating")
    return Fraction(numbers.decode(code, fmt).value)


def _parts(recipe: Recipe, depth: int) -> list[tuple[int, int]]:
    if recipe.promote_every is not None:
        starts = range(0, depth, recipe.promote_every)
        return [(k, min(k + recipe.promote_every, depth)) for k in starts]
    if recipe.order == "sequential":
        return [(0, depth)]
    # Of the engines here an instruction divides 32.
    count = int(recipe.order.removeprefix("split_k."))
    steps = -(-depth // 32)
    size = 32 * -(-steps // count)
    return [(k, min(k + size, depth)) for k in range(0, depth, size)]


def _promote(recipe: Recipe, partial: int, a: int, b: int, total: int) -> tuple[Fraction, int]:
    """What is added to the total, and the total after it."""
    if recipe.scale_place != "promotion" or recipe.promote_every is None:
        return _value(partial), numbers.fused_multiply_add(ONE, partial, total)
    if recipe.promotion == "multiply_multiply_add":
        added = numbers.multiply(numbers.multiply(partial, a), b)
        return _value(added), numbers.fused_multiply_add(ONE, added, total)
    if recipe.promotion == "multiply_fma":
        first = numbers.multiply(partial, a)
        return _value(first) * _value(b), numbers.fused_multiply_add(first, b, total)
    scale = numbers.multiply(a, b)
    if recipe.promotion == "fma":
        added = _value(scale) * _value(partial)
        return added, numbers.fused_multiply_add(scale, partial, total)
    added = numbers.multiply(scale, partial)
    return _value(added), numbers.fused_multiply_add(ONE, added, total)


def _dot(recipe: Recipe, x: list[int], y: list[int], scales: list[list[int]]) -> dict[str, Any]:
    """The engine's sum of one part: bits, exact product, and what was cut off and rounded."""
    engine, in_engine = recipe.engine, recipe.scale_place == "engine"
    values = [[_value(v) for v in row] for row in (x, y)]
    if in_engine:
        values = [
            [v * _value(s) for v, s in zip(*row, strict=True)]
            for row in zip(values, scales, strict=True)
        ]
    exactly = product(values[0], values[1])
    if engine.accumulation == "native":
        left, right = (np.array(row, np.uint32).view(np.float32) for row in (x, y))
        bits = int(
            np.asarray(matmul(left[None], right[:, None], engine=engine)).view(np.uint32)[0, 0]
        )
        return _untraced(bits, exactly)
    formats, codes, given = [], [], {}
    for row, target in zip((x, y), (recipe.fprop.a, recipe.fprop.b), strict=True):
        fmt = target.element if isinstance(target, Block) else target
        plain = not engine.inputs or engine.truncate_operands
        formats.append(get_format("float32") if plain else fmt)
        codes.append([_code(v, formats[-1]) for v in row])
    if in_engine:
        block = engine.scale_block
        assert block is not None
        fmt = next(f for f in engine.scale_formats if _holds(f, scales))
        given = {
            f"{name}_scales": [_code(s, fmt) for s in row[::block]]
            for name, row in zip("ab", scales, strict=True)
        } | {"scale_format": fmt}
    dot = functools.partial(oracle.dot, a_format=formats[0], b_format=formats[1], **given)
    if engine.accumulation not in ("fused", "grouped", "two_step"):
        return _untraced(dot(engine, *codes), exactly)
    with _watched() as seen:
        bits = dot(engine, *codes)
    cut = sum((before - start for start, before, _ in seen), Fraction(0)) - exactly
    rounded = sum((after - before for _, before, after in seen), Fraction(0))
    if engine.accumulator == "separate":
        rounded = _value(bits) - exactly - cut
    assert exactly + cut + rounded == _value(bits)
    return {"bits": bits, "product": exactly, "alignment": cut, "accumulator_rounding": rounded}


def _finite(fmt: Format) -> list[float]:
    assert fmt.values is not None
    return [v for v in fmt.values.tolist() if np.isfinite(v)]


def _holds(fmt: Format, scales: list[list[int]]) -> bool:
    values = {Fraction(v) for v in _finite(fmt)}
    return all(_value(s) in values for row in scales for s in row)


def _untraced(bits: int, exactly: Fraction) -> dict[str, Any]:
    rounded = _value(bits) - exactly
    none = Fraction(0)
    return {"bits": bits, "product": exactly, "alignment": none, "accumulator_rounding": rounded}


def _code(bits: int, fmt: Format) -> int:
    if fmt.name == "float32":
        return bits
    return numbers.encode(float(_value(bits)), fmt, rounding="nearest_even", overflow="saturate")


@contextmanager
def _watched() -> Iterator[list[tuple[Fraction, Fraction, Fraction]]]:
    """What each step of the oracle starts from, has before its rounding, and after it."""
    seen: list[tuple[Fraction, Fraction, Fraction]] = []
    starts: list[Number] = []

    def starting(step: Any) -> Any:
        def run(engine: Any, terms: Any, c: Number, *rest: Any) -> Number:
            starts.append(c)
            return step(engine, terms, c, *rest)

        return run

    def rounding(round_it: Any, which: int) -> Any:
        def run(*arguments: Any, **options: Any) -> Number:
            after = round_it(*arguments, **options)
            seen.append((_number(starts[-1]), _number(arguments[which]), _number(after)))
            return after

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle, "fused_step", starting(oracle_fused.fused_step))
        patch.setattr(oracle, "two_step", starting(oracle_two_step.two_step))
        patch.setattr(oracle_fused, "_rounded", rounding(oracle_fused._rounded, 1))
        patch.setattr(oracle_two_step, "round_to", rounding(oracle_two_step.round_to, 0))
        yield seen


def _number(x: Number) -> Fraction:
    return x.significand * Fraction(2) ** x.exponent


def in_role(recipe: Recipe, role: Any, **changes: Any) -> Recipe:
    """A recipe as one role runs it."""
    return dataclasses.replace(recipe.in_role(role), **changes)
