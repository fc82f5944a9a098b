"""ONNX's names for formats: those of its own enumeration, for the same codes."""

import dataclasses

import numpy as np
import pytest

import lowprec as lp
from lowprec.numerics.onnx import format_of_onnx, onnx_type, onnx_types


def test_each_type_is_a_format_and_found_from_it() -> None:
    for name, found in onnx_types().items():
        fmt = format_of_onnx(name)
        assert fmt.name == found.format in lp.list_formats()
        assert onnx_type(fmt) == onnx_type(fmt.name) == name
    numbers = [found.number for found in onnx_types().values()]
    assert len(set(numbers)) == len(numbers)


def test_other_formats_have_none() -> None:
    without = {"nf4", "float8_e4m3", "float8_e3m4", "mxint8", "tensorfloat32", "int8_symmetric"}
    assert all(onnx_type(name) is None for name in without)
    e4m3 = lp.get_format("float8_e4m3fn")
    assert onnx_type(dataclasses.replace(e4m3, bias=8)) is None


def test_an_unknown_type_lists_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"named 'FLOAT8E4M3'; did you mean FLOAT8E4M3FN"):
        format_of_onnx("FLOAT8E4M3")


def test_onnx_itself_gives_the_same_names_numbers_and_values() -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra `peers`")
    known = dict(onnx.TensorProto.DataType.items())
    for name, found in onnx_types().items():
        assert known[name] == found.number
        fmt = format_of_onnx(name)
        if fmt.bits > 16:
            continue
        codes = np.arange(1 << fmt.bits).astype(fmt.code_dtype)
        raw = np.asarray(lp.pack(codes, fmt)).tobytes() if fmt.bits < 8 else codes.tobytes()
        tensor = onnx.helper.make_tensor("x", found.number, [len(codes)], raw, raw=True)
        with np.errstate(invalid="ignore"):
            values = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        assert fmt.values is not None
        np.testing.assert_array_equal(values, fmt.values)
        assert np.array_equal(np.signbit(values), np.signbit(fmt.values)) or fmt.has_nan
