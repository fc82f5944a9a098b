"""How many bits must a matrix engine keep, and how often promote? Parameters in accumulation.toml.

Writes the tables and figures of the report's section on accumulation into reports/accumulation, and
`manifest.json` with the date, the command, versions and the sources of every entry.
"""

import argparse
import dataclasses
import datetime
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lowprec import catalogue
from lowprec.models.cards import card
from lowprec.numerics.format import get_format
from lowprec.report.accumulation import AccumulationResults, write_accumulation
from lowprec.report.accumulation_section import accumulation_section
from lowprec.report.shown import standalone
from lowprec.study import accumulation, accumulation_published, accumulation_swamping
from lowprec.study.accumulation_config import Config, read_config
from lowprec.study.accumulation_operands import CARD, Card, card_of, draw, read_cards, synthesize
from lowprec.study.accumulation_rows import ErrorRow, PromotionRow, SyntheticRow
from lowprec.study.manifest import manifest, sha256

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path(__file__).with_suffix(".toml")
CARDS = ROOT / "reports" / "cards.csv"
STATISTICS = ("rms", "crest_median", "crest_percentile_99", "excess_kurtosis",
              "outlier_channel_ratio")  # fmt: skip


def synthetic_rows(
    used: dict[str, Card], cards: dict[str, dict[str, str]], config: Config
) -> Iterator[SyntheticRow]:
    """Captured cards beside those of numbers drawn after them, in the captured shapes."""
    for tensor, wanted in used.items():
        row = cards[tensor]
        shape = int(row["rows"]), int(row["columns"])
        vectors = shape[0] if wanted.channels == shape[1] else shape[1]
        numbers = synthesize(wanted, np.random.default_rng(config.seed), (vectors, wanted.channels))
        found = card(numbers.astype(np.float32), axis=1).to_dict()
        for statistic in STATISTICS:
            yield SyntheticRow(
                tensor=tensor,
                statistic=statistic,
                captured=float(row[statistic]),
                synthetic=float(str(found[statistic])),
                seed=config.seed,
            )


def measure(config: Config, used: dict[str, Card]) -> tuple[list[ErrorRow], list[PromotionRow]]:
    """Errors of every engine on every distribution, and promotion against none."""
    errors: list[ErrorRow] = []
    promotion: list[PromotionRow] = []
    for distribution in config.distribution:
        operands = draw(distribution, config, get_format(config.format), used)
        case = accumulation.prepare(distribution.name, operands, config)
        never: accumulation.Sums | None = None
        for sums in accumulation.run(case, config):
            errors += accumulation.error_rows(case, sums, config)
            if sums.promote_every == accumulation.NEVER:
                never = sums
            elif never is not None:
                promotion += accumulation.promotion_rows(case, never, sums, config)
        print(f"{distribution.name}: {time.process_time():.0f} s of processor time", flush=True)
    return errors, promotion


def entries(config: Config) -> list[dict[str, Any]]:
    """The citations and hashes of the catalogue's entries; families of engines have none."""
    engines = [x for x in config.swamping.engines if x in catalogue.names("engines")]
    kinds: list[tuple[catalogue.Kind, str]] = [("elements", config.format)]
    for name in (config.engine, *engines):
        kinds.append(("engines", name))
    found = [(kind, name, catalogue.lookup(kind, name)) for kind, name in kinds]
    return [
        {"kind": kind, "name": name, "citation": str(x.citation), "sha256": x.digest}
        for kind, name, x in found
    ]


def main() -> None:
    """Runs the study; four minutes of one core, over one of them compilation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "accumulation")
    parser.add_argument("--seeds", type=int, help="fewer seeds than accumulation.toml says")
    arguments = parser.parse_args()
    start = time.perf_counter()
    config = read_config(CONFIG)
    if arguments.seeds is not None:
        config = dataclasses.replace(config, seeds=arguments.seeds)
    cards = read_cards(CARDS)
    names = [side for x in config.distribution for side in (x.a, x.b) if side.startswith(CARD)]
    used = {name.removeprefix(CARD): card_of(cards[name.removeprefix(CARD)]) for name in names}
    errors, promotion = measure(config, used)
    published = list(accumulation_published.published_rows(config))
    swamping = list(accumulation_swamping.swamping_rows(config))
    settings = {
        "config": CONFIG.name,
        "config_sha256": sha256(CONFIG),
        "seeds": config.seeds,
        "seed": config.seed,
        "shape": f"{config.rows} x {config.depth} x {config.columns}",
    }
    record = manifest([], [CARDS], settings) | {
        "catalogue": entries(config),
        "command": f"python {Path(__file__).resolve().relative_to(ROOT)}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - start),
        "processor_seconds": round(time.process_time()),
    }
    results = AccumulationResults.from_rows(
        record,
        errors=errors,
        promotion=promotion,
        front=list(accumulation.front_rows(errors, config.published.k)),
        published=published,
        swamping=swamping,
        synthetic=list(synthetic_rows(used, cards, config)),
    )
    write_accumulation(results, arguments.out)
    drawn = arguments.out / "figures"
    drawn.mkdir(exist_ok=True)
    for figure in accumulation_section(results).figures:
        (drawn / f"{figure.name}.svg").write_text(standalone(figure.wide), encoding="utf-8")
    print(
        f"wrote {arguments.out} in {time.perf_counter() - start:.0f} s, "
        f"{time.process_time():.0f} s of processor time"
    )


if __name__ == "__main__":
    main()
