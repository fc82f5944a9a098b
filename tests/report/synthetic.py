"""Results as a study of a small model would give them, drawn from a seed."""

from typing import Any

import numpy as np
import polars as pl

from lowprec.report import Results
from lowprec.scaling import get_block

RECIPES = {
    "float32": (32.0, 137.0, "float32"),
    "bf16": (16.0, 52.0, "bfloat16"),
    "fp8_tensor": (8.0, 29.5, "fp8_tensor"),
    "deepseek_v3": (8.125, 31.0, "fp8_1x128"),
    "mxfp8": (8.25, 30.5, "mxfp8_e4m3"),
    "mxfp6": (6.25, 29.0, "mxfp6_e2m3"),
    "mxfp4": (4.25, 16.5, "mxfp4"),
    "nvfp4": (4.5, 18.8, "nvfp4"),
}
PARTS = ("attention.q", "attention.k", "attention.v", "attention.out", "mlp.gate", "mlp.up")
LAYERS = [f"layers.{i}.{part}" for i in range(4) for part in (*PARTS, "mlp.down")]
ROLES = {"fprop": 0.0, "dgrad": -0.6, "wgrad": -1.7}


def operand(name: str) -> str:
    """The qualified name of an operand's scaling."""
    return f"element:{name}" if name in ("float32", "bfloat16") else f"block:{name}"


def errors(rng: np.random.Generator, sqnr: float) -> dict[str, float]:
    """The error columns around an SQNR."""
    gain = -(10 ** (-sqnr / 20)) * 0.2
    return {
        "sqnr_db": sqnr,
        "gain": gain * rng.uniform(0.5, 1.5),
        "gain_standard_error": abs(gain) / 20,
        "residual_sqnr_db": sqnr + 0.2,
        "relative_frobenius": 10 ** (-sqnr / 20),
        "clipped": float(rng.uniform(0, 0.002)),
        "flushed": float(rng.uniform(0, 0.12) * (sqnr < 25)),
    }


def products(
    seed: int = 0, lift: dict[str, float] | None = None, layers: int = len(LAYERS)
) -> pl.DataFrame:
    """Every recipe in every role of the first layers; `lift` adds decibels to a recipe."""
    rng, rows = np.random.default_rng(seed), []
    offsets = {layer: rng.normal(0, 1.2) - 3 * layer.endswith("down") for layer in LAYERS}
    for layer in LAYERS[:layers]:
        for role, shift in ROLES.items():
            for name, (bits, level, block) in RECIPES.items():
                scale = 0.1 if name in ("float32", "bf16") else 1.0
                sqnr = level + scale * (offsets[layer] + shift) + rng.normal(0, 0.4)
                rows.append(
                    {
                        "source": "small model",
                        "layer": layer,
                        "role": role,
                        "recipe": f"recipe:{name}",
                        "block_a": operand(block),
                        "block_b": operand(block),
                        "engine": "engine:native",
                        "reproducibility": "same_backend",
                        "evidence": "[P] published, not checked: any order",
                        "m": 512,
                        "k": 256,
                        "n": 1024,
                        "bits_per_element": bits,
                        "backward_error": 10 ** (-sqnr / 20) / 3,
                        **errors(rng, sqnr + (lift or {}).get(name, 0.0)),
                    }
                )
    return pl.DataFrame(rows)


def tensors(seed: int = 1, names: tuple[str, ...] = ("weight",)) -> pl.DataFrame:
    """Some block scalings of some tensors."""
    rng, rows = np.random.default_rng(seed), []
    levels = {
        "mxfp4": 17.9, "mxfp4_rceil": 18.3, "nvfp4": 20.6, "mxfp6_e2m3": 31.2, "mxfp6_e3m2": 26.1,
        "fp8_tensor": 31.6, "fp8_1x128": 31.9, "fp8_128x128": 31.8, "mxfp8_e4m3": 31.4,
        "mxfp8_e5m2": 25.6, "mxfp8_e4m3_rceil": 31.7, "fp8_channel": 31.7,
    }  # fmt: skip
    for name in names:
        for block, level in levels.items():
            rows.append(
                {
                    "source": "weight.safetensors",
                    "name": name,
                    "block": f"block:{block}",
                    "rows": 1024,
                    "columns": 1024,
                    "bits_per_element": get_block(block).bits_per_element,
                    **errors(rng, level + rng.normal(0, 0.1)),
                }
            )
    return pl.DataFrame(rows)


def cards(seed: int = 2) -> pl.DataFrame:
    """A card for both operands of every layer."""
    rng, rows = np.random.default_rng(seed), []
    for layer in LAYERS:
        for side in ("x", "w"):
            rows.append(
                {
                    "source": "small model",
                    "tensor": f"{layer}.{side}",
                    "amax": float(rng.uniform(1, 40)),
                    "rms": float(rng.uniform(0.02, 1)),
                    "crest_median": float(rng.uniform(2, 3)),
                    "crest_percentile_99": float(rng.uniform(3, 5)),
                    "excess_kurtosis": float(rng.uniform(0, 60)),
                    "outlier_channel_ratio": float(rng.uniform(1, 12)),
                    "effective_rank": float(rng.uniform(0.1, 0.9)),
                    "top_energy": float(rng.uniform(0, 0.4)),
                    "exponent_spread": 5.0,
                    "zero_fraction": 0.0,
                    "rows": 512,
                    "columns": 256,
                }
            )
    return pl.DataFrame(rows)


def model(increases: dict[str, float] | None = None) -> pl.DataFrame:
    """Weights, activations and both for every recipe; the first two fp8 ones are ties."""
    costs = increases or {
        "recipe:deepseek_v3": 0.0002, "recipe:mxfp8": 0.0003, "recipe:fp8_tensor": 0.0011,
        "recipe:mxfp6": 0.0016, "recipe:nvfp4": 0.021, "recipe:mxfp4": 0.047,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for place, (recipe, cost) in enumerate(costs.items()):
        for quantized, share in (("weights", 0.4), ("activations", 0.55), ("both", 1.0)):
            increase, half = cost * share, 0.0003 + 0.06 * cost
            rows.append(
                {
                    "recipe": recipe,
                    "quantized": quantized,
                    "bits_per_byte": 1.4312 + increase,
                    "increase": increase,
                    "low": increase - half,
                    "high": increase + half,
                    "kl_median": abs(increase) / 3,
                    "kl_percentile_99": abs(increase) * 4,
                    "top1_flips": abs(increase) * 2,
                    "documents": 64,
                    "bytes": 131072,
                    "rank": "1-2" if place < 2 else str(place + 1),
                }
            )
    base = {
        "recipe": "recipe:bf16", "quantized": "both", "bits_per_byte": 1.4312, "increase": 0.0,
        "low": 0.0, "high": 0.0, "kl_median": 0.0, "kl_percentile_99": 0.0, "top1_flips": 0.0,
        "documents": 64, "bytes": 131072, "rank": "",
    }  # fmt: skip
    return pl.DataFrame([base, *rows])


def histogram(seed: int = 3) -> pl.DataFrame:
    """Heavy-tailed elements, rounded to the values of three scalings."""
    rng, rows = np.random.default_rng(seed), []
    blocks = (("mxfp4", 2.3), ("nvfp4", 2.7), ("mxfp8_e4m3", 130.0))
    for block, spread in blocks:
        values = get_block(block).element.values
        assert values is not None
        grid = np.unique(values[np.isfinite(values)])
        drawn = np.clip(rng.standard_t(6, 20000) * spread, grid[0], grid[-1])
        nearest = np.abs(drawn[:, None] - grid).argmin(axis=1)
        for index, count in zip(*np.unique(nearest, return_counts=True), strict=True):
            rows.append(
                {
                    "layer": "layers.2.mlp.down",
                    "operand": "x",
                    "block": f"block:{block}",
                    "value": float(grid[index]),
                    "count": int(count),
                }
            )
    return pl.DataFrame(rows)


def results(**changes: Any) -> Results:
    """Everything at once; a keyword replaces a field."""
    empty = pl.DataFrame()
    fields: dict[str, Any] = {
        "products": products(),
        "tensors": empty,
        "cards": cards(),
        "model": model(),
        "histogram": histogram(),
        "timings": pl.DataFrame({"step": ["capture", "products"], "seconds": [12.25, 94.5]}),
        "manifest": {"seed": 0, "device": "cpu", "versions": {"jax": "0.10.0", "lowprec": "0.1.0"}},
        "command": "lowprec compare --preset quick --out out",
        **changes,
    }
    return Results(**fields)


def lone_tensor(names: tuple[str, ...] = ("weight",)) -> Results:
    """What a user's own tensor gives: no products and no model."""
    empty = pl.DataFrame()
    return results(
        products=empty, model=empty, histogram=empty, cards=empty, tensors=tensors(names=names)
    )
