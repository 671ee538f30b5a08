"""Every method of the arena: OICSR beside its rivals. The paper's claim is the one line in which they differ."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import baselines
from baselines.energy_importance import OUT_IN
from baselines.method import GREEDY, ImportanceSpec, Method, RegularizerSpec, SelectionSpec
from oicsr import Coupling, GroupLasso

LI = "Li et al. 2019 (OICSR)"


def out_in(couplings: Sequence[Coupling], strength: float) -> GroupLasso:
    """Build OICSR-GL: an out-channel and the in-channel that reads it are one group."""
    return GroupLasso(couplings, sides=("out", "in"), strength=strength)


OICSR_GL = RegularizerSpec(
    name="oicsr-gl",
    title="OICSR-GL",
    make=out_in,
    formula="λ Σ_l Σ_i √(‖W^l_{i,:}‖₂² + ‖W^{l+1}_{:,i}‖₂²)",
    source=f"{LI}, Eq. 4 as reconstructed in PAPER.md",
    penalised="filters and columns of prunable channels as one group: convolutions (depthwise too), linear layers",
    normalisation="none: groups are not weighted by their size",
    weight_decay_note="the experiment's own (the paper's is not known)",
)

REGULARIZERS: dict[str, RegularizerSpec] = {OICSR_GL.name: OICSR_GL, **baselines.REGULARIZERS}
IMPORTANCES: dict[str, ImportanceSpec] = baselines.IMPORTANCES
SELECTIONS: dict[str, SelectionSpec] = baselines.SELECTIONS

METHODS: dict[str, Method] = {
    "oicsr-gl": Method("oicsr-gl", "OICSR-GL", OICSR_GL, OUT_IN, source=LI),
    **baselines.METHODS,
}

T = TypeVar("T")


def find_method(text: str) -> Method:
    """Return the method that `text` names.

    Args:
        text: A registered method, or any combination `regularizer+importance` or `regularizer+importance+selection`
            of registered parts, such as `oicsr-gl+taylor+uniform`.

    Raises:
        ValueError: A name is unknown (says the nearest one), or the combination has too many parts.
    """
    names = text.split("+")
    if len(names) == 1:
        return _look_up("method", text, METHODS)
    if len(names) > 3:
        raise ValueError(f"method {text!r} has {len(names)} parts; it may be regularizer+importance[+selection]")
    regularizer = _look_up("regularizer", names[0], REGULARIZERS)
    importance = _look_up("importance", names[1], IMPORTANCES)
    selection = _look_up("selection", names[2], SELECTIONS) if len(names) == 3 else GREEDY
    parts = [regularizer.title, importance.title]
    title = " + ".join(parts if selection is GREEDY else [*parts, selection.title])
    return Method(text, title, regularizer, importance, selection)


def _look_up(kind: str, name: str, entries: Mapping[str, T]) -> T:
    if name in entries:
        return entries[name]
    near = difflib.get_close_matches(name, entries, n=1, cutoff=0.0)
    raise ValueError(
        f"{kind} {name!r} is unknown; did you mean {near[0]!r}? There are {', '.join(map(repr, sorted(entries)))}"
    )
