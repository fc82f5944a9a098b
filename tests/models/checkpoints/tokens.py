"""A tokenizer of single characters, with as many tokens as the committed models know."""

import string
from pathlib import Path
from typing import Any

import pytest

CHARACTERS = string.ascii_letters + string.digits + " .,;:!?-\n"
SIZE = 96


def write_tokenizer(folder: Path, *, begins: bool = False) -> None:
    """Writes tokenizer.json; where it `begins`, token 95 stands before any text."""
    tokenizers: Any = pytest.importorskip("tokenizers", reason="needs the extra `checkpoints`")
    vocabulary = {c: n for n, c in enumerate(CHARACTERS)}
    vocabulary |= {"[unknown]": SIZE - 2, "[begin]": SIZE - 1}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="[unknown]")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    if begins:
        made.add_special_tokens(["[begin]"])
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="[begin] $A", special_tokens=[("[begin]", SIZE - 1)]
        )
    made.save(str(folder / "tokenizer.json"))
