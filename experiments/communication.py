"""What do the formats that move activations lose, and how many bytes does a token take?

    python experiments/communication.py [--out DIRECTORY] [--loss-windows N]

The formats of communication.toml on what the small model's layers would send to experts and back,
forward and backward, and on synthetic tiles; the loss of the model with the outputs of its residual
branches in each; and what is published of LogFMT, asked of all that. Writes `rows.csv` (a tensor in
a format), `stages.csv`, `loss.csv`, `claims.csv`, the figures and `manifest.json` into
reports/communication.
"""

import argparse
import dataclasses
import datetime
import time
import tomllib
from pathlib import Path
from typing import Any

from lowprec.models.checkpoint import default_checkpoint, load_checkpoint
from lowprec.models.corpus import load_held_out, windows
from lowprec.report.communication import Results, write_communication
from lowprec.scaling.block import get_format_or_block
from lowprec.study import communication_claims as claims
from lowprec.study.communication import Noise, by_stage, send, stage_row
from lowprec.study.communication_loss import Loss, document_loss, loss_rows
from lowprec.study.communication_tensors import Sent, captured_tensors, drawn_tensors
from lowprec.study.manifest import entry, manifest, sha256
from lowprec.study.prepared_layers import whole_windows
from lowprec.study.products import qualified

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path(__file__).with_suffix(".toml")
CHECKPOINT = default_checkpoint()
HELD_OUT = CHECKPOINT.with_name("held_out.jsonl")


def errors(tensors: list[Sent], config: dict[str, Any]) -> dict[str, list[Noise]]:
    """Every tensor in every format, by the format's name."""
    found = {}
    for name in config["targets"]:
        start = time.perf_counter()
        found[name] = [send(tensor, get_format_or_block(name)) for tensor in tensors]
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return found


def losses(config: dict[str, Any], count: int) -> dict[str, Loss]:
    """The model's loss with each format in its residual branches, by the format's name."""
    params, shape = load_checkpoint(CHECKPOINT)
    text = windows(load_held_out(HELD_OUT, "report"), shape.context)
    chosen = whole_windows(text, count)
    text = dataclasses.replace(
        text,
        tokens=text.tokens[chosen],
        mask=text.mask[chosen],
        document=text.document[chosen],
    )
    found = {}
    for name in config["loss_targets"]:
        start = time.perf_counter()
        found[name] = document_loss(params, shape, text, get_format_or_block(name))
        print(f"loss under {name}: {time.perf_counter() - start:.0f} s", flush=True)
    return found


def claim_rows(
    config: dict[str, Any],
    found: dict[str, list[Noise]],
    lost: dict[str, Loss],
    tensors: list[Sent],
) -> list[claims.ClaimRow]:
    """Everything that the published claims can be held against."""
    rows: list[claims.ClaimRow] = []
    seed, grouped = config["seed"], by_stage(found)
    for claim in (claims.Claim(**x) for x in config["claim"]):
        if claim.kind == "unbiased":
            rows += claims.gain_rows(claim, tensors, seed=seed)
            continue
        if claim.kind == "better":
            rows += claims.error_rows(claim, grouped, seed=seed)
        rows.append(claims.loss_claim(claim, lost, margin=config["near"], seed=seed))
    return rows


def main() -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "communication")
    parser.add_argument("--loss-windows", type=int, help="fewer than communication.toml says")
    arguments = parser.parse_args()
    start, config = time.perf_counter(), tomllib.loads(CONFIG.read_text())
    tensors = [*captured_tensors(config["documents"]), *drawn_tensors(config["seed"])]
    found = errors(tensors, config)
    count = arguments.loss_windows or config["loss_windows"]
    lost = losses(config, count)
    seed, channels = config["seed"], config["channels"]
    reference = qualified(get_format_or_block(config["reference"]))
    settings = {
        "config": CONFIG.name,
        "config_sha256": sha256(CONFIG),
        "seed": seed,
        "documents": config["documents"],
        "part": "report",
        "loss_windows": count,
        "channels": channels,
        "near": config["near"],
    }
    targets = [get_format_or_block(name) for name in config["targets"]]
    record = manifest([], [CHECKPOINT, HELD_OUT], settings) | {
        "catalogue": [entry(target) for target in targets],
        "command": f"python {Path(__file__).resolve().relative_to(ROOT)}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - start),
    }
    results = Results.from_rows(
        record,
        rows=[noise.row for noises in found.values() for noise in noises],
        stages=[stage_row(x, channels, seed=seed) for x in by_stage(found).values()],
        loss=loss_rows(list(lost.values()), reference, seed=seed),
        claims=claim_rows(config, found, lost, tensors),
    )
    section = write_communication(results, arguments.out)
    for finding in section.findings:
        print(finding.text, finding.evidence, sep="\n  ")


if __name__ == "__main__":
    main()
