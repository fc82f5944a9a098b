"""Recording a PyTorch model: what is saved is what its layers multiplied."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowprec.models.operands import LoneTensor, Operands, load_operands

torch: Any = pytest.importorskip("torch", reason='needs the `torch` extra: "lowprec[torch]"')

from lowprec.models.torch_hooks import OperandRecorder  # noqa: E402 - after torch is known to be there

# Half a unit in the last place of bfloat16's 8 significant bits.
BF16 = 2.0**-8


class Attention(torch.nn.Module):
    """One head with an MLP behind it; the activation works in place, as models' do."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(dim, dim, bias=False)
        self.k_proj = torch.nn.Linear(dim, dim)
        self.v_proj = torch.nn.Linear(dim, dim)
        self.up = torch.nn.Linear(dim, 2 * dim)
        self.down = torch.nn.Linear(2 * dim, dim)
        self.unused = torch.nn.Linear(dim, dim)

    def forward(self, x: Any) -> Any:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(input=x)
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        return self.down(torch.relu_(self.up(x + weights @ v)))


def model_and_input(seed: int = 0, dtype: Any = None) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    dtype = dtype or torch.float32
    return Attention().to(dtype), torch.randn(3, 10, 16, dtype=dtype)


def layers_of(path: Path) -> dict[str, Operands]:
    return {item.layer: item for item in load_operands(path) if isinstance(item, Operands)}


def float64(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def host(tensor: Any) -> np.ndarray:
    return tensor.detach().reshape(-1, tensor.shape[-1]).to(torch.float64).numpy()


def assert_product(a: Any, b: Any, expected: np.ndarray) -> None:
    """a @ b within the error of rounding both to bfloat16: a relative 2^-8 each, and a term of
    second order; the float32 reference is far more accurate than that."""
    bound = 2.01 * BF16 * (np.abs(float64(a)) @ np.abs(float64(b))) + 1e-6
    error = np.abs(float64(a) @ float64(b) - expected)
    assert (error <= bound).all(), (error / bound).max()


@pytest.mark.parametrize("tokens", [1024, 30, 7])
def test_products_are_those_of_the_layers(tmp_path: Path, tokens: int) -> None:
    model, x = model_and_input()
    outputs: dict[str, Any] = {}
    for name in ("q_proj", "k_proj", "v_proj", "up", "down"):
        getattr(model, name).register_forward_hook(
            # A copy: `relu_` overwrites the output of `up`.
            lambda module, args, output, name=name: outputs.update({name: output.detach().clone()})
        )
    path = tmp_path / "model.safetensors"
    with OperandRecorder(model, tokens=tokens) as recorder:
        model(x).square().sum().backward()
    recorder.save(path)
    layers = layers_of(path)
    assert set(layers) == set(outputs)
    assert recorder.never_called == ("unused",)
    # One seed for all layers, so the rows that q_proj kept tell which tokens all of them kept.
    rows = [
        int(np.flatnonzero((float64(host(x.bfloat16())) == row).all(axis=1))[0])
        for row in float64(layers["q_proj"].x)
    ]
    assert len(rows) == min(tokens, 30) and rows == sorted(set(rows))
    for name, layer in layers.items():
        module = getattr(model, name)
        bias = 0 if module.bias is None else host(module.bias)
        assert_product(*layer.product("fprop"), (host(outputs[name]) - bias)[rows])
        if tokens >= 30:
            assert_product(*layer.product("wgrad"), host(module.weight.grad).T)


def test_keys_and_values_stand_alone_and_match_in_tokens(tmp_path: Path) -> None:
    model, x = model_and_input(dtype=torch.bfloat16)
    path = tmp_path / "model.safetensors"
    with torch.no_grad(), OperandRecorder(model, tokens=12) as recorder:
        model(x)
        keys, values = host(model.k_proj(x)), host(model.v_proj(x))
    recorder.save(path)
    found = {item.name: item.x for item in load_operands(path) if isinstance(item, LoneTensor)}
    assert set(found) == {"k_proj.k", "v_proj.v"}
    rows = [int(np.flatnonzero((keys == row).all(axis=1))[0]) for row in float64(found["k_proj.k"])]
    assert len(rows) == 12
    np.testing.assert_array_equal(float64(found["v_proj.v"]), values[rows])


def test_suffixes_are_configurable() -> None:
    model, x = model_and_input()
    with OperandRecorder(model, k_suffixes=["up"], v_suffixes=["down"]) as recorder:
        model(x)
    caches = {key for key in recorder.tensors() if key.endswith((".k", ".v"))}
    assert caches == {"up.k", "down.v"}


def test_bfloat16_bits_are_kept_and_forward_alone_has_no_dy() -> None:
    model, x = model_and_input(dtype=torch.bfloat16)
    with OperandRecorder(model, tokens=64) as recorder:
        model(x)
    found = recorder.tensors()
    assert torch.equal(found["q_proj.x"], x.reshape(-1, 16))
    assert torch.equal(found["q_proj.w"], model.q_proj.weight.detach().t())
    assert not any(key.endswith(".dy") for key in found)


def test_calls_are_stacked_until_full_and_repeat_with_the_seed() -> None:
    model, _ = model_and_input()
    batches = torch.randn(3, 10, 16)

    def record(seed: int) -> dict[str, Any]:
        with OperandRecorder(model, tokens=24, seed=seed) as recorder:
            for batch in batches:
                model(batch).sum().backward()
        return recorder.tensors()

    found = record(0)
    assert found["up.x"].shape == (24, 16) and found["up.dy"].shape == (24, 32)
    kept = torch.cat(list(batches)).bfloat16()[:20]
    assert found["q_proj.x"][:10].sort(dim=0).values.equal(kept[:10].sort(dim=0).values)
    assert found["q_proj.x"][10:20].sort(dim=0).values.equal(kept[10:].sort(dim=0).values)
    again, other = record(0), record(1)
    assert all(torch.equal(found[key], again[key]) for key in found)
    assert not torch.equal(found["q_proj.x"], other["q_proj.x"])


def test_a_call_without_backward_is_dropped_if_another_had_one() -> None:
    model, x = model_and_input()
    with OperandRecorder(model) as recorder:
        model(x)
        with torch.no_grad():
            model(x)
        model(2 * x).sum().backward()
    found = recorder.tensors()
    assert torch.equal(found["q_proj.x"], (2 * x).bfloat16().reshape(-1, 16))
    assert found["q_proj.dy"].shape == (30, 16)


@pytest.mark.parametrize("tokens", [30, 1024])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_recorded_once_with_their_gradient(
    tmp_path: Path, tokens: int, reentrant: bool
) -> None:
    from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportMissingImports] - torch is in no extra

    model, x = model_and_input()
    x.requires_grad_()
    with OperandRecorder(model, tokens=tokens) as recorder:
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    recorder.save(tmp_path / "model.safetensors")
    layer = layers_of(tmp_path / "model.safetensors")["up"]
    assert_product(*layer.product("wgrad"), host(model.up.weight.grad).T)


def test_the_model_is_left_as_it_was() -> None:
    model, x = model_and_input(dtype=torch.bfloat16)
    expected = model(x)
    with OperandRecorder(model, layers=["up"]) as recorder:
        assert torch.equal(model(x), expected)
        with pytest.raises(RuntimeError, match="already recording"):
            recorder.__enter__()
    assert all(not module._forward_hooks for module in model.modules())
    before = recorder.tensors()["up.w"].clone()
    with torch.no_grad():
        model.up.weight.zero_()
    assert torch.equal(recorder.tensors()["up.w"], before)


def test_patterns_choose_layers_and_a_bare_linear_has_a_name() -> None:
    model, x = model_and_input()
    with OperandRecorder(model, layers=["*_proj", "up"], k_suffixes=[], v_suffixes=[]) as recorder:
        model(x)
    names = {key.rpartition(".")[0] for key in recorder.tensors()}
    assert names == {"q_proj", "k_proj", "v_proj", "up"}
    with OperandRecorder(torch.nn.Linear(4, 2)) as recorder:
        recorder._modules["model"](torch.ones(4))
    assert set(recorder.tensors()) == {"model.x", "model.w"}


def test_refusals(tmp_path: Path) -> None:
    model, x = model_and_input()
    with pytest.raises(ValueError, match="`tokens` is 0"):
        OperandRecorder(model, tokens=0)
    with pytest.raises(ValueError, match=r"`model` \(ReLU\) contains no torch.nn.Linear"):
        OperandRecorder(torch.nn.ReLU())
    with pytest.raises(ValueError, match=r"'q_porj' matches no torch.nn.Linear.*q_proj"):
        OperandRecorder(model, layers=["q_porj"])
    with pytest.raises(TypeError, match=r"`layers` is the string 'up'; pass a list"):
        OperandRecorder(model, layers="up")
    recorder = OperandRecorder(model, layers=["up", "unused"])
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        recorder.save(tmp_path / "model.npz")
    with pytest.raises(ValueError, match="no Linear layer has run"):
        recorder.save(tmp_path / "model.safetensors")
    with recorder:
        model(x)
    with pytest.raises(ValueError, match="asks for unused, which never ran"):
        recorder.save(tmp_path / "model.safetensors")


def test_packed_weights_and_tuple_outputs_are_refused() -> None:
    class Packed(torch.nn.Linear):
        def forward(self, input: Any) -> Any:
            return input

    packed = Packed(4, 4)
    packed.weight = torch.nn.Parameter(torch.zeros(8, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"layer 'model' stores its weight as torch.uint8 \(8,\)"):
        with OperandRecorder(packed):
            packed(torch.ones(2, 4))

    class Pair(torch.nn.Linear):
        def forward(self, input: Any) -> Any:
            return super().forward(input), None

    pair = Pair(4, 4)
    with pytest.raises(TypeError, match=r"layer 'model' \(Pair\) returns tuple"):
        with OperandRecorder(pair):
            pair(torch.ones(2, 4))


def test_models_does_not_import_torch() -> None:
    code = "import sys, lowprec.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
