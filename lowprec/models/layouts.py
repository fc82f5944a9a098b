"""The layouts in which checkpoints keep quantized weights: `layouts.toml`, read and looked up."""

import dataclasses
import functools
import tomllib
from importlib.resources import files
from typing import Literal

from lowprec.catalogue import Citation, decode, unknown
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block, get_block

OWN = "lowprec"
"""The layout that holds any block; see `lowprec.models.own_layout`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """How one block scaling is kept: names, types and shapes of the tensors of a weight.

    Attributes:
      block: a block with the element, tile, scale format and tensor scale that the form holds.
      codes, codes_dtype: the suffix of the codes' name, and the type in safetensors' spelling.
      packing: `none`: a code a byte; `last`: codes packed along the last axis; `tiles`: the bytes
        of each tile on an axis of their own.
      scales, scales_dtype: the same of the scales; `scales_read`: types that are read too, each of
        which float32 (or a byte) holds exactly.
      scales_shape: `tiles`: one a tile; `scalar`: (1,).
      tensor_scale: the suffix of its name; empty where there is none. A `factor` multiplies the
        values, a `divisor` divides them.
    """

    block: str
    codes: str
    codes_dtype: Literal["F8_E4M3", "U8", "I8"]
    packing: Literal["none", "last", "tiles"] = "none"
    scales: str
    scales_dtype: Literal["F32", "U8", "F8_E4M3", "F8_E8M0"]
    scales_read: tuple[str, ...] = ()
    scales_shape: Literal["tiles", "scalar"] = "tiles"
    tensor_scale: str = ""
    tensor_scale_is: Literal["factor", "divisor"] = "factor"
    tensor_scale_shape: tuple[int, ...] = ()

    def holds(self, block: Block) -> bool:
        """Whether values of `block` are decoded as those of the form's own block."""
        own = get_block(self.block)
        same = own.tile == block.tile and all(
            _same_codes(getattr(own, field), getattr(block, field))
            for field in ("element", "scale_format")
        )
        two_level = (own.tensor_scale == "amax") == (block.tensor_scale == "amax")
        plain = block.coding == "scaled" and block.transform is None
        return same and two_level and plain and block.tensor_scale != "row_amax"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A checkpoint's layout.

    Attributes:
      name, title: how it is asked for, and whose it is.
      forms: what it can hold, in the order in which a file's tensors are tried.
      refused: suffixes of tensors that change what a weight means, and are not read.
      cite: where that is written.
    """

    name: str
    title: str
    forms: tuple[Form, ...]
    refused: tuple[str, ...] = ()
    cite: tuple[Citation, ...]

    @property
    def blocks(self) -> str:
        """The blocks of its forms, for messages."""
        return ", ".join(form.block for form in self.forms)


def _same_codes(one: Format, other: Format) -> bool:
    """Whether all codes mean the same, as those of int8 and int8_symmetric do."""
    if one == other or one.bits != other.bits or one.values is None or other.values is None:
        return one == other
    return one.values.tobytes() == other.values.tobytes()


@functools.cache
def _layouts() -> dict[str, Layout]:
    text = files("lowprec.models").joinpath("layouts.toml").read_text(encoding="utf-8")
    return {
        name: decode({"name": name, **table}, Layout, where=f"layouts.toml: {name}")
        for name, table in tomllib.loads(text).items()
    }


def list_layouts() -> tuple[str, ...]:
    """The names of the layouts of `save_tensors` and `load_tensors`.

    Example:
      >>> list_layouts()
      ('compressed_tensors', 'deepseek', 'gpt_oss', 'lowprec', 'modelopt')
    """
    return tuple(sorted((*_layouts(), OWN)))


def get_layout(name: str) -> Layout:
    """A checkpoint's layout by name.

    Raises:
      ValueError: no layout has that name.

    Example:
      >>> get_layout("deepseek").forms[0].scales
      '_scale_inv'
    """
    if name not in _layouts():
        raise ValueError(unknown("layout", name, list_layouts()))
    return _layouts()[name]
