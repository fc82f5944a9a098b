"""What ONNX calls a number format; the table is `onnx_types.toml`."""

import dataclasses
import functools
import tomllib
from importlib.resources import files

from lowprec.catalogue import decode, unknown
from lowprec.numerics.format import Format, get_format


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxType:
    """An element type of ONNX tensors.

    Attributes:
      name: of `TensorProto.DataType`.
      number: its value in that enumeration.
      format: the catalogue's name of the same format.
    """

    name: str
    number: int
    format: str


@functools.cache
def onnx_types() -> dict[str, OnnxType]:
    """Every type of ONNX that is a format of the catalogue, by its name there.

    Example:
      >>> onnx_types()["FLOAT4E2M1"].number
      23
    """
    text = files("lowprec.numerics").joinpath("onnx_types.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)["types"]
    return {
        name: decode({"name": name, **row}, OnnxType, where=f"onnx_types.toml: {name}")
        for name, row in table.items()
    }


def onnx_type(fmt: str | Format) -> str | None:
    """The name of the element type of ONNX with the same codes; None where ONNX has none.

    Source: ONNX 1.23.2, onnx/onnx-ml.proto, `TensorProto.DataType`.

    Raises:
      ValueError: no format has that name; near matches are listed.
      TypeError: `fmt` is neither a string nor a `Format`.

    Example:
      >>> onnx_type("float8_e4m3fn"), onnx_type("float8_e8m0fnu"), onnx_type("nf4")
      ('FLOAT8E4M3FN', 'FLOAT8E8M0', None)
    """
    fmt = get_format(fmt)
    # A user's own format may bear the name of another.
    same = (x.name for x in onnx_types().values() if get_format(x.format) == fmt)
    return next(same, None)


def format_of_onnx(name: str) -> Format:
    """The format whose codes an element type of ONNX has.

    Raises:
      ValueError: no such type, or none that is a format of the catalogue; near matches are listed.

    Example:
      >>> format_of_onnx("FLOAT6E3M2").name
      'float6_e3m2fn'
    """
    found = onnx_types().get(name)
    if found is None:
        raise ValueError(unknown("ONNX type with a format here", name, onnx_types()))
    return get_format(found.format)
