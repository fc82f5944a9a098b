"""Recording the operands of a PyTorch model's linear layers.

The only module of lowprec that imports torch; `pip install "lowprec[torch]"` brings it. What it
saves is read by `lowprec.models.operands.load_operands`.

The gradient of an output is taken by a hook on the output tensor, not on the module: module
backward hooks forbid in-place operations on an output, and models do those.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any

try:
    import torch  # pyright: ignore[reportMissingImports] - torch is in no extra
    from safetensors.torch import save_file
except ImportError as error:
    raise ImportError(
        f'recording a PyTorch model needs packages ({error}): pip install "lowprec[torch]"'
    ) from error

# Annotated so because the type checker runs without torch.
Tensor = Any
Module = Any


@dataclass
class _Call:
    """The sampled tokens of one forward call of a layer, in bfloat16 on the host."""

    x: Tensor
    output: Tensor | None
    dy: Tensor | None = None


@dataclass
class _LayerRecord:
    generator: Any
    cache_key: str | None
    w: Tensor | None = None
    # Kept apart because checkpointed layers run twice, and only the second run sees a gradient.
    without_gradient: list[_Call] = field(default_factory=list)
    with_gradient: list[_Call] = field(default_factory=list)

    def kept(self, tokens: int) -> list[_Call]:
        """The calls to save: those that saw a gradient; all, where none did."""
        differentiated = [call for call in self.with_gradient if call.dy is not None]
        if differentiated:
            return differentiated
        calls, left = [], tokens
        for call in (*self.without_gradient, *self.with_gradient):
            if left > 0:
                output = None if call.output is None else call.output[:left]
                calls.append(_Call(call.x[:left], output))
                left -= len(calls[-1].x)
        return calls


class OperandRecorder:
    """Records what the `torch.nn.Linear` layers of a model multiply, forward and backward.

    Use it around forward and, if gradients are wanted, backward passes. Of every call, tokens are
    drawn without replacement, in order and the same for x, dy and cached rows, until `tokens` are
    held; layers that see equally many tokens a call record the same ones, so keys and values
    match. Everything is kept in bfloat16 (bfloat16 tensors bit for bit, others rounded to nearest,
    ties to even). `w` is that of the layer's first recorded call. dy is what autograd computes
    for the output, so it includes a loss scale and the loss's own averaging; where backward runs
    twice over one call, the later counts. A call that had no backward pass is dropped if another
    had one.

    Hooks run on eager modules: record before `torch.compile`. Products computed without calling a
    Linear (`torch.nn.MultiheadAttention`, functional calls) are not seen.

    Args:
        model: any module; it is not changed, and its hooks are removed on leaving the `with`.
        tokens: rows to keep of each layer, positive.
        seed: seed of the drawing.
        layers: names or patterns (`model.layers.0.*`) of the layers to record; None for all.
        k_suffixes: layers whose name ends so also record their output rows, under `<layer>.k`.
            These are keys before a rotary embedding.
        v_suffixes: the same, under `<layer>.v`.

    Raises:
        ValueError: `tokens` is not positive, the model has no Linear layer, or a pattern of
            `layers` matches none.
        TypeError: `layers` is a single string.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> with OperandRecorder(model, tokens=16) as recorder:
        ...     model(torch.ones(32, 8)).square().mean().backward()
        >>> recorder.save("/tmp/model.safetensors")
    """

    def __init__(
        self,
        model: Module,
        *,
        tokens: int = 1024,
        seed: int = 0,
        layers: Sequence[str] | None = None,
        k_suffixes: Sequence[str] = ("k_proj",),
        v_suffixes: Sequence[str] = ("v_proj",),
    ) -> None:
        if tokens <= 0:
            raise ValueError(f"`tokens` is {tokens}; it counts the rows to keep and is positive")
        for argument, value in (
            ("layers", layers),
            ("k_suffixes", k_suffixes),
            ("v_suffixes", v_suffixes),
        ):
            if isinstance(value, str):
                raise TypeError(f"`{argument}` is the string {value!r}; pass a list: [{value!r}]")
        self._tokens = tokens
        self._layers = layers
        self._modules = _chosen_layers(model, layers)
        self._handles: list[Any] = []
        self._records = {
            name: _LayerRecord(
                # One seed for all layers: equal calls draw equal tokens.
                generator=torch.Generator().manual_seed(seed),
                cache_key=_cache_key(name, tuple(k_suffixes), tuple(v_suffixes)),
            )
            for name in self._modules
        }

    def __enter__(self) -> "OperandRecorder":
        if self._handles:
            raise RuntimeError("this OperandRecorder is already recording")
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(name), with_kwargs=True))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def never_called(self) -> tuple[str, ...]:
        """Names of the chosen layers that have not run yet, so that `save` leaves them out."""
        return tuple(name for name, record in self._records.items() if record.w is None)

    def tensors(self) -> dict[str, Tensor]:
        """What `save` writes: bfloat16 tensors on the host, by key."""
        found: dict[str, Tensor] = {}
        for name, record in self._records.items():
            if record.w is None:
                continue
            calls = record.kept(self._tokens)
            found[f"{name}.x"] = torch.cat([call.x for call in calls])
            found[f"{name}.w"] = record.w
            if calls[0].dy is not None:
                found[f"{name}.dy"] = torch.cat([call.dy for call in calls])
            if record.cache_key is not None:
                found[f"{name}.{record.cache_key}"] = torch.cat([call.output for call in calls])
        return found

    def save(self, path: str | Path) -> None:
        """Write the record as `.safetensors`, all in bfloat16.

        Keys: `<layer>.x` (tokens, in), `<layer>.w` (in, out), `<layer>.dy` (tokens, out) if a
        backward pass ran, and `<layer>.k` or `<layer>.v` (tokens, out) of key and value layers.

        Raises:
            ValueError: the path does not end in `.safetensors`, nothing was recorded, or a layer
                that `layers` asked for never ran.
        """
        if Path(path).suffix.lower() != ".safetensors":
            raise ValueError(f"`path` is {str(path)!r}; it must end in .safetensors")
        found = self.tensors()
        if not found:
            raise ValueError(
                "no Linear layer has run: call the model inside `with OperandRecorder(...)`"
            )
        if self._layers is not None and self.never_called:
            raise ValueError(
                f"`layers` asks for {', '.join(self.never_called)}, which never ran inside `with`"
            )
        save_file({key: tensor.contiguous() for key, tensor in found.items()}, str(path))

    def _hook(self, name: str) -> Any:
        def record_call(module: Module, args: tuple[Any, ...], kwargs: Any, output: Tensor) -> Any:
            x = args[0] if args else kwargs["input"]
            return self._record(name, module, x.detach(), output)

        return record_call

    def _record(self, name: str, module: Module, x: Tensor, output: Tensor) -> Tensor:
        """Record a call; returns the output that the model goes on with, equal in every bit."""
        if not isinstance(output, torch.Tensor):
            raise TypeError(
                f"layer {name!r} ({type(module).__name__}) returns {type(output).__name__}, not "
                "one tensor; leave it out with `layers`"
            )
        record = self._records[name]
        calls = record.with_gradient if output.requires_grad else record.without_gradient
        rows = x.numel() // x.shape[-1]
        count = min(rows, self._tokens - sum(len(call.x) for call in calls))
        if count == 0:
            return output
        chosen = torch.randperm(rows, generator=record.generator)[:count].sort().values
        if record.w is None:
            record.w = _weight(name, module)
        kept = _rows(output.detach(), chosen) if record.cache_key else None
        call = _Call(_rows(x, chosen), kept)
        calls.append(call)
        if not output.requires_grad:
            return output

        def record_gradient(gradient: Tensor) -> None:
            call.dy = _rows(gradient.detach(), chosen)

        # Linear's output for a batch is a view, and a hook on a view is lost when the model goes
        # on to change it in place (`relu_`); one on a copy is not.
        copy = output.clone()
        copy.register_hook(record_gradient)
        return copy


def _chosen_layers(model: Module, patterns: Sequence[str] | None) -> dict[str, Module]:
    linears = {
        # A model that is itself a Linear has the empty name, which would make keys like ".x".
        name or "model": module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    if not linears:
        raise ValueError(f"`model` ({type(model).__name__}) contains no torch.nn.Linear")
    if patterns is None:
        return linears
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in linears):
            near = difflib.get_close_matches(pattern, linears, n=3, cutoff=0.4) or list(linears)[:3]
            raise ValueError(
                f"`layers`: {pattern!r} matches no torch.nn.Linear; there are for example "
                f"{', '.join(near)}"
            )
    return {
        name: module
        for name, module in linears.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def _cache_key(name: str, k_suffixes: tuple[str, ...], v_suffixes: tuple[str, ...]) -> str | None:
    if name.endswith(k_suffixes):
        return "k"
    return "v" if name.endswith(v_suffixes) else None


def _rows(tensor: Tensor, chosen: Tensor) -> Tensor:
    """The chosen tokens of (..., features), in bfloat16 on the host."""
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat[chosen.to(flat.device)].to("cpu", torch.bfloat16)


def _weight(name: str, module: Module) -> Tensor:
    weight = module.weight.detach()
    if not weight.is_floating_point() or weight.shape != (module.out_features, module.in_features):
        raise ValueError(
            f"layer {name!r} stores its weight as {weight.dtype} {tuple(weight.shape)}, not as a "
            f"float ({module.out_features}, {module.in_features}); dequantize it first, or leave "
            "the layer out with `layers`"
        )
    # A copy, transposed to (in, out): training goes on changing the original.
    return weight.to("cpu", torch.bfloat16).t().clone(memory_format=torch.contiguous_format)
