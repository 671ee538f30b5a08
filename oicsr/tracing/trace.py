"""Finding the couplings of a model in the graph that `torch.export` gives."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from torch import nn

from oicsr.arguments import check_call, check_choice
from oicsr.coupling import Coupling
from oicsr.graph import Graph, export_graph
from oicsr.names import Names, layer_name, named_layers, some_of
from oicsr.networks.copying import hooked_modules
from oicsr.networks.inputs import ExampleInputs, Inputs, as_inputs
from oicsr.networks.state import generators_kept, indices_on_cpu, one_at_a_time
from oicsr.networks.warned import warn
from oicsr.networks.wrapping import unwrap
from oicsr.parametrized import plain_twin, said_of_sources
from oicsr.proving.counted import miscounted
from oicsr.proving.mending import Traced, mend
from oicsr.proving.proof import Proof, prove
from oicsr.proving.shapes import find_moved, find_rigid
from oicsr.proving.stale import follow_unread
from oicsr.rules import Tracer, keep_unread
from oicsr.rules.collect import SINGLE, Root, Streams, collect
from oicsr.rules.doubts import Doubts
from oicsr.tracing.approximate import Approximate, ApproximateWarning, WithoutMeans, deviation
from oicsr.tracing.attention import Attentions, Granularity, settle_products
from oicsr.tracing.backbone import Part, backbone_call, couplings_of_whole
from oicsr.tracing.idle import said_of_averages, said_of_idle
from oicsr.tracing.kept import said_of_kept
from oicsr.tracing.unseen import said_of_unseen

Scope = Literal["inner", "all"]
Verify = Literal["numeric", "shapes", "off"]
IGNORED = "is ignored, or joined to a layer that is"
NAME = re.compile(r"'([^'\s]+)'")  # of a layer or module, in a message


class UnprunedChannelsWarning(UserWarning):
    """Some channels are left as they are; the message names the layer and the reason."""


class UntriedWarning(UserWarning):
    """Something about the couplings could not be tried; the message says what, and why."""


@dataclass(frozen=True)
class Trace:
    """What was found in a model.

    Attributes:
        couplings: The couplings.
        unpruned: Layer name to the reason why (some of) its channels stay.
        unruled: The reasons that a user has to know of: operators without a rule, and what the trials found;
            `find_couplings` warns of these.
        untried: What could not be tried, and why; `find_couplings` warns of it.
        inexact: Names of the couplings whose channels change outputs though they are zero: those under a LayerNorm.
        deviation: By how much, as a share of the largest output, where the weaker half of these is set to zero and
            goes; None where that was not measured.
    """

    couplings: list[Coupling]
    unpruned: Mapping[str, str]
    unruled: tuple[str, ...]
    untried: tuple[str, ...] = ()
    inexact: tuple[str, ...] = ()
    deviation: float | None = None


def find_couplings(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    scope: Scope = "inner",
    ignore: Names = (),
    verify: Verify = "numeric",
    granularity: Granularity = "channel",
    approximate: Approximate = "none",
) -> list[Coupling]:
    """Find every set of weights that share a channel axis.

    Args:
        model: Any network that `torch.export` can trace, wrapped or not (see `oicsr.unwrap`); of a detector
            that it cannot trace as a whole, the `backbone`. Left as it is: weights, training mode, hooks, counters,
            caches and random state included. The users' hooks do not run.
        example_inputs: The arguments of one forward call. A tensor: the only one. A tuple or list: the positional
            ones, each of any nesting. A dictionary: the keyword arguments.
        scope: `"inner"`: axes that one layer produces and that no addition joins to another axis, as the authors
            prune in ResNets (the two inner widths of a bottleneck, the one of a basic block). An axis from which a
            residual block and its projection shortcut both start is part of the residual stream and not inner: the
            stem of torchvision's ResNet-50 is left as it is. `"all"`: residual streams too.
        ignore: Layers whose own channels stay: names, patterns (`"layer4.*.conv2"`) or modules, one or several. A
            module stands for all layers in it. A channel that an ignored layer produces or normalises stays wherever
            it goes; the channels that the layer reads may still be removed.
        verify: How the couplings are tried before they are returned. `"numeric"`: channels of zeros are removed from
            a copy in float64, and every output has to stay to 1e-9 (see `oicsr.prove`); what fails is left out, with
            a warning. Channels that a LayerNorm runs over stay as well: its statistics change with every channel that
            goes. `"shapes"`: the pruned network only has to run, on the meta device, without numbers: for those who
            want the channels under a LayerNorm, which go then, with other outputs. `"off"`: not at all. Either way,
            what an attention needs in order to lose channels is found with numbers.
        granularity: What goes of an attention. `"channel"`: channels of each head, where the code lets them go, and
            heads elsewhere. `"head"`: heads, each with all its channels. The couplings say their `kind`.
        approximate: `"layer_norm"`: channels that an `nn.LayerNorm` runs over, or an `nn.GroupNorm` of one group, go as
            under an RMSNorm, with its weight and epsilon changed, although its mean moves: outputs change, and a
            warning says by how much.

    Returns:
        The couplings in the order in which their first layers run. Axes of a single channel are left out.

    Raises:
        TypeError: `model` is not a module, or `ignore` holds something else than names and modules.
        ValueError: `scope`, `verify`, `granularity` or `approximate` is unknown, `ignore` names no layer of the model,
            or the model cannot be traced.

    Warns:
        UnprunedChannelsWarning: Channels stay because of an operator without a rule, or because a trial failed; the
            message names them and the reason.
        UntriedWarning: Something could not be tried; the message says what.
        ApproximateWarning: Channels under a LayerNorm may go; the message says what they change.

    Note:
        Calls from several threads wait for each other. While one runs, new tensors of the whole process may be
        float64 and global hooks of modules do not run: let no other thread train or load data then.
    """
    trace = trace_couplings(
        model,
        example_inputs,
        scope=scope,
        ignore=ignore,
        verify=verify,
        granularity=granularity,
        approximate=approximate,
    )
    if trace.unruled:
        message = "some channels are left unpruned: " + "; ".join(_gathered(trace.unruled))
        warn(message, UnprunedChannelsWarning)
    if trace.untried:
        warn("; ".join(trace.untried), UntriedWarning)
    if trace.inexact:
        share = "an unknown share" if trace.deviation is None else f"{trace.deviation:.1%}"
        said = (
            f"a norm with a mean runs over the channels of {some_of(trace.inexact)}: outputs change where they go "
            f"(by up to {share} of the largest where the weaker half of them is set to zero and goes)"
        )
        warn(said, ApproximateWarning)
    return trace.couplings


@one_at_a_time()
def trace_couplings(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    scope: Scope = "inner",
    ignore: Names = (),
    verify: Verify = "numeric",
    granularity: Granularity = "channel",
    approximate: Approximate = "none",
) -> Trace:
    """Do the work of `find_couplings`, and also say which layers' channels stay, and why.

    Args:
        model: As for `find_couplings`, like all others.
        example_inputs: The arguments of one forward call.
        scope: Which channels may go.
        ignore: Layers whose own channels stay.
        verify: Whether the couplings are proved with numbers.
        granularity: What goes of an attention.
        approximate: What may change the outputs.

    Returns:
        The couplings (`.couplings`) and, by the name of each layer that keeps its channels, the reason (`.unpruned`).

    Raises:
        TypeError, ValueError: As `find_couplings` does; but nothing is warned of.
    """
    check_choice("scope", scope, get_args(Scope))
    check_choice("verify", verify, get_args(Verify))
    check_choice("granularity", granularity, get_args(Granularity))
    check_choice("approximate", approximate, get_args(Approximate))
    check_call(model, example_inputs)
    model, inputs = unwrap(model), as_inputs(example_inputs)
    choices = _Choices(scope, named_layers(model, ignore), verify, granularity, approximate)
    with _no_garbage_collection(), generators_kept(model):
        trace = _trace(model, inputs, choices)
    trace = replace(trace, untried=(*trace.untried, *said_of_unseen(model, inputs, unruled=bool(trace.unruled))))
    hooked = hooked_modules(model)
    if hooked:
        said = (
            f"users' hooks do not run while couplings are found, here those of {some_of(hooked)}: what a hook changes "
            "is not followed (write it into forward, or compare the outputs of the pruned network)"
        )
        trace = replace(trace, untried=(*trace.untried, said))
    return trace


def _gathered(reasons: Sequence[str]) -> list[str]:
    """Return the reasons, where several differ in the first name alone as one: a deep network repeats the same."""
    alike: dict[str, list[str]] = {}
    for reason in dict.fromkeys(reasons):
        alike.setdefault(NAME.sub("\0", reason, count=1), []).append(reason)
    return [
        first + (f" (likewise {some_of([NAME.findall(reason)[0] for reason in others])})" if others else "")
        for first, *others in alike.values()
    ]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Hold Python's search for circular references back: the exporter makes millions of objects that it would visit."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True)
class _Choices:
    """What the user asked for.

    Attributes:
        scope: Which channels may go.
        ignored: Names of the layers whose own channels stay.
        verify: How couplings are tried.
        granularity: What goes of an attention.
        approximate: What may go although outputs change.
        thinned: What another tracer decided on grouped convolutions.
        distrusted: Calls that are not followed although they might be (see `oicsr.rules.doubts`).
    """

    scope: Scope
    ignored: Set[str]
    verify: Verify
    granularity: Granularity = "channel"
    approximate: Approximate = "none"
    thinned: Mapping[str, bool] = field(default_factory=dict)
    distrusted: frozenset[str] = frozenset()

    @property
    def proves(self) -> bool:
        """Whether a proof judges what a trace leaves open."""
        return self.verify == "numeric" and self.approximate == "none"


def _trace(model: nn.Module, inputs: Inputs, choices: _Choices) -> Trace:
    """Trace a network, or where it cannot be traced its backbone, and try what was found."""
    try:
        traced, trace = _trace_once(model, inputs, choices)
    except ValueError:
        part = backbone_call(model, inputs)
        if part is None:
            raise
        prefix = f"{part.name}."
        ignored = {name.removeprefix(prefix) for name in choices.ignored if name.startswith(prefix)}
        return _said_of_whole(_trace(part.module, part.inputs, replace(choices, ignored=ignored)), model, part)
    if choices.verify == "off":
        return trace
    if choices.verify == "shapes":
        return _verified_shapes(model, inputs, choices, traced.tracer, trace)
    if trace.inexact:
        return _proved_without_means(model, inputs, traced, trace)
    while True:
        couplings, proof = mend(model, inputs, traced, trace.couplings, prove(model, inputs, trace.couplings))
        distrusted = _distrusted(model, inputs, traced, couplings, proof)
        if not distrusted:
            trace = _without(replace(trace, couplings=couplings), proof.refuted, proof.untried)
            return replace(trace, couplings=follow_unread(model, inputs, trace.couplings))
        choices = replace(choices, distrusted=choices.distrusted | distrusted)
        traced, trace = _trace_once(model, inputs, choices)


def _distrusted(
    model: nn.Module, inputs: Inputs, traced: Traced, couplings: Sequence[Coupling], proof: Proof
) -> frozenset[str]:
    """Return the calls that are not to be followed any more: all of them where not everything could be tried."""
    doubts = traced.tracer.doubts.found
    wrong = {d.name for d in doubts if not proof.sharp or proof.refuted.keys() & {*traced.index.names_of(d.labels)}}
    if wrong:
        return frozenset(wrong)
    standing = [coupling for coupling in couplings if coupling.name not in proof.refuted]
    return miscounted(model, inputs, traced.graph, standing, doubts) if standing else frozenset()


def _proved_without_means(model: nn.Module, inputs: Inputs, traced: Traced, trace: Trace) -> Trace:
    """Prove all couplings but for the means of LayerNorms, and measure what these change."""
    with WithoutMeans():
        couplings, proof = mend(model, inputs, traced, trace.couplings, prove(model, inputs, trace.couplings))
    trace = _without(replace(trace, couplings=couplings), proof.refuted, proof.untried)
    proof = prove(model, inputs, [coupling for coupling in trace.couplings if coupling.name not in trace.inexact])
    trace = _without(trace, proof.refuted, proof.untried)
    trace = replace(trace, couplings=follow_unread(model, inputs, trace.couplings))
    couplings = [coupling for coupling in trace.couplings if coupling.name in trace.inexact]
    return replace(trace, deviation=deviation(model, inputs, couplings) if couplings else None)


def _said_of_whole(trace: Trace, model: nn.Module, part: Part) -> Trace:
    """Return what was found in a part of a network in the names of the whole."""
    whole = type(model).__name__
    reason = (
        f"{whole} cannot be traced as a whole, so that {part.name!r} was traced by itself and everything else stays "
        f"(pruning model.{part.name} yourself and putting it back has the same effect)"
    )
    couplings, shared = couplings_of_whole(trace.couplings, model, part)
    return Trace(
        couplings,
        {f"{part.name}.{name}": why for name, why in trace.unpruned.items()} | shared,
        (reason, *trace.unruled, *shared.values()),
        trace.untried,
        tuple(f"{part.name}.{name}" for name in trace.inexact),
        trace.deviation,
    )


def _verified_shapes(model: nn.Module, inputs: Inputs, choices: _Choices, tracer: Tracer, trace: Trace) -> Trace:
    """Leave out the couplings without which the network does not run, or is cut elsewhere."""
    rigid = find_rigid(model, inputs, trace.couplings)
    if rigid is None:
        untried = f"{type(model).__name__} does not run on the meta device: the couplings were not tried"
        return _without(trace, {}, [untried])
    if tracer.cuts_by_number:
        standing = [coupling for coupling in trace.couplings if coupling.name not in rigid]

        def again(trial: nn.Module) -> tuple[list[Coupling], set[str]]:
            """Trace a smaller network with the same choices."""
            _, smaller = _trace_once(trial, inputs, replace(choices, thinned=tracer.thinned))
            return smaller.couplings, {name for name, reason in smaller.unpruned.items() if reason == SINGLE}

        rigid |= find_moved(model, standing, again)
    return _without(trace, rigid)


def _without(trace: Trace, refuted: Mapping[str, str], untried: Sequence[str] = ()) -> Trace:
    couplings = [coupling for coupling in trace.couplings if coupling.name not in refuted]
    unruled = dict.fromkeys([*trace.unruled, *refuted.values()])
    return replace(
        trace,
        couplings=couplings,
        unpruned={**trace.unpruned, **refuted},
        unruled=tuple(unruled),
        untried=(*trace.untried, *untried),
        inexact=tuple(name for name in trace.inexact if name not in refuted),
    )


def _trace_once(model: nn.Module, inputs: Inputs, choices: _Choices) -> tuple[Traced, Trace]:
    """Trace a network, without any trial but of what its attentions need."""
    twin, computed = plain_twin(model)
    graph = export_graph(twin, inputs, training=False)
    graphs = [graph]
    untried: tuple[str, ...] = ()
    if graph.unused:  # what only runs in training (auxiliary classifiers, averages of codes) reads channels too
        try:
            graphs.append(export_graph(twin, inputs, training=True))
        except ValueError as error:
            unused = some_of(graph.unused)
            untried = (f"{error}, in training mode: what only runs there is not followed (it may read {unused})",)
    attentions, passed_over = Attentions(twin, inputs, choices.granularity), frozenset[tuple[str, int]]()
    while True:
        tracer, streams = _followed(graphs, attentions, choices, passed_over)
        couplings, unpruned, index = collect(tracer, streams.roots() if choices.scope == "inner" else set[Root]())
        completed = attentions.complete(tracer, index, couplings, graph.nodes)
        if completed is None:
            continue
        stuck = {axis for axis, labels in tracer.chosen.items() if not index.names_of(labels)} - passed_over
        if not stuck:
            break
        attentions, passed_over = Attentions(twin, inputs, choices.granularity), passed_over | stuck
    couplings = _without_energy_of_buffers(said_of_sources(completed, computed), model)
    inexact = index.owners([norm.channels for norm in tracer.norms if not norm.exact])
    said = said_of_kept(tracer, index, graph.nodes, unpruned)
    idle = set.intersection(*(set(one.unused) for one in graphs))
    averages = said_of_averages(twin, idle, couplings)
    said += averages
    untried += () if averages else said_of_idle(twin, idle, couplings)
    trace = Trace(couplings, unpruned, tuple(dict.fromkeys([*tracer.unruled, *said])), untried, inexact)
    return Traced(tracer, index, graph.nodes), trace


@indices_on_cpu()
def _followed(
    graphs: Sequence[Graph], attentions: Attentions, choices: _Choices, passed_over: frozenset[tuple[str, int]]
) -> tuple[Tracer, Streams]:
    """Follow the channels through the graphs of a network, with what is known of its attentions and stacked weights."""
    tracer = Tracer(
        thinned=dict(choices.thinned),
        follow_layer_norm=choices.verify != "numeric",
        approximate=choices.approximate,
        granularity=choices.granularity,
        modes=dict(attentions.modes),
        doubts=Doubts(choices.distrusted if choices.proves else None),
        passed_over=passed_over,
    )
    streams = Streams(tracer)
    for graph in graphs:
        tracer.run(graph.nodes, graph.names, graph.constants, graph.modules)
        keep_unread(tracer, graph.nodes, graph.names)
        streams.read(graph.nodes)
        tracer.doubts.closed = True
    settle_products(tracer, attentions)
    for slot in tracer.slots.values():
        if slot.side != "in" and layer_name(slot.parameter) in choices.ignored:
            tracer.sets.fix(slot.ids, IGNORED)
    return tracer, streams


def _without_energy_of_buffers(couplings: Sequence[Coupling], model: nn.Module) -> list[Coupling]:
    """Let buffers that are the weights of a layer (the kernel of a blur) follow their channels without energy."""
    learned = dict(model.named_parameters(remove_duplicate=False))
    return [
        replace(
            coupling, members=tuple(replace(m, counts=m.counts and m.parameter in learned) for m in coupling.members)
        )
        for coupling in couplings
    ]
