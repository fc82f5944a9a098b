"""Small dot products that tell matrix engines apart, with the bits that papers give for each."""

from collections.abc import Sequence

import pytest

from lowprec.engines import get_engine
from lowprec.engines.oracle import dot
from lowprec.numerics import get_format, oracle

# Bit-Accurate Modeling of GPU Matrix Multiply-Accumulate Units (arXiv 2511.10909), Eq. 10, Table 8.
A = (-(2.0**13), -0.5, -0.25, -0.125)
B = (2.0**10, 1.0, 1.0, 1.0)
C = 2.0**23
EXACT = -0.875

TABLE_8 = {
    ("volta.mma.fp16.fp32", "float16"): 0.0,
    ("turing.mma_m8n8k4.fp16.fp32", "float16"): 0.0,
    ("turing.mma.fp16.fp32", "float16"): -0.5,
    ("ampere.mma.fp16.fp32", "float16"): -0.5,
    ("ampere.mma.tf32.fp32", "float32"): -0.5,
    ("hopper.mma.fp16.fp32", "float16"): -0.75,
    ("hopper.wgmma.fp16.fp32", "float16"): -0.75,
    ("blackwell.tcgen05.f8f6f4.fp32", "float8_e5m2"): -0.75,
    ("rtx_blackwell.mma.f8f6f4.fp32", "float8_e5m2"): -0.75,
    ("ada.mma.fp8.fp32", "float8_e5m2"): 0.0,
    ("hopper.wgmma.fp8.fp32", "float8_e5m2"): 0.0,
    ("cdna1.mfma.fp16.fp32", "float16"): EXACT,
    ("cdna2.mfma.bf16.fp32", "bfloat16"): -0.375,
    ("cdna2.mfma.fp16.fp32", "float16"): 0.0,
    ("cdna3.mfma.fp16.fp32", "float16"): -0.5,
    ("cdna3.mfma.bf8.fp32", "float8_e5m2fnuz"): -1.0,
    ("kulisch", "float32"): EXACT,
}


def codes(values: Sequence[float], fmt: str) -> list[int]:
    """Codes of values that the format holds."""
    encoded = [oracle.encode(x, fmt, rounding="toward_zero", overflow="saturate") for x in values]
    assert [float(oracle.decode(code, fmt)) for code in encoded] == list(values)
    return encoded


def computed(name: str, fmt: str, a: Sequence[float], b: Sequence[float], c: float) -> int:
    """The oracle's bits."""
    found = get_format(fmt)
    operands = codes(a, fmt), codes(b, fmt)
    bits = oracle.float32_bits(c)
    return dot(get_engine(name), *operands, bits, a_format=found, b_format=found)


@pytest.mark.parametrize(("name", "fmt"), TABLE_8)
def test_paper(name: str, fmt: str) -> None:
    assert computed(name, fmt, A, B, C) == oracle.float32_bits(TABLE_8[name, fmt])


@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("name", ["ada.mma.fp8.fp32", "hopper.wgmma.fp8.fp32"])
def test_fp8_registers_have_13_bits(name: str, fmt: str) -> None:
    # "SageAttention2: efficient attention with thorough outlier smoothing", arXiv 2411.10958: with
    # operands of zero an FP8 instruction returns c cut to 13 bits of mantissa.
    zeros = [0.0] * 32
    c = 1 + 2.0**-13 + 2.0**-14
    assert computed(name, fmt, zeros, zeros, c) == oracle.float32_bits(1 + 2.0**-13)
    kept = computed("blackwell.tcgen05.f8f6f4.fp32", fmt, zeros, zeros, c)
    assert kept == oracle.float32_bits(c)


@pytest.mark.parametrize(
    ("a", "b", "want"), [(1.5, 1.5, 0x40100001), (1.0, 2.25, 0x40100000)], ids=["1.5", "2.25"]
)
def test_products_are_aligned_before_they_are_normalized(a: float, b: float, want: int) -> None:
    # Accurate Models of NVIDIA Tensor Cores (arXiv 2512.07004): both are 2.25, with exponents
    # that add up to 0 and to 1.
    tiny = 2.0**-23
    left, right = (a, 2.0**-12, 2.0**-12, 0.0), (b, tiny * 2**12, tiny * 2**12, 0.0)
    assert computed("volta.mma.fp16.fp32", "float16", left, right, 0.0) == want
