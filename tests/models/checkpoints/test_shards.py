"""Shards from strangers: what is wrong with one is said by the name of the file and the tensor."""

import json
import mmap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lowprec.models.checkpoints import open_checkpoint
from lowprec.models.checkpoints.header import read_header
from lowprec.models.checkpoints.shards import open_shards
from lowprec.models.checkpoints.weights import Weights
from tests.models.checkpoints.folders import (
    changed_config,
    copied,
    in_fp8,
    rewritten,
    tensors_of,
    write_raw,
    write_shard,
)
from tests.models.checkpoints.reference import FIXTURES, tokens_of

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_tensors_are_those_of_the_format_s_own_reader() -> None:
    shards = open_shards(FIXTURES / "llama")
    expected = tensors_of(FIXTURES / "llama")
    assert shards.places.keys() == expected.keys() and len(shards.maps) == 3
    for name, x in expected.items():
        np.testing.assert_array_equal(shards.array(name, x.shape), x)


def test_nothing_is_copied_and_nothing_can_be_written() -> None:
    shards = open_shards(FIXTURES / "llama")
    x = shards.array("model.norm.weight", (32,))
    mapped = next(iter(shards.maps.values())).__class__
    base: Any = x
    while not isinstance(base, mapped):
        base = base.base
    assert not x.flags.writeable


def test_a_single_file_is_preferred_and_read_without_an_index(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", {"a": np.arange(6, dtype=np.float32)})
    (tmp_path / "model.safetensors.index.json").write_text("no JSON")
    assert open_shards(tmp_path).array("a", (6,)).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": F32}, b"1234", "is cut short: tensor `a` ends at byte"),
        ({"a": F32}, b"123456789", "has 1 bytes behind its last tensor"),
        ({"a": F32 | {"shape": [3]}}, bytes(8), "`a` of shape .3. and dtype F32 takes 12 bytes"),
        ({"a": F32 | {"shape": [-2]}}, bytes(8), "`a` has `shape` = "),
        ({"a": F32 | {"shape": 2}}, bytes(8), "`a` has `shape` = 2"),
        ({"a": F32 | {"data_offsets": [8, 0]}}, bytes(8), "`a` has `data_offsets` = "),
        ({"a": F32 | {"data_offsets": [0, True]}}, bytes(8), "`a` has `data_offsets` = "),
        ({"a": F32 | {"data_offsets": [8, 16]}}, bytes(16), "`a` begins at byte"),
        ({"a": F32, "b": F32}, bytes(8), "`b` begins at byte"),
        ({"a": F32 | {"dtype": ["F32"]}}, bytes(8), "`a` has `dtype` = .'F32'.; it is a name"),
        ({"a": {"dtype": "F32"}}, b"", "`a` needs `dtype`, `shape` and `data_offsets`"),
        ([1], b"", "the header is no JSON object"),
    ],
)
def test_a_header_that_lies_is_refused(
    tmp_path: Path, header: Any, data: bytes, message: str
) -> None:
    path = tmp_path / "model.safetensors"
    write_raw(path, header, data)
    with pytest.raises(ValueError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a whole .safetensors file: it has 0 bytes"),
        ((2**60).to_bytes(8, "little"), "its header would take"),
        ((4).to_bytes(8, "little") + b"abcd", "the header is no JSON"),
        (b"\x02\0\0\0\0\0\0\0{}", None),
    ],
)
def test_a_file_that_is_none_is_refused(
    tmp_path: Path, content: bytes, message: str | None
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    if message is None:
        assert read_header(path) == {}
        return
    with pytest.raises(ValueError, match=message):
        read_header(path)


def test_a_tensor_named_twice_is_refused(tmp_path: Path) -> None:
    text = f'{{"a": {json.dumps(F32)}, "a": {json.dumps(F32)}}}'.encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ValueError, match="`a` stands there twice"):
        read_header(path)


def test_an_unknown_type_is_refused_when_it_is_read(tmp_path: Path) -> None:
    write_raw(tmp_path / "model.safetensors", {"a": F32 | {"dtype": "F128"}}, bytes(8))
    with pytest.raises(ValueError, match="`a` has dtype `F128`, which is not read"):
        open_shards(tmp_path).array("a", (2,))


def test_of_a_shard_of_64_gib_what_is_asked_for_is_read(tmp_path: Path) -> None:
    rows, width = 1 << 20, 1 << 15
    size, table = 2 * rows * width, "model.embed_tokens.weight"
    header = {
        table: {"dtype": "BF16", "shape": [rows, width], "data_offsets": [0, size]},
        "a": F32 | {"data_offsets": [size, size + 8]},
    }
    path = tmp_path / "model.safetensors"
    write_raw(path, header, b"")
    # A file with a hole: its disk holds the ends alone.
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + size)
        file.seek(0, 2)
        file.write(np.asarray([1.5, 2.5], np.float32).tobytes())
    before = resident_bytes()
    weights = Weights(shards=open_shards(tmp_path))
    assert weights.vector("a", 2).tolist() == [1.5, 2.5]
    found = weights.rows(table, (rows, width), np.asarray([[0, rows - 1]]))
    assert found.shape == (1, 2, width) and not found.any()
    assert resident_bytes() - before < 1 << 26


def resident_bytes() -> int:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("needs /proc, to see how much memory is held")
    return int(statm.read_text().split()[1]) * mmap.PAGESIZE


def test_pickles_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: is a pickle"):
        open_shards(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle"):
        open_shards(tmp_path)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ("{", ValueError, "is no JSON"),
        ("[]", ValueError, "`weight_map` is missing"),
        ('{"weight_map": {"a": "gone.safetensors"}}', FileNotFoundError, "`gone.safetensors`"),
        ('{"weight_map": {"a": "../x.safetensors"}}', ValueError, "which is no file name"),
        ('{"weight_map": {"a": 3}}', ValueError, "which is no file name"),
        ('{"weight_map": {"b": "one.safetensors"}}', ValueError, "`b` is not in one.safetensors"),
    ],
)
def test_an_index_that_lies_is_refused(
    tmp_path: Path, index: str, error: type[Exception], message: str
) -> None:
    write_shard(tmp_path / "one.safetensors", {"a": np.zeros(2, np.float32)})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(error, match=message):
        open_shards(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        open_shards(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", None, "`hidden_size` is missing"),
        ("hidden_size", "32", "`hidden_size` is '32'; it must be a whole number of at least 1"),
        ("num_hidden_layers", 0, "`num_hidden_layers` is 0"),
        ("rms_norm_eps", float("inf"), "`rms_norm_eps` is inf"),
        ("architectures", None, "`architectures` is missing"),
        ("architectures", ["GPT2LMHeadModel"], "'GPT2LMHeadModel'; what is implemented is Llama"),
        ("num_hidden_layers", 3, r"is 3, and no shard has a tensor model\.layers\.2\.\*"),
        ("num_hidden_layers", 10**12, r"no shard has a tensor model\.layers\.2\.\*"),
        ("vocab_size", 10**400, "`vocab_size` is 1000.*; it must be a whole number"),
        ("rms_norm_eps", 10**400, "`rms_norm_eps` is 1000.*; it must be a number above 0"),
        ("hidden_act", "relu", "`hidden_act` is 'relu'; what is implemented is silu"),
        ("num_key_value_heads", 3, "`num_key_value_heads` = 3 must divide"),
        ("rope_parameters", {"rope_type": "dynamic"}, r"`rope_parameters\.rope_type` is 'dynamic'"),
        ("rope_parameters", {"rope_type": "llama3"}, r"`rope_parameters\.factor` is missing"),
        ("tie_word_embeddings", 1, "`tie_word_embeddings` is 1; it must be true or false"),
        ("quantization_config", {"quant_method": "gptq"}, "is 'gptq'; what is implemented is fp8"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    folder = copied("llama", tmp_path)
    changed_config(folder, lambda table: table.update({key: value}))
    with pytest.raises(ValueError, match=message) as caught:
        open_checkpoint(folder)
    assert str(folder / "config.json") in str(caught.value)


def test_a_tensor_of_another_shape_or_none_is_refused(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    tensors = tensors_of(folder)
    name = "model.layers.1.mlp.down_proj.weight"
    rewritten(folder, tensors | {name: tensors[name].T})
    tokens = tokens_of(96, length=16)
    with pytest.raises(ValueError, match=r"must have the shape \(32, 48\).*got \(48, 32\)"):
        open_checkpoint(folder).logits(tokens)
    rewritten(folder, {key: x for key, x in tensors.items() if key != name})
    with pytest.raises(ValueError, match=f"needs the tensor `{name}`, which no shard holds"):
        open_checkpoint(folder).logits(tokens)


def test_tokens_that_the_model_does_not_know_are_refused() -> None:
    checkpoint = open_checkpoint(FIXTURES / "llama")
    with pytest.raises(ValueError, match="reach from 96 to 96; the model knows 0 to 95"):
        checkpoint.logits(np.full((1, 2), 96))
    with pytest.raises(ValueError, match=r"with 1 to 64 tokens, got the shape \(1, 65\)"):
        checkpoint.logits(np.zeros((1, 65), np.int64))


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        pytest.param("deepseek_v3", marks=[pytest.mark.slow, pytest.mark.thorough]),
    ],
)
def test_weights_in_fp8_are_codes_times_their_tile_s_scale(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    quantized, plain = in_fp8(tensors_of(folder), 16)
    tokens = tokens_of(96, length=16)
    rewritten(folder, plain)
    expected = open_checkpoint(folder).logits(tokens)
    rewritten(folder, quantized)
    with pytest.raises(ValueError, match=r"weight` is float8_e4m3fn, and config\.json has no"):
        open_checkpoint(folder).logits(tokens)
    given = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    changed_config(folder, lambda table: table.update({"quantization_config": given}))
    logits = open_checkpoint(folder).logits(tokens)
    np.testing.assert_array_equal(np.asarray(logits), np.asarray(expected))
    changed_config(folder, lambda table: given.update({"weight_block_size": [32, 16]}))
    changed_config(folder, lambda table: table.update({"quantization_config": given}))
    with pytest.raises(ValueError, match="weight_scale_inv` must have the shape"):
        open_checkpoint(folder).logits(tokens)


def test_weights_in_bfloat16_are_read_as_they_are(tmp_path: Path) -> None:
    folder = copied("qwen2", tmp_path)
    narrow = {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors_of(folder).items()}
    tokens = tokens_of(96, length=16)
    rewritten(folder, {name: x.astype(np.float32) for name, x in narrow.items()})
    expected = open_checkpoint(folder).logits(tokens)
    rewritten(folder, narrow)
    logits = open_checkpoint(folder).logits(tokens)
    np.testing.assert_array_equal(np.asarray(logits), np.asarray(expected))
