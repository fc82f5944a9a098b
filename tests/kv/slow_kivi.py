"""KIVI's integers in NumPy float16, operation by operation: an independent second writing."""

import numpy as np

H = np.float16


def coded(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and minima of float16 groups along the last axis."""
    assert x.dtype == H
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    scale = (high - low) / H(2**bits - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.nan_to_num((x - low) / scale, nan=0.0)
    return np.rint(np.clip(quotient, 0, 2**bits - 1)).astype(np.uint8), scale, low


def values(codes: np.ndarray, scale: np.ndarray, low: np.ndarray) -> np.ndarray:
    """float16 values of codes."""
    return codes.astype(H) * scale + low


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Bytes of codes along the last axis, the first code in the lowest bits."""
    ones = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(ones.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")
