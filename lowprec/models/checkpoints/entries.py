"""Opening a checkpoint's folder: which architecture it is, and its weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from lowprec.models.checkpoints.architecture import Architecture, Hooks
from lowprec.models.checkpoints.bert import Bert
from lowprec.models.checkpoints.deepseek import DeepseekV3
from lowprec.models.checkpoints.llama import LlamaLike
from lowprec.models.checkpoints.settings import Settings, read_settings
from lowprec.models.checkpoints.shards import open_shards
from lowprec.models.checkpoints.weights import Weights, read_block

ARCHITECTURES: Mapping[str, type[Architecture]] = {
    "LlamaForCausalLM": LlamaLike,
    "Qwen2ForCausalLM": LlamaLike,
    "Qwen3ForCausalLM": LlamaLike,
    "DeepseekV3ForCausalLM": DeepseekV3,
    "BertForMaskedLM": Bert,
    "RobertaForMaskedLM": Bert,
}
"""By what config.json calls them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Checkpoint:
    """A model in a folder.

    Attributes:
      directory: the folder.
      name: the architecture, as config.json has it.
      architecture: the model's shape, and how it is computed.
      weights: its tensors, none of them read yet.
    """

    directory: Path
    name: str
    architecture: Architecture
    weights: Weights

    def logits(self, tokens: np.ndarray, hooks: Hooks | None = None) -> jax.Array:
        """Logits (batch, tokens, vocabulary) float32 of tokens (batch, tokens), layer by layer.

        Raises:
          ValueError: tokens that do not fit the model, and what its weights raise.
        """
        hooks = hooks or Hooks()
        check_tokens(tokens, self.architecture)
        stream = self.architecture.embed(self.weights, tokens)
        for number in range(self.architecture.layers):
            stream = self.architecture.layer(self.weights, number, stream, hooks)
        return self.architecture.head(self.weights)(stream, hooks.linear)


def open_checkpoint(directory: str | Path) -> Checkpoint:
    """The checkpoint of a folder with `config.json` and safetensors shards.

    Raises:
      FileNotFoundError: the folder lacks one of them.
      ValueError: an architecture that is not implemented, a key that is missing or makes no sense,
        a malformed shard, pickles in place of shards.

    Example:
      >>> open_checkpoint("Qwen3-0.6B").architecture.head_dim  # doctest: +SKIP
      128
    """
    directory = Path(directory)
    settings = read_settings(directory / "config.json")
    name = _architecture(settings)
    architecture = ARCHITECTURES[name].read(settings, name)
    weights = Weights(shards=open_shards(directory), block=read_block(settings))
    _check_layers(settings, architecture, weights.shards.places)
    return Checkpoint(directory=directory, name=name, architecture=architecture, weights=weights)


def check_tokens(tokens: np.ndarray, architecture: Architecture) -> None:
    """Raises ValueError unless tokens are (batch, tokens) integers that the model takes."""
    if tokens.ndim != 2 or not 0 < tokens.shape[1] <= architecture.context:
        raise ValueError(
            f"`tokens` must be (batch, tokens) with 1 to {architecture.context} tokens, got the "
            f"shape {tokens.shape}"
        )
    if tokens.min() < 0 or tokens.max() >= architecture.vocabulary:
        raise ValueError(
            f"`tokens` reach from {tokens.min()} to {tokens.max()}; the model knows 0 to "
            f"{architecture.vocabulary - 1}: does the tokenizer belong to it?"
        )


def _check_layers(settings: Settings, architecture: Architecture, names: Iterable[str]) -> None:
    """Some tensor for each layer: what else is missing is said when its layer comes."""
    stack = architecture.stack
    held = {name.removeprefix(stack).split(".")[0] for name in names if name.startswith(stack)}
    for number in range(architecture.layers):
        if str(number) not in held:
            raise settings.error(
                "num_hidden_layers",
                f"is {architecture.layers}, and no shard has a tensor {stack}{number}.*",
            )


def _architecture(settings: Settings) -> str:
    names = settings.table.get("architectures")
    if not isinstance(names, list) or not names:
        raise settings.error("architectures", "is missing; it names the model's class")
    if names[0] not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise settings.error("architectures", f"is {names[0]!r}; what is implemented is {known}")
    return names[0]
