"""The transformer's shape: what is derived from it, and what it refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.models.parameters import TransformerConfig, init, parameter_shapes

CONFIG = TransformerConfig(
    vocabulary=32, layers=2, width=16, heads=4, kv_heads=2, head_dim=4, hidden=24, context=160
)

# Weights of two shapes alone: drawing compiles a program for each.
SQUARE = TransformerConfig(
    vocabulary=16, layers=2, width=16, heads=4, kv_heads=4, head_dim=4, hidden=16
)


@pytest.mark.slow
def test_init_follows_the_shapes_and_the_key() -> None:
    drawn = jax.eval_shape(lambda key: init(key, CONFIG), jax.random.key(0))
    assert jax.tree.map(lambda array: array.shape, drawn) == parameter_shapes(CONFIG)
    params = init(jax.random.key(0), SQUARE)
    assert jax.tree.map(jnp.shape, params) == parameter_shapes(SQUARE)
    again, other = init(jax.random.key(0), SQUARE), init(jax.random.key(1), SQUARE)
    np.testing.assert_array_equal(params["head"], again["head"])
    assert (params["head"] != other["head"]).all()
    assert (params["layers"]["mlp"]["norm"] == 1).all()


def test_the_default_model_has_three_million_parameters() -> None:
    shapes = jax.tree.leaves(
        parameter_shapes(TransformerConfig()), is_leaf=lambda node: isinstance(node, tuple)
    )
    assert sum(int(np.prod(shape)) for shape in shapes) == 3_082_496


@pytest.mark.parametrize(
    ("key", "value", "kind", "text"),
    [
        ("layers", 0, ValueError, "`layers` must be positive, got 0"),
        ("width", 2.5, TypeError, "`width` must be an integer, got 2.5"),
        ("hidden", "8", TypeError, "`hidden` must be a number, got '8'"),
        ("kv_heads", 3, ValueError, "`heads` must be a multiple of `kv_heads`, got 4 and 3"),
        ("head_dim", 7, ValueError, "`head_dim` must be even, got 7"),
    ],
)
def test_config_refuses(key: str, value: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        TransformerConfig(**{key: value})
    assert text in str(caught.value)
