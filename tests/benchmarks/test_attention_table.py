"""The table of transformers' attention: its rows on small networks, its files and its command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import cli
from benchmarks.coverage import attention
from benchmarks.coverage.attention import COLUMNS, attention_csv, attention_markdown, read_attention
from benchmarks.coverage.peer import heads_of, set_by_hand
from benchmarks.coverage.transformers import build, every_network, listed
from tests.oicsr.attentions import Fused, Network, Rigid


def small(name: str) -> tuple[nn.Module, Any]:
    """Return a network whose attention can go, or one whose cannot."""
    torch.manual_seed(0)
    return Network(Rigid() if "rigid" in name else Fused()).eval(), torch.randn(2, 5, 12)


@pytest.mark.parametrize(("granularity", "counts"), [("channel", ("1", "0")), ("head", ("0", "1"))])
def test_a_row_says_what_went(granularity: str, counts: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "build", small)
    row = attention.examine(f"own:fused {granularity}")
    assert (row["channels"], row["heads"], row["passed"], row["reason"]) == (*counts, "yes", "")
    products, layers = 2 * 5 * 5 * 12, 5 * 12 * 12 * 4
    share = 0.5 if granularity == "channel" else 2 / 3  # of three heads, one goes
    assert int(row["macs_before"]) == layers + products + 36
    assert int(row["macs_after"]) == share * (layers + products) + 36
    assert float(row["error"]) < 1e-12


def test_a_row_says_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "build", small)
    row = attention.examine("own:rigid head")
    assert (row["channels"], row["heads"], row["passed"]) == ("0", "0", "no")
    assert "'attention' (Rigid) stays: line" in row["reason"]
    assert "oicsr.open_attention(model) sets its widths free" in row["reason"]


def test_torch_pruning_is_told_the_heads_of_every_layer() -> None:
    model = Network(Fused())
    assert heads_of(model) == {model.attention.qkv: 3}
    set_by_hand(model, {model.attention.qkv: 1})
    assert (model.attention.num_heads, model.attention.head_dim, model.attention.attn_dim) == (1, 12, 12)


def test_layers_are_known_by_name_with_a_norm_behind_them_and_one_head_is_not_told() -> None:
    layer = nn.Module()
    layer.kv = nn.Sequential(nn.Conv2d(6, 16, 1), nn.BatchNorm2d(16))
    layer.head_dim = 4
    assert heads_of(layer, fewest=2) == {layer.kv[0]: 2}
    layer.num_heads = 1
    assert heads_of(layer, fewest=2) == {}


@pytest.mark.parametrize(("granularity", "share"), [("channel", 0.5), ("head", 2 / 3)])
def test_torch_pruning_removes_as_much_as_this_library(
    granularity: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_pruning")
    monkeypatch.setattr(attention, "build", small)
    row = attention.examine_peer(f"own:fused {granularity}")
    products, layers = 2 * 5 * 5 * 12, 5 * 12 * 12 * 4
    assert row == {"torch_pruning": "yes", "torch_pruning_macs_after": str(int(share * (layers + products)) + 36)}


def test_torch_pruning_that_removes_nothing_has_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    pruning = pytest.importorskip("torch_pruning")
    monkeypatch.setattr(attention, "build", small)
    monkeypatch.setattr(pruning.pruner.BasePruner, "step", lambda self: None)
    row = attention.examine_peer("own:fused head")
    assert (
        row["torch_pruning"] == "no" and row["torch_pruning_reason"] == "removed nothing, told of 1 layers with heads"
    )


def test_outputs_that_change_are_said_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "build", small)
    monkeypatch.setattr(attention, "change", lambda *arguments: 0.5)
    row = attention.examine("own:fused head")
    assert (row["passed"], row["error"]) == ("no", "5.0e-01") and row["reason"].startswith("the outputs change")


def test_reasons_are_whole_those_of_attention_first() -> None:
    assert attention.shortened([]) == ""
    assert attention.shortened(["a norm", "the attention in 'a' stays"]) == "the attention in 'a' stays; a norm"
    assert attention.shortened(["x" * 300, "y" * 300]) == "x" * 300 + "; and 1 more"
    assert attention.shortened(["x" * 999]) == "x" * 400


def test_rows_are_in_the_order_of_the_list() -> None:
    names = ["timm:volo_d1_224 head", "own:net head", "torchvision:swin_t channel", "timm:volo_d1_224 channel"]
    rows = {}
    for name in names:
        network, _, granularity = name.partition(" ")
        rows[name] = dict.fromkeys(COLUMNS, "") | {"network": network, "granularity": granularity}
    written = [line.split(",")[:2] for line in attention_csv(rows).splitlines()[1:]]
    assert [" ".join(cells) for cells in written] == [names[2], names[3], names[0], names[1]]


def test_the_command_writes_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def cover(name: str, limit: float) -> dict[str, str]:
        tried.append(name)
        network, _, granularity = name.partition(" ")
        values = {"network": network, "granularity": granularity, "passed": "no", "reason": "a | b"}
        return {column: values.get(column, "") for column in COLUMNS}

    def beside(name: str, limit: float) -> dict[str, str]:
        tried.append(f"{name}, torch-pruning")
        return {"torch_pruning": "yes"}

    monkeypatch.setattr("benchmarks.commands.coverage.cover_attention", cover)
    monkeypatch.setattr("benchmarks.commands.coverage.cover_attention_peer", beside)
    monkeypatch.setattr("benchmarks.commands.coverage._warm_up", lambda: None)
    arguments = ["coverage", "--attention", "--results", str(tmp_path), "--networks", "timm:cait_xxs24_224"]
    names = [f"timm:cait_xxs24_224 {granularity}" for granularity in ("channel", "head")]
    for options in (["--no-peer"], ["--no-peer"], [], []):
        assert cli.main([*arguments, *options]) == 0
    assert tried == [*names, *(f"{name}, torch-pruning" for name in names)]
    assert cli.main([*arguments, "--again", "--no-peer"]) == 0 and tried[4:] == names
    rows = read_attention(tmp_path / "attention.csv")
    assert [row["torch_pruning"] for row in rows.values()] == ["yes", "yes"]
    assert attention_csv(rows) == (tmp_path / "attention.csv").read_text("utf-8")
    text = (tmp_path / "attention.md").read_text("utf-8")
    assert text == attention_markdown(rows)
    assert "Of 1 networks, 0 lose half" in text and r"a \| b" in text and "Not run: torchvision:vit_b_16, " in text
    assert "cait" not in text.rpartition("Not run")[2]
    (tmp_path / "attention.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is not a table of attention"):
        read_attention(tmp_path / "attention.csv")


def test_networks_are_built_small_by_their_own_constructors() -> None:
    assert set(listed()) <= set(every_network()) and len(every_network()) == len(set(every_network()))
    model, images = build("timm:deit_tiny_patch16_224")
    assert (len(model.blocks), tuple(images.shape), model.training) == (2, (2, 3, 64, 64), False)
    model, images = build("timm:nest_tiny")  # its function passes the depths itself, and its class is called instead
    assert [len(level.transformer_encoder) for level in model.levels] == [1, 1, 2]
    assert (tuple(images.shape), model.head.out_features) == ((2, 3, 224, 224), 10)
    with pytest.raises(KeyError):
        build("other:network")
