"""Why a network has no channels that can be removed."""

from __future__ import annotations

from torch import nn

from oicsr.names import some_of
from oicsr.networks.inputs import ExampleInputs
from oicsr.tracing.trace import trace_couplings

MOST = 3  # reasons that are given


def said_of_none(model: nn.Module, example_inputs: ExampleInputs) -> str:
    """Return what to do, or else why nothing can be done, where no couplings were found or given."""
    none = "the model has no channels that can be removed in this scope"
    try:
        trace = trace_couplings(model, example_inputs, scope="all")
    except ValueError as error:
        return f"{none} ({error})"
    if trace.couplings:
        names = some_of([coupling.name for coupling in trace.couplings])
        return f"{none}; scope='all', with nothing to ignore, finds those of {names}"
    reasons = [why if why.startswith(repr(name)) else f"{name!r}: {why}" for name, why in trace.unpruned.items()]
    more = f"; and {len(reasons) - MOST} more" if len(reasons) > MOST else ""
    return f"{none}, nor in any other one" + (f" ({'; '.join(reasons[:MOST])}{more})" if reasons else "")
