"""Quantized tensors in `.safetensors` files: lowprec's own layout, and those of checkpoints."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lowprec.models import layout_tensors, own_layout
from lowprec.models.array_checks import quoted
from lowprec.models.layout_tensors import Arrays, Read
from lowprec.models.layouts import OWN, Layout, get_layout, list_layouts
from lowprec.models.tensor_files import read_tensors
from lowprec.models.tensor_writing import read_metadata, write_tensors
from lowprec.scaling.block import Block, get_block, list_blocks
from lowprec.scaling.qtensor import QTensor
from lowprec.scaling.tiles import normalise_axis

KEY = "lowprec"
"""Where the header's metadata say what no layout has room for: layout, blocks and shapes."""
_FP8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, QTensor | jax.Array | np.ndarray],
    *,
    layout: str = OWN,
) -> None:
    """Writes quantized tensors, and arrays beside them, into one `.safetensors` file.

    Codes, scales and tensor scales keep their bits: NaN, Inf and -0 too. The same tensors give the
    same bytes. What another program's layout has no room for, the block's name and the shape before
    codes were filled up to whole tiles, stands in the header's metadata.

    | `layout` | of a weight NAME | blocks |
    |---|---|---|
    | `lowprec` | NAME.codes, .scales, .offsets, .tensor_scale, .transform_state | all |
    | `deepseek` | NAME, NAME_scale_inv | `fp8_128x128`, `fp8_128x128_pow2` |
    | `compressed_tensors` | NAME_packed, _scale, _global_scale (1 / tensor scale) | `nvfp4` |
    | | NAME_packed, NAME_scale (E8M0) | `mxfp4`, `mxfp6_e2m3` |
    | | NAME, NAME_scale | `mxfp8_e4m3`; `fp8_` and `int8_` of tensor, channel, 128 x 128 |
    | `modelopt` | NAME, NAME_scale, NAME_scale_2 (the tensor scale) | `nvfp4`, `fp8_tensor` |
    | `gpt_oss` | NAME_blocks (..., tiles, 16), NAME_scales | `mxfp4` |

    and blocks that are decoded as these are, whatever their scale rule. In all but `lowprec` a
    weight is (..., out, in), contracted along the last axis.

    Args:
      path: ends in `.safetensors`.
      tensors: by name; other arrays are of JAX, NumPy or ml_dtypes, and kept as they are.
      layout: see above; what a program reads it with is said by its own config file.

    Raises:
      ValueError: another extension, an unknown layout, a block or axis that the layout does not
        hold, a tensor scale that is the reciprocal of no float32 (`compressed_tensors`), or two
        tensors that would bear one name.
      TypeError: a value is neither a `QTensor` nor an array.
      OSError: the path cannot be written.

    Source: the layouts' citations in `lowprec/models/layouts.toml`.

    Example:
      >>> q = lp.quantize(jnp.ones((2, 64)), "nvfp4")
      >>> save_tensors("/tmp/up.safetensors", {"up.weight": q}, layout="compressed_tensors")
      >>> sorted(lp.load_tensors("/tmp/up.safetensors"))
      ['up.weight']
    """
    known = None if layout == OWN else get_layout(layout)
    arrays: dict[str, np.ndarray] = {}
    notes: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        for key, array in _arrays(name, value, known).items():
            if key in arrays:
                raise ValueError(
                    f"tensor {name!r}: the layout {layout} keeps a part of it as {key!r}, which "
                    f"is another tensor's name too; rename one"
                )
            arrays[key] = array
        if isinstance(value, QTensor):
            notes[name] = {
                "block": _catalogued(value.block),
                "shape": list(value.shape),
                "axis": value.axis,
            }
    note = json.dumps({"layout": layout, "tensors": notes}, sort_keys=True)
    # PyTorch's programs refuse a file that does not call itself theirs.
    write_tensors(path, arrays, {KEY: note, "format": "pt"})


def load_tensors(
    path: str | Path | Sequence[str | Path],
    *,
    layout: str | None = None,
    block: str | Block | None = None,
) -> dict[str, QTensor | np.ndarray]:
    """Reads quantized tensors, and the arrays beside them, from `.safetensors` files.

    Bits are kept. Of the codes NAME_packed and the like, NAME is the tensor's name. bfloat16 and
    float16 scales become float32, which is exact; a divisor (`compressed_tensors`' global scale)
    becomes the tensor scale 1 / divisor, correctly rounded.

    Args:
      path: a file, or all files that together hold the weights with their scales. Each is read
        whole.
      layout: as in `save_tensors`; None for a file that it wrote, which says so itself.
      block: what weights are read as, where the file does not say: a block that differs from the
        layout's own in its scale rule alone. By default the layout's, which is listed there.

    Returns:
      By name a `QTensor` for each weight with its scales, contracted along its last axis; a NumPy
      array, of ml_dtypes' types too, for everything else.

    Raises:
      ValueError: no layout is given and the file names none; a weight without its scales, with
        zero points, or of types or shapes that the layout does not have; a damaged file.
      OSError: a path is missing or unreadable.
      ImportError: the `safetensors` package is not installed.

    Example:
      >>> q = lp.quantize(jnp.ones((130, 4)), "fp8_128x128")
      >>> save_tensors("/tmp/down.safetensors", {"down.weight": q}, layout="deepseek")
      >>> load_tensors("/tmp/down.safetensors")["down.weight"]
      QTensor(fp8_128x128, shape=(130, 4), scales=(2, 1), axis=-1)
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    chosen = None if block is None else get_block(block)
    found: dict[str, QTensor | np.ndarray] = {}
    groups: dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]] = {}
    for one in paths:
        arrays = read_tensors(one)
        named, notes = _notes(one)
        kind = layout or named
        if kind is None:
            raise ValueError(
                f"{one}: does not say in which layout its weights are; pass `layout`, one of "
                f"{', '.join(list_layouts())}"
            )
        together, known = groups.setdefault(kind, ({}, {}))
        notes = notes if kind == named else {}
        if repeated := sorted(together.keys() & arrays.keys()):
            raise ValueError(f"{one}: holds the tensor {quoted(repeated[0])}, as a file before it")
        together.update(arrays)
        known.update(notes)
    for kind, (arrays, notes) in groups.items():
        where = ", ".join(map(str, paths))
        reader = _own(arrays, notes, chosen) if kind == OWN else None
        for read in reader or _of_layout(arrays, notes, get_layout(kind), chosen, where):
            found[read.name] = read.tensor
            for key in read.taken:
                del arrays[key]
        found.update(arrays)
    return dict(sorted(found.items()))


def _arrays(name: str, value: Any, layout: Layout | None) -> dict[str, np.ndarray]:
    if isinstance(value, QTensor):
        if layout is None:
            return own_layout.to_arrays(name, value)
        return layout_tensors.to_arrays(name, value, layout)
    if not isinstance(value, np.ndarray | jax.Array):
        raise TypeError(
            f"tensor {name!r} is a {type(value).__name__}; pass a QTensor or an array of JAX or "
            f"NumPy (lowprec.from_torch makes one of a PyTorch tensor)"
        )
    return {name: np.asarray(value)}


def _catalogued(block: Block) -> str | None:
    """The name of a catalogue's block; None of a user's own, which a reader may not have."""
    known = block.name in list_blocks() and get_block(block.name) == block
    return block.name if known else None


def _notes(path: str | Path) -> tuple[str | None, dict[str, Any]]:
    """The layout and the notes on tensors that `save_tensors` left in a header."""
    text = read_metadata(path).get(KEY) if Path(path).suffix.lower() == ".safetensors" else None
    if text is None:
        return None, {}
    try:
        table = json.loads(text)
        return str(table["layout"]), {str(k): _note(x) for k, x in table["tensors"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: its metadata `{KEY}` are damaged: {error!r}") from error


def _note(table: Mapping[str, Any]) -> dict[str, Any]:
    shape = tuple(table["shape"])
    if not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"shape = {shape}")
    axis = normalise_axis(table["axis"], len(shape))
    # A name alone: a path would have this program open what a stranger's file names.
    if table["block"] is not None and table["block"] not in list_blocks():
        raise ValueError(f"block = {table['block']!r}, which the catalogue does not have")
    return {"block": table["block"], "shape": shape, "axis": axis}


def _own(arrays: Arrays, notes: Mapping[str, Any], block: Block | None) -> Iterator[Read]:
    for name, note in notes.items():
        kind = get_block(note["block"]) if note["block"] else block
        if kind is None:
            raise ValueError(
                f"tensor {quoted(name)} is of a block that is not the catalogue's; pass `block`, "
                f"the path of its TOML file or its value"
            )
        yield own_layout.from_arrays(arrays, name, kind, note["shape"], note["axis"])


def _of_layout(
    arrays: Arrays, notes: Mapping[str, Any], layout: Layout, block: Block | None, where: str
) -> Iterator[Read]:
    taken: set[str] = set()
    if block is not None and not any(form.holds(block) for form in layout.forms):
        raise ValueError(
            f"`block` = {block.name}: the layout {layout.name} holds blocks decoded as "
            f"{layout.blocks}"
        )
    for name in dict.fromkeys((*notes, *_weights(arrays, layout, orphans=not notes))):
        _check_refused(arrays, name, layout, where)
        note = notes.get(name, {})
        noted = get_block(note["block"]) if note.get("block") else None
        for form in (x for x in layout.forms if noted is None or x.holds(noted)):
            asked = block if block is not None and form.holds(block) else None
            read = layout_tensors.from_arrays(
                arrays, name, form, asked if noted is None else noted, note.get("shape")
            )
            if read is not None:
                break
        else:
            raise ValueError(_unread(arrays, name, layout, where))
        if not taken & set(read.taken):
            taken |= set(read.taken)
            yield read


def _weights(arrays: Arrays, layout: Layout, orphans: bool) -> list[str]:
    """Names that have codes and scales in some form; `orphans`: or codes that lack their scales."""
    found: dict[str, None] = {}
    for form in layout.forms:
        for key, array in arrays.items():
            if not key.endswith(form.codes):
                continue
            name = key.removesuffix(form.codes)
            scaled = name + form.scales in arrays and key != name + form.scales
            needs = bool(form.codes) or array.dtype.name in _FP8
            scale = any(key.endswith(x.scales) for x in layout.forms)
            if scaled or (orphans and needs and not scale):
                found[name] = None
    return list(found)


def _check_refused(arrays: Arrays, name: str, layout: Layout, where: str) -> None:
    for suffix in layout.refused:
        if name + suffix in arrays:
            raise ValueError(
                f"{where}: tensor {quoted(name + suffix)}: zero points, reordered and 32-bit "
                f"packed integers of the layout {layout.name} are not read; its blocks are "
                f"{layout.blocks}"
            )


def _unread(arrays: Arrays, name: str, layout: Layout, where: str) -> str:
    suffixes = dict.fromkeys(
        suffix
        for form in layout.forms
        for suffix in (form.codes, form.scales, form.tensor_scale)
        if suffix or name in arrays
    )
    held = [
        f"{quoted(name + suffix)} {arrays[name + suffix].dtype} {arrays[name + suffix].shape}"
        for suffix in suffixes
        if name + suffix in arrays
    ]
    return (
        f"{where}: the weight {quoted(name)} is of no form of the layout {layout.name}: it has "
        f"{', '.join(held)}; the forms are those of {layout.blocks} (scales in another file: "
        f"pass all files together)"
    )
