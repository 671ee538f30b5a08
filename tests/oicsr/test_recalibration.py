"""Recalibration: the statistics of given batches, and nothing else changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import oicsr
from oicsr.recalibration import try_batches
from tests.oicsr.networks import Chain, randomize_norms


def test_two_channels_by_hand() -> None:
    """Batches (0, 2), (4, 6, 8) and their tenfold: means 1 and 6, unbiased variances 2 and 4."""
    norm = nn.BatchNorm1d(2).double()
    batches = [torch.tensor([[0.0, 0.0], [2.0, 20.0]]), torch.tensor([[4.0, 40.0], [6.0, 60.0], [8.0, 80.0]])]
    returned = oicsr.recalibrate(norm, [batch.double() for batch in batches])
    assert returned is norm
    assert torch.allclose(norm.running_mean, torch.tensor([3.5, 35.0]).double(), rtol=1e-12)
    assert torch.allclose(norm.running_var, torch.tensor([3.0, 300.0]).double(), rtol=1e-12)
    assert int(norm.num_batches_tracked) == 2


def test_agrees_with_pytorchs_cumulative_average() -> None:
    model = randomize_norms(Chain()).double().eval()
    batches = [torch.randn(n, 3, 8, 8).double() for n in (2, 5, 3)]
    expected = copy.deepcopy(model)
    for module in expected.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    with torch.no_grad():
        for batch in batches:
            expected(batch)
    oicsr.recalibrate(model, batches)
    for (name, ours), theirs in zip(model.named_buffers(), expected.buffers(), strict=True):
        assert torch.allclose(ours.double(), theirs.double(), rtol=1e-12), name


class _Everything(nn.Module):
    """Dropout, a counter, a functional normalisation, one that is used twice, one only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm, self.twice, self.head = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.register_buffer("mean", torch.full((4,), 9.0))
        self.register_buffer("var", torch.full((4,), 9.0))
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        x = functional.dropout(self.norm(self.linear(x)), 0.5, self.training)
        x = self.twice(self.twice(x) + 1)
        x = functional.batch_norm(x, running_mean=self.mean, running_var=self.var, training=self.training)
        return self.head(x) if self.training else x


def test_changes_statistics_only() -> None:
    model = _Everything()
    model.norm.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    loader = DataLoader(TensorDataset(torch.randn(12, 3), torch.zeros(12)), batch_size=4, shuffle=True)
    generator = torch.get_rng_state()
    oicsr.recalibrate(model, loader)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, state[name])}
    statistics = {f"{layer}.running_{kind}" for layer in ("norm", "twice") for kind in ("mean", "var")}
    counts = {"norm.num_batches_tracked", "twice.num_batches_tracked"}
    assert changed == {*statistics, *counts, "mean", "var"}
    assert (int(model.norm.num_batches_tracked), int(model.twice.num_batches_tracked)) == (3, 6)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.parametrize("batches_first", [True, False], ids=["tried before", "recalibrated"])
def test_a_scripted_normalisation_is_refused_and_nothing_changes(batches_first: bool) -> None:
    """Nobody sees what it calls: it would keep its old statistics, beside others that are new."""
    model, batches = randomize_norms(Chain()), [torch.randn(4, 3, 8, 8)]
    model.bn2 = torch.jit.script(model.bn2)
    before = copy.deepcopy({name: value.clone() for name, value in model.state_dict().items()})
    run = try_batches if batches_first else oicsr.recalibrate
    with pytest.raises(ValueError, match=r"cannot all be estimated: 'bn2' is scripted: put the module"):
        run(model, batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_exported_network_is_refused_by_name() -> None:
    images = torch.randn(4, 3, 8, 8)
    exported = torch.export.export(Chain().eval(), (images,)).module()
    with pytest.raises(ValueError, match=r"has one mode alone .* take the network that was exported"):
        oicsr.recalibrate(exported, [images])


def test_instance_norm_and_broken_statistics() -> None:
    model = nn.InstanceNorm2d(2, track_running_stats=True).double()
    model.running_mean.fill_(float("nan"))
    x = torch.randn(3, 2, 4, 4).double()
    oicsr.recalibrate(model, [x, 3 * x])
    assert torch.allclose(model.running_mean, 2 * x.mean((0, 2, 3)))
    assert torch.allclose(model.running_var, 5 * x.var((2, 3)).mean(0))


class _TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2, momentum=0.5)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.norm(a - b)


@pytest.mark.parametrize("form", ["tuple", "mapping", "pair", "forward"])
def test_forms_of_batches(form: str) -> None:
    a, b = torch.randn(5, 2), torch.randn(5, 2)
    batch = {"tuple": ((a, b),), "mapping": {"a": a, "b": b}, "pair": ([a, b], torch.zeros(5)), "forward": (a, b)}
    call = (lambda model, pair: model(*pair)) if form == "forward" else None
    model = oicsr.recalibrate(_TwoInputs(), [batch[form]], forward=call)
    assert torch.allclose(model.norm.running_mean, (a - b).mean(0), atol=1e-6)


READ_WRONGLY: dict[str, tuple[object, type[Exception], str]] = {
    "labels by name": (
        {"x": torch.randn(2, 3, 8, 8), "labels": torch.zeros(2)},
        TypeError,
        "a batch has the keys 'x', 'labels', and each is taken for an argument of forward",
    ),
    "labels first": (
        (torch.zeros(2, dtype=torch.int64), torch.randn(2, 3, 8, 8)),
        RuntimeError,
        r"the first entry of a batch \(tuple\) is taken for the input: a tensor of shape \(2,\)",
    ),
}


@pytest.mark.parametrize("kind", READ_WRONGLY)
def test_a_batch_that_is_read_wrongly_names_the_way_out(kind: str) -> None:
    batch, error, how = READ_WRONGLY[kind]
    model = randomize_norms(Chain())
    before = copy.deepcopy(model.state_dict())
    for call in (
        lambda: oicsr.recalibrate(model, [batch]),
        lambda: oicsr.prune(model, torch.zeros(1, 3, 8, 8), batches=[batch]),
    ):
        with pytest.raises(error, match=rf"{how}.*recalibrate\(model, batches, forward=\.\.\.\).*Chain fails") as found:
            call()
        assert type(found.value.__cause__) is error
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class _OutOfMemory(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError


def test_errors_that_are_not_about_the_form_of_a_batch_stay_as_they_are() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        oicsr.recalibrate(_OutOfMemory(), [(torch.zeros(2, 3), torch.zeros(2))])
    with pytest.raises(RuntimeError) as found:
        oicsr.recalibrate(Chain(), [torch.randn(2, 4, 8, 8)])
    assert found.value.__cause__ is None and "forward" not in str(found.value)


def test_without_running_statistics_nothing_happens() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.BatchNorm1d(4, track_running_stats=False))
    before = copy.deepcopy(model.state_dict())
    assert oicsr.recalibrate(model, iter([])) is model
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_errors_leave_the_statistics() -> None:
    model = randomize_norms(Chain())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"batches is a tensor of shape \(2, 3, 8, 8\); pass a list"):
        oicsr.recalibrate(model, torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match="batches is empty"):
        oicsr.recalibrate(model, [])
    with pytest.raises(RuntimeError):
        oicsr.recalibrate(model, [torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_refused(value: float) -> None:
    model = randomize_norms(Chain())
    before = copy.deepcopy(model.state_dict())
    broken = torch.randn(2, 3, 8, 8)
    broken[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match=r"batch 1 \(from 0\) makes .*running_mean NaN or infinite: its inputs hold"):
        oicsr.recalibrate(model, [(torch.randn(2, 3, 8, 8), torch.zeros(2)), (broken, torch.zeros(2))])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_a_network_whose_values_are_not_finite_is_named_as_the_cause() -> None:
    model = randomize_norms(Chain())
    with torch.no_grad():
        next(model.parameters()).fill_(float("inf"))
    with pytest.raises(ValueError, match="its inputs are finite, so the network's own values"):
        oicsr.recalibrate(model, [torch.rand(2, 3, 8, 8)])


def test_empty_batches_do_not_count() -> None:
    model, batch = randomize_norms(Chain()), torch.randn(4, 3, 8, 8)
    expected = oicsr.recalibrate(copy.deepcopy(model), [batch]).state_dict()
    found = oicsr.recalibrate(copy.deepcopy(model), [batch[:0], batch, batch[:0]]).state_dict()
    assert all(torch.equal(values, found[name]) for name, values in expected.items())
    with pytest.raises(ValueError, match="no layer with running statistics ran"):
        oicsr.recalibrate(model, [batch[:0]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_in_half_precision_do_not_round_away(dtype: torch.dtype) -> None:
    network = nn.BatchNorm1d(3).to(dtype)
    oicsr.recalibrate(network, [(torch.randn(16, 3) + 2).to(dtype) for _ in range(600)])
    assert network.running_mean is not None and network.running_var is not None
    torch.testing.assert_close(network.running_mean.float(), torch.full((3,), 2.0), rtol=0.02, atol=0)
    torch.testing.assert_close(network.running_var.float(), torch.ones(3), rtol=0.05, atol=0)
