"""Parameters of a small model for tests that do not ask how they were drawn."""

from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from lowprec.models.parameters import TransformerConfig, parameter_shapes


def random_parameters(config: TransformerConfig, seed: int = 0) -> dict[str, Any]:
    """Parameters as `init` draws them, without a program to compile for every shape."""
    rng = np.random.default_rng(seed)

    def leaf(path: tuple[Any, ...], shape: tuple[int, ...]) -> NDArray[np.float32]:
        if path[-1].key.endswith("norm"):
            return np.ones(shape, np.float32)
        deviation = 1.0 if path[-1].key == "embedding" else shape[-2] ** -0.5
        return (deviation * rng.normal(size=shape)).astype(np.float32)

    return jax.tree.map_with_path(
        leaf, parameter_shapes(config), is_leaf=lambda node: isinstance(node, tuple)
    )
