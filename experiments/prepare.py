"""What does preparing a weight keep of a product, over rounding it to nearest?

Every preparation of prepare.toml on the weights and inputs of the small model: fitted to documents
of the part `calibrate`, reported on documents of the part `report`. Writes a row a product, and the
gain over rounding to nearest with its interval over layers, into reports/prepare:

    python experiments/prepare.py
"""

import argparse
import csv
import dataclasses
import datetime
import json
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.engines import get_engine
from lowprec.gemm import Recipe, get_recipe
from lowprec.models.capture import capture
from lowprec.models.checkpoint import default_checkpoint, load_checkpoint
from lowprec.models.corpus import load_held_out, windows
from lowprec.study.manifest import manifest, sha256
from lowprec.study.prepared import GainRow, PreparedRow, Sample, compare_prepared, gains

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path(__file__).with_suffix(".toml")
HELD_OUT = default_checkpoint().with_name("held_out.jsonl")
SAMPLES = ("held_out", "in_sample")


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One linear layer: its weight, and its inputs of both parts."""

    name: str
    w: NDArray
    calibration: Sample
    report: Sample


def layers(config: dict[str, Any]) -> list[Layer]:
    """Every linear layer of the model with what reaches it in both parts."""
    params, shape = load_checkpoint(default_checkpoint())
    found: dict[str, dict[str, Any]] = {}
    for part, count in (
        ("calibrate", config["calibration_windows"]),
        ("report", config["report_windows"]),
    ):
        documents = load_held_out(HELD_OUT, part)
        text = windows(documents, shape.context)
        # Whole windows, of as many documents as there are.
        whole = np.flatnonzero(text.mask.all(axis=1))
        first = np.unique(text.document[whole], return_index=True)[1]
        rest = np.setdiff1d(np.arange(whole.size), first)
        chosen = whole[np.concatenate([first, rest])[:count]]
        names = tuple(sorted({documents[i][0] for i in text.document[chosen]}))
        for layer in capture(params, jnp.asarray(text.tokens[chosen]), shape):
            own = found.setdefault(layer.layer, {"w": np.asarray(layer.w)})
            own[part] = Sample(x=np.asarray(layer.x), documents=names)
    wanted = tuple(config["layers"])
    return [
        Layer(name, x["w"], x["calibrate"], x["report"])
        for name, x in found.items()
        if name.startswith(wanted)
    ]


def on(name: str, engine: str) -> Recipe:
    """A recipe summed by an engine."""
    return dataclasses.replace(get_recipe(name), engine=get_engine(engine))


def variants(
    base: str, donors: Sequence[str], seeds: Sequence[int], engine: str
) -> Iterator[Recipe]:
    """The base recipe, and with the preparations of others; a random rotation with every seed."""
    plain = on(base, engine)
    yield plain
    for donor in donors:
        steps = get_recipe(donor).prepare
        assert steps is not None
        name = f"{base} + {donor}"
        if steps.rotation is None or steps.rotation.seed is None:
            yield dataclasses.replace(plain, name=name, prepare=steps)
            continue
        for seed in seeds:
            rotation = dataclasses.replace(steps.rotation, seed=seed)
            turned = dataclasses.replace(steps, rotation=rotation)
            yield dataclasses.replace(plain, name=name, prepare=turned)


def compare(
    found: Sequence[Layer], family: dict[str, Any], config: dict[str, Any], sample: str
) -> list[PreparedRow]:
    """A family on every layer, the base recipe first."""
    start, rows = time.perf_counter(), []
    given = family["base"], family["prepare"], config["rotation_seeds"], config["engine"]
    for recipe in variants(*given):
        for layer in found:
            report = layer.report if sample == "held_out" else layer.calibration
            rows.append(
                compare_prepared(
                    layer.calibration, report, layer.w, recipe, layer=layer.name,
                    source="captured", in_sample=sample == "in_sample",
                )
            )  # fmt: skip
    spent = time.perf_counter() - start
    print(f"{family['base']}, {sample}: {len(rows)} products in {spent:.0f} s", flush=True)
    return rows


def gain_rows(rows: Sequence[PreparedRow], family: dict[str, Any], seed: int) -> list[GainRow]:
    """What each preparation keeps over the family's base."""
    base = f"recipe:{family['base']}"
    return [gains(rows, base, f"{base} + {donor}", seed=seed) for donor in family["prepare"]]


def write(path: Path, rows: Sequence[Any]) -> None:
    """Rows as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(rows[0])])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def table(rows: Sequence[GainRow]) -> str:
    """The gains as text."""
    lines = [f"{'recipe':58s} {'bits':>6s} {'SQNR':>6s} {'gain dB (95 % over layers)':>28s}  worst"]
    for row in rows:
        interval = f"{row.gain_db:+.2f} ({row.low_db:+.2f} to {row.high_db:+.2f})"
        label = row.recipe.removeprefix("recipe:") + (" [in sample]" * (row.sample == SAMPLES[1]))
        lines.append(
            f"{label:58s} {row.bits_per_element:6.2f} {row.recipe_db:6.2f} {interval:>28s} "
            f"{row.worst_db:+.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "prepare")
    parser.add_argument("--layers", type=int, help="only so many layers")
    arguments = parser.parse_args()
    config = tomllib.loads(CONFIG.read_text())
    start = time.perf_counter()
    found = layers(config)[: arguments.layers]
    print(f"captured {len(found)} layers in {time.perf_counter() - start:.0f} s", flush=True)
    rows: list[PreparedRow] = []
    gained: list[GainRow] = []
    for sample, key in zip(SAMPLES, ("family", "in_sample"), strict=True):
        for family in config[key]:
            own = compare(found, family, config, sample)
            gained += gain_rows(own, family, config["seed"])
            rows += own
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(arguments.out / "products.csv", rows)
    write(arguments.out / "gains.csv", gained)
    used = {name for key in ("family", "in_sample") for x in config[key] for name in x["prepare"]}
    used |= {family["base"] for family in config["family"]}
    settings = {
        "config": CONFIG.name,
        "config_sha256": sha256(CONFIG),
        "calibration_documents": found[0].calibration.documents,
        "report_documents": found[0].report.documents,
        "calibration_tokens": len(found[0].calibration.x),
        "report_tokens": len(found[0].report.x),
    }
    recipes = [get_recipe(name) for name in sorted(used)]
    record = manifest(recipes, [default_checkpoint(), HELD_OUT], settings) | {
        "command": f"python {Path(__file__).resolve().relative_to(ROOT)}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - start),
        "processor_seconds": round(time.process_time()),
    }
    (arguments.out / "manifest.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table(gained))
    print(
        f"wrote {arguments.out} in {time.perf_counter() - start:.0f} s, "
        f"{time.process_time():.0f} s of processor time"
    )


if __name__ == "__main__":
    main()
