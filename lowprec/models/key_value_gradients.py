"""How the loss of a model changes with its keys and values: what a cache method is weighted by."""

import jax
import jax.numpy as jnp

from lowprec.models.capture import inputs_and_gradients
from lowprec.models.parameters import Parameters, TransformerConfig
from lowprec.models.transformer import check_tokens, split_heads


def key_value_gradients(
    params: Parameters, tokens: jax.Array, config: TransformerConfig
) -> tuple[jax.Array, jax.Array]:
    """Gradients of the mean next-byte loss, in nats, with respect to keys before RoPE and values.

    Both are outputs of a linear layer, whose gradients `capture` finds; rounding to bfloat16 has
    the gradient of the identity. Float32 of this machine, repeatable on one machine and version.

    Args:
      params: as `init` or `load_checkpoint` returns them.
      tokens: (tokens,) integers, one sequence of at least two.
      config: the shape of the model.

    Returns:
      Two of (layers, kv_heads, tokens, head_dim) float32; those of the last token are zero, as no
      byte follows that it could predict. NaN where the loss is.

    Raises:
      TypeError: tokens are not integers.
      ValueError: tokens are not one sequence of two or more that fits the config.

    Example:
      >>> from lowprec.models.parameters import init
      >>> config = TransformerConfig(
      ...     vocabulary=32, layers=1, width=32, heads=2, kv_heads=2, head_dim=16, hidden=32
      ... )
      >>> params = jax.eval_shape(lambda key: init(key, config), jax.random.key(0))
      >>> gradients = lambda params: key_value_gradients(params, jnp.arange(8), config)
      >>> [x.shape for x in jax.eval_shape(gradients, params)]
      [(1, 2, 8, 16), (1, 2, 8, 16)]
    """
    if tokens.ndim != 1 or tokens.size < 2:
        raise ValueError(
            f"`tokens` must be one sequence (tokens,) of two or more, got the shape {tokens.shape}"
        )
    check_tokens(tokens[None], config)
    mask = jnp.ones((1, tokens.size - 1), bool)
    _, gradients = inputs_and_gradients(params, tokens[None], mask, config)
    found = gradients["layers"]
    split = jax.vmap(lambda array: split_heads(array, config.head_dim)[0])
    return split(found["attention.k"]), split(found["attention.v"])
