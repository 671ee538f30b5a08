"""Hooks by which a network passes features on are its own code; those of a user are taken off."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oicsr


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())  # type: ignore[no-any-return]


class Store:
    """Holds what a hook saw, beside the modules."""

    def __init__(self) -> None:
        self.features: dict[str, Tensor] = {}

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.features["a"] = output


class Features(nn.Module):
    """Reads what a hook kept of a layer inside."""

    def __init__(self, register: Callable[[Features], Any]) -> None:
        super().__init__()
        self.body, self.head, self.features, self.store = Body(), nn.Conv2d(24, 4, 1), dict[str, Tensor](), Store()
        self.body.a.register_forward_hook(register(self))

    def keep(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.features[name] = output

    def save(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.features["a"] = output

    def forward(self, x: Tensor) -> Tensor:
        self.features.pop("a", None)
        x = self.body(x)
        return self.head(torch.cat([x, (self.features or self.store.features)["a"]], 1))  # type: ignore[no-any-return]


def enclosing(network: Features) -> Callable[..., None]:
    return lambda module, inputs, output: network.features.update(a=output)


OWN = {
    "a method": lambda network: network.save,
    "part of a method": lambda network: functools.partial(network.keep, "a"),
    "a function that encloses the network": enclosing,
    "an object that the network holds": lambda network: network.store,
}


@pytest.mark.parametrize("has_run", [False, True], ids=["new", "has run"])
@pytest.mark.parametrize("register", OWN.values(), ids=OWN)
def test_features_by_hooks_are_followed(register: Callable[[Features], Any], *, has_run: bool) -> None:
    torch.manual_seed(0)
    model = Features(register).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    if has_run:
        model(x)  # what is kept by now is of the dense network
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        couplings = oicsr.find_couplings(model, x, scope="all")
    assert [coupling.name for coupling in couplings] == ["body.a", "body.b", "body.c"]
    kept = {coupling.name: tuple(range(0, coupling.num_channels, 2)) for coupling in couplings}
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for coupling in couplings:
            for member in coupling.members:
                gone = [i for i, c in enumerate(member.channels) if c not in kept[coupling.name]]
                parameters[member.parameter].index_fill_(member.dim, torch.tensor(gone), 0)
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(couplings, kept))
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-12)
    assert oicsr.count_macs(small, x) == (3 * 8 * 9 + 8 * 8 * 9 + 8 * 4 * 9 + 12 * 4) * 64


def test_hooks_of_a_user_do_not_run() -> None:
    model = Features(OWN["a method"])
    seen: list[Tensor] = []
    for layer in model.body.children():
        layer.register_forward_hook(lambda module, inputs, output, layer=layer: seen.append(output.detach().mean()))
    x = torch.randn(2, 3, 8, 8)
    with pytest.warns(oicsr.UntriedWarning, match=r"users' hooks do not run.*'body.a', 'body.b', 'body.c'"):
        oicsr.find_couplings(model, x)
    assert not seen
    model(x)
    assert len(seen) == 3


def test_hooks_by_which_transformers_keeps_hidden_states_stay() -> None:
    def output_capturing_hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * 2

    output_capturing_hook.__module__ = "transformers.utils.output_capturing"
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    model[1].register_forward_hook(output_capturing_hook)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(oicsr.find_couplings(model, torch.randn(1, 3, 8, 8))) == 1
