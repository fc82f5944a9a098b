"""A GEMM over devices that cut M, N and K: the bits of one device, no device with the whole."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowprec as lp
from lowprec.gemm.sharded import sharded_gemm

PROGRAM = """
    import re, sys
    import jax, jax.numpy as jnp, numpy as np
    import lowprec as lp
    from lowprec.gemm.sharded import sharded_gemm

    assert jax.device_count() == 8
    rng = np.random.default_rng(0)
    M, K, N = 40, 2048, 12
    plain = [rng.normal(size=s).astype(np.float32) for s in ((M, K), (K, N))]
    wild = [np.ldexp(x, rng.integers(-30, 30, x.shape)).astype(np.float32) for x in plain]
    for x in wild:
        places = rng.permutation(x.size)[:100]
        x.flat[places[:50]], x.flat[places[50:]] = -0.0, 1e-40
    wild[0][3, 5], wild[0][7, 1500], wild[0][11, ::90] = np.inf, np.nan, 3e38

    along_k = {"mesh": jax.make_mesh((8,), ("k",)), "depth": "k"}
    all_three = {"mesh": jax.make_mesh((2, 2, 2), ("m", "k", "n")),
                 "rows": "m", "depth": "k", "columns": "n"}
    for text in sys.argv[1:]:
        recipe, engine, order = text.split("/")
        given = {"engine": engine or None, "order": order or None, "out_dtype": jnp.float32}
        one = jax.jit(lambda a, b: lp.gemm(a, b, recipe, **given))
        for cuts in (along_k, all_three) if not order else (along_k,):
            many = jax.jit(lambda a, b: sharded_gemm(a, b, recipe, **cuts, **given))
            for name, (a, b) in {"plain": plain, "wild": wild}.items():
                want, found = one(a, b), many(a, b)
                same = np.array_equal(*(np.asarray(x).view(np.uint32) for x in (want, found)))
                spread = len(found.sharding.device_set) == 8
                # An Inf leaves little of an operand that is scaled as a whole.
                used = name == "wild" or len(np.unique(want)) > want.size / 4
                word = "same" if same and spread and used else f"DIFFERENT {same} {spread} {used}"
                print(text, len(cuts), name, word, flush=True)
            parts = ((M, K), cuts.get("rows"), "k"), ((K, N), "k", cuts.get("columns"))
            mesh = jax.sharding.Mesh(cuts["mesh"].devices, cuts["mesh"].axis_names)
            placed = [
                jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.sharding.NamedSharding(
                    mesh, jax.sharding.PartitionSpec(*axes)))
                for shape, *axes in parts
            ]
            if recipe == "deepseek_v3":
                # Nobody is handed what is another's: neither operand is gathered.
                text_of = many.lower(*placed).compile().as_text()
                assert "collective-permute" in text_of and "all-gather" not in text_of

    def refused(said, a, b, recipe, **given):
        try:
            sharded_gemm(a, b, recipe, **along_k, **given)
        except ValueError as error:
            assert re.search(said, str(error)), error
            return
        raise AssertionError(said)

    a, b = (np.ones(shape, np.float32) for shape in ((8, 1024), (1024, 8)))
    refused("do not divide 1020", a[:, :1020], b[:1020], "bf16")
    refused("cuts through promotions of 128 k; it must be a multiple of 1024",
            a[:, :512], b[:512], "deepseek_v3")
    refused("cuts through instructions of 32 k", a[:, :64], b[:64], "fp8_tensor",
            engine="hopper.wgmma.fp8.fp32")
    refused("cuts through parts of split_k.2 of 512 k", a, b, "bf16", order="split_k.2")
    refused("'kulisch' sums all of K at once.*'split_k.8'", a, b, "bf16", engine="kulisch")
    refused("keeps more than a total", a, b, "bf16", engine="compensated")
    print("refused")
"""


def over_eight_devices(*names: str) -> list[str]:
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
    assert lines.pop() == "refused"
    return lines


@pytest.mark.slow
def test_a_promoted_sum_and_a_chained_one_are_those_of_one_device() -> None:
    lines = over_eight_devices("deepseek_v3//", "fp8_tensor/hopper.wgmma.fp8.fp32/")
    assert len(lines) == 8 and [x for x in lines if not x.endswith(" same")] == []


@pytest.mark.slow
@pytest.mark.thorough
def test_other_engines_and_orders_are_those_of_one_device() -> None:
    names = (
        "bf16//",
        "bf16/fp32/",
        "bf16/sequential.e8m13.toward_zero/",
        "bf16/chunked.64.bfloat16.float32/",
        "bf16/cdna2.mfma.bf16.fp32/",
        "bf16/cdna3.mfma.bf16.fp32/",
        "nvfp4/blackwell.tcgen05.nvf4.fp32/",
    )
    split = ("bf16//split_k.8", "bf16/kulisch/split_k.16", "deepseek_v3//split_k.8")
    lines = over_eight_devices(*names, *split)
    assert len(lines) == 4 * len(names) + 2 * len(split)
    assert [x for x in lines if not x.endswith(" same")] == []


def matrices() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(6, 64)).astype(np.float32), rng.normal(size=(64, 4)).astype(np.float32)


def test_on_one_device_it_is_gemm_with_its_gradient() -> None:
    mesh = jax.make_mesh((1, 1), ("m", "k"))
    a, b = (jnp.asarray(x) for x in matrices())

    def over(x: jax.Array, w: jax.Array) -> jax.Array:
        return sharded_gemm(x, w, "bf16", mesh=mesh, rows="m", depth="k", out_dtype=jnp.float32)

    def plain(x: jax.Array, w: jax.Array) -> jax.Array:
        return lp.gemm(x, w, "bf16", out_dtype=jnp.float32)

    (found, back), (want, plain_back) = jax.vjp(over, a, b), jax.vjp(plain, a, b)
    assert np.array_equal(found, want) and found.shape == (6, 4)
    for gradient, exact in zip(back(want), plain_back(want), strict=True):
        assert np.array_equal(gradient, exact) and np.abs(gradient).max() > 0


@pytest.mark.parametrize(
    ("recipe", "given", "said"),
    [
        ("bf16", {"depth": "z"}, "each is another axis of the mesh, 'm', 'k', or None"),
        ("bf16", {"rows": "k"}, "'k', 'k', None; each is another axis"),
        ("bf16", {"order": "stream_k.4", "promote_every": 32}, "deals the tiles of a whole"),
        ("bf16", {"role": "forward"}, "role"),
        ("te_delayed", {}, "magnitudes of earlier steps"),
    ],
)
def test_what_cannot_be_handed_on_is_refused(recipe: str, given: dict, said: str) -> None:
    options = {"mesh": jax.make_mesh((1, 1), ("m", "k")), "depth": "k"} | given
    with pytest.raises(ValueError, match=said):
        sharded_gemm(*matrices(), recipe, **options)


def test_operands_are_matrices_that_multiply() -> None:
    mesh = jax.make_mesh((1,), ("k",))
    a, b = matrices()
    with pytest.raises(ValueError, match=r"`a` has shape \(1, 6, 64\); a matrix is needed"):
        sharded_gemm(a[None], b, "bf16", mesh=mesh)
    with pytest.raises(ValueError, match="do not multiply"):
        sharded_gemm(a, b[:32], "bf16", mesh=mesh)
    with pytest.raises(TypeError, match="float"):
        sharded_gemm(a.astype(np.int32), b, "bf16", mesh=mesh)
