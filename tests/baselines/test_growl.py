"""GrOWL: the sequences, the proximal operator against a brute-force quadratic program, and the penalty by a loop."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.isotonic import isotonic_regression
from torch import Tensor

import oicsr
from baselines.cges import ProximalCges
from oicsr.growl import GrOWL, ProximalGrOWL, decreasing_fit, oscar_weights, owl_proximal, pld_weights
from tests.baselines.networks import built, prepared


def brute_force(norms: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Solve `min_x ½‖x - y‖² + Σ θ_i |x|_[i]` for y >= 0 as a quadratic program over all subsets of the entries.

    The minimiser is y less its projection on the dual ball, which is the polytope `Σ_{i in S} u_i <= Σ_{i <= |S|} θ_i`
    over all 2^n - 1 subsets S, with u >= 0; the projection is a least-distance program, which non-negative least
    squares solves (Lawson and Hanson 1974, chapter 23).
    """
    size = len(norms)
    subsets = [c for k in range(1, size + 1) for c in itertools.combinations(range(size), k)]
    bounds = np.array([weights[: len(subset)].sum() for subset in subsets])
    matrix = np.zeros((len(subsets), size))
    for row, subset in enumerate(subsets):
        matrix[row, list(subset)] = 1
    constraints = np.vstack([-matrix, np.eye(size)])  # constraints @ (u - y) >= limits
    limits = np.concatenate([-(bounds - matrix @ norms), -norms])
    system = np.vstack([constraints.T, limits])
    target = np.zeros(size + 1)
    target[-1] = 1
    solution, _ = nnls(system, target, maxiter=10_000)
    residual = system @ solution - target
    return norms - (norms - residual[:-1] / residual[-1])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_proximal_operator_is_the_solution_of_the_quadratic_program(size: int) -> None:
    generator = np.random.default_rng(size)
    for scale in (0.01, 0.3, 1.0, 3.0):
        for _ in range(5):
            norms = generator.exponential(size=size)
            weights = np.sort(scale * generator.exponential(size=size))[::-1].copy()
            found = owl_proximal(torch.from_numpy(norms)[None], torch.from_numpy(weights)[None])[0]
            np.testing.assert_allclose(found.numpy(), brute_force(norms, weights), atol=1e-8, rtol=0)


def one_by_one(values: Tensor) -> list[float]:
    """Pool adjacent violators the textbook way: one block at a time."""
    blocks: list[list[float]] = []
    for value in values.tolist():
        blocks.append([value])
        while len(blocks) > 1 and np.mean(blocks[-1]) > np.mean(blocks[-2]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [float(np.mean(block)) for block in blocks for _ in block]


def test_all_rows_are_pooled_as_one_by_one() -> None:
    values = torch.randn(20, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[0] = torch.arange(50)  # rises all the way: one block
    values[1] = -torch.arange(50).double()
    values[1, -1] = 1e6  # swallows the row from its end, a block at a time
    fit = decreasing_fit(values)
    for row, expected in zip(fit, values, strict=True):
        assert row.tolist() == pytest.approx(one_by_one(expected), abs=1e-9)


def test_equal_weights_are_the_shrinkage_of_group_lasso_exactly() -> None:
    norms = torch.rand(4, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(owl_proximal(norms, torch.full_like(norms, 0.3)), (norms - 0.3).clamp(min=0))
    for sides in (("in",), ("out", "in")):
        model, couplings = prepared("chain")
        other, _ = prepared("chain")
        ProximalGrOWL(couplings, sides, 0.7, weights="equal").proximal_step(model, 0.5)
        oicsr.ProximalGroupLasso(couplings, sides, 0.7).proximal_step(other, 0.5)
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight, other.get_parameter(name), rtol=1e-14, atol=0, msg=name)
        loss = GrOWL(couplings, sides, 0.7, weights="equal")(model)
        torch.testing.assert_close(loss, oicsr.GroupLasso(couplings, sides, 0.7)(model), rtol=1e-12, atol=0)


def test_narrow_couplings_are_not_changed_by_wide_ones() -> None:
    norms = torch.tensor([[3.0, 1.0, 2.0], [0.5, 4.0, 0.0]])
    weights = torch.tensor([[1.0, 0.5, 0.2], [0.9, 0.4, 0.0]])  # the second row has two channels
    both = owl_proximal(norms, weights)
    assert both[1, :2].tolist() == owl_proximal(norms[1:, :2], weights[1:, :2])[0].tolist()
    assert both[0].tolist() == owl_proximal(norms[:1], weights[:1])[0].tolist() and both[1, 2] == 0


def test_sequences() -> None:
    assert pld_weights(40, slope=0.5).tolist() == [1 + 0.5 * 3, 1 + 0.5 * 2, 1 + 0.5, *[1] * 37]  # p = 4
    assert pld_weights(19).tolist() == [1] * 19
    assert oscar_weights(3, slope=0.5).tolist() == [2, 1.5, 1]


@pytest.mark.parametrize("weights", ["pld", "oscar", "equal"])
@pytest.mark.parametrize("sides", [("in",), ("out",), ("out", "in")])
def test_penalty_by_a_loop(weights: str, sides: tuple[oicsr.coupling.Side, ...]) -> None:
    model, couplings = prepared("chain")
    expected = 0.0
    for energy in oicsr.channel_energy(model, couplings, sides):
        norms = sorted(energy.sqrt().tolist(), reverse=True)
        expected += sum(t * n for t, n in zip(oicsr.growl.SEQUENCES[weights](len(norms)).tolist(), norms, strict=True))
    assert float(GrOWL(couplings, sides, 0.2, weights=weights)(model).detach()) == pytest.approx(0.2 * expected)


def test_proximal_step_lowers_the_penalty_and_removes_some_channels() -> None:
    model, couplings = prepared("chain")
    model.conv2.weight.data[:, :2] *= 5
    step = ProximalGrOWL(couplings, ("in",), 1.0, weights="oscar")
    before = float(step(model).detach())
    energies = oicsr.channel_energy(model, couplings, ("in",))
    step.proximal_step(model, float(energies[0].sqrt().detach().median()))
    after = oicsr.channel_energy(model, couplings, ("in",))[0]
    assert float(step(model).detach()) < before
    assert 0 < int((after == 0).sum()) < len(after)


def test_impossible_settings_are_refused() -> None:
    _, couplings = prepared("chain")
    with pytest.raises(ValueError, match="weights is 'owl'; it must be one of 'pld', 'oscar', 'equal'"):
        GrOWL(couplings, ("in",), 1.0, weights="owl")
    with pytest.raises(ValueError, match="learning_rate is -1"):
        ProximalGrOWL(couplings, ("in",), 1.0).proximal_step(prepared("chain")[0], -1)
    with pytest.raises(ValueError, match="sides"):
        ProximalGrOWL(couplings, (), 1.0)


def test_the_fit_is_that_of_scikit_learn_also_within_lengths() -> None:
    values = torch.randn(6, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lengths = [200, 1, 7, 0, 50, 199]
    for row, fitted, length in zip(values, decreasing_fit(values, lengths), lengths, strict=True):
        expected = isotonic_regression(row[:length].numpy(), increasing=False) if length else row[:0].numpy()
        assert fitted[:length].tolist() == pytest.approx(expected.tolist(), abs=1e-12)
        assert torch.equal(fitted[length:], row[length:])


def test_the_strength_of_a_step_is_that_of_its_penalty() -> None:
    model, couplings = prepared("chain")
    for step in (ProximalGrOWL(couplings, ("in",), 0.5), ProximalCges(couplings, ("in",), 0.5)):
        before = float(step(model).detach())
        step.strength = 1.0
        assert step.strength == 1.0 and float(step(model).detach()) == pytest.approx(2 * before)
        with pytest.raises(ValueError, match="strength is -1"):
            step.strength = -1.0


@pytest.mark.parametrize("name", ["growl-prox", "cges-prox", "half-space", "oicsr-gl-prox"])
def test_learning_rates_that_are_none_are_refused(name: str) -> None:
    model, couplings = prepared("chain")
    step = built(name, model, couplings)
    assert isinstance(step, oicsr.ProximalRegularizer)
    for value, kind in (("0.1", TypeError), (True, TypeError), (math.inf, ValueError), (math.nan, ValueError)):
        with pytest.raises(kind, match=f"learning_rate is '?{value}"):
            step.proximal_step(model, value)  # type: ignore[arg-type]
    step.proximal_step(model, torch.tensor(0.1))


def test_a_penalty_that_was_looked_at_in_inference_mode_trains_on() -> None:
    for weights in ("pld", "oscar"):
        model, couplings = prepared("chain")
        model.float()
        made_before = GrOWL(couplings, ("in",), 0.1, weights=weights)
        with torch.inference_mode():
            made_there = GrOWL(couplings, ("in",), 0.1, weights=weights)
            made_there(model), made_before(model)
        for penalty in (made_there, made_before):
            model.zero_grad()
            penalty(model).backward()
            by_autograd = model.conv2.weight.grad.clone()
            model.zero_grad()
            penalty.add_gradient(model)
            torch.testing.assert_close(model.conv2.weight.grad, by_autograd)


def test_norms_that_overflow_stay() -> None:
    model, couplings = prepared("chain")
    model.float()
    with torch.no_grad():
        model.conv1.weight.mul_(1e30)
        ProximalGrOWL(couplings, ("out",), 0.1).proximal_step(model, 0.1)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
