"""Operands: which products a file gives, and one line that names file and tensor when none."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from lowprec.models.operands import LoneTensor, Operands, load_layers, load_operands


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def saved(path: Path, **tensors: np.ndarray) -> Path:
    np.savez(path, allow_pickle=False, **tensors)
    return path


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    return tmp_path / "file.npz"


def complaint(
    path: Path, kind: type[Exception] = ValueError, a: str | None = None, b: str | None = None
) -> str:
    with pytest.raises(kind) as caught:
        load_operands(path, a=a, b=b)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isprintable()
    return message


# Operands


def test_products_are_the_three_of_a_linear_layer() -> None:
    x, w, dy = numbers(5, 3), numbers(3, 2), numbers(5, 2)
    layer = Operands("fc", x, w, dy)
    assert layer.roles == ("fprop", "dgrad", "wgrad")
    products = {role: a @ b for role, (a, b) in ((r, layer.product(r)) for r in layer.roles)}
    np.testing.assert_array_equal(products["fprop"], x @ w)
    np.testing.assert_array_equal(products["dgrad"], dy @ w.T)
    np.testing.assert_array_equal(products["wgrad"], x.T @ dy)


@pytest.mark.parametrize(
    ("members", "roles"),
    [(("x", "w"), ("fprop",)), (("w", "dy"), ("dgrad",)), (("x", "dy"), ("wgrad",))],
)
def test_roles_follow_from_the_members(members: tuple[str, ...], roles: tuple[str, ...]) -> None:
    everything = {"x": numbers(5, 3), "w": numbers(3, 2), "dy": numbers(5, 2)}
    assert Operands("fc", **{name: everything[name] for name in members}).roles == roles


def test_product_refuses_what_is_absent_or_unknown() -> None:
    layer = Operands("fc", x=numbers(5, 3), w=numbers(3, 2))
    with pytest.raises(ValueError, match="layer `fc` has no wgrad: `dy` absent"):
        layer.product("wgrad")
    with pytest.raises(ValueError, match="`role` is 'forward'; it is one of fprop, dgrad, wgrad"):
        layer.product("forward")


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"x": (5, 3), "w": (2, 3)}, "`x` and `w` disagree in in: x (5, 3), w (2, 3)"),
        ({"w": (3, 2), "dy": (5, 3)}, "`w` and `dy` disagree in out: w (3, 2), dy (5, 3)"),
        ({"x": (5, 3), "dy": (4, 2)}, "`x` and `dy` disagree in tokens: x (5, 3), dy (4, 2)"),
        ({"x": (3,), "w": (3, 2)}, "`x` is not 2-D: x (3,), w (3, 2)"),
    ],
)
def test_members_must_agree(shapes: dict[str, tuple[int, ...]], expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        Operands("fc", **{name: numbers(*shape) for name, shape in shapes.items()})
    assert expected in str(caught.value)


# Files that load


def test_layers_come_first_and_the_rest_stands_alone(npz: Path) -> None:
    tensors = {
        "h.1.x": numbers(2, 4, 3),
        "h.1.w": numbers(3, 2),
        "h.1.dy": numbers(2, 4, 2),
        "a.fc.x": numbers(4, 3),
        "a.fc.w": numbers(3, 5),
        "h.1.k": numbers(8, 2),
        "bias": numbers(3),
        "positions": np.arange(6).reshape(2, 3),
        "embedding": numbers(7, 3),
        "head.x": numbers(2, 4, 3),
    }
    loaded = load_operands(saved(npz, **tensors))
    layers = [item for item in loaded if isinstance(item, Operands)]
    lone = [item for item in loaded if isinstance(item, LoneTensor)]
    assert loaded == [*layers, *lone]
    assert [(layer.layer, layer.roles) for layer in layers] == [
        ("a.fc", ("fprop",)),
        ("h.1", ("fprop", "dgrad", "wgrad")),
    ]
    np.testing.assert_array_equal(layers[1].x, tensors["h.1.x"].reshape(8, 3))
    assert [(tensor.name, tensor.x.shape) for tensor in lone] == [
        ("embedding", (7, 3)),
        ("h.1.k", (8, 2)),
        ("head.x", (8, 3)),
    ]


def test_bare_names_make_a_layer_named_after_the_file(npz: Path) -> None:
    (layer,) = load_operands(saved(npz, x=numbers(4, 3), w=numbers(3, 2)))
    assert isinstance(layer, Operands)
    assert (layer.layer, layer.roles) == ("file", ("fprop",))


def test_bare_names_do_not_join_a_layer_that_bears_the_files_name(npz: Path) -> None:
    loaded = load_operands(saved(npz, x=numbers(4, 3), **{"file.w": numbers(9, 2)}))
    assert [type(item) for item in loaded] == [LoneTensor, LoneTensor]


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 2, 3)])
def test_npy_is_one_lone_tensor_of_any_rank(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "act.npy"
    np.save(path, numbers(*shape))
    (tensor,) = load_operands(path)
    assert isinstance(tensor, LoneTensor)
    assert tensor.name == "act" and tensor.x.shape == (tensor.x.size // shape[-1], shape[-1])


def test_named_product_uses_nothing_else(npz: Path) -> None:
    tensors = {"q": numbers(2, 4, 3), "kt": numbers(3, 5), "bad": np.full((2, 2), np.nan)}
    (layer,) = load_operands(saved(npz, **tensors), a="q", b="kt")
    assert isinstance(layer, Operands)
    assert (layer.layer, layer.roles) == ("q @ kt", ("fprop",))
    a, b = layer.product("fprop")
    assert (a.shape, b.shape) == ((8, 3), (3, 5))


def test_layers_alone_and_what_belongs_to_none(npz: Path) -> None:
    tensors = {"fc.x": numbers(4, 3), "fc.w": numbers(3, 2), "fc.grad": numbers(4, 2)}
    layers, lone = load_layers(saved(npz, **tensors, other=numbers(5, 2)))
    assert [layer.layer for layer in layers] == ["fc"] and lone == ["fc.grad", "other"]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["fc.x"], "`fc.x` but"),
        (["fc.input", "fc.weight"], "`fc.input`, `fc.weight` but"),
        ([f"t{i}" for i in range(8)], "`t3`, `t4` and 3 more but"),
    ],
)
def test_a_file_without_layers_names_its_tensors(keys: list[str], named: str, npz: Path) -> None:
    path = saved(npz, **dict.fromkeys(keys, numbers(4, 4)))
    with pytest.raises(ValueError) as caught:
        load_layers(path)
    said = str(caught.value)
    assert said.startswith(str(path)) and named in said
    assert said.endswith("no layer; a layer has two or all of the keys LAYER.x, LAYER.w, LAYER.dy")


def test_bfloat16_comes_through_safetensors_bit_for_bit(tmp_path: Path) -> None:
    files = pytest.importorskip("safetensors.numpy", reason="writes a .safetensors file")
    x = numbers(4, 3).astype(ml_dtypes.bfloat16)
    path = tmp_path / "layer.safetensors"
    files.save_file({"fc.x": x, "fc.w": numbers(3, 2)}, path)
    (layer,) = load_operands(path)
    assert isinstance(layer, Operands) and layer.x is not None
    assert layer.x.dtype == ml_dtypes.bfloat16 and layer.x.tobytes() == x.tobytes()


# Files that do not


def test_a_pytorch_weight_is_named_as_the_likely_cause(npz: Path) -> None:
    message = complaint(saved(npz, **{"fc.x": numbers(4, 3), "fc.w": numbers(2, 3)}))
    assert "layer `fc`" in message and "x (4, 3), w (2, 3)" in message
    assert "a PyTorch weight is stored (out, in) and must be transposed" in message


def test_float64_and_integers(npz: Path) -> None:
    wide = numbers(4, 3).astype(np.float64)
    message = complaint(saved(npz, **{"fc.x": wide, "fc.w": numbers(3, 2)}), TypeError)
    assert "tensor `fc.x` is float64: convert to float32 first, so that rounding" in message
    assert "`t` is float64" in complaint(saved(npz, t=wide), TypeError)
    codes = np.ones((3, 2), np.int8)
    message = complaint(saved(npz, **{"fc.x": numbers(4, 3), "fc.w": codes}), TypeError)
    assert "tensor `fc.w` is int8, not a float" in message


def test_integers_in_npy(tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    np.save(path, np.arange(4))
    assert "tensor `ids` is int64, not a float" in complaint(path, TypeError)


def test_empty_and_scalar(npz: Path, tmp_path: Path) -> None:
    message = complaint(saved(npz, **{"fc.x": numbers(0, 3), "fc.w": numbers(3, 2)}))
    assert "tensor `fc.x` is empty: its shape is (0, 3)" in message
    path = tmp_path / "one.npy"
    np.save(path, np.float32(1))
    assert "tensor `one` is a single number" in complaint(path)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_nan_and_inf_are_counted_and_located(npz: Path, dtype: type[np.floating]) -> None:
    x = numbers(4, 3).astype(dtype)
    x[1, 2], x[3, 0], x[3, 1] = np.inf, np.nan, -np.inf
    message = complaint(saved(npz, **{"fc.x": x, "fc.w": numbers(3, 2)}))
    assert "`fc.x` holds 1 NaN and 2 Inf among 12 elements, the first at index (1, 2)" in message


def test_missing_key_lists_near_matches_or_the_contents(npz: Path) -> None:
    path = saved(npz, **{"h.0.q_proj": numbers(4, 3), "h.0.k_proj": numbers(4, 3)})
    message = complaint(path, a="h.0.q_prj", b="h.0.k_proj")
    assert "`a`: the file has no tensor `h.0.q_prj`; near matches: `h.0.q_proj`" in message
    message = complaint(path, a="h.0.q_proj", b="zzz")
    assert "no tensor `zzz`; it has `h.0.k_proj` float32 (4, 3), `h.0.q_proj`" in message


def test_named_product_must_be_a_product(npz: Path) -> None:
    path = saved(npz, q=numbers(4, 3), k=numbers(4, 3), cube=numbers(3, 4, 3))
    message = complaint(path, a="q", b="k")
    assert "`q` (4, 3) @ `k` (4, 3) is not a product (M, K) @ (K, N)" in message
    assert "is not a product" in complaint(path, a="q", b="cube")
    assert "got a='q', b=None" in complaint(path, a="q")


def test_file_without_operands_says_what_it_has(npz: Path) -> None:
    tensors = {f"b{i}": numbers(3) for i in range(7)}
    message = complaint(saved(npz, **tensors))
    assert "`b0` float32 (3,)" in message and message.endswith("and 2 more")
    assert "it has no tensors" in complaint(saved(npz))


def test_hostile_names_stay_on_one_line(npz: Path) -> None:
    message = complaint(saved(npz, **{"a\nb\x1b[31m" + "c" * 500: np.full((2, 2), np.inf, "f4")}))
    assert "`a\\nb\\x1b[31mccc" in message and len(message) < 500
