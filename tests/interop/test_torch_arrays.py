"""Arrays to and from PyTorch: every code of every type that it has."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import lowprec as lp
from tests.helpers import assert_bits_equal

torch: Any = pytest.importorskip("torch", reason="needs the extra `torch`")

TYPES = (
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn",
    "bfloat16",
    "float16",
)


def every_code(name: str) -> np.ndarray:
    fmt = lp.get_format(name)
    return np.arange(1 << fmt.bits, dtype=fmt.code_dtype).reshape(2, -1)


@pytest.mark.parametrize("name", TYPES)
def test_every_code_goes_there_and_back(name: str) -> None:
    codes = every_code(name)
    tensor = lp.to_torch(codes, name)
    if name == "float4_e2m1fn":
        assert tensor.dtype == torch.float4_e2m1fn_x2 and tensor.shape == (2, 4)
        want = codes[:, ::2] | codes[:, 1::2] << 4
        assert_bits_equal(tensor.view(torch.uint8).numpy(), want)
    else:
        assert tensor.dtype == getattr(torch, name) and tensor.shape == codes.shape
        np.testing.assert_array_equal(tensor.float().numpy(), np.asarray(lp.decode(codes, name)))
    back = lp.from_torch(tensor)
    assert back.dtype == jnp.dtype(name) and back.shape == codes.shape
    assert_bits_equal(lp.to_codes(back), codes)
    assert_bits_equal(lp.to_codes(tensor), codes)
    assert_bits_equal(lp.to_codes(lp.from_torch(lp.to_torch(back))), codes)


def test_fp8_goes_as_bytes_where_dlpack_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it did before DLPack 1.1 named the types."""
    codes = every_code("float8_e4m3fn")
    tensor = lp.to_torch(codes, "float8_e4m3fn")
    real = jnp.from_dlpack

    def refusing(x: Any, **options: Any) -> Any:
        if x.dtype not in (torch.uint8, torch.float32):
            raise BufferError("no float8")
        return real(x, **options)

    monkeypatch.setattr(jnp, "from_dlpack", refusing)
    assert_bits_equal(lp.to_codes(lp.from_torch(tensor)), codes)
    with pytest.raises(TypeError, match=r"of type bfloat16 on cpu cannot .*no float8"):
        lp.from_torch(torch.ones(2, dtype=torch.bfloat16))


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_functions_take_tensors(name: str) -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(64, 4)).astype(np.float32)).to(getattr(torch, name))
    # Transposed, so not contiguous, and with a gradient that ends at the border.
    tensor = x.T.requires_grad_()
    own = lp.from_torch(tensor)
    assert own.dtype == jnp.dtype(name) and own.shape == (4, 64)
    np.testing.assert_array_equal(own.astype(jnp.float32), x.T.float().numpy())
    assert_bits_equal(lp.encode(tensor, "float8_e4m3fn"), lp.encode(own, "float8_e4m3fn"))
    assert_bits_equal(lp.cast(tensor, "float8_e5m2"), lp.cast(own, "float8_e5m2"))
    got, want = lp.quantize(tensor, "mxfp4"), lp.quantize(own, "mxfp4")
    assert_bits_equal(got.codes, want.codes)
    assert_bits_equal(got.scales, want.scales)


def test_what_would_be_narrowed_or_is_no_float_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`x` is float64, which JAX would narrow"):
        lp.encode(torch.ones(2, dtype=torch.float64), "float8_e5m2")
    with pytest.raises(TypeError, match=r"`x` must be float32, bfloat16 or float16, got int32"):
        lp.encode(torch.ones(2, dtype=torch.int32), "float8_e5m2")


def test_memory_is_not_shared() -> None:
    x = jnp.zeros(3)
    tensor = lp.to_torch(x)
    tensor += 1
    assert not np.any(x)
    own = lp.from_torch(tensor)
    tensor += 1
    np.testing.assert_array_equal(own, 1)


def test_types_that_pytorch_lacks_and_odd_pairs() -> None:
    codes = np.zeros((2, 3), np.uint8)
    with pytest.raises(TypeError, match=r"has no type for float8_e3m4; pass the codes"):
        lp.to_torch(codes, "float8_e3m4")
    assert lp.to_torch(codes).dtype == torch.uint8
    with pytest.raises(ValueError, match=r"`x` of shape \(2, 3\) does not become .*an even last"):
        lp.to_torch(codes, "float4_e2m1fn")
