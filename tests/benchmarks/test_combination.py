"""How names of methods are read."""

from __future__ import annotations

import pytest

from benchmarks.methods.registry import METHODS, find_method


def test_registered_names_give_the_registered_methods() -> None:
    assert all(find_method(name) is method for name, method in METHODS.items())


def test_combinations_name_their_parts() -> None:
    assert find_method("oicsr-gl+out").title == "OICSR-GL + out energy"
    method = find_method("oicsr-gl+taylor+uniform")
    assert (method.regularizer.name, method.importance.name, method.selection.name) == ("oicsr-gl", "taylor", "uniform")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oicsr-gk", "there is no method 'oicsr-gk'. Did you mean 'oicsr-gl'"),
        ("oicsr-gl+ouch", "there is no importance 'ouch'. Did you mean 'out'"),
        ("a+b+c+d", "has 4 parts"),
        ("taylor+taylor", "there is no regularizer 'taylor'. 'taylor' is an importance; a combination is regularizer+"),
        ("none+uniform", "there is no importance 'uniform'. 'uniform' is a selection;"),
        ("greedy", "there is no method 'greedy'. 'greedy' is a selection;"),
        ("scratch-b+out", "there is no regularizer 'scratch-b'. 'scratch-b' is a method, not a part of one. Known:"),
    ],
)
def test_unknown_names(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        find_method(text)
