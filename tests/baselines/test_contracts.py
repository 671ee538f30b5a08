"""What every regulariser and every importance must do, whichever it is. New entries are picked up by themselves."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import oicsr
from benchmarks.methods.registry import IMPORTANCES, METHODS, REGULARIZERS, SELECTIONS, find_method
from tests.baselines.networks import IMAGES, NETWORKS, PEERS, built, gradient, owned, permute, prepared, scoring

PENALTIES = [name for name, spec in REGULARIZERS.items() if spec.has_strength]
# torch-pruning fails on these networks, as test_torch_pruning_rival.py shows
PEERS_RUN_ON = ("chain", "basic", "depthwise")
CASES = [(name, net) for name in PENALTIES for net in NETWORKS if name not in PEERS or net in PEERS_RUN_ON]
SUMS = [name for name in PENALTIES if name.startswith("cges")]  # of degrees 1 and 2
OWN_PENALTIES = [name for name in PENALTIES if name not in PEERS]


def scales_alone(name: str) -> bool:
    """Say whether a penalty acts on nothing where there is no normalisation layer."""
    return REGULARIZERS[name].sides == ("norm",)


@pytest.mark.parametrize(("name", "net"), CASES)
def test_value_is_finite_and_not_negative_and_repeats(name: str, net: str) -> None:
    model, _ = prepared(net)
    values = [built(name, *prepared(net))(model).detach() for _ in range(2)]
    assert values[0].shape == () and bool(values[0].isfinite())
    assert float(values[0]) > 0 or REGULARIZERS[name].signed
    assert torch.equal(values[0], values[1])


@pytest.mark.parametrize(("name", "net"), [case for case in CASES if REGULARIZERS[case[0]].potential])
def test_gradient_is_that_of_the_value(name: str, net: str) -> None:
    model, couplings = prepared(net)
    regularizer = built(name, model, couplings)
    found = gradient(regularizer, model)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        direction = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.named_parameters()}
        slope = sum(float((found[n] * d).sum()) for n, d in direction.items())
        assert _slope(regularizer, model, direction) == pytest.approx(slope, rel=1e-6, abs=1e-9)


@torch.no_grad()
def _slope(regularizer: oicsr.Regularizer, model: nn.Module, direction: dict[str, Tensor], step: float = 1e-6) -> float:
    values = []
    for sign in (step, -2 * step, step):  # forth, back, and home
        for name, parameter in model.named_parameters():
            parameter.add_(direction[name], alpha=sign)
        values.append(float(regularizer(model)))
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize(("name", "net"), CASES)
def test_a_regularizer_that_adds_its_gradient_agrees_with_autograd(name: str, net: str) -> None:
    model, couplings = prepared(net)
    regularizer = built(name, model, couplings)
    value = regularizer(model)
    if not isinstance(regularizer, oicsr.GradientRegularizer) or not value.requires_grad:
        assert value.requires_grad or name in PEERS  # acts by autograd alone, or has no autograd of its own
        return
    value.backward()
    by_autograd = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    for parameter, added in gradient(regularizer, model).items():
        torch.testing.assert_close(added, by_autograd[parameter], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "net"), CASES)
def test_gradient_reaches_the_right_weights_and_no_others(name: str, net: str) -> None:
    model, couplings = prepared(net)
    spec = REGULARIZERS[name]
    own = owned(model, couplings, spec.sides)
    for parameter, added in gradient(built(name, model, couplings), model).items():
        touched = added != 0
        if name in PEERS and net == "depthwise" and parameter == "depthwise.weight":
            assert not bool(touched.any())  # what the cards say
        elif spec.reach == "some channels":
            assert not bool((touched & ~own[parameter]).any())
            assert bool(touched.any()) == bool(own[parameter].any())
        elif spec.reach == "whole tensors":
            assert torch.equal(touched, own[parameter].any().expand_as(touched))
        else:
            assert torch.equal(touched, own[parameter]), parameter
        assert not (parameter.endswith("bias") and bool(touched.any()))


@pytest.mark.parametrize("name", OWN_PENALTIES)
def test_frozen_weights_are_left_alone(name: str) -> None:
    model, couplings = prepared("chain")
    frozen = model.bn1.weight if scales_alone(name) else model.conv2.weight
    frozen.requires_grad_(False)
    regularizer = built(name, model, couplings)
    if isinstance(regularizer, oicsr.GradientRegularizer):
        regularizer.add_gradient(model)
    else:
        regularizer(model).backward()
    assert frozen.grad is None
    assert any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", OWN_PENALTIES)
def test_depthwise_and_grouped_filters_are_penalised(name: str) -> None:
    model, couplings = prepared("mixed")
    found = gradient(built(name, model, couplings), model)
    if "out" in REGULARIZERS[name].sides:
        assert bool(found["depthwise.weight"].any()) and bool(found["grouped.weight"].any())
    if "in" in REGULARIZERS[name].sides:  # the columns of the layers that read depthwise and grouped filters
        assert bool(found["left.weight"].any()) and bool(found["fc.weight"].any())
    if scales_alone(name):
        assert bool(found["norm.weight"].all())


@pytest.mark.parametrize("fill", [0.0, 0.3])
@pytest.mark.parametrize("name", OWN_PENALTIES)
def test_equal_channels_and_channels_of_zeros_give_finite_gradients(name: str, fill: float) -> None:
    for net in NETWORKS:  # "mixed" has couplings without normalisation
        model, couplings = prepared(net)
        for parameter in model.parameters():
            parameter.data.fill_(fill)
        regularizer = built(name, model, couplings)
        assert bool(regularizer(model).isfinite())
        assert all(bool(added.isfinite().all()) for added in gradient(regularizer, model).values())
        if isinstance(regularizer, oicsr.ProximalRegularizer):
            regularizer.proximal_step(model, 0.1)
            assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(("name", "net"), CASES)
def test_value_scales_as_its_formula_says(name: str, net: str) -> None:
    model, couplings = prepared(net)
    regularizer = built(name, model, couplings)
    values = []
    for _ in range(3):
        values.append(float(regularizer(model).detach()))
        for parameter in model.parameters():
            parameter.data.mul_(2)
    degree = REGULARIZERS[name].degree
    if degree is None:
        assert values[0] * values[2] != pytest.approx(values[1] ** 2, rel=1e-6)  # there is a single one: name it
    if name in SUMS:  # a + b, 2a + 4b, 4a + 16b
        linear, square = (4 * values[0] - values[1]) / 2, (values[1] - 2 * values[0]) / 2
        assert linear > 0 and square > 0
        assert values[2] == pytest.approx(4 * linear + 16 * square, rel=1e-10)
    elif degree is not None:
        assert values[1] == pytest.approx(2**degree * values[0], rel=1e-5 if name in PEERS else 1e-12)


@pytest.mark.parametrize("net", ["chain", "basic", "depthwise"])
@pytest.mark.parametrize("name", [name for name in IMPORTANCES if name != "random"])
def test_permuting_channels_permutes_the_scores_and_keeps_the_penalties(name: str, net: str) -> None:
    model, couplings = prepared(net)
    before = IMPORTANCES[name].score(model, couplings, scoring())
    output = model.eval()(IMAGES)
    orders = [torch.arange(c.num_channels).roll(2).flip(0) for c in couplings]
    for coupling, order in zip(couplings, orders, strict=True):
        permute(model, coupling, order)
    torch.testing.assert_close(model(IMAGES), output)  # the same function
    after = IMPORTANCES[name].score(model, couplings, scoring())
    for was, now, order in zip(before, after, orders, strict=True):
        assert len(was.unique()) > 1
        torch.testing.assert_close(now, was[order], rtol=1e-5 if name.startswith("tp-") else 1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "net"), CASES)
def test_permuting_channels_keeps_the_penalty(name: str, net: str) -> None:
    if net == "mixed":
        net = "chain"  # a channel of a shuffled, grouped network is in places of different shape
    model, couplings = prepared(net)
    before = built(name, model, couplings)(model).detach()
    for coupling in couplings:
        permute(model, coupling, torch.arange(coupling.num_channels).roll(1))
    assert float(built(name, model, couplings)(model).detach()) == pytest.approx(float(before), rel=1e-6)


@pytest.mark.parametrize("net", list(NETWORKS))
@pytest.mark.parametrize("name", list(IMPORTANCES))
def test_scores_fit_repeat_and_leave_the_model_alone(name: str, net: str) -> None:
    if name == "tp-bn-scale" and net == "mixed":
        pytest.skip("a coupling without BatchNorm is an error there, see test_torch_pruning_rival.py")
    model, couplings = prepared(net)
    model.train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    scores = IMPORTANCES[name].score(model, couplings, scoring())
    again = IMPORTANCES[name].score(model, couplings, scoring())
    assert [s.shape for s in scores] == [(c.num_channels,) for c in couplings]
    assert all(bool((s.isfinite() & (s >= 0)).all()) and not s.requires_grad for s in scores)
    assert all(torch.equal(one, other) for one, other in zip(scores, again, strict=True))
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_random_scores_follow_the_seed() -> None:
    model, couplings = prepared("chain")
    first, second = (IMPORTANCES["random"].score(model, couplings, scoring(seed)) for seed in (0, 1))
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("name", [name for name, spec in IMPORTANCES.items() if spec.degree is not None])
def test_scores_scale_as_their_formula_says(name: str) -> None:
    model, couplings = prepared("chain")
    before = IMPORTANCES[name].score(model, couplings, scoring())
    for parameter in model.parameters():
        parameter.data.mul_(2)
    factor = 2 ** IMPORTANCES[name].degree
    for was, now in zip(before, IMPORTANCES[name].score(model, couplings, scoring()), strict=True):
        torch.testing.assert_close(now, factor * was, rtol=1e-5 if name.startswith("tp-") else 1e-12, atol=0)


@pytest.mark.parametrize("name", [n for n in IMPORTANCES if not n.startswith("tp-")])
@pytest.mark.parametrize(("net", "layer"), [("depthwise", "depthwise"), ("mixed", "grouped")])
def test_depthwise_and_grouped_filters_are_scored(name: str, net: str, layer: str) -> None:
    model, couplings = prepared(net)
    index = next(i for i, c in enumerate(couplings) if any(m.parameter == f"{layer}.weight" for m in c.members))
    before = IMPORTANCES[name].score(model, couplings, scoring())[index]
    model.get_submodule(layer).weight.data[0] *= 10
    after = IMPORTANCES[name].score(model, couplings, scoring())[index]
    if "out" in IMPORTANCES[name].sides:
        assert not torch.allclose(before, after)
    elif net == "depthwise":  # without normalisation some scores fall back to filters
        assert torch.allclose(before, after)


@pytest.mark.parametrize("name", list(IMPORTANCES))
def test_equal_channels_are_scored_by_finite_numbers(name: str) -> None:
    model, couplings = prepared("chain")
    for parameter in model.parameters():
        parameter.data.fill_(0.3)
    assert all(bool(s.isfinite().all()) for s in IMPORTANCES[name].score(model, couplings, scoring()))


def test_the_named_methods_are_there() -> None:
    named = (
        "none random l1 l2 fpgm taylor gl-out gl-out-oi gl-in gl-separate oicsr-gl oicsr-gl-uniform growl oicsr-growl "
        "l1-weights l2-weights cges oicsr-cges slimming depgraph greg1 tp-group-norm tp-bn-scale tp-growing-reg "
        "tp-magnitude oicsr-gl-prox gl-out-prox"
    )
    assert set(named.split()) <= set(METHODS)
    assert set(SELECTIONS) >= {"greedy", "uniform"}
    for registry in (METHODS, REGULARIZERS, IMPORTANCES, SELECTIONS):
        assert all(name == entry.name and "+" not in name for name, entry in registry.items())


def test_any_combination_can_be_named() -> None:
    method = find_method("oicsr-gl+taylor+uniform")
    parts = (method.regularizer.name, method.importance.name, method.selection.name)
    assert parts == ("oicsr-gl", "taylor", "uniform") and method.name == "oicsr-gl+taylor+uniform"
    assert find_method("none+l1").selection.name == "greedy" and not find_method("none+l1").has_strength
    assert find_method("oicsr-gl") is METHODS["oicsr-gl"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oicsr-g", "there is no method 'oicsr-g'. Did you mean 'oicsr-gl'"),
        ("oicsr-gll+out-in", "there is no regularizer 'oicsr-gll'. Did you mean 'oicsr-gl'"),
        ("none+tailor", "there is no importance 'tailor'. Did you mean 'taylor'"),
        ("none+l1+gready", "there is no selection 'gready'. Did you mean 'greedy'"),
        ("none+l1+greedy+l2", "has 4 parts"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_method(text)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_impossible_strengths_are_refused(name: str, strength: float) -> None:
    _, couplings = prepared("chain")
    with pytest.raises(ValueError, match="finite number, 0 or more"):
        REGULARIZERS[name].make(couplings, strength)


def test_every_grid_has_five_strengths_in_equal_steps() -> None:
    for spec in REGULARIZERS.values():
        assert len(spec.grid) == 5 and spec.grid[0] > 0
        assert all(large / small == pytest.approx(2) for small, large in itertools.pairwise(spec.grid))


@pytest.mark.parametrize("name", [*OWN_PENALTIES, *(name for name in IMPORTANCES if not name.startswith("tp-"))])
def test_a_wrapped_network_is_looked_into(name: str) -> None:
    model, couplings = prepared("chain")
    wrapped = torch.optim.swa_utils.AveragedModel(model).train(model.training)
    if name in IMPORTANCES:
        plain, found = (IMPORTANCES[name].score(m, couplings, scoring()) for m in (model, wrapped))
        assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))
        return
    values = []
    for network in (model, wrapped):
        regularizer = built(name, network, couplings)
        values.append(regularizer(network).detach())
        if isinstance(regularizer, oicsr.GradientRegularizer):
            regularizer.add_gradient(network)
        if isinstance(regularizer, oicsr.ProximalRegularizer):
            regularizer.proximal_step(network, 0.1)
    assert torch.equal(*values)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wrapped.module.parameters(), strict=True))
