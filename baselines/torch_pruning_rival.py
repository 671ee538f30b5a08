"""The field's most widely used library as a rival: torch-pruning's own pruners, run by this suite.

torch-pruning contributes its dependency graph, its importances and what its `regularize` adds to the gradients, all
unmodified. Training, the couplings of the scope (groups that are not prunable couplings are left out), selection and
surgery are shared with every other method. Scores are mapped from the channels of the layer that
a group starts at to those of the coupling (the mean if several map to one channel).

Its pruners do not touch depthwise filters, and some networks make them fail (version 1.6.1: grouped convolutions, a
group without BatchNorm, channels that are all equally important). Here this is an error, never a silent number.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from baselines.depgraph import STEPS, TORCH_PRUNING
from baselines.method import ImportanceSpec, RegularizerSpec, Scoring, grid_around
from oicsr import Coupling
from oicsr.coupling import SIDES
from oicsr.networks.copying import mode
from oicsr.penalties import check_penalised, check_strength

FAILURES = (IndexError, KeyError, TypeError, AttributeError, RuntimeError, ZeroDivisionError, AssertionError)
SPATIAL_SIZES = (32, 8, 28, 64, 96, 128, 224, 299)
GROWTH_INTERVAL = 10  # steps from one update of the growing regularisation to the next
EPOCH_STEPS = 390  # of CIFAR-10 in batches of 128: its authors let λ grow once per epoch

MakePruner = Callable[[Any, nn.Module, Tensor, float], Any]


def _library() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise ValueError("torch-pruning is not installed; its pruners need `pip install oicsr[bench]`") from error
    return torch_pruning


def _group_norm(library: Any, model: nn.Module, inputs: Tensor, strength: float) -> Any:
    importance = library.importance.GroupMagnitudeImportance(p=2, normalizer="max")
    return library.pruner.GroupNormPruner(model, inputs, importance=importance, reg=strength, **_no_groups())


def _bn_scale(library: Any, model: nn.Module, inputs: Tensor, strength: float) -> Any:
    importance = library.importance.BNScaleImportance()
    return library.pruner.BNScalePruner(
        model, inputs, importance=importance, reg=strength, group_lasso=True, **_no_groups()
    )


def _growing_reg(library: Any, model: nn.Module, inputs: Tensor, strength: float) -> Any:
    importance = library.importance.GroupMagnitudeImportance(p=2)
    growth = strength * GROWTH_INTERVAL / EPOCH_STEPS
    return library.pruner.GrowingRegPruner(
        model, inputs, importance=importance, reg=strength, delta_reg=growth, **_no_groups()
    )


def _magnitude(library: Any, model: nn.Module, inputs: Tensor, strength: float) -> Any:
    importance = library.importance.GroupMagnitudeImportance(p=2)
    return library.pruner.BasePruner(model, inputs, importance=importance, **_no_groups())


def _no_groups() -> dict[str, dict[nn.Module, int]]:
    """Return fresh dictionaries for arguments whose defaults the library shares between all its pruners."""
    return {"in_channel_groups": {}, "out_channel_groups": {}, "num_heads": {}}


def example_inputs_for(model: nn.Module) -> Tensor:
    """Return an input that the model runs on: its first layer says the channels, the size is found by trial.

    Groups of channels do not depend on the size of the image, so any size that the network runs on will do.

    Raises:
        ValueError: The model has no convolution and no linear layer, or runs on none of the sizes tried.
    """
    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    first = next((m for m in model.modules() if isinstance(m, layers)), None)
    if first is None:
        raise ValueError(f"{type(model).__name__} has no convolution and no linear layer to find its input by")
    if isinstance(first, nn.Linear):
        return first.weight.new_zeros(1, first.in_features)
    for size in SPATIAL_SIZES:
        inputs = first.weight.new_zeros(1, first.in_channels, *[size] * len(first.kernel_size))
        if _runs(model, inputs):
            return inputs
    raise ValueError(f"{type(model).__name__} runs on no square input of {', '.join(map(str, SPATIAL_SIZES))} pixels")


def _runs(model: nn.Module, inputs: Tensor) -> bool:
    with mode(model, training=False), torch.no_grad():
        try:
            model(inputs)
        except (RuntimeError, ValueError):
            return False
    return True


class Peer:
    """One of torch-pruning's pruners, built on a model and restricted to the groups that are couplings.

    Raises:
        ValueError: torch-pruning is missing, cannot trace the model, or finds no group for some coupling.
    """

    def __init__(
        self, make: MakePruner, model: nn.Module, couplings: Sequence[Coupling], strength: float, inputs: Tensor | None
    ) -> None:
        library = _library()
        inputs = example_inputs_for(model) if inputs is None else inputs
        with mode(model, training=False), torch.enable_grad():
            self.pruner = _guarded(partial(make, library, model, inputs, strength), "trace")
            groups = _guarded(partial(_all_groups, self.pruner), "group the channels of")
        owners = _owners(couplings)
        names = {id(module): name for name, module in model.named_modules()}
        roots = [(names.get(id(group[0].dep.target.module)), group) for group in groups]
        self.groups = [(*owners[name], group) for name, group in roots if name in owners]
        missing = {c.name for c in couplings} - {coupling.name for coupling, _, _ in self.groups}
        if missing:
            raise ValueError(f"torch-pruning finds no group of channels for {', '.join(map(repr, sorted(missing)))}")
        self.pruner._groups = [group for _, _, group in self.groups]

    def scores(self, couplings: Sequence[Coupling]) -> list[Tensor]:
        """Return the pruner's importance of every channel, `(num_channels,)` per coupling."""
        sums = {c.name: torch.zeros(c.num_channels) for c in couplings}
        counts = {c.name: torch.zeros(c.num_channels) for c in couplings}
        for coupling, channels, group in self.groups:
            importance = _guarded(partial(self.pruner.estimate_importance, group), "score")
            if importance is None or len(importance) != int((channels >= 0).sum()):
                raise ValueError(f"torch-pruning gives no importance to the channels of {coupling.name!r}")
            index = channels[channels >= 0]
            sums[coupling.name].index_add_(0, index, importance.detach().float().cpu())
            counts[coupling.name].index_add_(0, index, torch.ones(len(index)))
        scores = [sums[c.name] / counts[c.name] for c in couplings]
        if any(not bool(score.isfinite().all()) for score in scores):
            raise ValueError("torch-pruning's importance is not a finite number for some channels")
        return scores


def _all_groups(pruner: Any) -> list[Any]:
    """Return the groups that a regularising pruner works on, or those that a plain one would."""
    if hasattr(pruner, "_groups"):
        return list(pruner._groups)
    types = pruner.root_module_types
    return list(pruner.DG.get_all_groups(root_module_types=types, ignored_layers=pruner.ignored_layers))


def _guarded(call: Callable[[], Any], action: str) -> Any:
    try:
        return call()
    except FAILURES as error:
        detail = str(error).strip().splitlines()
        raise ValueError(
            f"torch-pruning cannot {action} this network: {type(error).__name__}: {detail[0] if detail else ''}"
        ) from error


def _owners(couplings: Sequence[Coupling]) -> dict[str | None, tuple[Coupling, Tensor]]:
    """Return, by layer name, the coupling that a layer's outputs belong to and the channel of each."""
    return {
        member.parameter.rpartition(".")[0]: (coupling, member.channels)
        for coupling in couplings
        for member in coupling.members
        if member.side == "out" and member.counts
    }


class PeerPenalty:
    """What one of torch-pruning's pruners adds to the gradients, built on the first model that it is given.

    The reported value is the potential with the current factors held fixed: the inner product of the weights and what
    is added to their gradients, over the degree of the penalty.

    Args:
        couplings: The couplings of the model.
        strength: The pruner's `reg`, not negative.
        make: Builds the pruner.
        degree: 2 for a weighted sum of squares, 1 for a sum of norms.
        example_inputs: Inputs of one forward call; without them they are found by trial.

    Raises:
        ValueError: `strength` is negative or not finite. Later: see `Peer`, and where the library fails.
    """

    def __init__(
        self,
        couplings: Sequence[Coupling],
        strength: float,
        make: MakePruner,
        *,
        degree: int = 2,
        example_inputs: Tensor | None = None,
    ) -> None:
        check_penalised(couplings)
        self.strength = check_strength(strength)
        self._couplings = list(couplings)
        self._make = make
        self._degree = degree
        self._inputs = example_inputs
        self._model: weakref.ref[nn.Module] | None = None
        self._built: Peer | None = None

    def peer(self, model: nn.Module) -> Peer:
        """Return the pruner on `model`, building it where this is another model than before."""
        if self._built is None or self._model is None or self._model() is not model:
            self._built = Peer(self._make, model, self._couplings, self.strength, self._inputs)
            self._model = weakref.ref(model)
        return self._built

    def add_gradient(self, model: nn.Module) -> None:
        """Add what the pruner's `regularize` adds.

        Raises:
            ValueError: The library fails on this network, or leaves gradients that are not finite.
        """
        pruner = self.peer(model).pruner
        _guarded(partial(pruner.regularize, model), "regularise")
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all()):
            raise ValueError(
                "gradients are not finite after torch-pruning's step: it divides 0 by 0 where all channels of a group "
                "are equally important"
            )

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the potential of the present step, a scalar without gradient."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        saved = [p.grad for p in parameters]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        try:
            self.add_gradient(model)
            products = [(p.detach() * p.grad).sum() for p in parameters if p.grad is not None]
        finally:
            for parameter, gradient in zip(parameters, saved, strict=True):
                parameter.grad = gradient
        return sum(products, start=torch.zeros(())) / self._degree


class GrowingPeerPenalty:
    """torch-pruning's growing regularisation: the less important a channel, the faster its λ grows.

    Its authors let λ grow by δ once per epoch; here it grows by δ over 390 steps, in equal parts every 10, so that the
    growth belongs to the shared schedule. δ is the base strength.
    """

    def __init__(self, couplings: Sequence[Coupling], strength: float) -> None:
        self._penalty = PeerPenalty(couplings, strength, _growing_reg)
        self.strength = check_strength(strength)
        self._steps = 0
        self._loaded: Tensor | None = None

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the potential of the present step, a scalar without gradient."""
        self._pruner(model)
        return self._penalty(model)

    def add_gradient(self, model: nn.Module) -> None:
        """Add what the pruner's `regularize` adds."""
        self._pruner(model)
        self._penalty.add_gradient(model)

    def advance(self, model: nn.Module) -> None:
        """Increase λ at every tenth step."""
        self._steps += 1
        pruner = self._pruner(model)
        if self._steps % GROWTH_INTERVAL == 0:
            _guarded(pruner.update_reg, "let the regularisation grow on")

    def state_dict(self) -> dict[str, Tensor]:
        """Return the steps taken and λ of every channel (empty before the first step)."""
        built = self._penalty._built
        reg = [built.pruner.group_reg[group] for _, _, group in built.groups] if built else []
        return {"steps": torch.tensor(self._steps), "reg": torch.cat(reg) if reg else torch.zeros(0)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state that `state_dict` returned, at the next step."""
        self._steps = int(state["steps"])
        self._loaded = state["reg"].clone() if len(state["reg"]) else None

    def _pruner(self, model: nn.Module) -> Any:
        peer = self._penalty.peer(model)
        if self._loaded is not None:
            groups = [group for _, _, group in peer.groups]
            sizes = [len(peer.pruner.group_reg[group]) for group in groups]
            if sum(sizes) != len(self._loaded):
                raise ValueError(f"the state is for {len(self._loaded)} channels; there are {sum(sizes)}")
            peer.pruner.group_reg.update(zip(groups, self._loaded.split(sizes), strict=True))
            self._loaded = None
        return peer.pruner


def group_norm(couplings: Sequence[Coupling], strength: float) -> PeerPenalty:
    """Build torch-pruning's GroupNormPruner as a regulariser."""
    return PeerPenalty(couplings, strength, _group_norm)


def bn_scale(couplings: Sequence[Coupling], strength: float) -> PeerPenalty:
    """Build torch-pruning's BNScalePruner as a regulariser."""
    return PeerPenalty(couplings, strength, _bn_scale, degree=1)


def _score(make: MakePruner) -> Callable[[nn.Module, Sequence[Coupling], Scoring], list[Tensor]]:
    def score(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
        """Return the peer's importance of each channel, `(channels,)` per coupling."""
        return Peer(make, model, couplings, 0.0, None).scores(couplings)

    return score


LIBRARY = "torch-pruning 1.6"
ITS_OWN = "as torch-pruning does: within its own groups"
NO_DEPTHWISE = "no depthwise filters"
ITSELF = f"{TORCH_PRUNING}, which itself runs here; reproduce/main.py"
ITS_DECAY = "the experiment's own (its authors': 0)"

TP_GROUP_NORM = RegularizerSpec(
    name="tp-group-norm",
    title="torch-pruning GroupNorm",
    make=group_norm,
    formula="grad += λ γ_k w; γ_k = 16^((I_max − I_k)/(I_max − I_min))",
    source=f"{LIBRARY}, GroupNormPruner.regularize (Fang et al. 2023)",
    penalised=f"filters, columns and BatchNorm scales; {NO_DEPTHWISE}",
    sides=SIDES,
    degree=2,
    potential=False,
    normalisation=ITS_OWN,
    weight_decay_note="0 while the penalty is on, as its authors train",
    weight_decay=0.0,
    grid=grid_around(5e-4),  # its authors' for CIFAR
    compared=ITSELF,
    differs="nothing",
)

TP_BN_SCALE = RegularizerSpec(
    name="tp-bn-scale",
    title="torch-pruning BNScale",
    make=bn_scale,
    formula="grad += λ γ/‖γ_group‖ (root of the mean of squares over the BatchNorm layers of a group)",
    source=f"{LIBRARY}, BNScalePruner.regularize with group_lasso (Liu et al. 2017)",
    penalised="BatchNorm scales of prunable channels; fails if a coupling has none",
    sides=("norm",),
    potential=False,
    normalisation=ITS_OWN,
    grid=grid_around(1e-4),  # as Network Slimming, which it equals for one BatchNorm per coupling
    weight_decay_note=ITS_DECAY,
    compared=ITSELF,
    differs="nothing",
)

TP_GROWING_REG = RegularizerSpec(
    name="tp-growing-reg",
    title="torch-pruning GrowingReg",
    make=GrowingPeerPenalty,
    formula="grad += λ_k w; λ_k starts at λ and grows by λ (I_max − I_k)/(I_max − I_min) every 390 steps",
    source=f"{LIBRARY}, GrowingRegPruner (Wang et al. 2021), growing every 10 steps instead of once per epoch",
    penalised=f"filters and columns; {NO_DEPTHWISE}; no BatchNorm scales: its addition to them is lost on a copy",
    degree=2,
    potential=False,
    normalisation=ITS_OWN,
    grid=grid_around(1e-4),  # its authors log 1e-5 to 1e-4
    weight_decay_note=ITS_DECAY,
    compared=ITSELF,
    differs="the start (5e-4) and the growth per epoch (1e-4) are set apart",
)

TP_GROUP_NORM_IMPORTANCE = ImportanceSpec(
    name="tp-group-norm",
    title="torch-pruning group norm",
    score=_score(_group_norm),
    formula="mean over the layers of a group of ‖w_k‖², BatchNorm scales included",
    source=f"{LIBRARY}, GroupMagnitudeImportance(p=2, normalizer='max')",
    normalisation="divided by the largest of the group's channels",
    sides=SIDES,
    compared=ITSELF,
    differs=STEPS,
)

TP_BN_SCALE_IMPORTANCE = ImportanceSpec(
    name="tp-bn-scale",
    title="torch-pruning BN scale",
    score=_score(_bn_scale),
    formula="mean over the BatchNorm layers of a group of |γ_k|; fails if there is none",
    source=f"{LIBRARY}, BNScaleImportance",
    normalisation="divided by the mean of the group's channels",
    sides=("norm",),
    compared=ITSELF,
    differs=STEPS,
)

TP_MAGNITUDE_IMPORTANCE = ImportanceSpec(
    name="tp-magnitude",
    title="torch-pruning magnitude",
    score=_score(_magnitude),
    formula="mean over the layers of a group of ‖w_k‖², BatchNorm scales included",
    source=f"{LIBRARY}, GroupMagnitudeImportance(p=2)",
    normalisation="divided by the mean of the group's channels",
    sides=SIDES,
    compared=ITSELF,
    differs=STEPS,
)
