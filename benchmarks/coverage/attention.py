"""What of known transformers' attention can go: which couplings, whether exactly, and how many MACs half of it saves.

Command: `python -m benchmarks coverage --attention`. Each network runs in a process of its own, with a limit of CPU
time, and has a row per granularity. Where it is not limited otherwise, a run of all rows takes about 20 minutes of one
thread.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.coverage.examine import FAILURES, disturb, in_own_process
from benchmarks.coverage.peer import QUERIES, heads_of, set_by_hand
from benchmarks.coverage.table import LIMIT_SECONDS, TOLERANCE, Row
from benchmarks.coverage.tasks import outputs_of
from benchmarks.coverage.transformers import build, every_network, listed
from benchmarks.escape import for_csv, for_markdown
from oicsr import Coupling, PruningPlan, count_macs, remove_channels, trace_couplings
from oicsr.complexity import find_tensor
from oicsr.networks.inputs import as_inputs

COLUMNS = (
    "network granularity channels heads error macs_before macs_after seconds passed reason torch_pruning "
    "torch_pruning_macs_after torch_pruning_reason versions"
).split()
PACKAGES = ("torch", "torchvision", "timm", "transformers", "torch-pruning")
GRANULARITIES = ("channel", "head")
HALF = 0.5
REASON = 400  # characters of a cell


def of_attention(couplings: Sequence[Coupling]) -> list[Coupling]:
    """Return the couplings that lie in an attention: those of its products of activations, or of its projections.

    In separable attention (MobileViTv2) one vector is multiplied with all values, which takes no matrix product.
    """
    return [c for c in couplings if c.products or c.name.partition("[")[0].rpartition(".")[2] in QUERIES]


def half_of(couplings: Sequence[Coupling]) -> PruningPlan:
    """Return a plan that removes a random half of every coupling; of an odd number, the smaller half."""
    generator = torch.Generator().manual_seed(0)
    kept = {}
    for coupling in couplings:
        order = torch.randperm(coupling.num_channels, generator=generator).tolist()
        kept[coupling.name] = sorted(order[: coupling.num_channels - coupling.num_channels // 2])
    return PruningPlan.from_kept(couplings, kept)


@torch.no_grad()
def change(model: nn.Module, inputs: Any, couplings: Sequence[Coupling], plan: PruningPlan) -> float:
    """Empty what goes, remove it, and return the largest relative change of an output, in float64; changes `model`."""
    model.double()
    wide = as_inputs(inputs).map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    for coupling in couplings:
        stays = set(plan.kept[coupling.name])
        for member in coupling.members:
            gone = [i for i, c in enumerate(member.channels.tolist()) if c >= 0 and c not in stays]
            if member.side != "norm":
                find_tensor(model, member.parameter).index_fill_(member.dim, torch.tensor(gone, dtype=torch.int64), 0)
    before, after = (outputs_of(wide.call(network)) for network in (model, remove_channels(model, plan)))
    return max(
        float((a - b).abs().max() / a.abs().max()) for a, b in zip(before, after, strict=True) if a.is_floating_point()
    )


def shortened(reasons: Sequence[str]) -> str:
    """Return as many reasons as fit in a cell, those of an attention first, and the number of the others."""
    ordered = sorted(reasons, key=lambda why: "attn" not in why and "attention" not in why)
    shown = [why for i, why in enumerate(ordered) if i == 0 or sum(map(len, ordered[: i + 1])) < REASON]
    more = [f"and {len(ordered) - len(shown)} more"] if len(shown) < len(ordered) else []
    return "; ".join([*(why[:REASON] for why in shown), *more])


def examine(name: str) -> Row:
    """Return the row of a network; its name is `SOURCE:NETWORK GRANULARITY`."""
    network, _, granularity = name.partition(" ")
    row: Row = {"passed": "no"}
    try:
        model, inputs = build(network)
        disturb(model, inputs)
        row["macs_before"] = str(count_macs(model, inputs))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trace = trace_couplings(model, inputs, granularity=granularity)  # type: ignore[arg-type]
        couplings = of_attention(trace.couplings)
        for kind in GRANULARITIES:
            row[f"{kind}s"] = str(sum(coupling.kind == kind for coupling in couplings))
        stays = [why for why in trace.unruled if not couplings or "attention" in why or "layer_norm" not in why]
        row["reason"] = shortened(stays)
        if not couplings:
            return row
        plan = half_of(couplings)
        row["macs_after"] = str(count_macs(remove_channels(model, plan), inputs))
        error = change(model, inputs, couplings, plan)
        row |= {"error": f"{error:.1e}", "passed": "yes" if error < TOLERANCE else "no"}
        if row["passed"] == "no":
            row["reason"] = shortened(["the outputs change although only what was empty in the attention went", *stays])
    except FAILURES as error:
        row["reason"] = f"{type(error).__name__}: {error}".splitlines()[0][:REASON]
    return row


# ----------------------------------------------------------------------------------------------------------------
# torch-pruning
# ----------------------------------------------------------------------------------------------------------------


def examine_peer(name: str) -> Row:
    """Let torch-pruning remove half of the heads, or of each head's channels, told how many heads there are.

    The numbers on the modules are brought in line as its examples do it, by hand: it leaves them.
    """
    network, _, granularity = name.partition(" ")
    row: Row = {"torch_pruning": "no"}
    try:
        import torch_pruning

        model, inputs = build(network)
        before = count_macs(model, inputs)
        heads = heads_of(model, fewest=2)
        if not heads:
            raise ValueError("no layer that holds queries, keys and values of several heads was found to tell it of")
        pruner = torch_pruning.pruner.BasePruner(
            model,
            inputs,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.0,
            pruning_ratio_dict=dict.fromkeys(heads, HALF),
            head_pruning_ratio_dict={layer: count // 2 / count for layer, count in heads.items()},
            num_heads=dict(heads),
            prune_num_heads=granularity == "head",
            prune_head_dims=granularity == "channel",
            output_transform=outputs_of,
        )
        pruner.step()
        set_by_hand(model, pruner.num_heads)
        after = count_macs(model, inputs)
        row["torch_pruning_macs_after"] = str(after)
        sum(part.square().mean() for part in outputs_of(as_inputs(inputs).call(model))).backward()  # type: ignore[union-attr]
        if after < before:
            row["torch_pruning"] = "yes"
        else:
            row["torch_pruning_reason"] = f"removed nothing, told of {len(heads)} layers with heads"
    except FAILURES as error:
        row["torch_pruning_reason"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return row


# ----------------------------------------------------------------------------------------------------------------
# the table
# ----------------------------------------------------------------------------------------------------------------


def rows_of_attention() -> list[str]:
    """Return the names of all rows."""
    return [f"{network} {granularity}" for network in listed() for granularity in GRANULARITIES]


def cover_attention(name: str, limit: float = LIMIT_SECONDS) -> Row:
    """Return a row, without the columns of torch-pruning."""
    found, seconds, stopped = in_own_process(examine, name, limit)
    if stopped:
        found = {"passed": "no", "reason": stopped}
    network, _, granularity = name.partition(" ")
    row = {"network": network, "granularity": granularity, "seconds": f"{seconds:.1f}", **found}
    row["versions"] = " ".join(f"{package}-{_version(package)}" for package in PACKAGES if _version(package))
    return {column: row.get(column, "") for column in COLUMNS}


def cover_attention_peer(name: str, limit: float = LIMIT_SECONDS) -> Row:
    """Return the columns of torch-pruning."""
    row, _, stopped = in_own_process(examine_peer, name, limit)
    found = {"torch_pruning": "no", "torch_pruning_reason": stopped, **row}
    return {column: found.get(column, "") for column in COLUMNS if column.startswith("torch_pruning")}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def read_attention(path: Path) -> dict[str, Row]:
    """Return the rows of a table by network and granularity; none where there is no table."""
    if not path.exists():
        return {}
    rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"), newline="")))
    if any(list(row) != COLUMNS for row in rows):
        raise ValueError(f"{path} is not a table of attention: its columns are {list(rows[0])}; move it away")
    return {f"{row['network']} {row['granularity']}": row for row in rows}


def _in_order(rows: Mapping[str, Row]) -> list[Row]:
    """Return the rows in the order of the list, then those of networks that it does not have."""
    names = [f"{network} {granularity}" for network in every_network() for granularity in GRANULARITIES]
    return [rows[name] for name in dict.fromkeys([*names, *rows]) if name in rows]


def attention_csv(rows: Mapping[str, Row]) -> str:
    """Return the table as CSV, in the order of the list."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: for_csv(cell) for key, cell in row.items()} for row in _in_order(rows))
    return buffer.getvalue()


HEADER = f"""# Attention

`python -m benchmarks coverage --attention` generates this page and `attention.csv`. Each transformer is built with
random weights, most of them with one or two blocks a stage, and half of every coupling that takes part in an attention
is removed, at random: channels of each head, or heads. Widths that the code fixes are set free first, for both tools
(`oicsr.open_attention`, which changes no output). Error: the largest relative change of an output in float64 where
what goes was set to zero first; a row passes below {TOLERANCE:g}. Where only heads can go, the rows of channels have
heads, too. torch-pruning was told the number of heads of each layer that has several, to remove half of each head's
channels, or of the heads, and the numbers on the modules were set by hand afterwards, as in its own examples; "yes"
says that something went, and that the network ran and had a gradient. Its outputs are not compared.

"""


def attention_markdown(rows: Mapping[str, Row]) -> str:
    """Return the table as Markdown."""
    passed = [row for row in rows.values() if row["passed"] == "yes"]
    networks = {row["network"] for row in rows.values()}
    beside = {row["network"] for row in rows.values() if row["torch_pruning"] == "yes"}
    absent = [name for name in every_network() if name not in networks]
    lines = [
        f"Of {len(networks)} networks, {len({row['network'] for row in passed})} lose half of an attention or of a "
        f"part of it, exactly; torch-pruning leaves {len(beside)} that run.",
        "",
        "| network | granularity | couplings: channels | heads | error | macs before | macs after | seconds "
        "| torch-pruning | macs after | what stays |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in _in_order(rows):
        peer = (row["torch_pruning"] or "not run") + (
            f": {row['torch_pruning_reason']}" if row["torch_pruning_reason"] else ""
        )
        cells = [row[key] for key in COLUMNS[:8]]
        cells += [peer, row["torch_pruning_macs_after"], row["reason"]]
        lines.append("| " + " | ".join(for_markdown(cell) for cell in cells) + " |")
    lines += ["", f"Not run: {', '.join(absent)}."] if absent else []
    return HEADER + "\n".join(lines) + "\n"
