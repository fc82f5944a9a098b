"""A GPU's own matrix product beside the engine that its architecture is said to have."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.engines import Engine, get_engine, list_engines
from lowprec.numerics.format import get_format
from lowprec.study.engine_dots import product_codes, same_codes

ARCHITECTURES = {
    "7.0": "volta",
    "7.5": "turing",
    "8.0": "ampere",
    "8.6": "ampere",
    "8.9": "ada",
    "9.0": "hopper",
    "10.0": "blackwell",
    "12.0": "rtx_blackwell",
}
"""By CUDA's compute capability."""
_SIZE = 64


def compare_device(device: Any) -> tuple[int, int, str]:
    """Products of float16 operands by the device and by the nearest engine of its architecture.

    One instruction long, so that the order of instructions, which a library chooses, plays no part;
    without c. Operands spread over many binades, so that the cut bits show.

    Args:
      device: a JAX device with `compute_capability`.

    Returns:
      How many results were compared, how many differ, and with which engine.

    Raises:
      ValueError: no engine is known for the device.
    """
    engines = engines_of(device)
    length = min(engine.instruction_length or 1 for engine in engines)
    a, b = operands(length)
    put = [jax.device_put(x.view(np.float16), device) for x in (a, b)]
    got = np.asarray(jnp.matmul(*put, preferred_element_type=jnp.float32)).view(np.uint32)
    differing = {engine.name: count_differing(engine, a, b, got) for engine in engines}
    name = min(differing, key=lambda name: differing[name])
    what = f"{device.device_kind}, float16 products of {length} without c, nearest engine {name}"
    return got.size, differing[name], what


def engines_of(device: Any) -> list[Engine]:
    """The engines with float16 operands and float32 results of a device's architecture."""
    capability = str(getattr(device, "compute_capability", ""))
    family = f"{ARCHITECTURES.get(capability, capability)}."
    names = [x for x in list_engines() if x.startswith(family) and x.endswith(".fp16.fp32")]
    if not names:
        raise ValueError(
            f"no float16 engine is known for {device.device_kind} (compute capability "
            f"{capability!r}); known: {', '.join(ARCHITECTURES.values())}"
        )
    return [get_engine(name) for name in names]


def operands(length: int) -> tuple[np.ndarray, np.ndarray]:
    """float16 codes of (64, length) and (length, 64) normal numbers of many binades."""
    rng = np.random.default_rng(0)
    shapes = (_SIZE, length), (length, _SIZE)
    drawn = (rng.normal(size=shape) * np.exp2(rng.integers(-6, 6, shape)) for shape in shapes)
    a, b = (x.astype(np.float16).view(np.uint16) for x in drawn)
    return a, b


def count_differing(engine: Engine, a: np.ndarray, b: np.ndarray, got: np.ndarray) -> int:
    """In how many results of a @ b an engine differs from float32 bits."""
    fmt = get_format("float16")
    c = np.zeros(got.shape, np.uint32)
    want = product_codes(engine, (fmt, fmt), a, b, c)
    return int(np.sum(~same_codes(got, want, engine.output)))
