"""The XLA options worth passing to a top-level `jax.jit`."""


def compiler_options() -> dict[str, bool | str | int]:
    """Options for a top-level `jax.jit(function, compiler_options=...)`.

    lowprec's own functions give the same bits with and without them, at about the same speed. They
    are for the arithmetic around: `x / s` stays a division rather than a product with 1 / s, and a
    bfloat16 result is rounded before it is widened. XLA still fuses products into sums and flushes
    subnormals on a CPU.

    JAX refuses them inside another `jit`, `grad` or `scan`: no function of lowprec carries them.

    Returns:
      A new dictionary; its keys are XLA's debug options.

    Example:
      >>> halve = jax.jit(lambda x: lp.cast(x / 3, "bfloat16"), compiler_options=compiler_options())
      >>> halve(jnp.float32(1)).item()
      0.333984375
    """
    return {
        "xla_allow_excess_precision": False,
        "xla_disable_hlo_passes": "algsimp",
        "xla_cpu_prefer_vector_width": 512,
    }
