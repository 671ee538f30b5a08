"""Networks of the kinds that users bring, pruned to half: same outputs, training goes on, files bring them back."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

import oicsr
from oicsr.networks.inputs import tensors_in
from tests.oicsr.users_networks import CASES, Case

for more in ("cuts", "experts", "gates", "kernels", "modules", "recurrences", "sequences", "sums", "tokens", "weights"):
    assert import_module(f"tests.oicsr.users_{more}").CASES is CASES  # they add to the table
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
RANDOM_IN_TRAINING = {"stochastic_depth_and_dropped_blocks"}


def made(case: Case) -> nn.Module:
    """Return the network with normalisation of random scales, shifts and statistics."""
    torch.manual_seed(0)
    model = case.build()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _NormBase):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    if tensor is not None:
                        tensor.uniform_(0.5, 1.5)
    return model.eval()


def found(case: Case, model: nn.Module) -> list[oicsr.Coupling]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        couplings = oicsr.find_couplings(model, case.inputs, scope="all")
    said = [str(entry.message) for entry in caught]
    assert bool(said) == bool(case.warns) and case.warns in "; ".join(said), said
    return couplings


@dataclass(frozen=True)
class Traced:
    """A case with its network, as tracing left it, and the couplings found."""

    name: str
    case: Case
    model: nn.Module
    couplings: list[oicsr.Coupling]


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in CASES])
def traced(request: pytest.FixtureRequest) -> Traced:
    """Trace a network once for both tests, which follow one another in one process."""
    case = CASES[request.param]
    model = made(case)
    return Traced(request.param, case, model, found(case, model))


def half(couplings: Sequence[oicsr.Coupling], seed: int) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        c.name: torch.randperm(c.num_channels, generator=generator)[: c.num_channels // 2].tolist() for c in couplings
    }


@torch.no_grad()
def set_to_zero(model: nn.Module, couplings: Sequence[oicsr.Coupling], kept: dict[str, list[int]]) -> None:
    """Set all slices of the channels that go to zero, but what is divided by: variances, and lengths of weight norm."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for coupling in couplings:
        stays = torch.zeros(coupling.num_channels, dtype=torch.bool)
        stays[kept[coupling.name]] = True
        for member in coupling.members:
            goes = (member.channels >= 0) & ~stays[member.channels]
            divides = member.parameter.endswith("running_var") or (
                member.axis[0].endswith("original1") and not member.dim
            )
            if not divides:
                tensors[member.parameter].data.index_fill_(member.dim, goes.nonzero().flatten(), 0)


@torch.no_grad()
def outputs(model: nn.Module, inputs: tuple[Any, ...], *, training: bool) -> list[Tensor]:
    torch.manual_seed(3)
    random.seed(3)
    return list(tensors_in(model.train(training)(*copy.deepcopy(inputs))))


def in_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def test_a_users_network_is_pruned_exactly(traced: Traced) -> None:
    case, model, couplings = traced.case, traced.model, traced.couplings
    assert tuple(coupling.name for coupling in couplings) == case.couplings
    inputs = tuple(in_double(value) for value in case.inputs)
    for seed in (0, 1):
        kept = half(couplings, seed)
        zeroed = copy.deepcopy(model).double()
        set_to_zero(zeroed, couplings, kept)
        small = oicsr.remove_channels(zeroed, oicsr.PruningPlan.from_kept(couplings, kept))
        assert oicsr.count_params(small) < oicsr.count_params(model)
        for training in [False] if traced.name in RANDOM_IN_TRAINING else [False, True]:
            pairs = zip(
                outputs(small, inputs, training=training), outputs(zeroed, inputs, training=training), strict=True
            )
            for after, before in pairs:
                assert after.shape == before.shape
                torch.testing.assert_close(
                    after, before, rtol=0, atol=(1e-6 if training else 1e-9) * float(before.abs().max())
                )


def test_a_users_network_trains_on_and_comes_back_from_a_file(traced: Traced, tmp_path: Path) -> None:
    case, model, couplings = traced.case, traced.model, traced.couplings
    plan = oicsr.PruningPlan.from_kept(couplings, half(couplings, 0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    _step(model, case, optimizer)
    small = oicsr.remove_channels(model, plan, optimizer=optimizer)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in small.parameters() if parameter.requires_grad}
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].shape == parameter.shape
    _step(small, case, optimizer)
    oicsr.save_pruned(tmp_path / "small.safetensors", small, plan)
    back = oicsr.load_pruned(tmp_path / "small.safetensors", lambda: made(case))
    ours, theirs = (outputs(network, case.inputs, training=False) for network in (small, back))
    assert ours and all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def _step(model: nn.Module, case: Case, optimizer: torch.optim.Optimizer) -> None:
    losses = [t.square().mean() for t in tensors_in(model.train()(*copy.deepcopy(case.inputs))) if t.requires_grad]
    optimizer.zero_grad()
    torch.stack(losses).sum().backward()
    optimizer.step()
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
