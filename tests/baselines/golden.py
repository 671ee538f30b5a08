"""What every penalty and importance gives on two fixed networks. `python -m tests.baselines.golden` writes the file.

Rewrite it only for a change that is meant to move results, and say so in the commit ("results-affecting:").
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

import oicsr
from benchmarks.methods.registry import IMPORTANCES, REGULARIZERS
from tests.baselines.networks import PEERS, built, gradient, prepared, scoring

FILE = Path(__file__).with_name("golden.json")
NETS = ("chain", "mixed")
FAILS = {*((name, "mixed") for name in PEERS), ("tp-bn-scale importance", "mixed")}


def penalty(name: str, net: str) -> list[float]:
    """Return the value, the norm of the gradient, a projection of it, and one of the weights after a proximal step."""
    model, couplings = prepared(net)
    regularizer = built(name, model, couplings)
    value = float(regularizer(model).detach())
    gradients = gradient(regularizer, model)
    norm = float(torch.cat([g.flatten() for g in gradients.values()]).norm())
    found = [value, norm, _project(list(gradients.values()))]
    if isinstance(regularizer, oicsr.ProximalRegularizer):
        regularizer.proximal_step(model, 0.5)
        found.append(_project([p.detach() for p in model.parameters()]))
    return found


def importance(name: str, net: str) -> list[list[float]]:
    model, couplings = prepared(net)
    return [scores.tolist() for scores in IMPORTANCES[name].score(model, couplings, scoring())]


def _project(tensors: list[Tensor]) -> float:
    flat = torch.cat([t.double().flatten() for t in tensors])
    return float(flat @ torch.cos(torch.arange(len(flat), dtype=torch.float64)))


def everything() -> dict[str, dict[str, object]]:
    penalties = {
        f"{name}, {net}": penalty(name, net)
        for name, spec in REGULARIZERS.items()
        for net in NETS
        if spec.has_strength and (name, net) not in FAILS
    }
    importances = {
        f"{name}, {net}": importance(name, net)
        for name in IMPORTANCES
        for net in NETS
        if (f"{name} importance", net) not in FAILS
    }
    return {"penalties": penalties, "importances": importances}


def load() -> dict[str, dict[str, object]]:
    return json.loads(FILE.read_text())


if __name__ == "__main__":
    FILE.write_text(json.dumps(everything(), indent=1) + "\n")
