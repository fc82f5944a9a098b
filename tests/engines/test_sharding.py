"""Products over eight devices: the same bits as on one, whichever axis is cut."""

import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import jax, numpy as np, sys
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    import lowprec as lp

    assert jax.device_count() == 8
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("rows", "columns"))
    place = lambda x, *names: jax.device_put(x, NamedSharding(mesh, P(*names)))
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 16, 96)).astype(np.float32)
    b = rng.normal(size=(3, 96, 24)).astype(np.float32)

    def check(name, function, *operands):
        want = np.asarray(jax.jit(function)(*operands))
        cuts = {
            "rows and columns": ((None, "rows", None), (None, None, "columns")),
            "batch": (("batch",), ("batch",)),
            "k": ((None, None, "rows"), (None, "rows", None)),
        }
        for cut, specs in cuts.items():
            if cut == "batch":
                lone = Mesh(np.array(jax.devices()[:3]), ("batch",))
                placed = [jax.device_put(x, NamedSharding(lone, P("batch"))) for x in operands]
            else:
                placed = [place(x, *spec) for x, spec in zip(operands, specs)]
            got = jax.jit(function)(*placed)
            same = np.array_equal(np.asarray(got).view(np.uint8), want.view(np.uint8))
            spread = len(placed[0].sharding.device_set)
            print(name, cut, spread, "same" if same and spread > 1 else "DIFFERENT", flush=True)
        assert len(np.unique(want)) > want.size // 2

    for engine in sys.argv[1:]:
        if engine.startswith("recipe:"):
            recipe = engine.removeprefix("recipe:")
            check(engine, lambda x, y: lp.gemm(x, y, recipe), a, b)
            continue
        inputs = lp.get_engine(engine).inputs
        x, y = (np.asarray(lp.cast(v, inputs[0])) if inputs else v for v in (a, b))
        options = {"a_format": inputs[0], "b_format": inputs[0]} if inputs else {}
        check(engine, lambda x, y: lp.matmul(x, y, engine=engine, **options), x, y)
"""


def same_bits(*names: str) -> None:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *names],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    lines = run.stdout.splitlines()
    assert len(lines) == 3 * len(names)
    assert [line for line in lines if not line.endswith(" same")] == []


@pytest.mark.slow
def test_an_engine_gives_the_same_bits_over_eight_devices() -> None:
    same_bits("hopper.wgmma.fp8.fp32")


@pytest.mark.slow
def test_engines_and_recipes_give_the_same_bits_over_eight_devices() -> None:
    same_bits("kulisch", "fp32", "hopper.wgmma.bf16.fp32", "recipe:deepseek_v3", "recipe:nvfp4")
