"""Several passes over one text at once, layer by layer, so that weights are read once for all."""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from lowprec.models.checkpoints.architecture import Hooks
from lowprec.models.checkpoints.entries import Checkpoint, check_tokens

Say = Callable[[int], None]


def run_layers(
    checkpoint: Checkpoint,
    tokens: np.ndarray,
    passes: Mapping[str, Sequence[Hooks]],
    *,
    done: Say | None = None,
) -> dict[str, jax.Array]:
    """The residual stream behind the last layer, for every pass.

    Passes whose hooks have been the same so far share their work: one that differs from another in
    a single layer is computed from there on.

    Args:
      checkpoint: the model.
      tokens: (batch, tokens) integers.
      passes: by name, hooks for each layer.
      done: called with the number of each layer that all passes are through.

    Returns:
      By name, (batch, tokens, width) float32.

    Raises:
      ValueError: tokens that do not fit the model; a pass without hooks for every layer.
    """
    architecture, weights = checkpoint.architecture, checkpoint.weights
    check_tokens(tokens, architecture)
    for name, hooks in passes.items():
        if len(hooks) != architecture.layers:
            raise ValueError(
                f"`passes`: {name!r} has hooks for {len(hooks)} layers of {architecture.layers}"
            )
    streams = dict.fromkeys(passes, architecture.embed(weights, tokens))
    for number in range(architecture.layers):
        computed: dict[tuple[int, Hooks], jax.Array] = {}
        for name, hooks in passes.items():
            key = (id(streams[name]), hooks[number])
            if key not in computed:
                computed[key] = architecture.layer(weights, number, streams[name], hooks[number])
        # Only now: an id is one of an array that is still there.
        streams = {name: computed[id(streams[name]), passes[name][number]] for name in passes}
        if done is not None:
            done(number)
    return streams
