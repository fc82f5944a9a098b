"""Quantizers beside the sources that their entries cite, tile by tile, bit by bit.

What to compare is data (experiments/bit_equality.toml): a block, a source with its version, and,
for every sort of tile on which the two differ, why. Answers of the sources come from
experiments/bit_equality_sources.py, or from the fixture that it wrote.
"""

import dataclasses
import functools
import tomllib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.numerics.codec import decode_bits, encode
from lowprec.numerics.format import Format, get_format
from lowprec.scaling.block import Block, get_block
from lowprec.scaling.quantize import quantize
from lowprec.study.bit_equality_inputs import Inputs, Tile, draw_inputs

ANY_SORT = "any"
_NAN = np.uint32(0x7FC00000)


@dataclasses.dataclass(frozen=True)
class Source:
    """A package of PyPI by version, or files of a repository by commit.

    `also` names files that are needed beside, of another commit.
    """

    name: str
    package: str = ""
    version: str = ""
    repository: str = ""
    commit: str = ""
    also: Sequence[str] = ()

    def __str__(self) -> str:
        if self.package:
            return f"PyPI {self.package} {self.version}"
        return f"{self.repository} {self.commit[:8]}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A block (or a format, by itself) beside a source's function.

    Attributes:
      subject: a block, or a format whose casts are compared.
      source, call, file: what answers, and where it stands in the source.
      differs: the sorts of tile on which bits differ, with the explanation of each; `ANY_SORT` for
        what depends on the numbers and not on the sort.
      zero_signs: why zeros differ in sign, where they do on any tile.
      rarely: as `differs`, of what the tensors of seed 0 need not meet.
    """

    subject: Block | Format
    source: Source
    call: str
    file: str
    differs: Mapping[str, str]
    zero_signs: str = ""
    rarely: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> str:
        """Of the fixture's arrays."""
        return f"{self.source.name}/{self.call}/{self.subject.name}"

    def why(self, sort: str) -> str:
        """Why bits differ on a sort of tile; empty where nothing says so."""
        known = {**self.rarely, **self.differs}
        return known.get(sort) or known.get(ANY_SORT, "")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a quantizer makes of `Inputs`; None is what a source does not tell.

    Attributes:
      codes: of the elements, uint8 of the inputs' shape.
      scales: float32 of each tile, (tensors, tile rows, tile columns).
      tensor_scales: float32 of each tensor, or of each row, (tensors, any).
      values: float32, of the inputs' shape.
    """

    codes: np.ndarray | None = None
    scales: np.ndarray | None = None
    tensor_scales: np.ndarray | None = None
    values: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison on one sort of tile.

    Counts are of tiles, but for `elements`. A mismatch is a tile with a scale (its own, or its
    tensor's), a code or a value that differs; a NaN equals any NaN. Tiles whose zeros differ in
    sign and nothing else are `zero_signs`; tiles whose scale is NaN on both sides, so that codes
    that differ mean nothing, are `nan_codes`. `why` explains mismatches, `why_signs` zeros' signs.
    """

    block: str
    source: str
    call: str
    file: str
    compared: str
    sort: str
    tiles: int
    elements: int
    mismatches: int
    scales: int
    elements_differing: int
    zero_signs: int
    nan_codes: int
    why: str
    why_signs: str


def read_comparisons(path: Path) -> list[Comparison]:
    """The comparisons of a TOML file.

    Raises:
      ValueError: a comparison names a source or an explanation that the file lacks.
    """
    read = tomllib.loads(path.read_text(encoding="utf-8"))
    sources = {name: Source(name, **fields) for name, fields in read["source"].items()}
    found: list[Comparison] = []
    for entry in read["comparison"]:
        differs, rarely = entry.get("differs", {}), entry.get("rarely", {})
        signs = entry.get("zero_signs", "")
        missing = {*differs, *rarely, signs} - {*read["why"], ""}
        if entry["source"] not in sources or missing:
            raise ValueError(
                f"{path.name}: {entry['call']} of {entry['source']} names a source or explanations "
                f"without a table: {', '.join(sorted(missing)) or entry['source']}"
            )
        whys, rare = (
            {sort: read["why"][why] for why, sorts in named.items() for sort in sorts}
            for named in (differs, rarely)
        )
        subjects = [get_block(name) for name in entry.get("blocks", ())]
        subjects += [get_format(name) for name in entry.get("formats", ())]
        where = sources[entry["source"]], entry["call"], entry["file"]
        told = whys, read["why"].get(signs, ""), rare
        found += [Comparison(subject, *where, *told) for subject in subjects]
    return found


# The inputs of a block.


def inputs_of(subject: Block | Format, seed: int = 0) -> Inputs:
    """Tensors for a block, or for a format by itself: some hundred tiles, of every sort."""
    if isinstance(subject, Format):
        return draw_inputs(Tile(1, 32, subject), (2, 4), 1, shared=False, seed=seed)
    rows, columns = subject.tile
    if columns == "all":
        height = 1 if rows == 1 else 4
        grid, count = ((8, 1), 1) if rows == 1 else ((1, 1), 8)
        return draw_inputs(Tile(height, 32, subject.element), grid, count, shared=False, seed=seed)
    assert not isinstance(rows, str)
    tile, size = Tile(rows, columns, subject.element), rows * columns
    grid, count = ((2, 4), 1) if size <= 32 else ((2, 2), 2) if size <= 128 else ((1, 2), 1)
    shared = subject.tensor_scale != "none"
    inputs = draw_inputs(tile, grid, count, shared=shared, seed=seed)
    if subject.transform is not None and subject.transform.output == "bfloat16":
        # Sources that round what they transformed to bfloat16 take bfloat16 numbers.
        cut = inputs.x.view(np.uint32) & np.uint32(0xFFFF0000)
        return dataclasses.replace(inputs, x=cut.view(np.float32))
    return inputs


def checksum(inputs: Inputs) -> int:
    """CRC-32 of the inputs' bits: an answer that is stored belongs to inputs with the same."""
    return zlib.crc32(np.ascontiguousarray(inputs.x).view(np.uint32).astype("<u4").tobytes())


# lowprec's answer.


def answer_of(subject: Block | Format, x: np.ndarray) -> Answer:
    """What `quantize` makes of tensors (count, rows, columns), or `encode` of numbers.

    Args:
      subject: a block, or a format, whose overflow then saturates.
      x: float32.
    """
    if isinstance(subject, Format):
        return Answer(codes=np.asarray(_encoded(subject)(jnp.asarray(x))))
    codes, scales, tensor, values = _quantized(subject)(jnp.asarray(x))
    tensors = None if tensor is None else np.asarray(tensor).reshape(len(x), -1)
    return Answer(np.asarray(codes), np.asarray(scales), tensors, np.asarray(values))


@functools.cache
def _encoded(fmt: Format) -> Any:
    return jax.jit(lambda x: encode(x, fmt))


@functools.cache
def _quantized(block: Block) -> Any:
    def one(x: jax.Array) -> tuple[jax.Array | None, ...]:
        q = quantize(x, block)
        scales = q.scales
        if scales.dtype != jnp.float32:
            bits = decode_bits(scales.astype(jnp.uint32), block.scale_format)
            scales = jax.lax.bitcast_convert_type(bits, jnp.float32)
        return q.codes, scales, q.tensor_scale, q.dequantize()

    return jax.jit(jax.vmap(one))


# The comparison.


def compare(comparison: Comparison, inputs: Inputs, got: Answer, want: Answer) -> Iterator[Row]:
    """A row for each sort of tile; only what both answers tell is compared."""
    subject = comparison.subject
    element = subject if isinstance(subject, Format) else subject.element
    shape = inputs.tiles(inputs.x).shape[:3]
    scales, unseen = _scales_differ(got, want, shape)
    elements, signs, told = np.zeros(inputs.x.shape, bool), np.zeros(inputs.x.shape, bool), []
    if got.codes is not None and want.codes is not None:
        elements, signs = _codes_differ(got.codes, want.codes, element)
        told.append("codes")
    if got.scales is not None and want.scales is not None:
        told.append("scales")
    if got.tensor_scales is not None and want.tensor_scales is not None:
        told.append("tensor scales")
    if got.values is not None and want.values is not None:
        other, other_signs = _floats_differ(got.values, want.values)
        elements, signs = elements | other, signs | other_signs
        told.append("values")
    per_tile = inputs.tiles(elements).sum(axis=-1)
    flipped = inputs.tiles(signs).any(axis=-1) & (per_tile == 0) & ~scales
    wrong = scales | ((per_tile > 0) & ~unseen)
    for sort in dict.fromkeys(inputs.sorts):
        of = np.array([x == sort for x in inputs.sorts])
        count = int(wrong[of].sum())
        yield Row(
            block=subject.name,
            source=str(comparison.source),
            call=comparison.call,
            file=comparison.file,
            compared=", ".join(told),
            sort=sort,
            tiles=wrong[of].size,
            elements=inputs.x[of].size,
            mismatches=count,
            scales=int(scales[of].sum()),
            elements_differing=int((per_tile * ~unseen)[of].sum()),
            zero_signs=int((flipped & ~unseen)[of].sum()),
            nan_codes=int((unseen & (per_tile > 0))[of].sum()),
            why=comparison.why(sort) if count else "",
            why_signs=comparison.zero_signs if (flipped & ~unseen)[of].any() else "",
        )


def _scales_differ(
    got: Answer, want: Answer, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Which tiles' scales differ, and which are NaN on both sides."""
    differ, unseen = np.zeros(shape, bool), np.zeros(shape, bool)
    if got.scales is not None and want.scales is not None:
        one, other = got.scales.reshape(shape), want.scales.reshape(shape)
        differ |= _floats_differ(one, other)[0]
        unseen |= np.isnan(one) & np.isnan(other)
    if got.tensor_scales is not None and want.tensor_scales is not None:
        wide = (shape[0], -1, 1)
        one, other = got.tensor_scales.reshape(wide), want.tensor_scales.reshape(wide)
        differ |= _floats_differ(one, other)[0]
        unseen |= np.isnan(one) & np.isnan(other)
    return differ, unseen


def _codes_differ(
    got: np.ndarray, want: np.ndarray, element: Format
) -> tuple[np.ndarray, np.ndarray]:
    """Where codes differ, and where in the sign of a zero alone."""
    assert element.values is not None
    differ = got != want
    with np.errstate(invalid="ignore"):
        x, y = element.values[got], element.values[want]
    zeros = (x == 0) & (y == 0)
    return differ & ~zeros & ~(np.isnan(x) & np.isnan(y)), differ & zeros


def _floats_differ(got: np.ndarray, want: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of float32 numbers, by their bits: a comparison may take subnormals for zeros."""
    x, y = _canonical(got), _canonical(want)
    differ = x != y
    zeros = ((x | y) << np.uint32(1)) == 0
    return differ & ~zeros, differ & zeros


def _canonical(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, _NAN, bits)


# The fixture: answers of sources that need not be here.


def stored_answers(path: Path, comparisons: Sequence[Comparison]) -> dict[str, Answer]:
    """The answers that a fixture holds, by the key of their comparison, to the tensors of seed 0.

    Raises:
      ValueError: an answer is to other tensors than are drawn now.
    """
    fields = [field.name for field in dataclasses.fields(Answer)]
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    answers = {}
    for comparison in comparisons:
        key = comparison.key
        if f"{key}:inputs" not in arrays:
            continue
        if int(arrays[f"{key}:inputs"]) != checksum(inputs_of(comparison.subject)):
            raise ValueError(
                f"{path.name}: {key} answers other tensors than are drawn now; write it anew with "
                f"experiments/bit_equality.py --write"
            )
        found = {x: arrays[f"{key}:{x}"] for x in fields if f"{key}:{x}" in arrays}
        floats = {x: y.view(np.float32) for x, y in found.items() if y.dtype == np.uint32}
        answers[key] = Answer(**{**found, **floats})
    return answers


def store_answers(path: Path, answers: Sequence[tuple[Comparison, Answer]]) -> None:
    """Writes the fixture; answers to comparisons that are not given stay as they were."""
    arrays: dict[str, np.ndarray] = {}
    new = {comparison.key for comparison, _ in answers}
    if path.exists():
        with np.load(path, allow_pickle=False) as stored:
            arrays = {x: y for x, y in stored.items() if x.rsplit(":", 1)[0] not in new}
    for comparison, answer in answers:
        inputs = checksum(inputs_of(comparison.subject))
        arrays[f"{comparison.key}:inputs"] = np.array(inputs, np.uint32)
        for field in dataclasses.fields(Answer):
            array = getattr(answer, field.name)
            if array is not None:
                bits = array if array.dtype == np.uint8 else _canonical(np.asarray(array))
                arrays[f"{comparison.key}:{field.name}"] = bits
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type] - keywords are arrays, not options
