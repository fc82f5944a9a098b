"""Small random models of `transformers`, and what they answer.

`python -m tests.models.checkpoints.reference` writes the committed ones anew: their folders as
`save_pretrained` leaves them, and tokens with the logits that `transformers` computes in float32.
"""

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"
COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
DEEPSEEK_YARN = {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}
DEEPSEEK = {
    **COMMON,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "moe_intermediate_size": 16,
    "n_shared_experts": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "num_mtp_layers": 0,
}
ROBERTA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**COMMON, "rope_parameters": LLAMA3}),
    "llama_biases": ("Llama", {**COMMON, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2", {**COMMON, "tie_word_embeddings": True}),
    "qwen2_yarn": ("Qwen2", {**COMMON, "rope_parameters": YARN}),
    "qwen3": ("Qwen3", {**COMMON, "head_dim": 16}),
    "qwen3_linear": (
        "Qwen3",
        {**COMMON, "rope_parameters": {"rope_type": "linear", "rope_theta": 99.0, "factor": 3.0}},
    ),
    "deepseek_v3": ("DeepseekV3", {**DEEPSEEK, "rope_parameters": DEEPSEEK_YARN}),
    "deepseek_v3_plain": (
        "DeepseekV3",
        {**DEEPSEEK, "q_lora_rank": None, "rope_interleave": False, "attention_bias": True},
    ),
    "bert": ("Bert", COMMON),
    "roberta": ("Roberta", {**COMMON, **ROBERTA}),
}
"""By name: the model, and what its config says other than by default."""

COMMITTED = ("llama", "qwen2", "qwen3", "deepseek_v3", "bert", "roberta")


def make(torch: Any, transformers: Any, name: str, seed: int = 0) -> Any:
    """A model whose every parameter is drawn, norms and biases too, and whose logits are not small.

    Weights have the variance 1 / in, as trained ones roughly do.
    """
    torch.manual_seed(seed)
    family, given = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**given)
    config._attn_implementation = "eager"
    head = "MaskedLM" if family in ("Bert", "Roberta") else "CausalLM"
    model = getattr(transformers, f"{family}For{head}")(config).eval()
    with torch.no_grad():
        for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in path or not tensor.is_floating_point():
                continue
            if tensor.ndim == 1:
                tensor.normal_(1.0 if "norm" in path.lower() and "bias" not in path else 0.0, 0.3)
            else:
                tensor.normal_(0.0, 1.0 if "embed" in path else tensor.shape[-1] ** -0.5)
    return model


def answer(torch: Any, model: Any, tokens: np.ndarray) -> np.ndarray:
    """The model's logits in float32."""
    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()


def tokens_of(vocabulary: int, *, batch: int = 2, length: int = 40) -> np.ndarray:
    """Tokens drawn once and for all."""
    return np.random.default_rng(0).integers(0, vocabulary, (batch, length))


def write(name: str) -> None:
    """A committed model, in several shards."""
    # The one place that needs the extra `peers`, which readers of the committed models do without.
    torch, transformers = (importlib.import_module(x) for x in ("torch", "transformers"))

    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    model = make(torch, transformers, name)
    model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokens = tokens_of(model.config.vocab_size)
    logits = answer(torch, model, tokens)
    np.savez_compressed(folder / "answer.npz", tokens=tokens.astype(np.uint8), logits=logits)
    about = {"transformers": transformers.__version__, "torch": torch.__version__}
    (folder / "versions.json").write_text(json.dumps(about) + "\n")


if __name__ == "__main__":
    for each in sys.argv[1:] or COMMITTED:
        write(each)
