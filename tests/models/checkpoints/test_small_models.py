"""The small models as checkpoints: the logits of their own code, and tokens that are bytes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.models.checkpoint import save_checkpoint
from lowprec.models.checkpoints import open_checkpoint, read_text
from lowprec.models.checkpoints.small_models import as_folder, write_folder
from lowprec.models.latent_parameters import LatentTransformerConfig
from lowprec.models.latent_parameters import parameter_shapes as latent_shapes
from lowprec.models.parameters import TransformerConfig, init, parameter_shapes
from lowprec.models.transformer import forward
from tests.models.checkpoints.reference import tokens_of

CONFIG = TransformerConfig(layers=2, width=32, heads=2, kv_heads=1, head_dim=16, hidden=48)


def float32(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.matmul(x, w.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)


@pytest.mark.slow
def test_logits_are_those_of_the_model_s_own_code(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, init(jax.random.key(0), CONFIG), CONFIG)
    tokens = tokens_of(256, length=16)
    with as_folder(path) as folder:
        found = open_checkpoint(folder).logits(tokens)
    assert not folder.exists()
    params = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), init(jax.random.key(0), CONFIG)
    )
    expected = forward(params, jnp.asarray(tokens), CONFIG, linear=float32, quantize_head=True)
    assert np.asarray(expected).std() > 0.1
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=1e-4)


def zeros(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that nothing is compiled for."""
    return {
        name: np.zeros(x, np.float32) if isinstance(x, tuple) else zeros(x)
        for name, x in shapes.items()
    }


def test_tokens_are_the_bytes_of_a_text(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra `checkpoints`")
    write_folder(zeros(parameter_shapes(CONFIG)), CONFIG, tmp_path)
    text = "".join(map(chr, range(300))) + " \n\n\t 漢😀 words, and 1234 "
    (tmp_path / "text.txt").write_bytes(text.encode())
    model = open_checkpoint(tmp_path).architecture
    found = read_text(tmp_path, tmp_path / "text.txt", model, length=512, count=1)
    whole = text.encode()[: found.tokens.size]
    assert found.tokens.astype(np.uint8).tobytes() == whole
    assert len(whole) > 400 and found.byte_counts.sum() >= len(whole)


def test_a_folder_is_itself_and_other_files_are_refused(tmp_path: Path) -> None:
    with as_folder(tmp_path) as folder:
        assert folder == tmp_path
    config = LatentTransformerConfig(
        layers=1, width=32, heads=1, latent_dim=16, nope_dim=8, rope_dim=8, value_dim=8, hidden=32
    )
    path = tmp_path / "latent.safetensors"
    save_checkpoint(path, zeros(latent_shapes(config)), config)
    with pytest.raises(ValueError, match="must name its `transformer_config`"), as_folder(path):
        pass
