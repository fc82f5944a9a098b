"""The operands of a linear layer's products, from the user's own file.

A layer has up to three tensors: its input `x`, its weight `w` and the gradient `dy` of its output.
Which of its three products can be studied follows from which of them are there.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowprec.models.array_checks import check_operand_dtype, check_values, is_float, quoted
from lowprec.models.tensor_files import read_tensors

MEMBERS = ("x", "w", "dy")
ROLES = {"fprop": ("x", "w"), "dgrad": ("dy", "w"), "wgrad": ("x", "dy")}
LAYER_KEYS = "LAYER.x, LAYER.w, LAYER.dy"
SHOWN = 5
"""Names of a file's tensors in a message, at most."""
_TRANSPOSE_ADVICE = "a PyTorch weight is stored (out, in) and must be transposed"


@dataclass(frozen=True, eq=False)
class Operands:
    """What one linear layer y = x @ w multiplies, forward and backward.

    Attributes:
        layer: the layer's name, for tables and legends.
        x: the input, (tokens, in), or None.
        w: the weight, (in, out), or None.
        dy: the gradient of the output, (tokens, out), or None.

    Raises:
        ValueError: a member is not 2-D, or two of them disagree in tokens, in or out.

    Example:
        >>> layer = Operands("fc", x=np.ones((4, 8)), w=np.ones((8, 2)))
        >>> layer.roles
        ('fprop',)
        >>> [operand.shape for operand in layer.product("fprop")]
        [(4, 8), (8, 2)]
    """

    layer: str
    x: np.ndarray | None = None
    w: np.ndarray | None = None
    dy: np.ndarray | None = None

    def __post_init__(self) -> None:
        found = {name: array for name in MEMBERS if (array := getattr(self, name)) is not None}
        shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in found.items())
        for name, array in found.items():
            if array.ndim != 2:
                raise ValueError(f"layer {quoted(self.layer)}: `{name}` is not 2-D: {shapes}")
        # What an axis counts, and where each member has it.
        for meaning, axes in {
            "in": {"x": 1, "w": 0},
            "out": {"w": 1, "dy": 1},
            "tokens": {"x": 0, "dy": 0},
        }.items():
            sizes = {found[name].shape[axis] for name, axis in axes.items() if name in found}
            if len(sizes) > 1:
                first, second = axes
                raise ValueError(
                    f"layer {quoted(self.layer)}: `{first}` and `{second}` disagree in {meaning}: "
                    f"{shapes}; needed are x (tokens, in), w (in, out), dy (tokens, out)"
                    + ("" if meaning == "tokens" else f"; {_TRANSPOSE_ADVICE}")
                )

    @property
    def roles(self) -> tuple[str, ...]:
        """Those of `fprop`, `dgrad` and `wgrad` whose two operands are present."""
        return tuple(
            role
            for role, members in ROLES.items()
            if all(getattr(self, name) is not None for name in members)
        )

    def product(self, role: str) -> tuple[np.ndarray, np.ndarray]:
        """The two matrices of a product, (M, K) and (K, N), contracted over K.

        Args:
            role: `fprop` gives x, w; `dgrad` gives dy, w^T; `wgrad` gives x^T, dy.

        Returns:
            The two operands, already transposed (as views), in their own dtypes.

        Raises:
            ValueError: `role` is none of the three, or one of its operands is absent.
        """
        if role not in ROLES:
            raise ValueError(f"`role` is {role!r}; it is one of {', '.join(ROLES)}")
        if role not in self.roles:
            missing = [name for name in ROLES[role] if getattr(self, name) is None]
            raise ValueError(
                f"layer {quoted(self.layer)} has no {role}: `{'` and `'.join(missing)}` absent"
            )
        first, second = (getattr(self, name) for name in ROLES[role])
        if role == "dgrad":
            second = second.T
        if role == "wgrad":
            first = first.T
        return first, second


@dataclass(frozen=True, eq=False)
class LoneTensor:
    """A tensor that belongs to no product and gets only its own quantization error.

    Attributes:
        name: its name in the file.
        x: its values, (rows, columns).
    """

    name: str
    x: np.ndarray


def load_operands(
    path: str | Path, *, a: str | None = None, b: str | None = None
) -> list[Operands | LoneTensor]:
    """The layers and lone tensors of a `.npy`, `.npz` or `.safetensors` file.

    Tensors named `<layer>.x`, `<layer>.w` and `<layer>.dy`, two of them or all, make a layer; bare
    `x`, `w` and `dy` make a layer named after the file. The axes of x and dy before the last are
    flattened into tokens. Every other 2-D float tensor is a `LoneTensor`, and so are an x or dy on
    its own and the one tensor of a `.npy` file, whatever their rank. Other ranks
    (biases, norms, convolutions) and integer tensors (token ids) are passed over.

    Args:
        path: the file.
        a: with `b`: the tensor (M, K) to multiply; then nothing else of the file is used.
        b: the tensor (K, N) to multiply by.

    Returns:
        Layers first, then lone tensors, each sorted by name. With `a` and `b`: one layer named
        `"A @ B"` that has only the fprop product.

    Raises:
        ValueError: shapes that disagree, an empty tensor, NaN or Inf, a missing name, one of `a`
            and `b` without the other, a file without operands, or what `read_tensors` refuses.
        TypeError: float64 (say where it is rounded yourself), or integers where floats are meant.
        OSError: the path is missing or unreadable.
        ImportError: `.safetensors` without the `safetensors` package.

    Example:
        >>> np.savez("/tmp/fc.npz", x=np.ones((2, 5, 8), np.float32), w=np.ones((8, 4), np.float32))
        >>> [(layer.layer, layer.roles) for layer in load_operands("/tmp/fc.npz")]
        [('fc', ('fprop',))]
    """
    path = Path(path)
    if (a is None) != (b is None):
        raise ValueError(f"{path}: `a` and `b` name a product together; got a={a!r}, b={b!r}")
    tensors = read_tensors(path)
    try:
        if a is not None and b is not None:
            return [_named_product(tensors, a, b)]
        return _all_operands(tensors, path)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from None


def load_layers(path: str | Path) -> tuple[list[Operands], list[str]]:
    """The layers of a file alone, and the names of its tensors that belong to none.

    Args:
        path: the file, as for `load_operands`.

    Returns:
        The layers, sorted by name, and the names of the lone tensors, sorted.

    Raises:
        ValueError: the file has no layer; the tensors that it has are named, and the keys that make
            one. And what `load_operands` raises.

    Example:
        >>> fc = {"fc.x": np.ones((5, 8), np.float32), "fc.w": np.ones((8, 4), np.float32)}
        >>> np.savez("/tmp/fc.npz", **fc, **{"fc.grad": np.ones((5, 4), np.float32)})
        >>> layers, lone = load_layers("/tmp/fc.npz")
        >>> [layer.layer for layer in layers], lone
        (['fc'], ['fc.grad'])
    """
    loaded = load_operands(path)
    layers = [item for item in loaded if isinstance(item, Operands)]
    lone = [item.name for item in loaded if isinstance(item, LoneTensor)]
    if not layers:
        raise ValueError(
            f"{path} has {some_of(lone)} but no layer; a layer has two or all of the keys "
            f"{LAYER_KEYS}"
        )
    return layers, lone


def some_of(names: Sequence[str]) -> str:
    """Names on one line, the first five of more.

    Example:
        >>> some_of(["a", "b"])
        '`a`, `b`'
    """
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return _listed(names[:SHOWN]) + more


def as_narrow(x: np.ndarray) -> np.ndarray:
    """In float32, where the type is neither that nor one of 16 bits.

    Example:
        >>> as_narrow(np.ones(2, np.float16)).dtype.name
        'float16'
    """
    return x if x.dtype.name in ("float32", "bfloat16", "float16") else x.astype(np.float32)


def _named_product(tensors: dict[str, np.ndarray], a: str, b: str) -> Operands:
    for argument, key in (("a", a), ("b", b)):
        if key not in tensors:
            near = difflib.get_close_matches(key, tensors, n=3, cutoff=0.4)
            advice = f"near matches: {_listed(near)}" if near else f"it has {_contents(tensors)}"
            raise ValueError(f"`{argument}`: the file has no tensor {quoted(key)}; {advice}")
    left, right = _tokens_first(a, tensors[a]), _checked(b, tensors[b])
    if right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise ValueError(
            f"{quoted(a)} {tensors[a].shape} @ {quoted(b)} {right.shape} is not a product "
            f"(M, K) @ (K, N); {_TRANSPOSE_ADVICE}"
        )
    return Operands(f"{a} @ {b}", x=left, w=right)


def _all_operands(tensors: dict[str, np.ndarray], path: Path) -> list[Operands | LoneTensor]:
    if path.suffix.lower() == ".npy":
        return [LoneTensor(name, _tokens_first(name, x)) for name, x in tensors.items()]
    layers = _layer_members(tensors)
    used = {key for members in layers.values() for key in members.values()}
    lone: list[Operands | LoneTensor] = [
        LoneTensor(name, _tokens_first(name, tensors[name]))
        for name in sorted(tensors)
        if name not in used and _can_stand_alone(name, tensors[name])
    ]
    if not layers and not lone:
        raise ValueError(
            f"has neither layers (<layer>.x, <layer>.w, <layer>.dy) nor 2-D float tensors; "
            f"it has {_contents(tensors)}"
        )
    return [
        *(_layer(name or path.stem, layers[name], tensors) for name in sorted(layers)),
        *lone,
    ]


def _can_stand_alone(name: str, array: np.ndarray) -> bool:
    has_tokens = name.rpartition(".")[2] in ("x", "dy")
    return is_float(array.dtype) and (array.ndim == 2 or (has_tokens and array.ndim > 2))


def _layer_members(tensors: dict[str, np.ndarray]) -> dict[str, dict[str, str]]:
    """By layer ("" for bare names) and member, the name in the file.

    A single member makes no product, so no layer.
    """
    layers: dict[str, dict[str, str]] = {}
    for key in tensors:
        layer, _, member = key.rpartition(".")
        if member in MEMBERS:
            layers.setdefault(layer, {})[member] = key
    return {layer: members for layer, members in layers.items() if len(members) > 1}


def _layer(name: str, members: dict[str, str], tensors: dict[str, np.ndarray]) -> Operands:
    prepare: dict[str, Callable[[str, np.ndarray], np.ndarray]] = {
        "x": _tokens_first,
        "w": _checked,
        "dy": _tokens_first,
    }
    return Operands(name, **{m: prepare[m](key, tensors[key]) for m, key in members.items()})


def _checked(name: str, array: np.ndarray) -> np.ndarray:
    check_operand_dtype(name, array)
    check_values(name, array)
    return array


def _tokens_first(name: str, array: np.ndarray) -> np.ndarray:
    """Checked, and with every axis before the last flattened into one."""
    if array.ndim == 0:
        raise ValueError(f"tensor {quoted(name)} is a single number; a matrix is needed")
    return _checked(name, array).reshape(-1, array.shape[-1])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(quoted(name) for name in names)


def _contents(tensors: dict[str, np.ndarray]) -> str:
    if not tensors:
        return "no tensors"
    shown = [f"{quoted(n)} {t.dtype} {t.shape}" for n, t in sorted(tensors.items())[:SHOWN]]
    return ", ".join(shown) + (f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else "")
