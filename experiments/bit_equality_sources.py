"""What the sources make of tensors: code of others, loaded and called, none of it kept here.

A source is an installed package, or a folder: a checkout, or an unpacked wheel of a package whose
own imports need a GPU. Of a folder only the files that quantize are loaded, and what they import
beside them is left empty. Every function here takes a block, float32 tensors (count, rows,
columns) and the folder, and says what the source stores.
"""

import dataclasses
import enum
import functools
import importlib
import importlib.util
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bit_equality_loading import (
    byte_codes,
    defined_in,
    e4m3_values,
    each,
    empty_module,
    file_module,
    package_of,
    power_of,
    tile_size,
    torch_here,
    torch_type,
    unpacked,
)

from lowprec.numerics import Format
from lowprec.scaling import Block
from lowprec.study.bit_equality import Answer, Comparison

Call = Callable[[Any, np.ndarray, Path | None], Answer]
INSTALLED = ("gfloat", "jax", "ml_dtypes", "qwix", "torchao")
"""Sources that are packages, imported as they are where they are installed."""


def ask(comparison: Comparison, x: np.ndarray, folder: Path | None = None) -> Answer:
    """The source's answer to tensors (count, rows, columns).

    Args:
      comparison: what to call, and for which block.
      x: float32.
      folder: where the source lies, of those that are not `INSTALLED`.

    Raises:
      ImportError: the source is not installed, or not in the folder.
    """
    call = CALLS[comparison.source.name, comparison.call]
    with np.errstate(all="ignore"):
        return call(comparison.subject, np.ascontiguousarray(x), folder)


# ml_dtypes, gfloat, JAX, qwix.


def _ml_dtypes_cast(fmt: Format, x: np.ndarray, folder: Path | None) -> Answer:
    """A cast after a clip, as the package rounds but does not saturate."""
    ml_dtypes = importlib.import_module("ml_dtypes")
    top = np.float32(fmt.max)
    clipped = np.clip(x, -top, top)
    return Answer(codes=byte_codes(clipped.astype(getattr(ml_dtypes, fmt.name))))


def _gfloat_block(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    """On float64, as its logarithm needs; a tile that it refuses is -1 throughout."""
    gfloat = importlib.import_module("gfloat")
    formats = importlib.import_module("gfloat.formats")
    info = getattr(formats, f"format_info_{ {'mxfp4': 'mxfp4_e2m1'}.get(block.name, block.name) }")

    def one(tile: np.ndarray) -> np.ndarray:
        try:
            return gfloat.quantize_block(info, tile, gfloat.compute_scale_amax)
        except ValueError:
            return np.full(tile.shape, -1.0)

    tiles = x.astype(np.float64).reshape(-1, tile_size(block)[1])
    return Answer(values=np.array([one(tile) for tile in tiles], np.float32).reshape(x.shape))


def _jax_scaled(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    source = importlib.import_module("jax._src.cudnn.scaled_matmul_stablehlo")
    config = importlib.import_module("jax.nn").get_scaled_dot_general_config(
        "nvfp4" if block.element.bits == 4 else "mxfp8",
        jnp.ones((), jnp.float32) if block.element.bits == 4 else None,
    )
    quantize = jax.jit(lambda tensor: source.quantize(tensor, config))
    parts = [quantize(jnp.asarray(tensor)[None]) for tensor in x]
    codes = np.stack([np.asarray(part[0])[0].view(np.uint8) for part in parts])
    scales = np.stack([np.asarray(part[1])[0].view(np.uint8) for part in parts])
    decoded = e4m3_values(scales) if block.element.bits == 4 else power_of(scales)
    return Answer(codes=codes, scales=decoded)


def _qwix_folder(folder: Path) -> None:
    """Its core alone; of flax it takes a dataclass for a pytree, which nothing here is."""
    for package in ("qwix", "qwix._src", "qwix._src.core"):
        package_of(package, folder / package.replace(".", "/"))
    field = lambda **options: dataclasses.field(
        **{k: v for k, v in options.items() if k == "default"}
    )
    struct = types.SimpleNamespace(dataclass=dataclasses.dataclass(frozen=True), field=field)
    empty_module(
        "flax", struct=struct, nnx=types.SimpleNamespace(register_data_type=lambda kind: kind)
    )
    empty_module("flax.struct", **vars(struct))


def _qwix(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    if folder is not None:
        _qwix_folder(folder)
    qarray = importlib.import_module("qwix._src.core.qarray")
    kind: Any = getattr(jnp, block.element.name, None)
    if block.scale_format.bits == 8:
        kind = block.name.split("_")[0]
    elif block.element.name == "nf4":
        kind = "nf4"
    elif block.element.name.startswith("int"):
        kind = getattr(jnp, block.element.name.split("_")[0])
    columns = block.tile[1]
    tiled = {} if columns == "all" else {1: columns}
    found = [
        qarray.quantize_api(jnp.asarray(one), kind, channelwise_axes=(0,), tiled_axes=tiled)
        for one in x
    ]
    codes = np.stack([np.asarray(one.qvalue) for one in found])
    codes = codes.astype(np.uint8) if kind == "nf4" else byte_codes(codes)
    return Answer(codes=codes, scales=np.stack([np.asarray(one.scale) for one in found]))


# torchao.


def _torchao_mx(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    mx = importlib.import_module("torchao.prototype.mx_formats.mx_tensor")
    mode = mx.ScaleCalculationMode(block.scale_rule)
    element = torch_type(block.element)
    to_mx = lambda tensor: mx.to_mx(tensor, element, block.tile[1], scaling_mode=mode)
    scales, codes = each(x, to_mx)
    return Answer(unpacked(codes) if block.element.bits == 4 else codes, power_of(scales))


@functools.cache
def _torchao_main(folder: Path) -> dict[str, Any]:
    """`to_mx` of a checkout, on the constants and the casts of the installed package."""
    mx = "torchao.prototype.mx_formats"
    known: dict[str, Any] = {
        "torch": torch_here(),
        "Union": typing.Union,
        "is_fake": lambda x: False,
    }
    for module in (f"{mx}.constants", f"{mx}.kernels", f"{mx}.config", "torchao.utils"):
        known |= vars(importlib.import_module(module))
    known |= {"NoSwizzle": type("NoSwizzle", (), {}), "SwizzleGranularity": Any}
    known["Swizzle_32_4_4"] = type("Swizzle_32_4_4", (), {})
    return defined_in(folder / "torchao" / "prototype" / "mx_formats" / "mx_tensor.py", **known)


def _torchao_main_mx(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    assert folder is not None
    source = _torchao_main(folder)
    mode = source["ScaleCalculationMode"](block.scale_rule)
    element = torch_type(block.element)
    to_mx = lambda tensor: source["to_mx"](tensor, element, block.tile[1], scaling_mode=mode)
    scales, codes = each(x, to_mx)
    return Answer(unpacked(codes) if block.element.bits == 4 else codes, power_of(scales))


def _torchao_nvfp4(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    nvfp4 = importlib.import_module("torchao.prototype.mx_formats.nvfp4_tensor")

    def one(tensor: Any) -> tuple[Any, ...]:
        if block.tensor_scale == "none":
            return nvfp4.nvfp4_quantize(tensor, 16)
        scale = nvfp4.per_tensor_amax_to_scale(tensor.abs().max())
        return *nvfp4.nvfp4_quantize(tensor, 16, scale), scale.reshape(1)

    scales, codes, *tensor_scales = each(x, one)
    return Answer(unpacked(codes), e4m3_values(scales), *tensor_scales)


def _torchao_float8(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    utils = importlib.import_module("torchao.float8.float8_utils")
    granularity = importlib.import_module("torchao.float8.config").ScalingGranularity
    rows = {"scaling_granularity": granularity.AXISWISE, "axiswise_dim": -1}

    def one(tensor: Any) -> tuple[Any, ...]:
        options = dict(rows) if block.tile[0] == 1 else {}
        options["round_scales_to_power_of_2"] = block.power_of_two
        kind = torch_type(block.element)
        scale = utils.tensor_to_scale(tensor, kind, **options)
        codes = utils.to_fp8_saturated(tensor * scale, kind)
        return codes, (1 / scale).reshape(-1, 1)

    return Answer(*each(x, one))


def _torchao_blockwise(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    kernels = importlib.import_module("torchao.prototype.blockwise_fp8_training.kernels")
    if block.tile[0] == 1:
        return Answer(*each(x, kernels.torch_blockwise_scale_act_quant_lhs))
    return Answer(*each(x, kernels.torch_blockwise_scale_weight_quant))


def _torchao_inference(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    primitives = importlib.import_module("torchao.quantization.quant_primitives")

    def one(tensor: Any) -> tuple[Any, ...]:
        pairs = zip(block.tile, tensor.shape, strict=True)
        size = [extent if n == "all" else n for n, extent in pairs]
        kind = torch_type(block.element)
        scale = primitives._choose_scale_float8(tensor, size, kind)
        return primitives._quantize_affine_float8(tensor, scale, kind), scale

    return Answer(*each(x, one))


# TransformerEngine: references of its recipes, and of its tests.


def _te_module(folder: Path | None, name: str) -> Any:
    """A file of custom_recipes, beside empty stand-ins for the modules that need its library."""
    assert folder is not None
    root = "transformer_engine"
    for package in (root, f"{root}.pytorch", f"{root}.pytorch.custom_recipes"):
        package_of(package, folder / package.replace(".", "/"))

    class Base:
        def __init__(self, *, rowwise: bool, columnwise: bool) -> None:
            self.rowwise_usage, self.columnwise_usage = rowwise, columnwise

    kinds = {"QuantizedTensorStorage": type("QuantizedTensorStorage", (), {}), "Quantizer": Base}
    empty_module(f"{root}.pytorch.quantized_tensor", **kinds)
    roles = types.SimpleNamespace(FPROP=None, DGRAD=None, WGRAD=None)
    empty_module(f"{root}.pytorch.custom_recipes.gemm", GEMMType=roles, MMParams=None)
    recipes = vars(sys.modules[f"{root}.pytorch.custom_recipes"])
    recipes["gemm"] = sys.modules[f"{root}.pytorch.custom_recipes.gemm"]
    return importlib.import_module(f"{root}.pytorch.custom_recipes.{name}")


def _te_nvfp4(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    module = _te_module(folder, "reference_nvfp4")
    utils = _te_module(folder, "reference_utils")
    rotated = block.transform is not None
    options = {
        "dtype": utils.Fp4Formats.E2M1,
        "quant_tile_shape": tile_size(block),
        "rowwise": not rotated,
        "columnwise": rotated,
        "with_rht": rotated,
        "row_scaled_nvfp4": block.tensor_scale == "row_amax",
    }
    if block.scale_rule == "four_over_six":
        mode = {"absolute": "MAE", "squared": "MSE"}[str(block.error)]
        largest = int(block.tensor_scale_max or 448)
        options |= {"nvfp4_use_4over6": True, "nvfp4_e4m3_max": largest}
        options |= {"nvfp4_4over6_err_mode": mode}
    quantizer = module.NVFP4QuantizerRef(**options)

    def one(tensor: Any) -> tuple[Any, ...]:
        if not rotated:
            codes, scales, _, _, amax, _ = quantizer._quantize(tensor)
        else:
            # The transform is of the copy that contracts over rows.
            _, _, codes, scales, _, amax = quantizer._quantize(tensor.bfloat16().T.contiguous())
        if block.tile[0] != 1:
            scales = scales.view(torch_here().uint8)[:: block.tile[0]]
        return codes, scales, amax

    codes, scales, amax = each(x, one)
    return Answer(unpacked(codes), e4m3_values(scales), _te_tensor_scale(block, amax))


def _te_tensor_scale(block: Block, amax: np.ndarray) -> np.ndarray:
    """What `_quantize_blockwise_reference` multiplies by on decoding, which it does not return."""
    one = np.float32(1)
    largest = np.float32((block.tensor_scale_max or 448) * 6)
    encode = np.minimum(largest / amax, np.finfo(np.float32).max)
    return (one / np.where(encode == 0, one, encode)).astype(np.float32)


def _te_current(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    module = _te_module(folder, "reference_current_scaling")
    quantizer = module.CurrentScalingQuantizerRef(torch_type(block.element), columnwise=False)
    codes, scales = each(x, lambda tensor: quantizer._quantize(tensor)[:2])
    return Answer(codes, scales[:, None])


def _te_blockwise(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    assert folder is not None
    for package in ("tests", "tests.pytorch", "tests.pytorch.references"):
        package_of(f"{package}", folder / package.replace(".", "/"))
    path = folder / "tests" / "pytorch" / "references"
    for name in ("quantize_scale_calc", "blockwise_quantizer_reference"):
        module = file_module(f"tests.pytorch.references.{name}", path / f"{name}.py")
    reference = module.BlockwiseQuantizerReference
    options = {"pow_2_scales": block.power_of_two, "eps": 0.0}

    def one(tensor: Any) -> tuple[Any, ...]:
        kind = torch_here().float8_e4m3fn
        if block.tile[0] == 1:
            return reference._quantize_vectorwise_reference(tensor, kind, 128, **options)
        result = reference._quantize_square_block_tiling(
            tensor, kind, 128, return_transpose=False, **options
        )
        return result.data, result.scale

    return Answer(*each(x, one))


def _te_mxfp8(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    """Of tiles of 32 x 32; a tile of one row is 32 copies of it."""
    assert folder is not None
    path = folder / "tests" / "pytorch" / "test_mxfp8_2d_quantize.py"
    quantize = defined_in(path, torch=torch_here())["quantize_mxfp8_2d_reference"]
    repeats = 32 // block.tile[0] if isinstance(block.tile[0], int) else 1
    codes, scales = each(np.repeat(x, repeats, axis=1), lambda tensor: quantize(tensor)[:2])
    return Answer(codes[:, ::repeats], power_of(scales[:, ::32]))


# DeepGEMM.


def _deepgemm(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    assert folder is not None
    math = file_module(
        f"deep_gemm_math_{abs(hash(folder))}", folder / "deep_gemm" / "utils" / "math.py"
    )
    powers = block.power_of_two
    if block.element.bits == 4:
        cast = lambda tensor: math.per_token_cast_to_fp4(tensor, powers, block.tile[1])
        codes, scales = each(x, cast)
        return Answer(unpacked(codes), scales)
    function = math.per_token_cast_to_fp8 if block.tile[0] == 1 else math.per_block_cast_to_fp8
    return Answer(*each(x, lambda tensor: function(tensor, powers)))


# Model-Optimizer.


def _modelopt_module(folder: Path | None, name: str) -> Any:
    """A file of modelopt.torch.quantization; its CUDA and Triton parts are absent."""
    assert folder is not None
    root = "modelopt.torch.quantization"
    packages = ("modelopt", "modelopt.torch", root, f"{root}.qtensor", f"{root}.utils")
    for package in packages:
        package_of(package, folder / package.replace(".", "/"))
    nothing = lambda *_, **__: None
    empty_module("modelopt.torch.utils", get_unwrapped_name=nothing, print_rank_0=nothing)
    empty_module("modelopt.torch.utils.network", temporarily_remove_accelerate_hook=nothing)
    for package in ("modelopt.torch.kernels", "modelopt.torch.kernels.quantization"):
        package_of(package, folder / "absent")
    empty_module("modelopt.torch.kernels.quantization.gemm", IS_AVAILABLE=False)
    empty_module(f"{root}.config", QuantizerCfgEntry=dict, QuantizerAttributeConfig=dict)
    cuda = ("get_cuda_ext", "get_cuda_ext_fp8", "get_cuda_ext_mx")
    empty_module(f"{root}.extensions", **dict.fromkeys(cuda, nothing))
    core = importlib.import_module(f"{root}.utils.core_utils")
    helpers = ["reduce_amax", "reduce_block_amax", "reduce_block_padding"]
    for helper in [*helpers, "fsdp2_aware_weight_update", "patch_fsdp_mp_dtypes"]:
        setattr(sys.modules[f"{root}.utils"], helper, getattr(core, helper))
    package_of(f"{root}.backends", folder / "absent")
    empty_module(f"{root}.backends.utils", fp4_compatible=lambda: False)
    return importlib.import_module(f"{root}.{name}")


def _modelopt_nvfp4(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    tensors = _modelopt_module(folder, "qtensor.nvfp4_tensor").NVFP4QTensor

    def one(tensor: Any) -> tuple[Any, ...]:
        q, scales, tensor_scale = tensors.quantize(tensor, block.tile[1])
        return q._quantized_data, scales, tensor_scale.reshape(1)

    codes, scales, tensor_scales = each(x, one)
    return Answer(unpacked(codes), e4m3_values(scales), tensor_scales)


def _modelopt_mx(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    small = block.element.bits == 4
    name = "qtensor.mxfp4_tensor" if small else "qtensor.mxfp8_tensor"
    module = _modelopt_module(folder, name)

    def one(tensor: Any) -> tuple[Any, ...]:
        if small:
            q, scales = module.MXFP4QTensor.quantize(tensor, block.tile[1])
            return q._quantized_data, scales.reshape(tensor.shape[0], -1)
        q, scales = module.MXFP8QTensor.quantize(tensor)
        return q._quantized_data, scales

    codes, scales = each(x, one)
    return Answer(unpacked(codes) if small else codes, power_of(scales))


def _modelopt_fake(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    """Its functions return values alone; of integers the codes are what they are multiples of.

    A value of NaN is given the code that no integer has there.
    """
    module = _modelopt_module(folder, "tensor_quant")
    rows, columns = block.tile
    integers = block.element.name.startswith("int")

    def one(tensor: Any) -> tuple[Any, ...]:
        height, width = tensor.shape
        tall = height if rows == "all" else rows
        wide = width if columns == "all" else columns
        tiles = tensor.view(height // tall, tall, width // wide, wide)
        amax = tiles.abs().amax(dim=(1, 3), keepdim=True)
        if not integers:
            return (module.fp8_eager(tiles, amax).reshape(height, width),)
        values = module._tensor_quant(tiles, amax, num_bits=block.element.bits).double()
        codes = (values / (amax.double() / block.element.max)).round().nan_to_num(0)
        lowest = codes.new_tensor(-(2 ** (block.element.bits - 1)))
        codes = codes.where(values.isfinite(), lowest)
        return (codes.reshape(height, width),)

    found = each(x, one)[0]
    if not integers:
        return Answer(values=found)
    mask = (1 << block.element.bits) - 1
    return Answer(codes=(found.astype(np.int64) & mask).astype(np.uint8))


# AMD Quark: scales alone.


def _quark_scales(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    assert folder is not None
    path = folder / "quark" / "torch" / "quantization"
    names = {"float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2", "float6_e2m3fn": "fp6_e2m3"}
    names |= {"float6_e3m2fn": "fp6_e3m2", "float4_e2m1fn": "fp4"}
    kinds = ("int8", "int4", "int3", "int2", "uint2", "float16", "bfloat16")
    kind: Any = enum.Enum("Dtype", {name: name for name in (*names.values(), *kinds)})
    known = {"torch": torch_here(), "Dtype": kind, "_FORMAT_CACHE": {}, "log_errors": lambda x: x}
    source = defined_in(path / "utils.py", **known)
    element = kind[names[block.element.name]]
    tiles = x.reshape(*x.shape[:-1], -1, tile_size(block)[1])
    scales = each(np.abs(tiles).max(axis=-1), lambda amax: (source["even_round"](amax, element),))
    return Answer(scales=scales[0])


# microxcaling.


def _microxcaling(block: Block, x: np.ndarray, folder: Path | None) -> Answer:
    assert folder is not None
    package_of("mx", folder / "mx")
    empty_module("mx.specs", mx_assert_test=lambda specs: None)
    module = importlib.import_module("mx.mx_ops")
    names = {"float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2", "float6_e2m3fn": "fp6_e2m3"}
    names |= {"float6_e3m2fn": "fp6_e3m2", "float4_e2m1fn": "fp4_e2m1", "mxint8": "int8"}
    rounding = {"nearest_away": "nearest", "nearest_even": "even"}[block.rounding]

    def one(tensor: Any) -> tuple[Any, ...]:
        name = names[block.element.name]
        values = module._quantize_mx(
            tensor, 8, name, axes=[-1], block_size=block.tile[1], round=rounding
        )
        return (values,)

    return Answer(values=each(x, one)[0])


CALLS: dict[tuple[str, str], Call] = {
    ("ml_dtypes", "astype"): _ml_dtypes_cast,
    ("gfloat", "quantize_block"): _gfloat_block,
    ("jax", "quantize"): _jax_scaled,
    ("qwix", "quantize_api"): _qwix,
    ("torchao", "to_mx"): _torchao_mx,
    ("torchao", "nvfp4_quantize"): _torchao_nvfp4,
    ("torchao", "to_fp8_saturated"): _torchao_float8,
    ("torchao", "torch_blockwise_scale"): _torchao_blockwise,
    ("torchao", "_quantize_affine_float8"): _torchao_inference,
    ("transformer_engine", "NVFP4QuantizerRef"): _te_nvfp4,
    ("transformer_engine", "CurrentScalingQuantizerRef"): _te_current,
    ("transformer_engine_tests", "BlockwiseQuantizerReference"): _te_blockwise,
    ("transformer_engine_mxfp8_tests", "quantize_mxfp8_2d_reference"): _te_mxfp8,
    ("torchao_main", "to_mx"): _torchao_main_mx,
    ("deepgemm", "per_token_cast"): _deepgemm,
    ("sgl_deep_gemm", "per_token_cast"): _deepgemm,
    ("modelopt", "NVFP4QTensor.quantize"): _modelopt_nvfp4,
    ("modelopt", "MXFP4QTensor.quantize"): _modelopt_mx,
    ("modelopt", "MXFP8QTensor.quantize"): _modelopt_mx,
    ("modelopt", "tensor_quant"): _modelopt_fake,
    ("quark", "even_round"): _quark_scales,
    ("microxcaling", "_quantize_mx"): _microxcaling,
}
"""Every call by source and name."""
