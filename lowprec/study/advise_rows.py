"""Advice as rows of a table, each with the reason in words."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from lowprec.gemm.recipe import ROLES
from lowprec.study.advise import Advice, interval
from lowprec.study.advise_candidates import Candidate
from lowprec.study.products import qualified
from lowprec.study.ratios import Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdviceRow:
    """One chosen recipe of one product; `recipe` is empty where nothing satisfies.

    `m`, `k` and `n` are of the products that were multiplied, which contract in wgrad a group of
    tokens at a time; bits per element spread the scale of a row over `depth` numbers.
    `select_db` is the SQNR on the tokens that were chosen on, `sqnr_db` with its 95 % interval
    [`low_db`, `high_db`] that on the others, over `groups` groups of tokens. `gap_db` is by how
    much the runner-up is worse, on the same tokens, with its interval. `considered` candidates
    were looked at, of which `combined` are combinations.
    """

    source: str
    goal: str
    layer: str
    role: str
    m: int
    k: int
    n: int
    depth: int
    tokens: int
    groups: int
    recipe: str
    made: bool
    block_a: str
    block_b: str
    engine: str
    bits_per_element: float
    select_db: float
    sqnr_db: float
    low_db: float
    high_db: float
    runner_up: str
    runner_up_bits: float
    gap_db: float
    gap_low_db: float
    gap_high_db: float
    considered: int
    combined: int
    reason: str


def advice_rows(found: Advice, *, source: str) -> list[AdviceRow]:
    """A row for what was chosen, or for each entry of the front, or one that says why nothing."""
    m, k, n = found.product.shape
    common: dict[str, Any] = {
        "source": source,
        "goal": str(found.goal),
        "layer": found.product.layer,
        "role": found.product.role,
        "m": m,
        "k": k,
        "n": n,
        "depth": found.product.depth,
        "tokens": found.product.tokens,
        "groups": len(found.product.report.signal),
        "considered": len(found.scores),
        "combined": sum(x.made for x in found.scores),
    }
    if not found.picked:
        return [AdviceRow(**common, **_nothing(found))]
    return [AdviceRow(**common, **_chosen(found, x)) for x in found.picked]


def _nothing(found: Advice) -> dict[str, Any]:
    texts = dict.fromkeys(("recipe", "block_a", "block_b", "engine", "runner_up"), "")
    numbers = [x.name for x in dataclasses.fields(AdviceRow) if x.type is float]
    return {
        **texts,
        **dict.fromkeys(numbers, math.nan),
        "made": False,
        "reason": why_nothing(found),
    }


def why_nothing(found: Advice) -> str:
    """What comes nearest where no candidate satisfies."""
    within = {x: y for x, y in found.scores.items() if x.bits <= found.goal.bits}
    if not within:
        return f"no recipe is {found.goal}; all that were offered have more bits"
    best = max(within, key=lambda x: within[x])
    return (
        f"no recipe has {found.goal}: the best is {best.recipe.name}, {within[best]:.1f} dB at "
        f"{best.bits:.2f} bits"
    )


def _chosen(found: Advice, candidate: Candidate) -> dict[str, Any]:
    groups = len(found.product.report.signal)
    own = found.sqnr[candidate]
    low, high = interval(own, groups)
    second = found.runner_up[candidate]
    gap = (math.nan,) * 3 if second is None else (second[1].value, *interval(second[1], groups))
    return {
        "recipe": f"recipe:{candidate.recipe.name}",
        "made": candidate.made,
        "block_a": qualified(candidate.pair.a),
        "block_b": qualified(candidate.pair.b),
        "engine": f"engine:{candidate.recipe.engine.name}",
        "bits_per_element": candidate.bits,
        "select_db": found.scores[candidate],
        "sqnr_db": own.value,
        "low_db": low,
        "high_db": high,
        "runner_up": "" if second is None else f"recipe:{second[0].recipe.name}",
        "runner_up_bits": math.nan if second is None else second[0].bits,
        "gap_db": gap[0],
        "gap_low_db": gap[1],
        "gap_high_db": gap[2],
        "reason": reason(found, candidate),
    }


def reason(found: Advice, candidate: Candidate) -> str:
    """Why a candidate was chosen, and what the next one would cost."""
    goal, parts = found.goal, []
    if goal.min_sqnr is not None:
        parts.append(f"cheapest of {goal}")
        own = found.sqnr[candidate]
        low, _ = interval(own, len(found.product.report.signal))
        if own.value < goal.min_sqnr:
            parts.append(f"but {own.value:.1f} dB on the tokens it was not chosen on")
        elif low < goal.min_sqnr:
            parts.append(f"but its 95 % interval reaches down to {low:.1f} dB")
    elif goal.budget_bits is not None:
        parts.append(f"best {goal}")
    second = found.runner_up[candidate]
    if second is not None:
        parts.append(_compared(found, *second))
    alike = candidate.alike
    if alike:
        more = f" and {len(alike) - 2} more" if len(alike) > 2 else ""
        parts.append(f"the same as {', '.join(alike[:2])}{more}")
    return "; ".join(parts)


def _compared(found: Advice, other: Candidate, gap: Estimate) -> str:
    low, high = interval(gap, len(found.product.report.signal))
    place = f"{other.recipe.name} at {other.bits:.2f} bits"
    if low <= 0 <= high:
        return f"{place} is not told apart ({low:.1f} to {high:.1f} dB worse)"
    ends = sorted((abs(low), abs(high)))
    word = "worse" if gap.value > 0 else "better"
    return f"{place} is {abs(gap.value):.1f} dB {word} ({ends[0]:.1f} to {ends[1]:.1f})"


def table(rows: Sequence[AdviceRow]) -> str:
    """Rows as text: a line each, columns as wide as what stands in them."""
    heads = ("layer", "role", "recipe", "bits", "SQNR dB (95 %)", "why")
    lines: list[tuple[str, ...]] = [heads]
    for row in rows:
        if not row.recipe:
            lines.append((row.layer, row.role, "none", "", "", row.reason))
            continue
        ends = f"{row.sqnr_db:.1f} ({row.low_db:.1f} to {row.high_db:.1f})"
        name = row.recipe.partition(":")[2] + (" *" if row.made else "")
        bits = f"{row.bits_per_element:.2f}"
        lines.append((row.layer, row.role, name, bits, ends, row.reason))
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads) - 1)]
    shown = [
        "  ".join([*(x.ljust(w) for x, w in zip(line[:-1], widths, strict=True)), line[-1]])
        for line in lines
    ]
    return "\n".join(line.rstrip() for line in shown)


def comments(rows: Sequence[AdviceRow]) -> dict[str, list[str]]:
    """By layer, what stands above its recipe about each role."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row.layer, []).append(_comment(row))
    for layer, lines in found.items():
        seen = {row.role for row in rows if row.layer == layer}
        lines += [
            f"{role}: not looked at; bfloat16 stands in" for role in ROLES if role not in seen
        ]
    return found


def _comment(row: AdviceRow) -> str:
    if not row.recipe:
        return f"{row.role}: {row.reason}; bfloat16 stands in"
    return (
        f"{row.role}: {row.recipe.partition(':')[2]}, {row.bits_per_element:.2f} bits, "
        f"{row.sqnr_db:.1f} dB ({row.low_db:.1f} to {row.high_db:.1f}); {row.reason}"
    )
