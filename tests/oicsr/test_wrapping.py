"""Every function looks into wrapped models, and leaves them as they were."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import AveragedModel

import oicsr
from tests.oicsr.networks import Chain, randomize_norms

IMAGES = torch.randn(4, 3, 8, 8)
Wrap = Callable[[nn.Module], nn.Module]


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


WRAPPERS: dict[str, Wrap] = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "AveragedModel": AveragedModel,
    "compiled": compiled,
    "compiled in place": lambda model: (model.compile(backend="eager"), model)[1],  # type: ignore[func-returns-value]
    "average of compiled": lambda model: AveragedModel(compiled(model)),
    "compiled DataParallel": lambda model: compiled(nn.DataParallel(model)),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_all_functions_look_into_wrapped_models(kind: str, one_process: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomize_norms(Chain())
    wrapped = WRAPPERS[kind](model)
    inner = oicsr.unwrap(wrapped)
    assert type(inner) is Chain and (inner is model or kind.startswith("average") or kind == "AveragedModel")
    couplings = oicsr.find_couplings(inner, IMAGES)
    assert [repr(c) for c in oicsr.find_couplings(wrapped, IMAGES)] == [repr(c) for c in couplings]
    kept = {"conv1": [0, 2, 3], "conv2": [1, 5]}
    plan = oicsr.PruningPlan.from_kept(couplings, kept)

    def both(function: Callable[[nn.Module], object]) -> None:
        """Compare what a function gives for the wrapped model and for the model itself."""
        ours, theirs = function(inner), function(wrapped)
        assert _equal(ours, theirs), (ours, theirs)

    both(lambda net: oicsr.channel_energy(net, couplings))
    both(oicsr.GroupLasso(couplings, strength=1e-3))
    both(lambda net: oicsr.GrOWL(couplings, strength=1e-3)(net))
    both(lambda net: oicsr.out_in_energy(net, couplings))
    both(lambda net: oicsr.count_macs(net, IMAGES))
    both(oicsr.count_params)
    both(lambda net: str(oicsr.describe(net, couplings, plan, IMAGES)))
    both(lambda net: list(oicsr.row_norms(net).items()))
    both(lambda net: oicsr.suggest_strength(net, couplings, learning_rate=0.1, steps=100))
    both(lambda net: oicsr.weak_energy(net, couplings))
    both(lambda net: sorted(oicsr.plan_absorption(net, plan, IMAGES).shifts))
    scores = oicsr.out_in_energy(inner, couplings)
    both(lambda net: oicsr.select_channels(scores, couplings, net, IMAGES, macs_kept=0.5, tolerance=0.2))
    both(lambda net: oicsr.remove_channels(net, plan)(IMAGES))
    with pytest.warns(oicsr.AbsorptionWarning):
        both(lambda net: oicsr.remove_channels(net, plan, absorb=True, example_inputs=IMAGES)(IMAGES))
    both(lambda net: oicsr.prune(net, IMAGES, macs_kept=0.6, tolerance=0.2).plan)
    assert type(oicsr.remove_channels(wrapped, plan)) is Chain


def _equal(ours: object, theirs: object) -> bool:
    if isinstance(ours, Tensor):
        return torch.allclose(ours, theirs)  # type: ignore[arg-type]
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))  # type: ignore[arg-type]
    return ours == theirs


@pytest.mark.parametrize("kind", WRAPPERS)
def test_what_changes_a_model_in_place_changes_the_one_inside(kind: str, one_process: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    wrapped = WRAPPERS[kind](randomize_norms(Chain()))
    inner = oicsr.unwrap(wrapped)
    twin = Chain()
    twin.load_state_dict(inner.state_dict())
    assert oicsr.recalibrate(wrapped, [IMAGES]) is wrapped
    oicsr.recalibrate(twin, [IMAGES])
    oicsr.rescale(wrapped, IMAGES, 1.0)
    oicsr.rescale(twin, IMAGES, 1.0)
    for proximal in (oicsr.ProximalGroupLasso, oicsr.ProximalGrOWL):
        for net in (wrapped, twin):
            proximal(oicsr.find_couplings(net, IMAGES), strength=1e-2).proximal_step(net, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(inner.state_dict().values(), twin.state_dict().values(), strict=True))
    couplings = oicsr.find_couplings(wrapped, IMAGES)
    plan = oicsr.PruningPlan.from_kept(couplings, {"conv1": [1]})
    small = oicsr.remove_channels(wrapped, plan)
    oicsr.save_pruned(tmp_path / "small.safetensors", WRAPPERS[kind](small), plan)
    again = oicsr.load_pruned(tmp_path / "small.safetensors", Chain)
    assert torch.equal(again(IMAGES), small.eval()(IMAGES))


def test_a_moving_average_is_pruned_by_the_plan_of_the_model() -> None:
    model = Chain().eval()
    average = AveragedModel(model)
    couplings = oicsr.find_couplings(model, IMAGES)
    plan = oicsr.PruningPlan.from_kept(couplings, {"conv1": [0, 5], "conv2": [2]})
    assert torch.equal(oicsr.remove_channels(average, plan).eval()(IMAGES), oicsr.remove_channels(model, plan)(IMAGES))


def test_no_wrapper_is_left_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Chain()
        assert oicsr.unwrap(model) is model


class Lit(nn.Module):
    """A module around a network, as of PyTorch Lightning: no wrapper that the library knows."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def test_couplings_of_the_network_inside_and_of_the_module_around_it_are_told_apart() -> None:
    model = Chain()
    around = Lit(model)
    inner, outer = oicsr.find_couplings(model, IMAGES), oicsr.find_couplings(around, IMAGES)
    calls: list[Callable[[nn.Module, list[oicsr.Coupling]], object]] = [
        lambda net, couplings: oicsr.GroupLasso(couplings, strength=1e-3)(net),
        lambda net, couplings: oicsr.out_in_energy(net, couplings),
        lambda net, couplings: oicsr.remove_channels(
            net, oicsr.PruningPlan.from_kept(couplings, {couplings[0].name: [0]})
        ),
        lambda net, couplings: oicsr.prove(net, IMAGES, couplings),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"'conv1\.weight'.*; its module 'net' has it, so pass that"):
            call(around, inner)
        with pytest.raises(
            ValueError,
            match=r"'net\.conv1\.weight'.*; it has 'conv1\.weight', so pass the module that holds it as 'net'",
        ):
            call(model, outer)


def test_timms_moving_average_is_looked_into_and_goes_on() -> None:
    utils = pytest.importorskip("timm.utils")
    model = Chain()
    average, again = utils.ModelEmaV3(model, decay=0.5), AveragedModel(model)
    again.update_parameters(model)
    couplings = oicsr.find_couplings(average, IMAGES)
    plan = oicsr.select_channels(oicsr.out_in_energy(average, couplings), couplings, average, IMAGES, macs_kept=0.5)
    small = oicsr.remove_channels(model, plan)
    assert type(oicsr.remove_channels(average, plan)) is Chain
    for each in (average, again):  # as the documentation says
        each.module = oicsr.remove_channels(each.module, plan)
    with torch.no_grad():
        small.conv1.weight.add_(1)
    before = small.conv1.weight - 1
    average.update(small)
    again.update_parameters(small)
    assert torch.allclose(average.module.conv1.weight, before + 0.5)
    assert torch.allclose(again.module.conv1.weight, before + 0.5)  # the mean of two, not a fresh start


def test_locks_and_files_of_a_module_are_shared_with_copies(tmp_path: Path) -> None:
    class Logging(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.lock, self.done, self.log = threading.RLock(), threading.Event(), (tmp_path / "log").open("a")

        def forward(self, x: Tensor) -> Tensor:
            with self.lock:
                return super().forward(x)

    model = Logging()
    small = oicsr.prune(model, IMAGES, macs_kept=0.5, tolerance=0.1).model
    assert (small.lock, small.done, small.log) == (model.lock, model.done, model.log)
    assert small(IMAGES).shape == model(IMAGES).shape and small.conv1 is not model.conv1
    model.log.close()


@pytest.mark.parametrize("with_group", [False, True])
def test_synchronised_normalisation_is_tried_by_one_process_alone(with_group: bool, one_process: None) -> None:
    """In training mode it would wait for the others, and refuse a CPU; a group of processes cannot be copied."""
    group = distributed.new_group([0]) if with_group else None
    model = nn.SyncBatchNorm.convert_sync_batchnorm(Chain(), group)
    trace = oicsr.trace_couplings(model, IMAGES)
    assert [coupling.name for coupling in trace.couplings] == ["conv1", "conv2"] and not trace.untried
    small = oicsr.prune(model, IMAGES, macs_kept=0.5, tolerance=0.1).model
    assert type(model.bn1) is type(small.bn1) is nn.SyncBatchNorm
    assert small.bn1.process_group is model.bn1.process_group is group
