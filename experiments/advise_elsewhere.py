"""Which recipes suit operands that are not this project's own? Advice on a model of a flow.

    python experiments/advise_elsewhere.py

A PyTorch network that learns to advance Burgers' equation, u_t + u u_x = nu u_xx, on 256 points:
random waves are drawn and solved by finite differences, the network is trained on them for a
minute, and its linear layers' operands are recorded on waves that it has not seen. Then
`lowprec advise` does the rest, once for a budget of bits and once for a least SQNR. Recording needs
the `torch` extra; with --operands any recorded file is advised on. Writes `advice.csv`, the
recipes, the figure and `manifest.json` into reports/advise.
"""

import argparse
import collections
import datetime
import tempfile
import time
from pathlib import Path
from typing import Any

from lowprec.gemm.recipe import Recipe
from lowprec.models.operands import Operands, load_layers
from lowprec.report.advise import write_advice
from lowprec.study.advise import advise, chosen_recipes
from lowprec.study.advise_candidates import entries
from lowprec.study.advise_choice import Goal
from lowprec.study.advise_files import write_recipes
from lowprec.study.advise_parts import Limits
from lowprec.study.advise_rows import AdviceRow, advice_rows, comments, table
from lowprec.study.manifest import manifest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("embed", "block0.up", "block0.down")
"""The layer that reads the waves, and those that widen and narrow."""
GOALS = (Goal(budget_bits=4.5), Goal(min_sqnr=30.0))
POINTS, WIDTH, BLOCKS = 256, 256, 2
STEPS, BATCH, POOL, SEED = 400, 256, 8192, 0
TOKENS = 2048


def waves(torch: Any, count: int, generator: Any) -> tuple[Any, Any]:
    """Random periodic waves, and what Burgers' equation makes of them in 0.05 time units."""
    modes = torch.arange(1, 9)
    place = 2 * torch.pi * torch.arange(POINTS) / POINTS
    size = torch.randn(2, count, 8, generator=generator) / modes
    u = size[0] @ torch.sin(modes[:, None] * place) + size[1] @ torch.cos(modes[:, None] * place)
    first, width, step, viscosity = u, 2 * torch.pi / POINTS, 2e-3, 0.05
    for _ in range(25):
        left, right = u.roll(1, -1), u.roll(-1, -1)
        flux = (right.square() - left.square()) / (4 * width)
        u = u + step * (viscosity * (left - 2 * u + right) / width**2 - flux)
    return first, u - first


def network(torch: Any) -> Any:
    """A residual network: each block normalises, widens to four times the width, and narrows."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: Any) -> Any:
            return x + self.down(nn.functional.gelu(self.up(self.norm(x))))

    layers = {"embed": nn.Linear(POINTS, WIDTH)}
    layers |= {f"block{i}": Block() for i in range(BLOCKS)}
    layers |= {"norm": nn.LayerNorm(WIDTH), "head": nn.Linear(WIDTH, POINTS)}
    return nn.Sequential(collections.OrderedDict(layers))


def record(path: Path) -> None:
    """Trains the network, and writes what its layers multiply on waves that it has not seen."""
    import torch  # pyright: ignore[reportMissingImports] - torch is in no extra that is checked

    from lowprec.models.torch_hooks import OperandRecorder

    torch.manual_seed(SEED)
    generator, model = torch.Generator().manual_seed(SEED), network(torch)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    u, change = waves(torch, POOL, generator)

    def loss(u: Any, change: Any) -> Any:
        return (model(u) - change).square().mean() / change.square().mean()

    for step in range(STEPS):
        rows = torch.randint(POOL, (BATCH,), generator=generator)
        optimiser.zero_grad()
        found = loss(u[rows], change[rows])
        found.backward()
        optimiser.step()
        if step % 100 == 0 or step == STEPS - 1:
            print(f"step {step}: relative squared error {found.item():.4f}", flush=True)
    with OperandRecorder(model, tokens=TOKENS, seed=SEED, layers=LAYERS) as recorder:
        unseen = loss(*waves(torch, TOKENS, generator))
        unseen.backward()
    print(f"on waves that it has not seen {unseen.item():.4f}", flush=True)
    recorder.save(path)


def advised(
    layers: list[Operands], goal: Goal, limits: Limits, out: Path, combine: bool
) -> tuple[list[AdviceRow], list[Recipe]]:
    """Rows and recipes under one goal; printed, and written into a folder of its own."""
    found = []
    for advice in advise(layers, entries(), goal, limits=limits, combine=combine):
        found.append(advice)
        print(f"{goal}: {advice.product.layer} {advice.product.role}", flush=True)
    rows = [row for advice in found for row in advice_rows(advice, source="burgers")]
    print(table(rows))
    chosen = chosen_recipes(found)
    write_recipes(chosen, out / str(goal).replace(" ", "_"), comments(rows))
    return rows, [recipe for own in chosen.values() for recipe in own.values()]


def main() -> None:
    """Records, advises and writes; some minutes of two cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operands", type=Path, help="a recorded file; made where there is none")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "advise")
    parser.add_argument("--layers", type=int, help="only so many layers")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="at most so many of a layer")
    parser.add_argument("--no-combinations", action="store_true", help="entries alone")
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.operands or Path(folder) / "burgers.safetensors"
        if not path.exists():
            record(path)
        layers = load_layers(path)[0][: arguments.layers]
        arguments.out.mkdir(parents=True, exist_ok=True)
        limits, combine = Limits(tokens=arguments.tokens), not arguments.no_combinations
        found = [advised(layers, goal, limits, arguments.out, combine) for goal in GOALS]
        rows = [row for own, _ in found for row in own]
        chosen = [recipe for _, own in found for recipe in own]
        settings = {
            "goals": [str(goal) for goal in GOALS],
            "seed": SEED,
            "steps": STEPS,
            "tokens": limits.tokens,
            "outputs": limits.outputs,
            "combinations": combine,
        }
        record_of_run = manifest(chosen, [path], settings) | {
            "command": f"python {Path(__file__).resolve().relative_to(ROOT)}",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "seconds": round(time.perf_counter() - start),
            "processor_seconds": round(time.process_time()),
        }
    section = write_advice(rows, record_of_run, arguments.out)
    for finding in section.findings:
        print(finding.text)
    print(f"wrote {arguments.out} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
