"""The proof that couplings are right: channels of zeros are removed, and every output stays.

Nothing is taken on trust from the trace. A copy of the network in float64, on its own device and with its own example
inputs, gets normalisation parameters and whatever else is constant at random, weights that are not too small for
anything to show, and in BatchNorm the statistics of what comes in, moved at random; a random set of channels, a
different one for each coupling, is set to zero and then removed; all outputs must stay the same to 1e-9. What a trace
cannot see (a width that is a number in the code, a normalisation over channels, a forward that runs another object's
weights) shows itself here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import nn

from oicsr.arguments import check_call, check_fit
from oicsr.coupling import Coupling
from oicsr.networks.copying import MODEL_ERRORS, first_line
from oicsr.networks.inputs import ExampleInputs, as_inputs
from oicsr.networks.state import one_at_a_time
from oicsr.networks.wrapping import unwrap
from oicsr.proving.chance import FEWEST
from oicsr.proving.trials import Bench, Surgery, forms

SMALL = 1 << 20  # a network of no more values is tried twice, with other channels and parameters
Trial = Callable[[Sequence[Coupling]], str | None]


@dataclass(frozen=True)
class Proof:
    """What came of a proof.

    Attributes:
        refuted: Coupling name to the reason why its channels cannot be removed.
        untried: What could not be tried, and why.
        sharp: Whether all was tried in evaluation mode, in float64, in which the least difference shows.
        removed: Coupling name to the channels that some trial removed.
    """

    refuted: Mapping[str, str] = field(default_factory=dict)
    untried: tuple[str, ...] = ()
    sharp: bool = True
    removed: Mapping[str, frozenset[int]] = field(default_factory=dict)


@contextmanager
def _quietly() -> Iterator[None]:
    """Run a network without gradients, and without the warnings of its forward: they came up when the caller ran it."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@one_at_a_time()
def prove(
    model: nn.Module,
    example_inputs: ExampleInputs,
    couplings: Sequence[Coupling],
    *,
    surgery: Surgery | None = None,
    seed: int = 0,
) -> Proof:
    """Remove channels of zeros from a copy of a network, and find the couplings for which an output changes.

    All couplings are tried at once. Only if that fails are the culprits found, by bisection; the rest are then tried
    together again. One forward pass of the pruned copy in training mode follows, where the network's
    own works. A small network (a million values) goes through this twice, with other channels; its couplings of five
    channels or fewer, of which a trial removes one, then once more without all that stayed in both.

    The copy is made in float64. If that would take more than 4 GiB, or the device or the code does not support float64,
    the network's own precision is used, in which only larger differences show (above 1e-3 of the largest output for
    float32). Of a batch of inputs, the first two are taken, of a large network (4 million values)
    the first one, where the network runs with so few. Floating inputs that are constant or not finite are replaced by
    noise. Dropout is off and random numbers are constants. Beyond the copy, no more memory is taken than for the
    channels that go and for a pruned copy.

    Args:
        model: The network; left as it is.
        example_inputs: The arguments of one forward call (see `find_couplings`).
        couplings: The couplings to be tried.
        surgery: Slices a network in place, as a plan says; `apply_plan` where it is not given.
        seed: Of the channels that go and of the random parameters.

    Raises:
        TypeError: The arguments are in another order.
        ValueError: The couplings are another network's.

    Returns:
        The couplings that failed, each with the reason, and what could not be tried.
    """
    check_call(model, example_inputs)
    model = unwrap(model)
    check_fit(model, couplings)
    if not couplings:
        return Proof()
    with _quietly():
        proof = _prove(model, example_inputs, couplings, surgery, seed)
        standing = [coupling for coupling in couplings if coupling.name not in proof.refuted]
        if not standing or sum(parameter.numel() for parameter in model.parameters()) > SMALL:
            return proof
        proof = joined(proof, _prove(model, example_inputs, standing, surgery, seed + 1))
        kept = _rest(standing, proof)
        narrow = [coupling for coupling in standing if coupling.name in kept]
        if not narrow:
            return proof
        return joined(proof, _prove(model, example_inputs, narrow, surgery, seed + 2, kept))


def _rest(couplings: Sequence[Coupling], proof: Proof) -> dict[str, tuple[int, ...]]:
    """Return what to keep of narrow couplings so that what stayed in all trials goes: the channels that went."""
    return {
        coupling.name: tuple(sorted(proof.removed[coupling.name]))
        for coupling in couplings
        if coupling.num_channels <= FEWEST
        and coupling.name not in proof.refuted
        and 0 < len(proof.removed.get(coupling.name, ())) < coupling.num_channels
    }


def joined(first: Proof, second: Proof) -> Proof:
    """Return what came of two proofs together."""
    untried = tuple(dict.fromkeys([*first.untried, *second.untried]))
    removed = {
        name: first.removed.get(name, frozenset()) | second.removed.get(name, frozenset())
        for name in {**first.removed, **second.removed}
    }
    return Proof({**first.refuted, **second.refuted}, untried, first.sharp and second.sharp, removed)


def _prove(
    model: nn.Module,
    example_inputs: ExampleInputs,
    couplings: Sequence[Coupling],
    surgery: Surgery | None,
    seed: int,
    kept: Mapping[str, tuple[int, ...]] | None = None,
) -> Proof:
    failure, refuted = "", dict[str, str]()
    if any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        return Proof(untried=(_untried(model, "it is on the meta device, which holds no numbers"),), sharp=False)
    for dtype, inputs in forms(model, as_inputs(example_inputs)):
        try:
            bench = Bench(model, inputs, couplings, surgery=surgery, dtype=dtype, seed=seed, kept=kept)
        except MODEL_ERRORS as error:  # what cannot be copied, or too little memory for float64
            failure = failure or first_line(error)
            continue
        with bench.ready():
            found = bench.first_run()
            refuted |= _still_original(bench.read_of_original, couplings)
            if found is None:
                return _try_all(bench, couplings, refuted)
            failure = failure or found
    return Proof(refuted, (_untried(model, failure),), sharp=False)


def outputs_changed(
    model: nn.Module, example_inputs: ExampleInputs, couplings: Sequence[Coupling], kept: Mapping[str, tuple[int, ...]]
) -> str | None:
    """Return what happens to a network's outputs where channels of zeros are removed.

    None where nothing does, and where that could not be tried.

    Args:
        model: The network, not wrapped; left as it is.
        example_inputs: The arguments of one forward call.
        couplings: Those that lose channels.
        kept: The channels that stay, by coupling.
    """
    with _quietly():
        proof = _prove(model, example_inputs, couplings, None, seed=0, kept=kept)
    return next(iter(proof.refuted.values()), None)


def _untried(model: nn.Module, why: str) -> str:
    return f"the couplings of {type(model).__name__} could not be tried with numbers: {why}"


def _still_original(read: Mapping[str, str], couplings: Sequence[Coupling]) -> dict[str, str]:
    """Return the couplings some of whose parameters a copy reads from the original, with the reason."""
    refuted = {}
    for coupling in couplings:
        names = [member.parameter for member in coupling.members if member.parameter in read]
        if names:
            refuted[coupling.name] = (
                f"{coupling.name!r} cannot lose channels: a copy of the network still reads {names[0]!r} of the "
                f"original, in {read[names[0]]} (a forward or function that is bound to the original object)"
            )
    return refuted


def _try_all(bench: Bench, couplings: Sequence[Coupling], refuted: dict[str, str]) -> Proof:
    for trial in (bench.disagreement, bench.training_disagreement):
        standing = [coupling for coupling in couplings if coupling.name not in refuted]
        if standing:
            refuted |= blame(standing, trial)
    return Proof(refuted, tuple(dict.fromkeys(bench.untried)), bench.is_sharp, bench.removed())


def blame(couplings: Sequence[Coupling], trial: Trial) -> dict[str, str]:
    """Return the couplings to leave out so that a trial of all others succeeds, each with the reason.

    Args:
        couplings: The couplings, at least one.
        trial: Tries some of them together; returns what happened, or None where nothing did.
    """
    failure = trial(couplings)
    if failure is None:
        return {}
    blamed = _halve(couplings, failure, trial)
    while True:  # what stands by itself may yet fail together
        standing = [coupling for coupling in couplings if coupling.name not in blamed]
        failure = trial(standing) if standing else None
        if failure is None:
            return blamed
        blamed |= _last_straw(standing, failure, trial)


def _halve(couplings: Sequence[Coupling], failure: str, trial: Trial) -> dict[str, str]:
    """Return the couplings that fail by themselves, of a set that fails."""
    if len(couplings) == 1:
        return {couplings[0].name: f"{couplings[0].name!r} {failure}"}
    blamed: dict[str, str] = {}
    middle = len(couplings) // 2
    for half in (couplings[:middle], couplings[middle:]):
        found = trial(half)
        if found is not None:
            blamed |= _halve(half, found, trial)
    return blamed


def _last_straw(couplings: Sequence[Coupling], failure: str, trial: Trial) -> dict[str, str]:
    """Return the coupling at which a growing set begins to fail, with the reason."""
    low, high = 1, len(couplings)
    while low < high:
        middle = (low + high) // 2
        found = trial(couplings[:middle])
        if found is None:
            low = middle + 1
        else:
            high, failure = middle, found
    return {couplings[low - 1].name: f"{couplings[low - 1].name!r} {failure}"}
