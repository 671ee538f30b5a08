"""Description: a table of couplings, and of what a plan would remove, before anything is removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from oicsr.arguments import check_fit
from oicsr.changes import AttributeChange
from oicsr.complexity import Work, count_work
from oicsr.coupling import Call, Coupling, kept_parts
from oicsr.names import coupling_layers
from oicsr.networks.inputs import ExampleInputs
from oicsr.networks.wrapping import unwrap
from oicsr.plan import PruningPlan, check_is_plan, check_plan_of

if TYPE_CHECKING:
    import pandas as pd

Sizes = tuple[Mapping[str, int], Mapping[str, int]]  # elements of each parameter, before and after


@dataclass(frozen=True)
class CouplingRow:
    """What is known of one coupling, or of the whole network.

    Attributes:
        coupling: Name of the coupling.
        layers: How many layers produce its channels.
        channels: How many channels there are.
        kept: How many of them stay.
        params: Elements of all weights and vectors that hold its channels.
        params_kept: How many of these elements stay; the neighbouring couplings of the plan count.
        macs: MACs of these weights; None without example inputs.
        macs_kept: What stays of these MACs.
    """

    coupling: str
    layers: int
    channels: int
    kept: int
    params: int
    params_kept: int
    macs: int | None
    macs_kept: int | None


@dataclass(frozen=True)
class Description:
    """A table of couplings; `str` gives it as text, `to_frame` as a pandas frame.

    Attributes:
        rows: One per coupling. A weight between two couplings is part of both, so the rows add up to more than the
            whole.
        total: The whole network, layers that are never pruned included.
        planned: Whether there is a plan.
        attributes: The numbers on modules that the plan changes (`num_heads`, `head_dim`).
    """

    rows: tuple[CouplingRow, ...]
    total: CouplingRow
    planned: bool = field(default=True)
    attributes: tuple[AttributeChange, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a pandas frame, one per coupling (needs pandas)."""
        import pandas as pd  # not a dependency of the library

        frame = pd.DataFrame([asdict(row) for row in self.rows]).set_index("coupling")
        return frame[[name for name in frame.columns if name in self._columns()]]

    def _columns(self) -> list[str]:
        names = ["coupling", "layers", "channels", "kept", "params", "params_kept", "macs", "macs_kept"]
        return [
            name
            for name in names
            if (self.planned or "kept" not in name) and ("macs" not in name or self.total.macs is not None)
        ]

    def __str__(self) -> str:
        columns = self._columns()
        lines = [columns] + [[_cell(getattr(row, name)) for name in columns] for row in (*self.rows, self.total)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
        changed = [f"{change}" for change in self.attributes]
        return "\n".join(
            [
                "  ".join(
                    cell.rjust(width) if i else cell.ljust(width)
                    for i, (cell, width) in enumerate(zip(line, widths, strict=True))
                )
                for line in lines
            ]
            + changed
        )

    __repr__ = __str__


def _cell(value: str | int | None) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def describe(
    model: nn.Module,
    couplings: Sequence[Coupling],
    plan: PruningPlan | None = None,
    example_inputs: ExampleInputs | None = None,
) -> Description:
    """Return a table of what can be removed, and of what a plan would remove.

    Args:
        model: The network; left as it is.
        couplings: Its couplings.
        plan: A plan for it, if there is one.
        example_inputs: Inputs of one forward call, for columns of MACs.

    Returns:
        The table; print it, or call `to_frame()`.

    Raises:
        ValueError: The couplings are not the model's, or the plan was made for other couplings.

    Example:
        >>> import torch, oicsr
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> couplings = oicsr.find_couplings(network, torch.zeros(1, 4))
        >>> print(oicsr.describe(network, couplings, example_inputs=torch.zeros(1, 4)))
        coupling       layers  channels  params  macs
        0                   1         8      56    48
        whole network       1         8      58    48
    """
    model = unwrap(model)
    check_fit(model, couplings)
    kept = _channels_kept(couplings, plan)
    learned = {name: parameter.numel() for name, parameter in model.named_parameters()}
    sizes = learned | {name: buffer.numel() for name, buffer in model.named_buffers()}  # kernels may be buffers
    work: Work | None = None if example_inputs is None else count_work(model, example_inputs)
    after = _sizes_after(sizes, plan)
    none = Work({}, 0, (), {})
    products = [_products(coupling, kept[coupling.name], work or none) for coupling in couplings]
    computed = _computed(couplings, {} if plan is None else plan.kept, work or none, (sizes, after))
    fewer = {call: left - _whole(call, work or none, (sizes, after))[1] for call, (_, left) in computed.items()}

    def row(
        name: str, layers: int, channels: int, stays: int, tensors: Sequence[str], rest: tuple[int, int]
    ) -> CouplingRow:
        """Sum parameters and MACs over some tensors."""
        macs = [
            None if work is None else more + sum(work.positions.get(t, 0) * s[t] for t in tensors)
            for s, more in zip((sizes, after), rest, strict=True)
        ]
        params = [sum(s[t] for t in tensors if t in learned) for s in (sizes, after)]
        return CouplingRow(name, layers, channels, stays, *params, *macs)

    rows = []
    for coupling, own in zip(couplings, products, strict=True):
        tensors = list(dict.fromkeys(m.parameter for m in coupling.members if m.parameter in sizes))
        layers = len(coupling_layers(coupling))
        calls = {part.product for part in coupling.parts}
        within = {c for c in calls if isinstance(c, tuple) and c[0] in tensors}  # whose weights are among the tensors
        layered = [own, *(computed[call] for call in calls - within), *((0, fewer[call]) for call in within)]
        both = sum(whole for whole, _ in layered), sum(left for _, left in layered)
        rows.append(row(coupling.name, layers, coupling.num_channels, kept[coupling.name], tensors, both))
    channels, stays = sum(r.channels for r in rows), sum(r.kept for r in rows)
    others = 0 if work is None else work.others + sum(work.products)
    rest = others, others + sum(left - whole for whole, left in products) + sum(fewer.values())
    total = row("whole network", sum(r.layers for r in rows), channels, stays, list(sizes), rest)
    return Description(tuple(rows), total, plan is not None, () if plan is None else plan.attributes)


def _channels_kept(couplings: Sequence[Coupling], plan: PruningPlan | None) -> dict[str, int]:
    """Return how many channels of each coupling stay; all of them where a plan does not name it."""
    kept = {coupling.name: coupling.num_channels for coupling in couplings}
    if plan is None:
        return kept
    check_is_plan(plan)
    unknown = [name for name in plan.kept if name not in kept]
    if unknown:
        raise ValueError(f"the plan names the coupling {unknown[0]!r}, which is not among the given ones")
    check_plan_of(couplings, plan)
    return kept | {name: len(ids) for name, ids in plan.kept.items()}


def _products(coupling: Coupling, kept: int, work: Work) -> tuple[int, int]:
    """Return the MACs of the products of activations that a coupling's channels take part in, before and after."""
    macs = [work.products[number] for number in coupling.products if number < len(work.products)]
    return sum(macs), sum(entry * kept // coupling.num_channels for entry in macs)


def _computed(
    couplings: Sequence[Coupling], kept: Mapping[str, Sequence[int]], work: Work, sizes: Sizes
) -> dict[Call, tuple[int, int]]:
    """Return the MACs of what the channels own parts of, before and after: see `oicsr.coupling.Part`."""
    stays = kept_parts(couplings, kept)
    macs = {call: _whole(call, work, sizes) for call, _ in stays}
    for (call, _), own in stays.items():
        whole, left = macs[call]
        macs[call] = whole, left * int(own.sum()) // len(own)
    return macs


def _whole(call: Call, work: Work, sizes: Sizes) -> tuple[int, int]:
    """Return the MACs of a product, or of a call of a layer, with all channels that take part, before and after."""
    if isinstance(call, int):
        return (work.products[call] if call < len(work.products) else 0,) * 2
    name, number = call
    counts = work.calls.get(name, ())
    count = counts[number] if number < len(counts) else 0
    return count * sizes[0][name], count * sizes[1][name]


def _sizes_after(sizes: Mapping[str, int], plan: PruningPlan | None) -> dict[str, int]:
    """Return how many elements of each parameter stay."""
    after = dict(sizes)
    for entry in plan.slices if plan is not None else ():
        if entry.parameter in after:
            after[entry.parameter] = after[entry.parameter] * len(entry.kept) // entry.size
    return after
