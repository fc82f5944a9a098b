"""Text in which something must be remembered: copied spans to learn from, planted keys to test.

Source code alone asks little of a cache beyond its last hundred bytes. Windows in which an earlier
span comes again, or in which a random key is asked for again, can only be predicted by looking far
back: a small model learns to, and what a quantized cache loses at a distance can then be seen.
Planted keys are one line, `# key = ` and hexadecimal digits, in training and in the test alike; the
digits are new each time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.models.scoring import log_probabilities

PROMPT = b"\n# key = "
"""What stands before a planted key, and asks for it again."""

_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
_END = b"\n"


@dataclass(frozen=True, kw_only=True)
class CopyMix:
    """What is mixed into windows of training text.

    Attributes:
      share: of the windows, from 0 to 1; the others stay as they are.
      spans: how many spans of such a window are repeated later in it.
      shortest_span, longest_span: of these, in bytes.
      asks: how often such a window asks for the key that it planted; 0 for no key.
      fewest_digits, most_digits: of that key.
      periodic: the share, of the remaining windows, that are one stretch over and over: nothing
        teaches a small model to copy as soon.
      shortest_period: of that stretch in bytes; the longest is half the window.

    Raises:
      ValueError: a number below what it must be, or a least above its most.
    """

    share: float
    spans: int
    shortest_span: int
    longest_span: int
    asks: int
    fewest_digits: int
    most_digits: int
    periodic: float = 0.0
    shortest_period: int = 1

    def __post_init__(self) -> None:
        for name in ("share", "periodic"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be from 0 to 1, got {getattr(self, name)}")
        if self.spans < 0 or self.asks < 0:
            raise ValueError(f"`spans` and `asks` must be 0 or more, got {self.spans}, {self.asks}")
        if self.shortest_period < 1:
            raise ValueError(f"`shortest_period` must be 1 or more, got {self.shortest_period}")
        for least, most in (
            ("shortest_span", "longest_span"),
            ("fewest_digits", "most_digits"),
        ):
            if not 1 <= getattr(self, least) <= getattr(self, most):
                raise ValueError(
                    f"`{least}` must be from 1 to `{most}`, "
                    f"got {getattr(self, least)} and {getattr(self, most)}"
                )

    @property
    def smallest_window(self) -> int:
        """The fewest bytes that hold what is to come twice, and all lines of the longest key."""
        line = len(PROMPT) + self.most_digits + len(_END)
        period = 2 * self.shortest_period if self.periodic else 0
        return max(2 * self.longest_span, (self.asks + 1) * line, period)


def mix_copies(windows: np.ndarray, mix: CopyMix, random: np.random.Generator) -> np.ndarray:
    """A copy of `windows` with spans repeated and keys planted in some of them.

    A span comes again at a distance whose logarithm is uniform, from its own length to what the
    window holds; the key and its asks lie anywhere. Both overwrite what was there. A periodic
    window's stretch has a length whose logarithm is uniform; it is the window's beginning or, as
    often, hexadecimal digits.

    Args:
      windows: (count, length) uint8.
      mix: how much of what.
      random: where every choice comes from; the same state gives the same bytes.

    Raises:
      ValueError: windows are not 2-dimensional uint8, or shorter than `mix.smallest_window`.

    >>> mix = CopyMix(share=1.0, spans=0, shortest_span=1, longest_span=1, asks=1, fewest_digits=4,
    ...     most_digits=4)
    >>> text = np.full((1, 40), ord("."), np.uint8)
    >>> mix_copies(text, mix, np.random.default_rng(2))[0].tobytes()
    b'.\\n# key = 146d\\n....\\n# key = 146d\\n.......'
    """
    if windows.ndim != 2 or windows.dtype != np.uint8:
        raise ValueError(
            f"`windows` must be uint8 (count, length), got {windows.dtype} {windows.shape}"
        )
    if windows.shape[1] < mix.smallest_window:
        raise ValueError(
            f"`windows` must have at least {mix.smallest_window} bytes for this `mix`, "
            f"got {windows.shape[1]}; shorten its spans or ask less often"
        )
    mixed = windows.copy()
    for window in mixed:
        if random.random() >= mix.share:
            if random.random() < mix.periodic:
                window[:] = _over_and_over(window, mix, random)
            continue
        for _ in range(mix.spans):
            _repeat_span(window, mix, random)
        if mix.asks:
            _plant_key(window, mix, random)
    return mixed


def _over_and_over(window: np.ndarray, mix: CopyMix, random: np.random.Generator) -> np.ndarray:
    longest = len(window) // 2
    drawn = mix.shortest_period * math.exp(
        random.random() * math.log(longest / mix.shortest_period)
    )
    period = min(round(drawn), longest)
    own = random.random() < 0.5
    stretch = window[:period] if own else np.frombuffer(draw_key(period, random), np.uint8)
    return np.resize(stretch, len(window))


def _repeat_span(window: np.ndarray, mix: CopyMix, random: np.random.Generator) -> None:
    size = int(random.integers(mix.shortest_span, mix.longest_span + 1))
    farthest = len(window) - size
    drawn = size * math.exp(random.random() * math.log(farthest / size))
    distance = min(max(round(drawn), size), farthest)
    start = int(random.integers(0, farthest - distance + 1))
    window[start + distance :][:size] = window[start:][:size]


def _plant_key(window: np.ndarray, mix: CopyMix, random: np.random.Generator) -> None:
    digits = int(random.integers(mix.fewest_digits, mix.most_digits + 1))
    line = np.frombuffer(PROMPT + draw_key(digits, random) + _END, np.uint8)
    count = mix.asks + 1
    # Sorted and then pushed apart by the lines before: none overlaps another.
    starts = np.sort(random.integers(0, len(window) - count * len(line) + 1, count))
    for start in starts + np.arange(count) * len(line):
        window[start : start + len(line)] = line


def draw_key(digits: int, random: np.random.Generator) -> bytes:
    """That many uniform hexadecimal digits, in lower case.

    >>> len(draw_key(8, np.random.default_rng(0)))
    8
    """
    return _DIGITS[random.integers(0, len(_DIGITS), digits)].tobytes()


@dataclass(frozen=True, kw_only=True)
class PlantedKeys:
    """Windows that end with a key that was planted before.

    Attributes:
      tokens: (windows, length) uint8; the last `digits` bytes are the key asked for.
      distance: (windows,) int32, bytes from the planted key to the one asked for.
      case: (windows,) int32; the same case has the same text and key at every distance.
      digits: of each key.
    """

    tokens: np.ndarray
    distance: np.ndarray
    case: np.ndarray
    digits: int

    @property
    def chance_bits(self) -> float:
        """Bits a digit of guessing uniformly: the least without looking back at the key."""
        return math.log2(len(_DIGITS))

    @property
    def chance_exact(self) -> float:
        """Probability that a whole key is guessed: the most without looking back at it."""
        return float(len(_DIGITS)) ** -self.digits


def planted_keys(
    documents: Sequence[tuple[str, bytes]],
    *,
    length: int,
    distances: Sequence[int],
    cases: int,
    digits: int,
    seed: int,
) -> PlantedKeys:
    """A test of memory: text with a key planted at growing distance before it is asked for again.

    Each window is a stretch of one document; the line with the key overwrites what lies `distance`
    bytes before the last bytes, and those are the prompt and the key. Windows are sorted by
    distance, then by case.

    Args:
      documents: (name, text) pairs, such as held-out ones.
      length: of a window in bytes.
      distances: in bytes, from the first digit planted to the first digit asked for.
      cases: how many texts and keys, each used at every distance.
      digits: of each key.
      seed: of the choice of texts and keys.

    Raises:
      ValueError: no document has `length` bytes, nothing is asked for, or a distance does not fit.

    >>> asked = planted_keys([("a.py", b"." * 50)], length=50, distances=[20], cases=1, digits=2,
    ...     seed=0)
    >>> asked.tokens[0].tobytes()
    b'...................\\n# key = da\\n........\\n# key = da'
    """
    line = len(PROMPT) + digits
    least, most = line + len(_END), length - line
    if cases < 1 or digits < 1 or not distances:
        raise ValueError(
            "`cases`, `digits` and the number of `distances` must be at least 1, "
            f"got {cases}, {digits} and {len(distances)}"
        )
    for distance in distances:
        if not least <= distance <= most:
            raise ValueError(
                f"`distances` must be from {least} to {most} for windows of {length} bytes and "
                f"keys of {digits} digits, got {distance}"
            )
    texts = [np.frombuffer(text, np.uint8) for _, text in documents if len(text) >= length]
    if not texts:
        raise ValueError(f"`documents` must hold one of at least {length} bytes, got none")
    random = np.random.default_rng(seed)
    tokens = np.empty((len(distances), cases, length), np.uint8)
    for case in range(cases):
        text = texts[random.integers(len(texts))]
        start = random.integers(0, len(text) - length + 1)
        tokens[:, case] = text[start : start + length]
        asked = np.frombuffer(PROMPT + draw_key(digits, random) + _END, np.uint8)
        for row, distance in zip(tokens[:, case], sorted(distances), strict=True):
            row[most - distance :][: len(asked)] = asked
            row[most:] = asked[:line]
    return PlantedKeys(
        tokens=tokens.reshape(-1, length),
        distance=np.repeat(np.asarray(sorted(distances), np.int32), cases),
        case=np.tile(np.arange(cases, dtype=np.int32), len(distances)),
        digits=digits,
    )


def score_keys(logits: jax.Array, tokens: jax.Array, digits: int) -> tuple[jax.Array, jax.Array]:
    """How well the keys at the end of windows are predicted: bits a digit, and whether exactly.

    A key is exact if each of its digits is the likeliest byte after those before it, which is when
    greedy decoding from the prompt would give it.

    Args:
      logits: (windows, length, vocabulary), as `forward` returns them.
      tokens: (windows, length) integers, as in `PlantedKeys`.
      digits: of each key; static under `jit`.

    Returns:
      The mean of -log2 p over the key's digits, (windows,) float32, NaN where a logit is; and
      (windows,) bool.

    Raises:
      ValueError: the shapes do not belong together, or `digits` is not from 1 to length - 1.

    >>> tokens = jnp.full((1, 5), 97, jnp.uint8)
    >>> bits, exact = score_keys(jnp.zeros((1, 5, 256)), tokens, 2)
    >>> bits.tolist(), exact.tolist()
    ([8.0], [False])
    """
    if not 1 <= digits < tokens.shape[-1]:
        raise ValueError(f"`digits` must be from 1 to {tokens.shape[-1] - 1}, got {digits}")
    nats = log_probabilities(logits, tokens)[:, -digits:]
    likeliest = jnp.argmax(logits[:, -digits - 1 : -1], axis=-1)
    exact = jnp.all(likeliest == tokens[:, -digits:].astype(likeliest.dtype), axis=-1)
    return -jnp.mean(nats, axis=-1) / math.log(2.0), exact
