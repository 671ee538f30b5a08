"""What cannot be followed, tried or taken is said, with names."""

from __future__ import annotations

import copy
import json
import random
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

import oicsr
from tests.oicsr.networks import Chain
from tests.oicsr.users_networks import IMAGES, ROWS, Net, conv, tail, weight

SMALL_IMAGES = torch.randn(2, 3, 8, 8)


def layers() -> dict[str, nn.Module]:
    return {"a": nn.Linear(6, 16), "b": nn.Linear(16, 8), "o": nn.Linear(8, 3)}


def center(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return output - output.mean(1, keepdim=True)


def shrink(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(arg / arg.shape[1] for arg in args)


@pytest.mark.parametrize(
    "register", [lambda m: m.register_forward_hook(center), lambda m: m.register_forward_pre_hook(shrink)]
)
def test_hooks_that_may_change_values_are_named(register: Callable[[nn.Module], object]) -> None:
    """They do not run while couplings are found: were they silent, the pruned network would be another one."""
    model = nn.Sequential(conv(3, 12), conv(12, 8), tail(8))
    register(model[1])
    with pytest.warns(oicsr.UntriedWarning, match=r"users' hooks do not run.*'1'.*compare the outputs"):
        assert oicsr.find_couplings(model, IMAGES)


def test_hooks_that_change_no_values_are_not_named() -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
    model.register_full_backward_hook(lambda *_: None)
    assert not oicsr.trace_couplings(nn.Sequential(model, nn.Linear(8, 3)), ROWS).untried


def test_a_reason_that_a_deep_network_repeats_is_said_once() -> None:
    blocks = (nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU()) for _ in range(6))
    model = nn.Sequential(*blocks, nn.LayerNorm(6), nn.Linear(6, 3))
    with pytest.warns(oicsr.UnprunedChannelsWarning) as said:
        assert not oicsr.find_couplings(model, ROWS, scope="all")
    reason = "operator aten.layer_norm.default in module '1.0' normalises over the channels"
    assert f"{reason} (likewise '2.0', '3.0', '4.0' and 2 others)" in str(said[0].message)
    assert len(oicsr.trace_couplings(model, ROWS, scope="all").unruled) == 6


@pytest.mark.parametrize(
    ("run", "parts", "reason"),
    [
        (
            lambda net, x: net.o(torch.linalg.multi_dot([x, net.w, net.v])),
            {"w": weight(6, 8), "v": weight(8, 8)},
            r"aten\.linalg_multi_dot.*so that 'w' stays as it is",
        ),
        (
            lambda net, x: net.o(torch.linalg.solve(net.v, x @ net.w, left=False)),
            {"w": weight(6, 8), "v": weight(8, 8)},
            r"linalg_solve.*'v' stays",
        ),
        (
            lambda net, x: net.o(torch.cond(x.sum() > 0, lambda v: net.p(v), lambda v: net.q(v).relu(), (x,))),
            {"p": nn.Linear(6, 8), "q": nn.Linear(6, 8)},
            r"operator cond.*'p\.weight' stays",
        ),
        (lambda net, x: net.o(net.p(x) + x @ torch.ones(6, 8)), {"p": nn.Linear(6, 8)}, r"aten\.matmul"),
    ],
    ids=["products", "equations", "branches", "a constant matrix"],
)
def test_weights_that_no_rule_follows_are_named(
    run: Callable[..., Tensor], parts: dict[str, object], reason: str
) -> None:
    with pytest.warns(oicsr.UnprunedChannelsWarning, match=reason):
        assert not oicsr.find_couplings(Net(run, {**parts, "o": nn.Linear(8, 3)}), ROWS)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_a_scripted_part_is_named() -> None:
    model = nn.Sequential(
        nn.Linear(6, 16), torch.jit.script(nn.Sequential(nn.Linear(16, 8), nn.ReLU())), nn.Linear(8, 3)
    )
    with pytest.raises(ValueError, match=r"'1' is scripted: put the module that it was made of in its place"):
        oicsr.find_couplings(model, ROWS)


class Packed(nn.Module):
    """Sequences that are packed where lengths are given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        packed: Any = x if lengths is None else pack_padded_sequence(x, lengths, batch_first=True)
        last: Tensor = self.out(self.layer(packed)[1][0][-1])
        return last


def test_packed_sequences_are_named_and_what_to_do_about_them_works() -> None:
    model, x, lengths = Packed().eval(), torch.randn(3, 5, 6), torch.tensor([5, 3, 2])
    with pytest.raises(
        ValueError, match=r"line \d+ of test_said\.py, `last: .*: sequences are packed.* pass None among"
    ):
        oicsr.find_couplings(model, (x, lengths))
    couplings = oicsr.find_couplings(model, (x, None))
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(couplings, {"layer": [0, 2, 5]}))
    assert small(x, lengths).shape == (3, 3) and not torch.equal(small(x, lengths), small(x, None))


def test_a_branch_on_values_is_quoted() -> None:
    model = Net(lambda net, x: net.o(x if x.sum() > 0 else -x), {"o": nn.Linear(6, 3)})
    with pytest.raises(
        ValueError, match=r"\(line \d+ of test_said\.py, `model = .*`: check that the model does not branch"
    ):
        oicsr.find_couplings(model, ROWS)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ((ROWS, torch.tensor([0, 1])), r"a tensor \(\d+, 6\) of float32, a tensor \(2,\) of int64\)"),
        ({"x": ROWS, "epoch": 3}, r"x: a tensor \(\d+, 6\) of float32, epoch: 3\)"),
        (([ROWS], None), r"one list, None\)"),
    ],
    ids=["labels", "keyword", "list"],
)
def test_inputs_that_the_network_does_not_take_are_described(inputs: Any, said: str) -> None:
    model = Net(lambda net, x: net.o(x), {"o": nn.Linear(6, 3)})
    with pytest.raises(ValueError, match=r"TypeError: .*\(.*it fails without the exporter as well; .* holds " + said):
        oicsr.find_couplings(model, inputs)


def test_a_number_for_an_output_is_said_to_be_none() -> None:
    model = Net(lambda net, x: net.o(x).mean().item(), {"o": nn.Linear(6, 3)})  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="Net returns no tensors that can be found"):
        oicsr.find_couplings(model, ROWS)


def test_an_output_that_refers_to_itself_is_looked_into_once() -> None:
    def run(net: Any, x: Tensor) -> Any:
        found = SimpleNamespace(scores=net.o(net.a(x).relu()))
        found.whole = found
        return found

    model = Net(run, {"a": nn.Linear(6, 8), "o": nn.Linear(8, 3)})
    (coupling,) = oicsr.find_couplings(model, ROWS)
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept([coupling], {"a": [1, 2]}))
    assert small(ROWS).scores.shape == (len(ROWS), 3)


def unseen_argmax(scores: Tensor) -> Tensor:
    """Decide where no trial sees from what."""
    with torch._C.DisableTorchFunction():
        return scores.argmax(-1)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda net, x: net.o(net.b(net.a(x) / net.a.out_features)) * 1e-16, "nearly zero"),
        (lambda net, x: unseen_argmax(net.o(net.b(net.a(x) / net.a.out_features))), "are integers"),
    ],
    ids=["tiny", "integers"],
)
def test_outputs_that_show_little_are_said(run: Callable[..., Tensor], said: str) -> None:
    trace = oicsr.trace_couplings(Net(run, layers()), ROWS)
    assert any(said in reason for reason in trace.untried) and trace.couplings


DECISIONS: dict[str, Callable[[Tensor], Any]] = {
    "argmax": lambda scores: scores.argmax(-1),
    "sort": lambda scores: scores.sort(-1).indices,
    "max": lambda scores: scores.max(-1)[1].unsqueeze(0) + 1,
    "mask": lambda scores: (scores > 0).long().sum(-1),
    "one of several": lambda scores: (scores.argmax(-1), scores.argmin(-1).clone()),
}


@pytest.mark.parametrize("decide", DECISIONS.values(), ids=DECISIONS)
def test_what_whole_numbers_are_decided_from_is_compared(decide: Callable[[Tensor], Any]) -> None:
    def run(net: Net, x: Tensor) -> Any:
        return decide(net.o(net.b(net.a(x) / net.a.out_features)))

    trace = oicsr.trace_couplings(Net(run, layers()), ROWS)
    assert not trace.untried
    assert [(c.name, bool(c.rescaled)) for c in trace.couplings] == [("a", True), ("b", False)]


def test_noise_whose_amount_depends_on_a_width_hides_nothing() -> None:
    def scaled(net: Net, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.o(net.b((x + 0.1 * torch.randn_like(x)) + x.shape[1]))

    def honest(net: Net, x: Tensor) -> Tensor:
        x = functional.relu(net.a(x))
        return net.o(net.b(x * torch.bernoulli(torch.full_like(x, 0.9))))

    wrong, right = (oicsr.trace_couplings(Net(run, layers()), ROWS) for run in (scaled, honest))
    assert "'a' cannot lose channels: an output changes" in wrong.unpruned["a"] and not wrong.untried
    assert [coupling.name for coupling in right.couplings] == ["a", "b"] and not right.untried


def test_noise_that_is_not_pytorchs_is_said() -> None:
    def noisy(net: Net, x: Tensor) -> Tensor:
        return net.o(net.b(net.a(x) * (1 + random.random() if x.numel() and not torch.compiler.is_exporting() else 1)))

    assert any("are random" in reason for reason in oicsr.trace_couplings(Net(noisy, layers()), ROWS).untried)


@pytest.mark.parametrize("on_meta", [True, False], ids=["network on meta", "network on the CPU"])
def test_any_default_device_will_do(on_meta: bool) -> None:
    model, images = Chain().eval(), SMALL_IMAGES
    expected = [repr(coupling) for coupling in oicsr.find_couplings(model, images)]
    with torch.device("meta"):
        if on_meta:
            model, images = Chain().eval(), torch.randn(2, 3, 8, 8)
        trace = oicsr.trace_couplings(model, images)
        couplings = trace.couplings
        scores = [torch.linspace(0, 1, c.num_channels, device="cpu") for c in couplings]  # of every layer some go
        plan = oicsr.select_channels(scores, couplings, model, images, macs_kept=0.5, tolerance=0.2)
        small = oicsr.remove_channels(model, plan)
        left = oicsr.shrink_couplings(couplings, plan)
    assert [repr(coupling) for coupling in couplings] == expected
    assert bool(trace.untried) == on_meta
    assert small.conv1.weight.shape[0] == left[0].num_channels < 6
    assert small.conv1.weight.is_meta == on_meta


def test_what_trains_and_scores_takes_any_default_device() -> None:
    """Of a network on the CPU, whatever the device that tensors are made on without one (`set_default_device`)."""
    model, images = Chain().eval(), SMALL_IMAGES
    couplings = oicsr.find_couplings(model, images)
    plan = oicsr.PruningPlan.from_kept(couplings, {c.name: range(0, c.num_channels, 2) for c in couplings})

    def values() -> list[Tensor]:
        """Return what each function gives."""
        penalties = [kind(couplings) for kind in (oicsr.GroupLasso, oicsr.GrOWL, oicsr.ProximalGroupLasso)]
        small = oicsr.remove_channels(model, plan, absorb=True, example_inputs=images)
        return [
            *(penalty(model) for penalty in penalties),
            *oicsr.out_in_energy(model, couplings, "size"),
            *oicsr.recalibrate(small, [images]).state_dict().values(),
        ]

    expected = values()
    with torch.device("meta"):
        found = values()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "make", [torch.tensor, lambda ids: torch.tensor(ids).numpy(), lambda ids: list(torch.tensor(ids))]
)
def test_a_plan_takes_ids_of_any_kind_and_is_written_as_json(make: Callable[[list[int]], object]) -> None:
    couplings = oicsr.find_couplings(Chain(), SMALL_IMAGES)
    plan = oicsr.PruningPlan.from_kept(couplings, {"conv1": make([4, 0, 2])})  # type: ignore[dict-item]
    assert plan == oicsr.PruningPlan.from_kept(couplings, {"conv1": [0, 2, 4]})
    assert oicsr.PruningPlan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["kept"]["conv1"] == [0, 2, 4]


@pytest.mark.parametrize("ids", [torch.tensor([True, False, True]), [0.5, 1.0], [True, False], 3, torch.tensor(2)])
def test_a_plan_refuses_what_are_no_ids(ids: object) -> None:
    couplings = oicsr.find_couplings(Chain(), SMALL_IMAGES)
    with pytest.raises(ValueError, match=r"'conv1' keeps .*: what is kept must be the ids of channels, integers"):
        oicsr.PruningPlan.from_kept(couplings, {"conv1": ids})  # type: ignore[dict-item]


def test_a_tensor_that_is_no_buffer_is_named() -> None:
    def masked(net: Net, x: Tensor) -> Tensor:
        return net.o(net.b(net.a(x) * net.mask))

    model = Net(masked, layers())
    object.__setattr__(model, "mask", torch.ones(model.a.out_features))
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="'a' is combined with 'mask', which is no buffer"):
        oicsr.find_couplings(model, ROWS)
    del model.mask
    model.register_buffer("mask", torch.ones(model.a.out_features))
    assert [coupling.name for coupling in oicsr.find_couplings(model, ROWS)] == ["a", "b"]


def test_outputs_in_which_no_tensor_is_found_are_refused() -> None:
    def lazy(net: Net, x: Tensor) -> object:
        return (net.o(value) for value in [net.b(net.a(x))])

    with pytest.raises(ValueError, match="returns no tensors that can be found"):
        oicsr.find_couplings(Net(lazy, layers()), ROWS)


class Remembering(nn.Module):
    """Makes a mask at its first call, and counts its calls in a buffer that its outputs depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
        self.mask: Tensor | None = None
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("history", torch.zeros(0, 16))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.a(x).relu()
        if self.mask is None:
            self.mask = torch.ones(x.shape[1], dtype=x.dtype)
        self.history = torch.cat([self.history, x.detach()])
        return self.b(x * self.mask * self.calls + self.history[-1])


def test_what_a_forward_keeps_is_another_ones_affair_in_the_next_trial() -> None:
    model = Remembering()
    trace = oicsr.trace_couplings(model, ROWS)
    assert [coupling.name for coupling in trace.couplings] == ["a"] and not trace.untried
    assert model.mask is None and model.history.shape == (0, 16) and float(model.calls) == 0
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(trace.couplings, {"a": [1, 4, 9]}))
    assert small(ROWS).shape == (5, 3) and small.history.shape == (5, 3)


def test_compiled_parts_are_not_compiled_in_trials() -> None:
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        compiled.append(graph)
        return graph.forward

    inner = torch.compile(nn.Sequential(nn.Linear(16, 8), nn.ReLU()), backend=backend)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), inner, nn.Linear(8, 3))
    couplings = oicsr.find_couplings(model, ROWS)
    assert [coupling.name for coupling in couplings] == ["0", "2._orig_mod.0"]
    assert oicsr.count_macs(model, ROWS) == 6 * 16 + 16 * 8 + 8 * 3
    assert not compiled
    inner(torch.randn(5, 16))
    assert compiled


def test_layers_that_mix_tokens_stay_for_a_reason() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.o(net.b(x + net.second(net.first(x.transpose(1, 2)).relu()).transpose(1, 2)))

    parts = {**layers(), "first": nn.Linear(5, 12), "second": nn.Linear(12, 5)}
    trace = oicsr.trace_couplings(Net(run, parts), torch.randn(2, 5, 6), scope="all")
    assert [coupling.name for coupling in trace.couplings] == ["a", "b"]
    why = "runs along another axis than that of its input's channels"
    assert trace.unpruned["first"] == trace.unpruned["second"] == why


class Averaged(nn.Module):
    """Two layers, and a moving average of them that forward does not run."""

    def __init__(self, average: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        self.average = average(self.net)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("average", [copy.deepcopy, torch.optim.swa_utils.AveragedModel])
def test_a_moving_average_that_never_runs_is_named_and_follows_one_plan(average: Callable[..., nn.Module]) -> None:
    model = Averaged(average)
    said = r"'average' is never run and stays as it is, with weights near those of 'net'.*couplings of 'net' and prune"
    with pytest.warns(oicsr.UnprunedChannelsWarning, match=said):
        assert oicsr.find_couplings(model, ROWS)
    couplings = oicsr.find_couplings(model.net, ROWS)
    plan = oicsr.PruningPlan.from_kept(couplings, {"0": [1, 5, 6]})
    twin = oicsr.remove_channels(model.average, plan)
    small = oicsr.remove_channels(model.net, plan)
    assert torch.equal(twin(ROWS), small(ROWS)) and small[0].out_features == 3


def test_layers_of_one_shape_and_patterns_of_several_layers_are_no_moving_averages() -> None:
    """An idle layer has the shapes of another one by chance; that which a transformer was made of is near all."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.ModuleDict({"idle": nn.Linear(8, 16), "net": nn.Linear(8, 16), "out": nn.Linear(16, 8), "layer": layer})
    model["stack"] = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(x: Tensor) -> Tensor:
        return model["stack"](model["out"](model["net"](x).relu()))  # type: ignore[no-any-return]

    model.forward = forward  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert "net" in {coupling.name for coupling in oicsr.find_couplings(model, torch.randn(2, 5, 8))}
    assert not [entry for entry in caught if "is never run" in str(entry.message)]


def test_another_network_that_never_runs_is_no_moving_average() -> None:
    model = Averaged(lambda _: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)))
    assert [coupling.name for coupling in oicsr.find_couplings(model, ROWS)] == ["net.0"]


def test_inputs_on_another_device_are_named_as_the_cause() -> None:
    with pytest.raises(ValueError, match=r"the network is on cpu and example_inputs on meta: move them to the network"):
        oicsr.find_couplings(Chain(), SMALL_IMAGES.to("meta"))
    with pytest.raises(ValueError, match=r"the network is on meta and example_inputs on cpu: move them to the network"):
        oicsr.prune(Chain().to("meta"), SMALL_IMAGES)


def test_a_network_that_was_made_in_inference_mode_is_refused_with_the_way_out() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"made under torch\.inference_mode: .* Take a copy, copy\.deepcopy\(model\)"):
        oicsr.find_couplings(model, torch.randn(2, 4))
    assert oicsr.find_couplings(copy.deepcopy(model), torch.randn(2, 4))


class Domains(nn.Module):
    """Has a normalisation for each domain, and layers that `forward` does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1), nn.Linear(16, 5)
        self.norms, self.other = nn.ModuleList([nn.BatchNorm2d(16), nn.BatchNorm2d(16)]), nn.Linear(7, 7)

    def forward(self, x: Tensor, domain: int = 0) -> Tensor:
        out: Tensor = self.out(self.norms[domain](self.conv(x)).relu())
        return out


def test_entries_that_are_not_run_are_named_where_one_of_their_kind_is_cut() -> None:
    images = torch.zeros(2, 3, 8, 8)
    words = r"^'norms.1' is not run with example_inputs, as 'norms.0' is: where channels of 'conv' go"
    with pytest.warns(oicsr.UntriedWarning, match=words):
        (coupling,) = oicsr.find_couplings(Domains(), images)
    assert coupling.name == "conv"


class Heads(nn.Module):
    """Has heads that only a flag runs, each as wide as something else."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 3), nn.Linear(10, 4)
        self.aux, self.more = nn.Linear(12, 2), nn.Sequential(nn.BatchNorm1d(10), nn.Linear(10, 2))
        self.words, self.wide, self.dead = nn.Embedding(12, 5), nn.Linear(11, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor, *, aux: bool = False) -> Any:
        x = self.first(x).relu()
        y = self.second(x).relu().mean((2, 3))
        heads = (self.aux(x.mean((2, 3))), self.more(y), self.words, self.wide) if aux else ()
        return self.out(y), *heads[:2]


def test_heads_that_only_a_flag_runs_are_named_where_they_are_as_wide_as_channels() -> None:
    images = torch.zeros(2, 3, 8, 8)
    said = r"^'aux' is not run .* as many channels as 'first' has: .* ignore='first'\); 'more' is not run .* 'second'"
    with pytest.warns(oicsr.UntriedWarning, match=said) as caught:
        oicsr.find_couplings(Heads(), images)
    assert not any(name in str(entry.message) for entry in caught for name in ("words", "wide", "dead"))
    couplings = oicsr.find_couplings(Heads(), {"x": images, "aux": True})  # warnings are errors
    assert [coupling.name for coupling in couplings] == ["first", "second"]


@pytest.mark.parametrize("call", [oicsr.find_couplings, oicsr.count_macs])
def test_lazy_modules_are_to_run_first(call: Callable[..., Any]) -> None:
    model = nn.Sequential(nn.LazyConv2d(12, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConv2d(4, 3))
    with pytest.raises(ValueError, match=r"'0\.weight' has no shape yet \(a lazy module\): call the model on an input"):
        call(model, torch.zeros(2, 3, 8, 8))
    model(torch.zeros(2, 3, 8, 8))
    assert call(model, torch.zeros(2, 3, 8, 8))


def test_arguments_of_a_class_that_nobody_knows_are_named() -> None:
    class Batch:
        """Holds images, unseen by the exporter."""

        def __init__(self, images: Tensor) -> None:
            self.images = images

    class Reading(nn.Module):
        """Reads the images of a batch."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))

        def forward(self, batch: Batch) -> Tensor:
            images: Tensor = self.layers(batch.images)
            return images

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        oicsr.find_couplings(Reading(), (Batch(torch.randn(2, 3, 8, 8)),))
    said = [str(entry.message) for entry in caught if entry.category is oicsr.UntriedWarning]
    assert any(
        "no tensor that can be seen, but a Batch" in text and "register_dataclass(Batch)" in text for text in said
    )


def test_modules_in_plain_lists_are_named() -> None:
    class Plain(nn.Module):
        """Keeps layers where PyTorch does not look for them."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle = nn.Conv2d(3, 8, 3), [nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)]
            self.last, self.views = nn.Conv2d(8, 4, 3), [self.first]

        def forward(self, x: Tensor) -> Tensor:
            x = self.views[0](x).relu()
            for layer in self.middle:
                x = layer(x)
            values: Tensor = self.last(x)
            return values

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        oicsr.find_couplings(Plain().eval(), torch.randn(2, 3, 8, 8))
    said = [str(entry.message) for entry in caught]
    assert any("'middle' of Plain holds modules (Conv2d, BatchNorm2d) in a plain list" in text for text in said)
    assert not any("'views'" in text for text in said)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Linear(6, 3)), "nor in any other one ('0': is an output of the model)"),
        (nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 3)), "scope='all', with nothing to ignore, finds those of '0'"),
        (nn.Sequential(nn.Embedding(9, 3)), "in this scope ("),  # does not run on these rows
        (nn.ReLU(), "nor in any other one"),
    ],
)
def test_where_nothing_can_be_removed_the_error_says_why(model: nn.Module, said: str) -> None:
    with pytest.raises(ValueError, match="there are no couplings: the model has no channels") as error:
        oicsr.select_channels([], [], model, ROWS)
    assert said in str(error.value)


def said_of_width(run: Callable[[Any, Tensor], Tensor], **more: nn.Module) -> str:
    trace = oicsr.trace_couplings(Net(run, layers() | more).eval(), ROWS, scope="all", approximate="layer_norm")
    return trace.unpruned["a"]


def test_what_to_do_about_a_width_in_the_code_is_told_by_the_error() -> None:
    """-1 helps where the code reshapes; nn.MultiheadAttention has a way of its own."""
    reshaped = said_of_width(lambda net, x: net.o(net.b(net.a(x).unsqueeze(1).reshape(5, 16))))
    assert "write -1 in its place" in reshaped
    spread = said_of_width(lambda net, x: net.o(net.b(net.a(x).expand(5, 16))))
    assert "write -1" not in spread and "the shape of a tensor" in spread

    def attend(net: Any, x: Tensor) -> Tensor:
        tokens = net.n(net.a(x)).unsqueeze(1)
        return net.o(net.b(net.m(tokens, tokens, tokens)[0].squeeze(1)))

    attended = said_of_width(attend, n=nn.LayerNorm(16), m=nn.MultiheadAttention(16, 2))
    assert "oicsr.open_attention(model) sets it free" in attended and "write -1" not in attended


def test_a_product_that_is_no_attention_is_not_called_one() -> None:
    """A second network makes the weights of the first, one set for each input."""

    def run(net: Any, x: Tensor) -> Tensor:
        made = net.makes(x).view(-1, 16, 8)
        return net.o(torch.bmm(made, net.first(x).relu().unsqueeze(-1)).squeeze(-1).relu())

    model = Net(run, {"makes": nn.Linear(6, 16 * 8), "first": nn.Linear(6, 8), "o": nn.Linear(16, 3)})
    said = r"a product of activations in '\(root\)' \(Net\) stays: line"
    with pytest.warns(oicsr.UnprunedChannelsWarning, match=said):
        oicsr.find_couplings(model, ROWS, scope="all")
