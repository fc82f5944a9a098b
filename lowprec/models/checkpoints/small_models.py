"""The repository's small models in the layout of Hugging Face, where they are Llama's layers."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lowprec.models.checkpoint import load_checkpoint
from lowprec.models.parameters import Parameters, TransformerConfig
from lowprec.models.tensor_writing import write_tensors

NAMES = {
    "attention.norm": "input_layernorm.weight",
    "attention.q": "self_attn.q_proj.weight",
    "attention.k": "self_attn.k_proj.weight",
    "attention.v": "self_attn.v_proj.weight",
    "attention.o": "self_attn.o_proj.weight",
    "mlp.norm": "post_attention_layernorm.weight",
    "mlp.gate": "mlp.gate_proj.weight",
    "mlp.up": "mlp.up_proj.weight",
    "mlp.down": "mlp.down_proj.weight",
}
"""What a layer's tensors are called there."""


@contextlib.contextmanager
def as_folder(path: Path) -> Iterator[Path]:
    """A checkpoint's folder: the path itself, or that of a small model's file for the while.

    Raises:
      ValueError: a file that is no small model, or one with latents (MLA).
      OSError: it cannot be read.

    Example:
      >>> with as_folder(Path("Qwen3-0.6B")) as folder:
      ...     print(folder)
      Qwen3-0.6B
    """
    if not path.is_file():
        yield path
        return
    params, config = load_checkpoint(path)
    with tempfile.TemporaryDirectory(prefix="lowprec-") as folder:
        write_folder(params, config, Path(folder))
        yield Path(folder)


def write_folder(params: Parameters, config: TransformerConfig, folder: Path) -> None:
    """Writes config.json, model.safetensors and, for models of bytes, tokenizer.json.

    Args:
      params: as `lowprec.models.parameters.init` makes them; they are written in their own type.
      config: their shape.
      folder: a directory.

    Raises:
      OSError: it cannot be written to.

    Example:
      >>> from lowprec.models.parameters import init
      >>> config = TransformerConfig(layers=1, width=32, heads=1, kv_heads=1, hidden=32)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_folder(init(jax.random.key(0), config), config, Path(folder))
      ...     sorted(path.name for path in Path(folder).iterdir())
      ['config.json', 'model.safetensors', 'tokenizer.json']
    """
    (folder / "config.json").write_text(json.dumps(_config(config), indent=1) + "\n")
    write_tensors(folder / "model.safetensors", dict(_tensors(params, config)))
    if config.vocabulary == 256:
        (folder / "tokenizer.json").write_text(json.dumps(_byte_tokenizer()) + "\n")


def _tensors(params: Parameters, config: TransformerConfig) -> Iterator[tuple[str, np.ndarray]]:
    yield "model.embed_tokens.weight", np.asarray(params["embedding"])
    for own, name in NAMES.items():
        group, _, member = own.partition(".")
        for number, x in enumerate(np.asarray(params["layers"][group][member])):
            # (in, out) here, (out, in) there.
            yield f"model.layers.{number}.{name}", np.ascontiguousarray(x.T)
    yield "model.norm.weight", np.asarray(params["final_norm"])
    yield "lm_head.weight", np.ascontiguousarray(np.asarray(params["head"]).T)


def _config(config: TransformerConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocabulary,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_epsilon,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }


def _byte_tokenizer() -> dict[str, Any]:
    """Tokens that are bytes, as the package `tokenizers` spells these: byte by byte a character."""
    # Bytes that print stand for themselves, the others for the characters from 256 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    characters |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": True,
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False},
        "model": {
            "type": "BPE",
            "vocab": {character: byte for byte, character in sorted(characters.items())},
            "merges": [],
        },
    }
