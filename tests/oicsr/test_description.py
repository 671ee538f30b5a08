"""Description: couplings and plans as a table."""

from __future__ import annotations

import pytest
import torch

import oicsr
from tests.oicsr.networks import Basic, Chain

IMAGES = torch.zeros(1, 3, 8, 8)


def test_a_plan_by_hand() -> None:
    """conv1 3 -> 6 of 3 x 3 at 64 positions, conv2 6 -> 8, linear 32 -> 5; conv1 keeps 4 channels."""
    model = Chain()
    couplings = oicsr.find_couplings(model, IMAGES)
    plan = oicsr.PruningPlan.from_kept(couplings, {"conv1": [0, 1, 2, 3]})
    table = oicsr.describe(model, couplings, plan, IMAGES)
    first, second = table.rows
    assert (first.coupling, first.layers, first.channels, first.kept) == ("conv1", 1, 6, 4)
    assert (first.params, first.params_kept) == (162 + 12 + 432, 108 + 8 + 288)
    assert (first.macs, first.macs_kept) == (64 * (162 + 432), 64 * (108 + 288))
    assert (second.channels, second.kept, second.macs_kept) == (8, 8, 64 * 288 + 32 * 5)


@pytest.mark.parametrize("model", [Chain(), Basic()], ids=["chain", "basic"])
def test_the_last_row_is_the_whole_network(model: torch.nn.Module) -> None:
    couplings = oicsr.find_couplings(model, IMAGES, scope="all")
    scores = oicsr.out_in_energy(model, couplings)
    plan = oicsr.select_channels(scores, couplings, model, IMAGES, macs_kept=0.6, tolerance=0.1)
    small = oicsr.remove_channels(model, plan)
    total = oicsr.describe(model, couplings, plan, IMAGES).total
    assert (total.params, total.macs) == (oicsr.count_params(model), oicsr.count_macs(model, IMAGES))
    assert (total.params_kept, total.macs_kept) == (oicsr.count_params(small), oicsr.count_macs(small, IMAGES))


def test_text_and_frame_show_what_is_known() -> None:
    model = Chain()
    couplings = oicsr.find_couplings(model, IMAGES)
    bare = oicsr.describe(model, couplings)
    assert str(bare).splitlines()[0].split() == ["coupling", "layers", "channels", "params"]
    assert len(str(bare).splitlines()) == 4
    assert len({len(line) for line in str(bare).splitlines()}) == 1
    full = oicsr.describe(model, couplings, oicsr.PruningPlan.from_kept(couplings, {"conv2": [0]}), IMAGES)
    frame = full.to_frame()
    assert list(frame.index) == ["conv1", "conv2"]
    assert frame.loc["conv2", "kept"] == 1
    assert frame.loc["conv1", "macs"] == full.rows[0].macs
    assert "macs" not in bare.to_frame()


def test_a_plan_for_other_couplings_is_refused() -> None:
    model = Chain()
    couplings = oicsr.find_couplings(model, IMAGES)
    with pytest.raises(ValueError, match="names the coupling 'conv2', which is not among"):
        oicsr.describe(model, couplings[:1], oicsr.PruningPlan.from_kept(couplings, {}))


def test_a_plan_that_was_applied_is_refused() -> None:
    model = Chain()
    couplings = oicsr.find_couplings(model, IMAGES)
    plan = oicsr.PruningPlan.from_kept(couplings, {"conv1": [1, 5]})
    small, left = oicsr.remove_channels(model, plan), oicsr.shrink_couplings(couplings, plan)
    for function in (lambda: oicsr.describe(small, left, plan), lambda: oicsr.weak_energy(small, left, plan=plan)):
        with pytest.raises(ValueError, match="one of other couplings: it keeps channel 5 of 'conv1', which has 2"):
            function()
