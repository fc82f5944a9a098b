"""Which recipe and which split of a layer is fastest where, and what is a bit worth in arithmetic?

    python experiments/gemm_throughput.py [--out DIRECTORY]

A model, not a measurement: rates fitted on cuBLAS's published bfloat16 products on the H100, FP8,
FP4 and all other devices predicted, and intervals that hold nine tenths of held-out figures when
made without their own source. The devices, models, recipes and batches of gemm_throughput.toml
give the time of experts and of dense layers on several devices, of the three products of training,
and what a bit saved in memory or on a link is worth in operations. Writes a CSV file a table, the
figures and `manifest.json` into reports/gemm_throughput.
"""

import argparse
import datetime
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowprec.report.gemm_throughput import Results, write_gemm_throughput
from lowprec.study import gemm_exchange as exchange
from lowprec.study import gemm_throughput as study
from lowprec.study.manifest import manifest, sha256
from lowprec.throughput.architecture import get_architecture
from lowprec.throughput.devices import beside, get_device
from lowprec.throughput.fit import two_digits
from lowprec.throughput.gemm_fit import GemmFit, gemm_fit

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path(__file__).with_suffix(".toml")
DATA = (
    "devices.toml",
    "architectures.toml",
    "dequantization.toml",
    "tiles.toml",
    "passes.toml",
    "gemm_published.toml",
)
Config = dict[str, Any]


def layers(config: Config, fit: GemmFit) -> Iterator[study.LayerRow]:
    """Experts, then dense layers, on every device."""
    for name in config["devices"]:
        device, asked = get_device(name), config["experts"]
        yield from study.expert_rows(
            device,
            get_architecture(asked["architecture"]),
            asked["recipes"],
            fit,
            devices=asked["devices"],
            batches=config["batches"],
        )
        asked = config["dense"]
        for architecture in asked["architectures"]:
            yield from study.dense_rows(
                device,
                get_architecture(architecture),
                asked["recipes"],
                fit,
                devices=asked["devices"],
                batches=asked["batches"],
            )


def roles(config: Config, fit: GemmFit) -> Iterator[study.RoleRow]:
    """The three products of training on every device."""
    asked = config["training"]
    sizes = {x: asked[x] for x in ("m", "n", "k")}
    for name in config["devices"]:
        yield from study.role_rows(get_device(name), asked["recipes"], fit, **sizes)


def _checks(fit: GemmFit) -> dict[str, int]:
    """How many figures lie inside intervals that were made without them."""
    checks = {name: getattr(fit, name) for name in ("left_out", "left_out_ratios", "unseen")}
    return {
        f"{name}_{field}": value
        for name, check in checks.items()
        for field, value in check._asdict().items()
    }


def main() -> None:
    """Runs the model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "gemm_throughput")
    arguments = parser.parse_args()
    start, config = time.perf_counter(), tomllib.loads(CONFIG.read_text())
    fit = gemm_fit()
    devices = [get_device(x) for x in config["devices"]]
    rows = {
        "layers": list(layers(config, fit)),
        "roles": list(roles(config, fit)),
        "exchange": [row for x in devices for row in exchange.exchange_rows(x, fit)],
        "trades": [row for x in devices for row in exchange.trade_rows(x, config["trade"], fit)],
        "published": list(study.gemm_published_rows(fit)),
    }
    settings = {
        "config": CONFIG.name,
        "config_sha256": sha256(CONFIG),
        "memory_share": two_digits(fit.rates.memory),
        "products_share": two_digits(fit.rates.products),
        "kernel_microseconds": two_digits(1e6 * fit.rates.kernel_seconds),
        "cache_bytes_a_cycle": two_digits(fit.rates.cache_bytes),
        "link_share": two_digits(fit.rates.link),
        "collective_microseconds": two_digits(1e6 * fit.rates.collective_seconds),
        "ratio_low": two_digits(fit.ranges["ratio"][0] - 1),
        "ratio_high": two_digits(fit.ranges["ratio"][1] - 1),
        **_checks(fit),
    }
    record = manifest([], [beside(name) for name in DATA], settings) | {
        "command": f"python {Path(__file__).resolve().relative_to(ROOT)}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - start),
    }
    section = write_gemm_throughput(Results.from_rows(record, **rows), arguments.out)
    for finding in section.findings:
        print(finding.text, finding.evidence, sep="\n  ")


if __name__ == "__main__":
    main()
