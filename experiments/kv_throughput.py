"""What does a cache method buy in decode throughput, where, and what bounds it?

    python experiments/kv_throughput.py [--out DIRECTORY]

A model, not a measurement: rates fitted on the published lines of vLLM on the H100, every other
published figure predicted, and intervals that span the misses. The methods, devices and contexts of
kv_throughput.toml give tokens per second, largest batches, the bound of attention, the forms of
latent attention on an H800 and an H20, caches in the host's memory, and fetching against computing.
Writes a CSV file a table, the figures and `manifest.json` into reports/kv_throughput.
"""

import argparse
import datetime
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowprec.report.kv_throughput import Results, write_kv_throughput
from lowprec.study import kv_throughput as study
from lowprec.study import kv_throughput_host as host
from lowprec.study.manifest import manifest, sha256
from lowprec.throughput.architecture import Architecture, get_architecture
from lowprec.throughput.devices import beside, get_device, get_link, list_devices, list_links
from lowprec.throughput.fit import Fit, fit

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path(__file__).with_suffix(".toml")
DATA = ("devices.toml", "architectures.toml", "dequantization.toml", "published.toml")
Config = dict[str, Any]


def fitting(config: Config, architecture: Architecture) -> list[study.Method]:
    """The methods that a model's cache can have."""
    return [x for x in study.methods(config) if study.belongs(x, architecture)]


def throughput(config: Config, fitted: Fit) -> Iterator[study.ThroughputRow]:
    """Every device, model, method and context; then the model that no device holds."""
    plain = [(name, 1, config["devices"]) for name in config["architectures"]]
    shared = (config["latent_architecture"], config["latent_shards"], config["latent_devices"])
    for name, shards, devices in [*plain, shared]:
        architecture = get_architecture(name)
        for device in devices:
            yield from study.throughput_rows(
                get_device(device),
                architecture,
                fitting(config, architecture),
                fitted,
                contexts=config["contexts"],
                batch_context=config["batch_context"],
                shards=shards,
            )


def attention(config: Config, fitted: Fit) -> Iterator[study.AttentionRow]:
    """Attention of the first model by method, on every device, at one context."""
    architecture = get_architecture(config["architectures"][0])
    context = config["batch_context"]
    for name in config["devices"]:
        device = get_device(name)
        for method in fitting(config, architecture):
            cache = study.cost(method, architecture, device, context)
            yield study.attention_row(device, architecture, cache, fitted, context=context)


def forms(config: Config, fitted: Fit) -> Iterator[study.AttentionRow]:
    """Attention of the latent model by what is cached, on every device."""
    for name in config["devices"]:
        given = config["form"], get_device(name), fitted
        yield from study.form_rows(*given, context=config["batch_context"])


def tiers(config: Config, fitted: Fit) -> Iterator[host.HostRow]:
    """A cache in the host's memory, by device, context and tokens read."""
    asked = config["host"]
    architecture = get_architecture(asked["architecture"])
    compressed = [x for x in fitting(config, architecture) if x.name in asked["compressed"]]
    for device, link in asked["pairs"]:
        for context in asked["contexts"]:
            for read in asked["reads"]:
                yield from host.host_rows(
                    get_device(device),
                    get_link(link),
                    architecture,
                    compressed,
                    fitted,
                    context=context,
                    read=read or context,
                )


def recomputed(config: Config, fitted: Fit) -> Iterator[host.RecomputeRow]:
    """Prompts fetched against prompts computed."""
    asked = config["host"]
    architecture = get_architecture(asked["architecture"])
    found = [x for x in fitting(config, architecture) if x.name in asked["fetched"]]
    for device, link in asked["pairs"]:
        yield from host.recompute_rows(
            get_device(device),
            get_link(link),
            architecture,
            found,
            fitted,
            prompts=asked["prompts"],
        )


def main() -> None:
    """Runs the model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "kv_throughput")
    arguments = parser.parse_args()
    start, config = time.perf_counter(), tomllib.loads(CONFIG.read_text())
    fitted = fit()
    constants = [get_device(x) for x in list_devices()] + [get_link(x) for x in list_links()]
    rows = {
        "throughput": list(throughput(config, fitted)),
        "attention": list(attention(config, fitted)),
        "forms": list(forms(config, fitted)),
        "host": list(tiers(config, fitted)),
        "recompute": list(recomputed(config, fitted)),
        "published": list(study.published_rows(fitted)),
        "constants": list(study.constant_rows(constants)),
    }
    settings = {
        "config": CONFIG.name,
        "config_sha256": sha256(CONFIG),
        "batch_context": config["batch_context"],
        "memory_share": study.two_digits(fitted.rates.memory),
        "layer_microseconds": study.two_digits(1e6 * fitted.rates.layer_seconds),
        "kernels": {x.name: x.source for x in study.methods(config)},
    }
    record = manifest(
        [x.kv for x in study.methods(config)], [beside(name) for name in DATA], settings
    ) | {
        "command": f"python {Path(__file__).resolve().relative_to(ROOT)}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - start),
    }
    section = write_kv_throughput(Results.from_rows(record, **rows), arguments.out)
    for finding in section.findings:
        print(finding.text, finding.evidence, sep="\n  ")


if __name__ == "__main__":
    main()
