"""Weight norm along any axis, old and new: the length of a slice goes to zero, as zeros have no direction."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

import oicsr
from oicsr.coupling import Coupling

Wrap = Callable[[nn.Module], nn.Module]
IMAGES = torch.randn(2, 3, 10, 10, dtype=torch.float64)


def plain(wrap: Wrap) -> nn.Module:
    return nn.Sequential(wrap(nn.Conv2d(3, 12, 3)), nn.ReLU(), wrap(nn.Conv2d(12, 8, 3)), nn.ReLU(), nn.Conv2d(8, 2, 1))


def upwards(wrap: Wrap) -> nn.Module:
    up, depthwise = nn.ConvTranspose2d(12, 8, 2, 2), nn.Conv2d(8, 8, 3, groups=8)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), wrap(up), nn.ReLU(), wrap(depthwise), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )


@torch.no_grad()
def set_to_zero(model: nn.Module, couplings: Sequence[Coupling], kept: dict[str, list[int]]) -> None:
    """Set channels to zero: the lengths of slices where there are any, else all that they own."""
    tensors = dict(model.named_parameters())
    lengths = {
        (name.replace("original0", "original1").removesuffix("_g") + "_v" * name.endswith("_g"), member.dim)
        for coupling in couplings
        for member in coupling.members
        if (name := member.parameter).endswith(("original0", "_g"))
    }
    for coupling in couplings:
        stays = torch.zeros(coupling.num_channels, dtype=torch.bool)
        stays[kept[coupling.name]] = True
        for member in coupling.members:
            if (member.parameter, member.dim) not in lengths:
                goes = (member.channels >= 0) & ~stays[member.channels]
                tensors[member.parameter].data.index_fill_(member.dim, goes.nonzero().flatten(), 0)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("build", [plain, upwards])
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm], ids=["old", "new"])
def test_weight_norm_is_followed_along_any_axis(
    build: Callable[[Wrap], nn.Module], dim: int | None, norm: Callable[..., nn.Module]
) -> None:
    torch.manual_seed(0)
    model = build(partial(norm, dim=dim)).double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", oicsr.UnprunedChannelsWarning)
        warnings.simplefilter("error", oicsr.UntriedWarning)
        couplings = oicsr.find_couplings(model, IMAGES)
    assert [coupling.name for coupling in couplings] == ["0", "2"]
    kept = {coupling.name: list(range(0, coupling.num_channels, 2)) for coupling in couplings}
    set_to_zero(model, couplings, kept)
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(couplings, kept))
    before: Tensor = model(IMAGES).detach()
    torch.testing.assert_close(small(IMAGES).detach(), before, rtol=0, atol=1e-9 * float(before.abs().max()))
    small.train()(IMAGES).square().mean().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_a_parametrization_that_needs_all_channels_is_named() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    parametrizations.orthogonal(model[0])
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="'0' cannot lose channels: the parametrization of a weight"):
        assert oicsr.find_couplings(model, torch.randn(2, 6)) == []


@pytest.mark.parametrize(
    "wrap", [nn.utils.spectral_norm, parametrizations.spectral_norm, weight_norm, parametrizations.weight_norm]
)
def test_numbers_of_modules_follow_where_weights_are_computed(wrap: Wrap) -> None:
    class Viewed(nn.Module):
        """Views its activation by a number that it keeps."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.width, self.last = wrap(nn.Conv2d(3, 12, 3)), 12, nn.Conv2d(12, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            values: Tensor = self.last(x.view(len(x), self.width, -1).unsqueeze(-1).relu())
            return values

    model = Viewed().double().train()
    model(IMAGES)
    (coupling,) = oicsr.find_couplings(model.eval(), IMAGES)
    assert [(attribute.module, attribute.name) for attribute in coupling.attributes] == [("", "width")]
