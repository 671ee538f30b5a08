"""The way that a network takes through its code: whether it is still the same without the channels of a plan.

Code may ask how wide a value is: `if x.shape != y.shape: x = self.projection(x)`, `if x.shape[1] > 4: ...`. What such
a question gives is settled when couplings are found, and widths that differ in the network may be equal in the pruned
one. No trial at other widths can tell; only the plan itself can be looked at.
"""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from oicsr.coupling import Coupling
from oicsr.networks.copying import MODEL_ERRORS, OTHERS, copy_model, first_line, shared, undisturbed
from oicsr.networks.inputs import ExampleInputs, as_inputs
from oicsr.networks.modes import Mode
from oicsr.networks.state import one_at_a_time
from oicsr.plan import PruningPlan
from oicsr.proving.proof import outputs_changed
from oicsr.surgery import apply_plan

Call = tuple[str, str, int, str, str]  # module, file, line, function and its arguments
ARITHMETIC = frozenset("add sub mul div true_divide floor_divide multiply divide subtract pow lerp where".split())


class _Way(Mode):
    """Note which functions of PyTorch a network's own code calls, in which of its modules and on which line."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = {id(module): name for name, module in model.named_modules()}
        self.calls: Counter[Call] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        self.calls[self._call(name, _told_arguments(name, (*args, *(kwargs or {}).values())))] += 1
        return func(*args, **(kwargs or {}))

    def _call(self, function: str, arguments: str) -> Call:
        """Return a call, by the innermost line outside of PyTorch and the module whose method runs there, or around."""
        frame: FrameType | None = sys._getframe(2)
        place = ("", 0)
        while frame is not None:
            code = frame.f_code
            if not code.co_filename.startswith(OTHERS):
                place = place if place[0] else (code.co_filename, frame.f_lineno)
                owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
                if id(owner) in self._names:
                    return self._names[id(owner)], *place, function, arguments
            frame = frame.f_back
        return "", *place, function, arguments


def _told_arguments(function: str, values: Sequence[Any]) -> str:
    """Return which arguments are tensors, and the numbers of arithmetic: elsewhere sizes and epsilons follow widths."""
    arithmetic = function.strip("_").removeprefix("r").removeprefix("i") in ARITHMETIC
    kinds = (bool, type(None), *((int, float) if arithmetic else ()))
    return ", ".join(
        "a tensor" if isinstance(v, torch.Tensor) else repr(v) if type(v) in kinds else "..." for v in values
    )


@one_at_a_time()
def check_way(
    model: nn.Module, example_inputs: ExampleInputs, couplings: Sequence[Coupling], plan: PruningPlan
) -> None:
    """Raise where a network without the channels of a plan takes another way through its code, and is another one.

    It may take another one and stay what it is (a loop over channels that ends sooner). So where it does, the outputs
    are compared, with channels of zeros removed.

    Args:
        model: The network; left as it is.
        example_inputs: The arguments of one forward call.
        couplings: Its couplings.
        plan: Which channels stay.

    Raises:
        ValueError: The outputs change, or it does not run any more; says where its code goes another way.
    """
    cut = [coupling for coupling in couplings if len(plan.kept[coupling.name]) < coupling.num_channels]
    if not cut:
        return
    try:
        before = _way(model, example_inputs)
        small = copy_model(model, shared)
    except (ValueError, *MODEL_ERRORS):
        return  # what cannot be copied or run was said when its couplings were found
    apply_plan(small, plan)
    try:
        after, failed = _way(small, example_inputs), ""
    except MODEL_ERRORS as error:
        after, failed = before, f"it does not run any more ({type(error).__name__}: {first_line(error)})"
    if before == after and not failed:
        return
    changed = outputs_changed(model, example_inputs, cut, plan.kept)
    if changed is None and not failed:
        return
    where = f"its code goes another way: {_told(before, after)}" if before != after else "its code does not fit"
    raise ValueError(
        f"at the widths that this plan leaves, the network computes something else ({failed or changed}), and {where}. "
        "Such code asks how wide a value is, and decides by that. Ask for another target, cap or rounding, leave one "
        "of the layers alone (ignore=), or let the code decide by something that is not pruned"
    )


def _way(model: nn.Module, example_inputs: ExampleInputs) -> Counter[Call]:
    with undisturbed(model) as twin, torch.no_grad(), _Way(twin) as way:
        as_inputs(example_inputs).call(twin)
    return way.calls


def _told(before: Counter[Call], after: Counter[Call]) -> str:
    """Say what is called no more, or less often, or what is new."""
    gone, new = sorted(before - after), sorted(after - before)
    first = gone[0] if gone else new[0]
    module, file, line, function, arguments = first
    others = [call[-1] for call in new if call[:-1] == first[:-1]] if gone else []
    source = linecache.getline(file, line).strip()
    calls = "no longer calls" if gone else "now calls"
    how = f" with ({others[0]}) in place of ({arguments})" if others else ""
    return (
        f"{module or 'the network itself'!r} {'calls' if others else calls} {function}{how} in line {line} of "
        f"{Path(file).name}{f', `{source}`' if source else ''}"
    )
