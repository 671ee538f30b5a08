"""Channels under a LayerNorm, which go on request, and what they change."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from oicsr import ApproximateWarning, PruningPlan
from oicsr.tracing.approximate import WithoutMeans


class Stream(nn.Module):
    """A residual stream of eight channels under two LayerNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.norm = nn.Linear(4, 8), nn.LayerNorm(8, eps=1e-2)
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 8)
        self.last, self.head = nn.LayerNorm(8, eps=1e-2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return self.head(self.last(x))


def found(model: nn.Module, x: Tensor, scope: str = "all") -> list[oicsr.Coupling]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ApproximateWarning)
        return oicsr.find_couplings(model, x, scope=scope, approximate="layer_norm")  # type: ignore[arg-type]


def test_the_warning_says_what_was_measured() -> None:
    torch.manual_seed(0)
    model, x = Stream().double(), torch.randn(3, 4, dtype=torch.float64)
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="'norm' normalises over the channels"):
        assert [c.name for c in oicsr.find_couplings(model, x, scope="all")] == ["up"]
    with pytest.warns(ApproximateWarning, match=r"of 'start': outputs change where they go \(by up to \d+\.\d% of"):
        couplings = oicsr.find_couplings(model, x, scope="all", approximate="layer_norm")
    assert [c.name for c in couplings] == ["start", "up"]
    trace = oicsr.trace_couplings(model, x, scope="all", approximate="layer_norm")
    assert trace.inexact == ("start",)
    kept = {"start": strongest(model, couplings[0], 4)}
    with torch.no_grad():
        for member in couplings[0].members:
            gone = [i for i in range(8) if i not in kept["start"]]
            model.get_parameter(member.parameter).index_fill_(member.dim, torch.tensor(gone), 0)
    before = model(x)
    after = oicsr.remove_channels(model, PruningPlan.from_kept(couplings, kept))(x)
    assert trace.deviation == pytest.approx(float((before - after).detach().abs().max() / before.detach().abs().max()))
    assert trace.deviation > 1e-3


def strongest(model: nn.Module, coupling: oicsr.Coupling, count: int) -> list[int]:
    """Return the channels with the largest sum of squares, written out."""
    energies = [0.0] * coupling.num_channels
    for member in coupling.members:
        for position, channel in enumerate(member.channels.tolist()):
            if member.counts:
                energies[channel] += float(
                    model.get_parameter(member.parameter).select(member.dim, position).detach().square().sum()
                )
    return sorted(sorted(range(coupling.num_channels), key=lambda i: -energies[i])[:count])


def rows() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8, eps=0.5), nn.Linear(8, 3))


def images() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 8, 1), nn.GroupNorm(1, 8, eps=0.5), nn.Conv2d(8, 3, 1))


@pytest.mark.parametrize(("build", "shape"), [(rows, (5, 4)), (images, (5, 4, 3, 2))], ids=["layer", "one group"])
def test_channels_go_exactly_where_the_mean_is_zero(build: Callable[[], nn.Sequential], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor[4:6] = -tensor[:2]  # channels of opposite sign: a mean of zero
            tensor[[2, 3, 6, 7]] = 0
        model[1].weight.uniform_(0.5, 1.5)
        model[1].bias[[2, 3, 6, 7]] = 0
        model[1].weight[[2, 3, 6, 7]] = 0
    couplings = found(model, x)
    small = oicsr.remove_channels(model, PruningPlan.from_kept(couplings, {"0": [0, 1, 4, 5]}))
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(small[1].weight, model[1].weight[[0, 1, 4, 5]] * 2**0.5)
    assert small[1].eps == pytest.approx(1.0) and len(small[1].weight) == 4
    assert str(small[1]).startswith("LayerNorm((4,)" if build is rows else "GroupNorm(1, 4,")


def test_without_its_mean_a_layer_norm_is_an_rms_norm() -> None:
    torch.manual_seed(0)
    x, norm = torch.randn(3, 6, dtype=torch.float64), nn.LayerNorm(6, eps=0.1).double()
    with WithoutMeans():
        given, bare = norm(x), functional.layer_norm(x, (6,))
    torch.testing.assert_close(given, functional.rms_norm(x, (6,), eps=0.1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bare, functional.rms_norm(x, (6,), eps=1e-5), rtol=1e-12, atol=1e-12)


def test_without_its_mean_a_group_norm_of_one_group_is_an_rms_norm_over_channels_and_places() -> None:
    torch.manual_seed(0)
    x, norm = torch.randn(3, 4, 5, 2, dtype=torch.float64), nn.GroupNorm(1, 4, eps=0.1).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-1, 1)
    with WithoutMeans():
        given, several = norm(x), functional.group_norm(x, 2)
    expected = x / (x.square().mean((1, 2, 3), keepdim=True) + 0.1).sqrt()
    expected = expected * norm.weight.reshape(4, 1, 1) + norm.bias.reshape(4, 1, 1)
    torch.testing.assert_close(given, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(several, functional.group_norm(x, 2))


class Wrong(Stream):
    """Adds a number of its own for each channel: its width is a number in the code."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.start(x) + torch.arange(8.0, dtype=x.dtype)))


def test_what_is_wrong_beside_the_mean_is_still_refused() -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", oicsr.UnprunedChannelsWarning)
        trace = oicsr.trace_couplings(Wrong(), torch.randn(3, 4), scope="all", approximate="layer_norm")
    assert trace.couplings == [] and trace.inexact == ()


def test_prune_takes_streams_under_layer_norms_on_request() -> None:
    torch.manual_seed(0)
    model, x = Stream(), torch.randn(3, 4)
    with pytest.warns(ApproximateWarning, match="'start'"):
        result = oicsr.prune(model, x, macs_kept=0.3, scope="all", approximate="layer_norm", tolerance=0.1)
    assert result.model.norm.normalized_shape[0] < 8
    assert torch.isfinite(result.model(x)).all()


def test_unknown_approximation() -> None:
    with pytest.raises(ValueError, match="approximate is 'batch_norm'; it must be one of 'none', 'layer_norm'"):
        oicsr.find_couplings(Stream(), torch.randn(3, 4), approximate="batch_norm")  # type: ignore[arg-type]
