"""Absorption: the constants of removed channels end up in the layers that read them."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import oicsr
from tests.oicsr.networks import Chain, Mixed, randomize_norms


class Plain(nn.Module):
    """conv -> norm -> activation -> conv -> norm -> mean -> linear; padding and biases to choose."""

    def __init__(self, *, padding: int = 0, bias: bool = True, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 5, 3, padding=padding, bias=bias, padding_mode=padding_mode)
        self.bn2 = nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.gelu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def _prepared(model: nn.Module) -> tuple[nn.Module, Tensor, oicsr.PruningPlan]:
    """Return a network whose channels 1 and 4 of conv1 have scale zero, inputs, and the plan that removes them."""
    model = randomize_norms(model).double().eval()
    model.bn1.weight.data[[1, 4]] = 0.0
    x = torch.randn(2, 3, 9, 9).double()
    couplings = oicsr.find_couplings(model, x)
    return model, x, oicsr.PruningPlan.from_kept(couplings, {"conv1": [0, 2, 3, 5]})


def test_two_channels_by_hand() -> None:
    """Channel 1 is the constant relu(3) = 3 after its scale of zero; the reader's weight for it is 5."""
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, 0.0]))
        model[1].bias.copy_(torch.tensor([0.0, 3.0]))
        model[3].weight.copy_(torch.tensor([[7.0, 5.0]]))
        model[3].bias.fill_(1.0)
    x = torch.randn(3, 1).double()
    plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(model, x), {"0": [0]})
    absorption = oicsr.plan_absorption(model, plan, x)
    assert {name: shift.tolist() for name, shift in absorption.shifts.items()} == {"3.bias": [15.0]}
    small = oicsr.remove_channels(model, plan, absorb=True, example_inputs=x)
    assert small[3].bias.item() == 16.0
    assert model[3].bias.item() == 1.0
    assert torch.allclose(small(x), model(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [{}, {"padding": 1, "padding_mode": "reflect"}])
def test_zero_scales_are_absorbed_exactly(bias: bool, padding: dict[str, object]) -> None:
    model, x, plan = _prepared(Plain(bias=bias, **padding))
    small = oicsr.remove_channels(model, plan, absorb=True, example_inputs=x)
    assert torch.allclose(small(x), model(x), rtol=0, atol=1e-12)
    changed = "conv2.bias" if bias else "bn2.running_mean"
    assert not torch.allclose(small.state_dict()[changed], model.state_dict()[changed])
    assert (oicsr.remove_channels(model, plan)(x) - model(x)).abs().max() > 1e-4  # the negative control


def test_zero_padding_is_exact_inside_only_and_said() -> None:
    model, x, plan = _prepared(Plain(padding=1))
    with pytest.warns(oicsr.AbsorptionWarning, match="'conv2': pads with zeros") as seen:
        small = oicsr.remove_channels(model, plan, absorb=True, example_inputs=x)
    assert seen[0].filename == __file__
    wide = {}
    for name, network in [("model", model), ("small", small)]:
        network.conv2.register_forward_hook(lambda module, args, output, name=name: wide.update({name: output}))
        network(x)
    difference = (wide["model"] - wide["small"]).abs()
    assert difference[:, :, 1:-1, 1:-1].max() < 1e-12
    assert difference[:, :, 0].max() > 1e-4


def test_a_constant_of_zero_needs_nothing() -> None:
    model, x, plan = _prepared(Chain())
    model.bn1.bias.data[[1, 4]] = -1.0  # relu makes it zero, whatever the padding
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = oicsr.remove_channels(model, plan, absorb=True, example_inputs=x[..., :8, :8])
    assert torch.equal(small.conv2.bias, model.conv2.bias)
    assert torch.allclose(small(x[..., :8, :8]), model(x[..., :8, :8]), rtol=0, atol=1e-12)


def test_scales_that_are_not_zero_are_taken_as_zero() -> None:
    model, x, plan = _prepared(Plain())
    expected = oicsr.remove_channels(model, plan, absorb=True, example_inputs=x)
    model.bn1.weight.data[[1, 4]] = 0.3
    small = oicsr.remove_channels(model, plan, absorb=True, example_inputs=x)
    assert torch.equal(small.conv2.bias, expected.conv2.bias)


class _Gated(nn.Module):
    """A gate that depends on the input: its product with a constant channel is not constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.gate, self.out = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        return self.out(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))).mean((2, 3))


def test_what_is_not_constant_is_said_even_for_a_single_input() -> None:
    model, x, plan = _prepared(_Gated())
    absorption = oicsr.plan_absorption(model, plan, x[:1])
    assert dict(absorption.left) == {"out": "reads 2 removed channels that are not constant"}
    assert set(absorption.shifts) == {"gate.bias"}


class _Odd(nn.Module):
    """Readers that cannot absorb: transposed, without a bias, used twice with different constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.up, self.bare = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(6, 4, 1, bias=False)
        self.twice, self.head = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.bn1(self.conv1(x))
        head = [self.head(x)] if self.training else []
        return self.up(x), self.bare(x), self.twice(x), self.twice(2 * x), *head


def test_readers_that_cannot_absorb() -> None:
    model, x, plan = _prepared(_Odd())
    before = copy.deepcopy(model.state_dict())
    absorption = oicsr.plan_absorption(model, plan, x)
    assert dict(absorption.left) == {
        "up": "is a transposed convolution, whose output need not be constant",
        "bare": "has neither a bias nor a BatchNorm of its own that could absorb constants",
        "twice": "reads 2 removed channels that are not constant",
        "head": "does not run as a convolution or linear layer in evaluation mode",
    }
    assert absorption.shifts == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_grouped_convolutions_that_lose_columns_of_every_group() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 6, 1, groups=2), nn.Conv2d(6, 2, 1)]
    model = randomize_norms(nn.Sequential(*layers)).double().eval()
    x = torch.randn(2, 3, 5, 5).double()
    couplings = oicsr.find_couplings(model, x)
    (first,) = [c for c in couplings if c.name == "0"]
    plan = oicsr.PruningPlan.from_kept(couplings, {"0": range(1, first.num_channels)})
    (gone,) = [set(range(8)) - set(s.kept) for s in plan.slices if s.parameter == "1.weight"]
    layers[1].weight.data[sorted(gone)] = 0.0
    small = oicsr.remove_channels(model, plan, absorb=True, example_inputs=x)
    assert torch.allclose(small(x), model(x), rtol=0, atol=1e-12)


def test_group_norm_and_squeeze_and_excitation() -> None:
    model = randomize_norms(Mixed()).double().eval()
    model.squeeze.bias.data.fill_(1.0)
    x = torch.randn(2, 3, 8, 8).double()
    couplings = oicsr.find_couplings(model, x, scope="all")
    plan = oicsr.PruningPlan.from_kept(couplings, {"squeeze": [0, 1, 2]})
    absorption = oicsr.plan_absorption(model, plan, x)
    assert absorption.left == {"excite": "reads 1 removed channels that are not constant"}


def test_inputs_are_needed() -> None:
    model, _, plan = _prepared(Plain())
    with pytest.raises(ValueError, match="absorb=True needs example_inputs"):
        oicsr.remove_channels(model, plan, absorb=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "autocast"])
def test_half_precision_takes_no_channel_for_a_constant(dtype: torch.dtype | str) -> None:
    """Without a normalisation nothing is constant; values within rounding of each other are not the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3)).eval()
    x = torch.randn(2, 3, 12, 12)
    plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(model, x), {"0": [0, 1, 2], "2": [0, 1]})
    if isinstance(dtype, torch.dtype):
        absorption = oicsr.plan_absorption(model.to(dtype), plan, x.to(dtype))
    else:
        with torch.autocast("cpu", torch.bfloat16):
            absorption = oicsr.plan_absorption(model, plan, x)
    assert not absorption.shifts and set(absorption.left) == {"2", "4"}


def test_small_values_are_held_to_their_own_size() -> None:
    """Values of 1e-6 that differ by their own size lie within the rounding of 1."""
    model = nn.Sequential(nn.Conv1d(2, 4, 1, bias=False), nn.Tanh(), nn.Conv1d(4, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1e-6)
    x = torch.randn(2, 2, 8)
    plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(model, x), {"0": [0, 1]})
    assert not oicsr.plan_absorption(model, plan, x).shifts
