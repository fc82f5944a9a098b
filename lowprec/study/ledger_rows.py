"""Ledgers of captured operands, and their terms as rows of a table."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from lowprec.models.capture import capture
from lowprec.models.checkpoint import default_checkpoint, load_checkpoint
from lowprec.models.corpus import load_held_out, windows
from lowprec.models.operands import Operands
from lowprec.study.ledger_terms import Ledger


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One term of the error of one product; `total` is a row too.

    `part` is <term, total> / <total, total>, which adds up to 1 over the terms, `share` the term's
    energy over the total's, which does not; `gain` is the least-squares coefficient on the exact
    product, `decibels` the energy over the exact product's. `outputs` were looked at of m * n.
    """

    source: str
    layer: str
    role: str
    recipe: str
    engine: str
    m: int
    k: int
    n: int
    outputs: int
    term: str
    part: float
    share: float
    gain: float
    decibels: float
    energy: float


def ledger_rows(found: Ledger, *, source: str, layer: str) -> list[LedgerRow]:
    """A row for every term of a ledger, and one for the total."""
    m, k, n = found.shape
    return [
        LedgerRow(
            source=source,
            layer=layer,
            role=found.role,
            recipe=f"recipe:{found.recipe}",
            engine=f"engine:{found.engine}",
            m=m,
            k=k,
            n=n,
            outputs=found.output.size,
            term=term.name,
            part=term.part,
            share=term.share,
            gain=term.gain,
            decibels=term.decibels,
            energy=term.energy,
        )
        for term in (*found.terms, found.total)
    ]


def captured_operands(documents: int = 2) -> list[Operands]:
    """What the small model's linear layers multiply on the first window of some held-out texts.

    The operands are those of `lowprec compare` at its quick preset, where `documents` is 2.
    """
    checkpoint = default_checkpoint()
    params, config = load_checkpoint(checkpoint)
    held_out = load_held_out(checkpoint.with_name("held_out.jsonl"), "report")
    text = windows(held_out, config.context)
    first = np.unique(text.document, return_index=True)[1]
    layers = capture(params, jnp.asarray(text.tokens[np.sort(first)[:documents]]), config)
    return [
        Operands(x.layer, x=np.asarray(x.x), w=np.asarray(x.w), dy=np.asarray(x.dy)) for x in layers
    ]
