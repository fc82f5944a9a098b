"""Logits against those of `transformers`, on small random models of every architecture."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowprec.models.checkpoints import open_checkpoint
from tests.models.checkpoints.reference import (
    COMMITTED,
    FIXTURES,
    MODELS,
    answer,
    make,
    tokens_of,
)

TOLERANCE = 1e-4
"""Of a logit; both sides compute in float32 and in orders of their own."""


@pytest.mark.parametrize("name", COMMITTED)
def test_logits_are_those_that_transformers_gave(name: str) -> None:
    with np.load(FIXTURES / name / "answer.npz") as stored:
        tokens, expected = stored["tokens"].astype(np.int64), stored["logits"]
    assert expected.std() > 0.5
    logits = open_checkpoint(FIXTURES / name).logits(tokens)
    assert np.abs(np.asarray(logits) - expected).max() < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_installed_transformers(name: str, tmp_path: Path) -> None:
    torch, transformers = _peers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a peer warns of is its own affair
        model = make(torch, transformers, name, seed=1)
        model.save_pretrained(tmp_path)
        tokens = tokens_of(model.config.vocab_size)
        expected = answer(torch, model, tokens)
    assert expected.std() > 0.5
    logits = open_checkpoint(tmp_path).logits(tokens)
    assert np.abs(np.asarray(logits) - expected).max() < TOLERANCE


def _peers() -> tuple[Any, Any]:
    reason = "needs the extra `peers`, for torch and transformers"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch", reason=reason), pytest.importorskip(
            "transformers", reason=reason
        )
