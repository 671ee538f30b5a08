"""What each of two processes does in `test_distributed`; started by torchrun."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import oicsr
from benchmarks import cli
from benchmarks.config import Phase
from benchmarks.experiments import EXPERIMENTS
from benchmarks.machine.processes import ALONE, Rank, agreed, current_rank, process_group
from benchmarks.models.initialization import initialize
from benchmarks.training.loop import Score, Training
from oicsr import PruningPlan
from tests.benchmarks.small import small_experiment


class Small(nn.Module):
    """Two convolutions with BatchNorm, and a classifier; in float64, so that rounding is far below what is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 48, 3, padding=1, bias=False),
            nn.BatchNorm2d(48),
            nn.ReLU(),
        )
        self.fc = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class Images:
    """Random images in shuffled global batches of 16, of which each process gets its part."""

    batch_size = 16

    def __init__(self, rank: Rank) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(48, 1, 8, 8, generator=generator, dtype=torch.float64)
        self.labels = torch.randint(0, 10, (48,), generator=generator)
        self.rank = rank

    def __len__(self) -> int:
        return 3

    def epoch(self, generator: torch.Generator, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in torch.randperm(48, generator=generator).split(16)[start:]:
            index = self.rank.share(batch)
            yield self.images[index], self.labels[index]


def train_and_prune(rank: Rank, method: str) -> tuple[nn.Module, PruningPlan, list[float]]:
    """Train two epochs with a regulariser, remove the weaker half of each layer, train one more."""
    torch.manual_seed(0)
    model = initialize(Small()).double()
    inputs = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    couplings = oicsr.find_couplings(model, inputs)
    kinds = {"gradient": oicsr.GroupLasso, "proximal": oicsr.ProximalGroupLasso}
    training = Training(
        model,
        Phase(2, 0.1),
        Images(rank),
        torch.Generator().manual_seed(1),
        kinds[method](couplings, sides=("out", "in"), strength=0.01),
    )
    losses = [training.run_epoch(lambda: Score(0.0, 0.0)).train_loss for _ in range(2)]
    scores = agreed(oicsr.channel_energy(model, couplings))
    kept = {
        c.name: score.topk(c.num_channels // 2).indices.tolist() for c, score in zip(couplings, scores, strict=True)
    }
    plan = PruningPlan.from_kept(couplings, kept)
    small = oicsr.remove_channels(model, plan)
    after = Training(small, Phase(1, 0.05), Images(rank), torch.Generator().manual_seed(2))
    return small, plan, [*losses, after.run_epoch(lambda: Score(0.0, 0.0)).train_loss]


def run_small_experiment(folder: Path) -> int:
    """Run an experiment from the command line; all processes do, one writes."""
    EXPERIMENTS["small"] = small_experiment()
    places = ["--results", str(folder / "results"), "--checkpoints", str(folder / "checkpoints")]
    return cli.main(["run", "small", "--methods", "oicsr-gl", "--wandb", "disabled", "--device", "cpu", *places])


def main(folder: Path) -> None:
    """Write what this process ends with."""
    with process_group(torch.device("cpu")):
        rank = current_rank()
        for method in ("gradient", "proximal"):
            small, plan, losses = train_and_prune(rank, method)
            result = {"state": small.state_dict(), "plan": plan.to_json(), "losses": losses}
            torch.save(result, folder / f"{method}{rank.index}.pt")
        assert run_small_experiment(folder / "run") == 0


if __name__ == "__main__":
    assert ALONE.count == 1
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
