"""Channel energy as importance: what the paper scores by (Eq. 8), over both sides or over one.

Whether the paper normalises energies before its global sort is not known, so every normalisation of
`oicsr.out_in_energy` is an entry of its own; the suite's default is the layer's mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from baselines.method import ImportanceSpec, Score, Scoring
from oicsr import Coupling, out_in_energy
from oicsr.coupling import Side


def _score(normalize: str, sides: Sequence[Side]) -> Score:
    def score(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
        """Return the energy of each channel, `(channels,)` per coupling."""
        return out_in_energy(model, couplings, normalize, sides=sides)

    return score


BOTH = "‖W^l_{i,:}‖₂² + ‖W^{l+1}_{:,i}‖₂²"
OICSR = "Li et al. 2019 (OICSR), Eq. 8"

OUT_IN = ImportanceSpec(
    name="out-in",
    title="out-in energy",
    score=_score("layer_mean", ("out", "in")),
    formula=BOTH,
    source=f"{OICSR}, normalised as this suite does",
    normalisation="over the mean of the layer's channels",
)

OUT_IN_RAW = ImportanceSpec(
    name="out-in-raw",
    title="out-in energy, raw",
    score=_score("none", ("out", "in")),
    formula=BOTH,
    source=OICSR,
    normalisation="none",
)

OUT_IN_SIZE = ImportanceSpec(
    name="out-in-size",
    title="out-in energy per weight",
    score=_score("size", ("out", "in")),
    formula=BOTH,
    source=f"{OICSR}, normalised",
    normalisation="over the number of weights of the channel",
)

OUT_IN_MAX = ImportanceSpec(
    name="out-in-max",
    title="out-in energy over maximum",
    score=_score("layer_max", ("out", "in")),
    formula=BOTH,
    source=f"{OICSR}, normalised",
    normalisation="over the largest of the layer's channels",
)

OUT = ImportanceSpec(
    name="out",
    title="out energy",
    score=_score("layer_mean", ("out",)),
    formula="‖W^l_{i,:}‖₂²",
    source="the importance that fits a penalty on filters",
    normalisation="over the mean of the layer's channels",
)

IN = ImportanceSpec(
    name="in",
    title="in energy",
    score=_score("layer_mean", ("in",)),
    formula="‖W^{l+1}_{:,i}‖₂²",
    source="the importance that fits a penalty on columns",
    normalisation="over the mean of the layer's channels",
)
