"""Channel energy as importance: what the paper scores by (Eq. 8), over any sides of a channel.

Whether the paper normalises energies before its global sort is not known, so every normalisation of
`oicsr.out_in_energy` has its own entry; the suite's default is the layer's mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from baselines.method import ImportanceSpec, Score, Scoring
from oicsr import Coupling, out_in_energy
from oicsr.coupling import SIDES, Side

ENERGY: dict[Side, str] = {"out": "‖W^l_{i,:}‖₂²", "in": "‖W^{l+1}_{:,i}‖₂²", "norm": "γ_i²"}
OICSR = "Li et al. 2019 (OICSR), Eq. 8"
FITS = "matches a penalty on"
SOURCES = {
    "out": f"{FITS} filters",
    "in": f"{FITS} columns",
    "norm": f"{FITS} normalisation scales; the fallback is this suite's",
    "out-in": f"{OICSR}, with this suite's normalisation",
}


def of(sides: Sequence[Side]) -> ImportanceSpec:
    """Return the energy over some sides of a channel, divided by the mean of its layer.

    A layer without a normalisation layer has no scale; where the scale alone would count, its filters do.
    """
    chosen = tuple(side for side in SIDES if side in sides)
    name = "-".join(chosen)
    formula = " + ".join(ENERGY[side] for side in chosen)
    return ImportanceSpec(
        name=name,
        title=f"{name} energy",
        score=_score("layer_mean", chosen) if chosen != ("norm",) else scale_energy,
        formula=formula if chosen != ("norm",) else f"{formula}; without a normalisation layer, {ENERGY['out']}",
        source=SOURCES.get(name, f"{FITS} a group of these sides"),
        normalisation="divided by the mean of the layer's channels",
        sides=chosen,
    )


def scale_energy(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return γ² of each channel over the layer's mean; the filters' energy where a layer has no scale."""
    scales = out_in_energy(model, couplings, "layer_mean", sides=("norm",))
    filters = out_in_energy(model, couplings, "layer_mean", sides=("out",))
    scaled = [any(m.counts and m.side == "norm" for m in coupling.members) for coupling in couplings]
    return [scale if known else other for scale, other, known in zip(scales, filters, scaled, strict=True)]


def _score(normalize: str, sides: Sequence[Side]) -> Score:
    def score(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
        """Return the energy of each channel, `(channels,)` per coupling."""
        return out_in_energy(model, couplings, normalize, sides=sides)

    return score


def _out_in(name: str, title: str, normalize: str, source: str, normalisation: str, degree: int) -> ImportanceSpec:
    sides: tuple[Side, ...] = ("out", "in")
    formula = " + ".join(ENERGY[side] for side in sides)
    return ImportanceSpec(name, title, _score(normalize, sides), formula, source, normalisation, sides, degree)


OUT_IN = of(("out", "in"))
OUT_IN_RAW = _out_in("out-in-raw", "out-in energy, raw", "none", OICSR, "none", 2)
OUT_IN_SIZE = _out_in(
    "out-in-size",
    "out-in energy per weight",
    "size",
    f"{OICSR}, normalised",
    "over the number of weights of the channel",
    2,
)
OUT_IN_MAX = _out_in(
    "out-in-max",
    "out-in energy over maximum",
    "layer_max",
    f"{OICSR}, normalised",
    "over the largest of the layer's channels",
    0,
)

OUT = of(("out",))
IN = of(("in",))
NORM = of(("norm",))
OUT_NORM = of(("out", "norm"))
IN_NORM = of(("in", "norm"))
OUT_IN_NORM = of(SIDES)
