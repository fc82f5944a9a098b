"""What holds for every test: strict JAX settings and a Hypothesis profile that repeats."""

import jax
from hypothesis import Phase, settings

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# One example is an array of some hundred numbers and a failure names the first wrong one: shrinking
# would take minutes and say no more.
settings.register_profile(
    "lowprec",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile("lowprec")
