"""The layers of a user's file, as commands read them."""

import sys
from pathlib import Path

from lowprec.models.operands import LAYER_KEYS, Operands, load_layers, some_of


def layers_of(path: Path) -> list[Operands]:
    """The layers of a file; tensors of none, such as one with a mistyped key, are named on stderr.

    Raises:
      ValueError: the file has no layer, and what `load_operands` raises.
    """
    layers, lone = load_layers(path)
    if lone:
        print(
            f"{path}: left out, of no layer: {some_of(lone)}; a layer's keys are {LAYER_KEYS}",
            file=sys.stderr,
        )
    return layers
