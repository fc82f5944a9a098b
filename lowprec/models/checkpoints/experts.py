"""A mixture of experts as DeepSeek-V3 has it: which experts a token is sent to, and what they say.

Experts are computed one after another, each on the tokens that chose it, so that only the weights
of experts that were chosen are ever read.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.models.checkpoints.llama import gated_layers
from lowprec.models.checkpoints.settings import Settings
from lowprec.models.checkpoints.weights import Weights
from lowprec.models.transformer import NamedLinear

BEST_OF_GROUP = 2
"""A group of experts is as good as the sum of its best two (DeepSeek-V3, arXiv 2412.19437, 2.1.2).
"""


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Routed and shared experts, and how tokens choose.

    Attributes:
      routed, shared: how many; all tokens go through the shared ones, which are stored as one.
      chosen: routed experts of a token.
      groups, chosen_groups: a token's experts lie within the best of so many equal groups.
      hidden: inner width of an expert.
      normalized: whether the scores of the chosen ones are divided by their sum.
      scaling: what they are multiplied by.
    """

    routed: int
    shared: int
    chosen: int
    groups: int
    chosen_groups: int
    hidden: int
    normalized: bool
    scaling: float

    def apply(self, weights: Weights, number: int, x: jax.Array, linear: NamedLinear) -> jax.Array:
        """What the experts of a layer say of x (batch, tokens, width), float32."""
        tensor, name = f"model.layers.{number}.mlp", f"layers.{number}.mlp"
        rows = x.reshape(-1, x.shape[-1])
        gate = weights.vector(f"{tensor}.gate.weight", self.routed, x.shape[-1])
        correction = weights.vector(f"{tensor}.gate.e_score_correction_bias", self.routed)
        found = route(rows, gate, correction, experts=self)
        places, shares = (np.asarray(x) for x in found)
        tokens, mixed = np.asarray(rows), np.zeros(rows.shape, np.float32)
        for expert in np.unique(places):
            row, choice = np.nonzero(places == expert)
            inside = jnp.asarray(tokens[row])
            own = (f"{tensor}.experts.{expert}", f"{name}.experts.{expert}")
            said = np.asarray(gated_layers(weights, *own, inside, self.hidden, linear))
            # No token chooses an expert twice.
            mixed[row] += said * shares[row, choice, None]
        own = (f"{tensor}.shared_experts", f"{name}.shared")
        said = gated_layers(weights, *own, x, self.shared * self.hidden, linear)
        return jnp.asarray(mixed).reshape(x.shape) + said


@functools.partial(jax.jit, static_argnames=("experts",))
def route(
    rows: jax.Array, gate: jax.Array, correction: jax.Array, *, experts: Experts
) -> tuple[jax.Array, jax.Array]:
    """The experts that each token chooses, and what each of them counts.

    The scores, sigmoids of a product in float32 whatever the recipe, plus a correction that
    balances the load decide who is chosen; the scores alone decide what they count.

    Args:
      rows: (tokens, width) float32.
      gate: (routed, width).
      correction: (routed,).
      experts: how many, and how they are chosen.

    Returns:
      Two arrays (tokens, chosen): int32 places, float32 shares.
    """
    scores = jax.nn.sigmoid(jnp.matmul(rows, gate.T, precision=jax.lax.Precision.HIGHEST))
    corrected = scores + jnp.broadcast_to(correction, scores.shape)
    grouped = corrected.reshape(len(rows), experts.groups, -1)
    best = jnp.sum(jax.lax.top_k(grouped, BEST_OF_GROUP)[0], axis=-1)
    kept = jax.lax.top_k(best, experts.chosen_groups)[1]
    mask = jnp.any(kept[:, :, None] == np.arange(experts.groups)[None, None], axis=1)
    eligible = jnp.where(mask[:, :, None], grouped, -jnp.inf).reshape(scores.shape)
    places = jax.lax.top_k(eligible, experts.chosen)[1]
    shares = jnp.take_along_axis(scores, places, axis=-1)
    if experts.normalized:
        total = jnp.sum(shares, axis=-1, keepdims=True) + 1e-20  # as the published code has it
        shares = shares / jnp.broadcast_to(total, shares.shape)
    return places, shares * experts.scaling


def read_experts(settings: Settings) -> Experts:
    """The experts that a config.json describes.

    Raises:
      ValueError: a key that is missing, another way to choose, or numbers that do not fit.
    """
    settings.one_of("scoring_func", ("sigmoid",), "sigmoid")
    settings.one_of("topk_method", ("noaux_tc",), "noaux_tc")
    experts = Experts(
        routed=settings.whole("n_routed_experts"),
        shared=settings.whole("n_shared_experts"),
        chosen=settings.whole("num_experts_per_tok"),
        groups=settings.whole("n_group"),
        chosen_groups=settings.whole("topk_group"),
        hidden=settings.whole("moe_intermediate_size"),
        normalized=settings.flag("norm_topk_prob", True),
        scaling=settings.number("routed_scaling_factor"),
    )
    size = experts.routed // experts.groups
    if experts.routed % experts.groups or size < BEST_OF_GROUP:
        text = (
            f"= {experts.groups} must cut {experts.routed} experts into equal groups of two or more"
        )
        raise settings.error("n_group", text)
    if experts.chosen_groups > experts.groups:
        raise settings.error("topk_group", f"= {experts.chosen_groups}, of {experts.groups} groups")
    if experts.chosen > experts.chosen_groups * size:
        text = f"= {experts.chosen}, of {experts.chosen_groups * size} experts in a token's groups"
        raise settings.error("num_experts_per_tok", text)
    return experts
