"""Products by PyPI mmasim 2.1.1 (arXiv 2511.10909), an independent bit-level model on torch.

It needs torch, g++ and ninja. One thing it does not have is put together from its parts: FP8 by
`mma.sync` on Hopper and Blackwell is two of its float16 steps and a sum by torch.
"""

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowprec.engines import Engine
from lowprec.numerics import Format

VERSION = "2.1.1"
_NVIDIA = {
    "volta": "Volta",
    "turing": "Turing",
    "ampere": "Ampere",
    "ada": "Ada Lovelace",
    "hopper": "Hopper",
    "blackwell": "Blackwell",
    "rtx_blackwell": "RTX Blackwell",
}
_AMD = {
    "cdna1.mfma.fp16": "f32_32x32x8f16",
    "cdna1.mfma.bf16": "f32_32x32x4bf16",
    "cdna2.mfma.fp16": "f32_32x32x8f16",
    "cdna2.mfma.bf16": "f32_32x32x4bf16",
    "cdna2.mfma.bf16_1k": "f32_32x32x8bf16_1k",
    "cdna3.mfma.fp16": "f32_32x32x8_f16",
    "cdna3.mfma.bf16": "f32_32x32x8_bf16",
    "cdna3.mfma.xf32": "f32_16x16x8_xf32",
}
_PTX = {
    "float16": "f16",
    "bfloat16": "bf16",
    "tensorfloat32": "tf32",
    "float8_e4m3fn": "e4m3",
    "float8_e5m2": "e5m2",
    "float6_e3m2fn": "e3m2",
    "float6_e2m3fn": "e2m3",
    "float4_e2m1fn": "e2m1",
    "float8_e8m0fnu": "ue8m0",
    "ue4m3": "ue4m3",
    "float8_e4m3fnuz": "fp8",
    "float8_e5m2fnuz": "bf8",
}
_TORCH = {"tensorfloat32": "float32", "ue4m3": "float8_e4m3fn"}
_BYTES = ("float6_e3m2fn", "float6_e2m3fn", "float4_e2m1fn")

Codes = NDArray[Any]


def models(engine: Engine) -> bool:
    """Whether mmasim, or what is put together from it, computes as this engine should."""
    architecture = engine.name.split(".")[0]
    known = architecture in _NVIDIA or architecture in ("cdna1", "cdna2", "cdna3")
    return known and engine.accumulation != "unknown"


def product(
    engine: Engine,
    a: Codes,
    b: Codes,
    c: NDArray[np.float32],
    formats: tuple[Format, Format],
    scales: tuple[Codes, Codes] | None = None,
    scale_format: Format | None = None,
) -> Codes:
    """The bits of a @ b + c, (M, K) x (K, N) + (M, N), in the engine's output format.

    Operands are codes, scales as `lp.matmul` takes them, c is rounded to the output format here.
    """
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(1)
    half = engine.output.name == "float16"
    with np.errstate(over="ignore"):
        start = torch.from_numpy(c.astype(np.float16) if half else c.copy())
    first, second = (fmt.name for fmt in formats)
    operation = _operation(engine, (first, second), scale_format)
    left, right = a, b.T
    if engine.through is not None:
        out = _emulated(operation, _tensor(left, first), _tensor(right, second), start)
    elif scales is None or scale_format is None:
        right_values = _tensor(_placed(right, second), second)
        out = operation(_tensor(_placed(left, first), first), right_values.T, start)
    else:
        alpha, beta = (_tensor(x, scale_format.name) for x in (scales[0], scales[1].T))
        grouped = engine.accumulation == "grouped"
        operands = [
            _tensor(_packed(x) if grouped else _placed(x, name), name)
            for x, name in ((left, first), (right, second))
        ]
        out = _scaled(engine, operation, operands, start, (alpha, beta))
    bits = out.contiguous().view(torch.int16 if half else torch.int32).numpy()
    return bits.view(np.uint16 if half else np.uint32)


def _operation(engine: Engine, operands: tuple[str, ...], scale_format: Format | None) -> Any:
    """mmasim's object for the instruction that the engine's name says."""
    architecture, instruction, kind, output = engine.name.split(".")
    if architecture.startswith("cdna"):
        suffix = _AMD.get(f"{architecture}.{instruction}.{kind}")
        suffix = suffix or f"f32_16x16x32_{_PTX[operands[0]]}_{_PTX[operands[1]]}"
        return importlib.import_module("mmasim.amd.sim").MFMA(architecture.upper(), suffix)
    simulator = importlib.import_module("mmasim.nv_ptx.sim")
    arch, out = _NVIDIA[architecture], {"fp32": "f32", "fp16": "f16"}[output]
    first, second = ("f16", "f16") if engine.through else (_PTX[x] for x in operands)
    if scale_format is not None:
        block, scale = engine.scale_block, _PTX[scale_format.name]
        kind = {"nvf4": "mxf4nvf4"}.get(kind, kind)
        k = 64 if engine.accumulation == "grouped" else 32
        if instruction == "tcgen05":
            text = f"m128n8k{k}.kind::{kind}.block{block}.f32.{first}.{second}.{scale}"
            return simulator.TCGen05MMABlockScale(arch, text)
        text = f"m16n8k{k}.kind::{kind}.block{block}.f32.{first}.{second}.f32.{scale}"
        return simulator.MMABlockScale(arch, text)
    k = {"tf32": 8, "f16": 16, "bf16": 16}.get(first, 32)
    if instruction == "wgmma":
        return simulator.WGMMA(arch, f"m64n8k{k}.{out}.{first}.{second}")
    if instruction == "tcgen05":
        group = {"tf32": "tf32", "f16": "f16", "bf16": "f16"}.get(first, "f8f6f4")
        return simulator.TCGen05MMA(arch, f"m64n8k{k}.kind::{group}.{out}.{first}.{second}")
    shape = f"m16n8k{k}"
    if architecture == "volta" or instruction == "mma_m8n8k4":
        shape = "m8n8k4"
    elif architecture == "turing":
        shape = "m16n8k8"
    elif architecture == "rtx_blackwell":
        shape += ".kind::f8f6f4"
    return simulator.MMA(arch, f"{shape}.{out}.{first}.{second}.{out}")


def _tensor(codes: Codes, name: str) -> Any:
    """Codes as a torch tensor of their dtype, or as bytes where torch has none."""
    torch: Any = importlib.import_module("torch")
    if name in _BYTES:
        return torch.from_numpy(np.ascontiguousarray(codes, np.uint8))
    dtype = getattr(torch, _TORCH.get(name, name))
    width = {1: np.uint8, 2: np.int16, 4: np.int32}[dtype.itemsize]
    return torch.from_numpy(np.ascontiguousarray(codes).view(width)).view(dtype)


def _placed(codes: Codes, name: str) -> Codes:
    """FP4 codes of a wider kind lie in bits 5:2 of their byte."""
    return codes << 2 if name == "float4_e2m1fn" else codes


def _packed(codes: Codes) -> Codes:
    """Two FP4 codes a byte, along the last axis, the first above."""
    return codes[:, 0::2] << 4 | codes[:, 1::2]


def _scaled(engine: Engine, operation: Any, operands: list[Any], c: Any, scales: Any) -> Any:
    """Instructions chained here: mmasim's own chain applies the first scale to all of them."""
    grouped = engine.accumulation == "grouped"
    assert engine.fused_length is not None and engine.scale_block is not None
    length, per = engine.fused_length, engine.fused_length // engine.scale_block
    width = length // 2 if grouped else length
    alpha, beta = scales
    for step in range(alpha.shape[-1] // per):
        k, block = slice(step * width, (step + 1) * width), slice(step * per, (step + 1) * per)
        left, right = (x[:, k] for x in operands)
        c = operation(left, right.T, c, alpha[:, block], beta[:, block].T)
    return c


def _emulated(operation: Any, a: Any, b: Any, c: Any) -> Any:
    """FP8 by float16: k mod 4 in {0, 1} from zero, {2, 3} from there, then c by torch's sum."""
    torch: Any = importlib.import_module("torch")
    a, b = a.to(torch.float16), b.to(torch.float16)
    for start in range(0, a.shape[-1], 32):
        total = torch.zeros_like(c)
        for first in (0, 2):
            k = [start + 4 * four + first + one for four in range(8) for one in (0, 1)]
            total = operation(a[:, k], b[:, k].T, total)
        c = total + c
    return c
