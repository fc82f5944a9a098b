"""Quantized tensors on disk: every bit comes back, in every layout, and wrong files are named."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import lowprec as lp
from lowprec.models import layout_tensors
from lowprec.models.layouts import OWN, get_layout, list_layouts
from lowprec.models.quantized_files import load_tensors, save_tensors
from lowprec.models.tensor_files import read_tensors
from lowprec.models.tensor_writing import read_metadata, write_tensors
from lowprec.scaling.tiles import scales_shape, tile_shape
from tests.helpers import assert_bits_equal

pytest.importorskip("safetensors", reason="the files under test need the safetensors package")

FORMS = [
    pytest.param(layout, form.block, id=f"{layout}-{form.block}")
    for layout in list_layouts()
    if layout != OWN
    for form in get_layout(layout).forms
]
RAGGED = (5, 259)
"""Ends within a byte, within a tile of 16, 32 and 128, and holds every code of a byte."""

FLOATS = np.array(
    [0, 1 << 31, 1, 0x00400000, 0x3F800000, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFC12345],
    np.uint32,
)
"""Bits of zeros of both signs, subnormals, 1, both infinities and two NaN with payloads."""


def of_every_code(block: str | lp.Block, shape: tuple[int, ...] = RAGGED) -> lp.QTensor:
    """A tensor that no `quantize` made: all codes in turn, and all scales, NaN and Inf included."""
    block = lp.get_block(block)
    element, scale = block.element, block.scale_format
    codes = np.arange(np.prod(shape)).reshape(shape) & element.code_mask
    sizes = scales_shape(shape, tile_shape(block, shape, -1))
    counts = np.arange(np.prod(sizes)).reshape(sizes)
    if scale.bits <= 8:
        scales = (counts * 37 & scale.code_mask).astype(scale.code_dtype)
    else:
        scales = FLOATS[counts % len(FLOATS)].view(np.float32)
    two_level = block.tensor_scale != "none"
    rows = (*shape[:-1], 1) if block.tensor_scale == "row_amax" else (1,) * len(shape)
    return lp.QTensor(
        codes=jnp.asarray(codes.astype(element.code_dtype)),
        scales=jnp.asarray(scales),
        tensor_scale=jnp.asarray(np.full(rows, 0.03125, np.float32)) if two_level else None,
        block=block,
    )


def assert_same(got: Any, want: lp.QTensor) -> None:
    assert isinstance(got, lp.QTensor)
    assert (got.block, got.axis) == (want.block, want.axis)
    for part in ("codes", "scales", "offsets", "tensor_scale", "transform_state"):
        one, other = getattr(got, part), getattr(want, part)
        assert (one is None) == (other is None)
        if other is not None:
            assert_bits_equal(one, other)


def header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


@pytest.mark.parametrize(
    "shape",
    [
        RAGGED,
        pytest.param((2, 3, 64), marks=[pytest.mark.slow, pytest.mark.thorough]),
        pytest.param((1, 1), marks=[pytest.mark.slow, pytest.mark.thorough]),
    ],
)
@pytest.mark.parametrize(("layout", "block"), FORMS)
def test_every_form_gives_every_bit_back(
    layout: str, block: str, shape: tuple[int, ...], path: Path
) -> None:
    q = of_every_code(block, shape)
    save_tensors(path, {"a.weight": q, "norm": jnp.ones(3, jnp.bfloat16)}, layout=layout)
    found = load_tensors(path)
    assert list(found) == ["a.weight", "norm"]
    assert_same(found["a.weight"], q)
    norm = found["norm"]
    assert not isinstance(norm, lp.QTensor) and norm.dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(("layout", "block"), FORMS)
def test_a_file_of_another_program_is_read_to_whole_tiles(
    layout: str, block: str, path: Path
) -> None:
    """Without lowprec's metadata the block is the layout's, and what was filled up stays."""
    q = of_every_code(block)
    save_tensors(path, {"a.weight": q}, layout=layout)
    write_tensors(path, read_tensors(path), {"format": "pt"})
    found: Any = load_tensors(path, layout=layout)["a.weight"]
    rows, columns = RAGGED
    tile = q.block.tile[1]
    packed = next(form for form in get_layout(layout).forms if form.block == block).packing
    whole = columns if packed == "none" else -(-columns // int(tile)) * int(tile)
    assert found.shape == (rows, whole) and found.block == q.block
    codes = np.asarray(found.codes)
    assert_bits_equal(codes[:, :columns], q.codes)
    assert not np.any(codes[:, columns:])
    assert_bits_equal(found.scales, q.scales)


@pytest.mark.parametrize(
    ("layout", "block"),
    [
        ("compressed_tensors", "nvfp4_4over6"),
        ("compressed_tensors", "mxfp4_even"),
        ("compressed_tensors", "int8_token_vllm"),
        ("deepseek", "fp8_128x128_te"),
        ("gpt_oss", "mxfp4_rceil"),
        ("modelopt", "nvfp4"),
    ],
)
def test_blocks_of_other_scale_rules(layout: str, block: str, path: Path) -> None:
    q = of_every_code(block)
    save_tensors(path, {"a.weight": q}, layout=layout)
    assert_same(load_tensors(path)["a.weight"], q)
    # The caller says it where the file does not.
    write_tensors(path, read_tensors(path))
    found: Any = load_tensors(path, layout=layout, block=block)["a.weight"]
    assert found.block == q.block


QUICK = ("nvfp4", "mxfp6_e2m3", "int2_kivi_g32", "nf4_g64", "logfmt10_1x128", "ternary_tensor")
"""One of each kind of code; the others differ in their scale rules, or in a width."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x, marks=[pytest.mark.slow, pytest.mark.thorough] * (x not in QUICK))
        for x in lp.list_blocks()
    ],
)
def test_the_own_layout_holds_every_block(name: str, path: Path) -> None:
    q = of_every_code(name, (3, 37))
    if q.block.coding != "scaled":
        q = dataclasses.replace(q, offsets=q.scales)
    q = dataclasses.replace(q, transform_state=jnp.ones(37))
    save_tensors(path, {"a": q})
    assert_same(load_tensors(path)["a"], q)


def test_the_own_layout_keeps_the_axis(path: Path) -> None:
    q = of_every_code("mxfp4", (37, 3))
    scales = jnp.asarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    q = dataclasses.replace(q, scales=scales, axis=-2)
    save_tensors(path, {"a": q})
    assert_same(load_tensors(path)["a"], q)


def test_a_damaged_file_of_the_own_layout(path: Path) -> None:
    save_tensors(path, {"a": of_every_code("nvfp4", (4, 64))})
    whole, metadata = read_tensors(path), read_metadata(path)
    for part, wrong in (
        ("codes", np.zeros((4, 31), np.uint8)),
        ("scales", np.zeros((4, 4), np.float32)),
        ("tensor_scale", None),
        ("offsets", np.zeros((4, 3), np.float32)),
    ):
        others = {name: array for name, array in whole.items() if name != f"a.{part}"}
        arrays = others if wrong is None else others | {f"a.{part}": wrong}
        write_tensors(path, arrays, metadata)
        with pytest.raises(ValueError, match=rf"tensor `a\.{part}` is .*; a nvfp4 of shape"):
            load_tensors(path)


def test_names_types_and_shapes_of_each_layout(path: Path) -> None:
    """As the sources in `layouts.toml` have them."""

    def written(
        block: str, layout: str, shape: tuple[int, ...]
    ) -> dict[str, tuple[str, list[int]]]:
        save_tensors(path, {"l.weight": of_every_code(block, shape)}, layout=layout)
        table = header(path)
        assert table.pop("__metadata__")["format"] == "pt"
        return {name: (entry["dtype"], entry["shape"]) for name, entry in table.items()}

    assert written("fp8_128x128", "deepseek", (130, 256)) == {
        "l.weight": ("F8_E4M3", [130, 256]),
        "l.weight_scale_inv": ("F32", [2, 2]),
    }
    assert written("nvfp4", "compressed_tensors", (4, 64)) == {
        "l.weight_packed": ("U8", [4, 32]),
        "l.weight_scale": ("F8_E4M3", [4, 4]),
        "l.weight_global_scale": ("F32", [1]),
    }
    assert written("nvfp4", "modelopt", (4, 64)) == {
        "l.weight": ("U8", [4, 32]),
        "l.weight_scale": ("F8_E4M3", [4, 4]),
        "l.weight_scale_2": ("F32", []),
    }
    assert written("mxfp6_e2m3", "compressed_tensors", (4, 64)) == {
        "l.weight_packed": ("U8", [4, 48]),
        "l.weight_scale": ("U8", [4, 2]),
    }
    assert written("fp8_tensor", "compressed_tensors", (4, 64))["l.weight_scale"] == ("F32", [1])
    assert written("fp8_channel", "compressed_tensors", (4, 64))["l.weight_scale"] == (
        "F32",
        [4, 1],
    )
    assert written("mxfp4", "gpt_oss", (2, 4, 64)) == {
        "l.weight_blocks": ("U8", [2, 4, 2, 16]),
        "l.weight_scales": ("U8", [2, 4, 2]),
    }


def test_the_lower_half_of_a_byte_is_the_first_element(path: Path) -> None:
    q = dataclasses.replace(
        of_every_code("mxfp4", (4, 64)),
        codes=jnp.asarray(np.arange(256, dtype=np.uint8).reshape(4, 64) % 16),
    )
    save_tensors(path, {"w": q}, layout="gpt_oss")
    assert read_tensors(path)["w_blocks"].ravel()[:4].tolist() == [0x10, 0x32, 0x54, 0x76]


def test_the_global_scale_is_what_divides(path: Path) -> None:
    """compressed-tensors stores the reciprocal of the tensor scale, Model-Optimizer the scale."""
    # For a largest magnitude of 5: S = 448 * 6 / 5 and T = 1 / S, each rounded once.
    encoding = np.float32(448 * 6) / np.float32(5)
    factor = jnp.full((1, 1), np.float32(1) / encoding)
    q = dataclasses.replace(of_every_code("nvfp4", (4, 64)), tensor_scale=factor)
    save_tensors(path, {"w": q}, layout="compressed_tensors")
    kept = read_tensors(path)["w_global_scale"]
    assert_bits_equal(kept, encoding.reshape(1))
    assert_same(load_tensors(path)["w"], q)
    save_tensors(path, {"w": q}, layout="modelopt")
    assert_bits_equal(read_tensors(path)["w_scale_2"], np.asarray(q.tensor_scale).reshape(()))


def test_a_divisor_gives_back_the_same_tensor_scale_or_is_refused() -> None:
    """Over a binade and the specials: what cannot be a reciprocal is said, never rounded."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 0x7F800000, 4000, np.uint32)
    factors = np.concatenate([FLOATS.view(np.float32), bits.view(np.float32)])
    refused = 0
    with np.errstate(all="ignore"):
        for factor in factors:
            try:
                found = layout_tensors.divisor("w", np.asarray(factor))
            except ValueError as error:
                assert "modelopt" in str(error) and "'w'" in str(error)
                refused += 1
                continue
            if np.isnan(factor):
                assert np.isnan(found)
            else:
                assert_bits_equal(np.asarray(np.float32(1) / found), np.asarray(factor))
        # Every reciprocal comes back: those are what the block nvfp4 makes.
        for factor in (np.float32(1) / factors[len(FLOATS) :])[:500]:
            layout_tensors.divisor("w", np.asarray(factor))
    assert 0 < refused < len(factors) // 2


def test_scales_of_16_bits_are_read_exactly(path: Path) -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128).view(ml_dtypes.float8_e4m3fn)
    for dtype in (ml_dtypes.bfloat16, np.float16):
        scales = np.array([[0.3], [7.0]], dtype)
        write_tensors(path, {"w": codes, "w_scale": scales})
        found: Any = load_tensors(path, layout="compressed_tensors")["w"]
        assert found.block.name == "fp8_channel"
        assert_bits_equal(found.scales, scales.astype(np.float32))


def test_e8m0_scales_of_their_own_type_are_read(path: Path) -> None:
    packed = np.arange(128, dtype=np.uint8).reshape(4, 32)
    scales = np.array([[127, 1], [254, 255], [0, 3], [9, 8]], np.uint8)
    kept = {"w_packed": packed, "w_scale": scales.view(ml_dtypes.float8_e8m0fnu)}
    write_tensors(path, kept)
    found: Any = load_tensors(path, layout="compressed_tensors")["w"]
    assert (found.block.name, found.shape) == ("mxfp4", (4, 64))
    assert_bits_equal(found.scales, scales)


def test_weights_and_scales_in_two_files(tmp_path: Path) -> None:
    q = of_every_code("fp8_128x128")
    save_tensors(tmp_path / "all.safetensors", {"w": q}, layout="deepseek")
    parts = read_tensors(tmp_path / "all.safetensors")
    files = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for file, (name, array) in zip(files, parts.items(), strict=True):
        write_tensors(file, {name: array})
    assert_same(load_tensors(files, layout="deepseek")["w"], q)
    with pytest.raises(ValueError, match=r"`w` is of no form of the layout deepseek.*all files"):
        load_tensors(files[0], layout="deepseek")
    with pytest.raises(ValueError, match="holds the tensor `w`, as a file before it"):
        load_tensors([files[0], files[0]], layout="deepseek")


def test_a_users_own_block(path: Path) -> None:
    own = dataclasses.replace(lp.get_block("mxfp4"), name="mine", tile=(1, 8))
    q = of_every_code(own)
    save_tensors(path, {"a": q})
    with pytest.raises(ValueError, match=r"`a` is of a block that is not the catalogue's"):
        load_tensors(path)
    assert_same(load_tensors(path, block=own)["a"], q)


def test_the_same_tensors_give_the_same_bytes_and_no_other_file_is_left(path: Path) -> None:
    q = of_every_code("nvfp4")
    save_tensors(path, {"b": q, "a": q}, layout="modelopt")
    first = path.read_bytes()
    save_tensors(path, {"a": q, "b": q}, layout="modelopt")
    assert path.read_bytes() == first
    assert [x.name for x in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("layout", "tensors", "message"),
    [
        ("deepseek", {"w": of_every_code("nvfp4")}, r"'w'.*deepseek.*no block nvfp4.*fp8_128x128"),
        ("gpt_oss", {"w": of_every_code("nf4_g64")}, r"no block nf4_g64.*layout lowprec holds"),
        ("modelopt", {"w": of_every_code("nvfp4_row")}, r"no block nvfp4_row"),
        ("compressed_tensors", {"w": of_every_code("mxfp4_h32")}, r"no block mxfp4_h32"),
        ("nowhere", {}, r"no layout is named 'nowhere'; did you mean"),
        (
            "deepseek",
            {"w": dataclasses.replace(of_every_code("fp8_128x128"), axis=-2)},
            r"'w'.*contracted along axis -2.*axis=-1",
        ),
        (
            "deepseek",
            {"w": of_every_code("fp8_128x128"), "w_scale_inv": np.ones(1, np.float32)},
            r"another tensor's name too",
        ),
        (OWN, {"w": np.ones(1, complex)}, r"'w' of type complex128 cannot be written"),
    ],
)
def test_what_cannot_be_saved(
    layout: str, tensors: dict[str, Any], message: str, path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        save_tensors(path, tensors, layout=layout)
    assert not path.exists()


def test_another_extension_or_a_value_that_is_no_array(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save_tensors(tmp_path / "a.npz", {})
    with pytest.raises(TypeError, match=r"tensor 'w' is a list; pass a QTensor or an array"):
        # The wrong type is what is tested.
        save_tensors(tmp_path / "a.safetensors", {"w": [1.0]})  # pyright: ignore[reportArgumentType]


F8 = np.zeros((4, 64), ml_dtypes.float8_e4m3fn)
U8 = np.zeros((4, 32), np.uint8)


@pytest.mark.parametrize(
    ("layout", "arrays", "message"),
    [
        (None, {"w": F8}, r"does not say in which layout.*compressed_tensors, deepseek"),
        ("deepseek", {"w": F8}, r"weight `w` is of no form.*float8_e4m3fn \(4, 64\)"),
        (
            "deepseek",
            {"w": F8, "w_scale_inv": np.ones((2, 2), np.float32)},
            r"`w_scale_inv` float32 \(2, 2\)",
        ),
        ("deepseek", {"w": F8, "w_scale_inv": np.ones((1, 1))}, r"float64 \(1, 1\)"),
        ("compressed_tensors", {"w_packed": U8}, r"weight `w`.*`w_packed` uint8 \(4, 32\)"),
        (
            "compressed_tensors",
            {"w_packed": U8, "w_scale": np.zeros((4, 4), ml_dtypes.float8_e4m3fn)},
            r"of no form of the layout compressed_tensors",
        ),
        (
            "compressed_tensors",
            {"w": F8, "w_scale": np.ones((4, 1), np.float32), "w_zero_point": F8},
            r"`w_zero_point`: zero points",
        ),
        ("lowprec", {"w.codes": U8}, None),
    ],
)
def test_what_cannot_be_loaded(
    layout: str | None, arrays: dict[str, np.ndarray], message: str | None, path: Path
) -> None:
    write_tensors(path, arrays)
    if message is None:
        # Codes that nothing speaks of are an array as any other.
        assert list(load_tensors(path, layout=layout)) == list(arrays)
        return
    with pytest.raises(ValueError, match=message) as caught:
        load_tensors(path, layout=layout)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_block_that_the_layout_does_not_hold(path: Path) -> None:
    write_tensors(path, {"w": F8, "w_scale_inv": np.ones((1, 1), np.float32)})
    with pytest.raises(ValueError, match=r"`block` = nvfp4: the layout deepseek holds"):
        load_tensors(path, layout="deepseek", block="nvfp4")


@pytest.mark.parametrize(
    "note",
    [
        "{",
        "[]",
        '{"layout": "deepseek"}',
        '{"layout": "deepseek", "tensors": {"w": {"block": null, "shape": [4, -1], "axis": -1}}}',
        '{"layout": "deepseek", "tensors": {"w": {"block": null, "shape": [4, 64], "axis": 7}}}',
        '{"layout": "deepseek", "tensors": {"w": {"block": "fp8_128x128", "shape": [9, 9], '
        '"axis": -1}}}',
        '{"layout": "deepseek", "tensors": {"w": {"block": "nowhere", "shape": [4, 64], '
        '"axis": -1}}}',
        # A stranger's file names no path for this program to open.
        '{"layout": "deepseek", "tensors": {"w": {"block": "/tmp/mine.toml", "shape": [4, 64], '
        '"axis": -1}}}',
        '{"layout": "lowprec", "tensors": {"w": {"block": "mxfp4", "shape": [4, 64], "axis": -1}}}',
    ],
)
def test_damaged_metadata_are_an_error_that_says_so(note: str, path: Path) -> None:
    arrays = {"w": F8, "w_scale_inv": np.ones((1, 1), np.float32), "w.codes": F8.view(np.uint8)}
    write_tensors(path, arrays, {"lowprec": note})
    with pytest.raises(ValueError) as caught:
        load_tensors(path)
    assert "\n" not in str(caught.value)
    assert read_metadata(path) == {"lowprec": note}


def test_files_are_those_of_the_library_itself(path: Path) -> None:
    """The safetensors package reads what is written here, and writes the same bytes."""
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(3, dtype=np.uint8)}
    write_tensors(path, arrays, {"format": "pt"})
    found = numpy.load_file(path)
    assert sorted(found) == ["a", "b"]
    for name, array in arrays.items():
        assert_bits_equal(found[name], array)
    assert path.read_bytes() == numpy.save(arrays, {"format": "pt"})
