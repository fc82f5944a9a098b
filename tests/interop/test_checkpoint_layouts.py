"""What `save_tensors` writes, read by the programs whose layouts they are."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import lowprec as lp
from lowprec.models.quantized_files import load_tensors, save_tensors
from tests.helpers import assert_bits_equal
from tests.models.test_quantized_files import of_every_code

pytest.importorskip("safetensors", reason="needs the extra `report`")
torch: Any = pytest.importorskip("torch", reason="needs the extra `torch`")
reader: Any = pytest.importorskip("safetensors.torch")

WHOLE = (4, 256)
"""Every code of a byte, in whole tiles of 16, 32 and 128."""


def compressed_tensors(module: str) -> Any:
    return pytest.importorskip(
        f"compressed_tensors.{module}", reason="needs the extra `peers`", exc_type=ImportError
    )


def saved(path: Path, layout: str, q: lp.QTensor) -> dict[str, Any]:
    """The tensors of the file as PyTorch's own reader gives them, NAME being `weight`."""
    save_tensors(path / "w.safetensors", {"weight": q}, layout=layout)
    return reader.load_file(path / "w.safetensors")


def of_numbers(block: str, shape: tuple[int, int] = WHOLE) -> lp.QTensor:
    rng = np.random.default_rng(1)
    return lp.quantize(jnp.asarray(rng.normal(size=shape), jnp.float32), block)


@pytest.mark.parametrize("block", ["fp8_128x128", "fp8_128x128_pow2"])
def test_pytorch_reads_deepseeks_layout(block: str, tmp_path: Path) -> None:
    q = of_every_code(block, (130, 256))
    found = saved(tmp_path, "deepseek", q)
    assert found["weight"].dtype == torch.float8_e4m3fn
    assert_bits_equal(found["weight"].view(torch.uint8).numpy(), q.codes)
    scales = found["weight_scale_inv"]
    if block.endswith("pow2"):
        assert scales.dtype == torch.float8_e8m0fnu
        assert_bits_equal(scales.view(torch.uint8).numpy(), q.scales)
    else:
        assert_bits_equal(scales.numpy(), q.scales)
    # As the source multiplies: each element by the scale of its tile of 128 x 128.
    rows, columns = (torch.arange(size) // 128 for size in q.shape)
    values = found["weight"].float() * scales.float()[rows][:, columns]
    np.testing.assert_array_equal(values.numpy(), np.asarray(q.dequantize()))


SCHEMES: dict[str, dict[str, Any]] = {
    "fp8_128x128": {"type": "float", "strategy": "block", "block_structure": [128, 128]},
    "fp8_channel": {"type": "float", "strategy": "channel"},
    "fp8_tensor": {"type": "float", "strategy": "tensor"},
    "int8_channel": {"type": "int", "strategy": "channel"},
}


@pytest.mark.parametrize("block", SCHEMES)
def test_compressed_tensors_reads_fp8_and_int8(block: str, tmp_path: Path) -> None:
    forward = compressed_tensors("quantization.lifecycle.forward")
    arguments = compressed_tensors("quantization.quant_args")
    q = of_numbers(block, (128, 256))
    found = saved(tmp_path, "compressed_tensors", q)
    values = forward.dequantize(
        x_q=found["weight"],
        scale=found["weight_scale"],
        args=arguments.QuantizationArgs(num_bits=8, **SCHEMES[block]),
        dtype=torch.float32,
    )
    np.testing.assert_array_equal(values.numpy(), np.asarray(q.dequantize()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", ["nvfp4", "mxfp4", "mxfp6_e2m3"])
def test_compressed_tensors_unpacks_every_code(block: str, tmp_path: Path) -> None:
    fp4 = compressed_tensors("compressors.nvfp4.helpers")
    fp6 = compressed_tensors("compressors.mxfp6.helpers")
    q = of_every_code(block, WHOLE)
    found = saved(tmp_path, "compressed_tensors", q)
    unpack = fp6.unpack_fp6_from_uint8 if "6" in block else fp4.unpack_fp4_from_uint8
    values = unpack(found["weight_packed"], *WHOLE, torch.float32)
    assert_bits_equal(values.numpy(), lp.decode(q.codes, q.block.element))


@pytest.mark.filterwarnings("ignore")
def test_compressed_tensors_divides_by_the_global_scale(tmp_path: Path) -> None:
    """code * (scale / global scale): three roundings of 2^-24, where lowprec has two others."""
    forward = compressed_tensors("quantization.lifecycle.forward")
    helpers = compressed_tensors("compressors.nvfp4.helpers")
    arguments = compressed_tensors("quantization.quant_args")
    q = of_numbers("nvfp4")
    found = saved(tmp_path, "compressed_tensors", q)
    values = forward.dequantize(
        x_q=helpers.unpack_fp4_from_uint8(found["weight_packed"], *WHOLE, torch.float32),
        scale=found["weight_scale"].float(),
        global_scale=found["weight_global_scale"],
        args=arguments.QuantizationArgs(
            num_bits=4, type="float", strategy="tensor_group", group_size=16
        ),
        dtype=torch.float32,
    )
    want = np.asarray(q.dequantize())
    np.testing.assert_allclose(values.numpy(), want, rtol=6 * 2.0**-24, atol=0)
    assert np.count_nonzero(want) > want.size / 2


def test_compressed_tensors_reads_e8m0_scales(tmp_path: Path) -> None:
    scales = compressed_tensors("compressors.mx_utils")
    q = of_every_code("mxfp8_e4m3", WHOLE)
    found = saved(tmp_path, "compressed_tensors", q)
    powers = scales.decompress_mx_scale(found["weight_scale"]).float().numpy()
    codes = np.asarray(q.scales)
    # The code of NaN is one more power there; the lowest and the highest leave bfloat16's normals.
    inside = (codes > 0) & (codes < 254)
    want = np.asarray(lp.decode(codes, "float8_e8m0fnu"))
    np.testing.assert_array_equal(powers[inside], want[inside])
    assert np.count_nonzero(inside) > codes.size / 2


@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_gpt_oss(tmp_path: Path) -> None:
    mxfp4 = pytest.importorskip(
        "transformers.integrations.mxfp4", reason="needs the extra `peers`", exc_type=ImportError
    )
    rng = np.random.default_rng(2)
    q = lp.quantize(jnp.asarray(rng.normal(size=(2, 4, 64)), jnp.float32), "mxfp4")
    found = saved(tmp_path, "gpt_oss", q)
    values = mxfp4.convert_moe_packed_tensors(
        found["weight_blocks"], found["weight_scales"], dtype=torch.float32
    )
    # It hands the experts' weights over transposed.
    np.testing.assert_array_equal(values.numpy().swapaxes(-1, -2), np.asarray(q.dequantize()))


def test_a_file_of_pytorchs_own_writer_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, (128, 256), np.uint8)
    scales = rng.normal(size=(1, 2)).astype(np.float32)
    weight = torch.from_numpy(codes).view(torch.float8_e4m3fn)
    kept = {"a.weight": weight, "a.weight_scale_inv": torch.from_numpy(scales)}
    reader.save_file(kept, tmp_path / "w.safetensors")
    found: Any = load_tensors(tmp_path / "w.safetensors", layout="deepseek")["a.weight"]
    assert_bits_equal(found.codes, codes)
    assert_bits_equal(found.scales, scales)
