"""Small networks of the kinds that users bring, each with the couplings that are to be found in it.

A function of a network and its inputs is the forward of a network of two layers, `a` and `b`, an output `o` and further
parts: `rows` for linear layers (6, 16, 8 and 3 wide), `images` for convolutions (3, 16, 8 and 4). `built` takes any
network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torchvision.ops import DropBlock2d, FeaturePyramidNetwork, StochasticDepth

IMAGES, ROWS, WORDS = torch.randn(3, 3, 12, 12), torch.randn(5, 6), torch.randint(0, 20, (3, 7))
CLIPS, SERIES = torch.randn(2, 2, 4, 6, 6), torch.randn(3, 4, 9)
Forward = Callable[..., Any]
Build = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """A network, the arguments of its forward call, the couplings that it has, and what the user is warned of."""

    build: Callable[[], nn.Module]
    inputs: tuple[Any, ...]
    couplings: tuple[str, ...]
    warns: str


CASES: dict[str, Case] = {}


class Net(nn.Module):
    """Layers, parameters and buffers by name, and a function of the network and its inputs as its forward."""

    def __init__(self, run: Forward, parts: dict[str, Any]) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / shape[-1] ** 0.5)


def conv(before: int, after: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def tail(width: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


def built(couplings: str, *inputs: Any, warns: str = "") -> Callable[[Callable[[], nn.Module]], None]:
    """Put the network that a function builds into the table; `couplings` are names with blanks between."""

    def put(build: Callable[[], nn.Module]) -> None:
        CASES[build.__name__] = Case(build, inputs, tuple(couplings.split()), warns)

    return put


def rows(couplings: str, *more: Any, warns: str = "", **parts: Build) -> Callable[[Forward], None]:
    """Put a network of linear layers into the table, with a function as its forward."""
    layers = {"a": lambda: nn.Linear(6, 16), "b": lambda: nn.Linear(16, 8), "o": lambda: nn.Linear(8, 3)}
    return _net(layers | parts, couplings, (ROWS, *more), warns)


def images(couplings: str, *more: Any, warns: str = "", **parts: Build) -> Callable[[Forward], None]:
    """Put a network of convolutions into the table, with a function as its forward."""
    layers = {"a": lambda: conv(3, 16), "b": lambda: conv(16, 8), "o": lambda: tail(8)}
    return _net(layers | parts, couplings, (IMAGES, *more), warns)


def _net(parts: dict[str, Build], couplings: str, inputs: tuple[Any, ...], warns: str) -> Callable[[Forward], None]:
    def put(run: Forward) -> None:
        CASES[run.__name__] = Case(
            lambda: Net(run, {name: build() for name, build in parts.items()}), inputs, tuple(couplings.split()), warns
        )

    return put


# ----------------------------------------------------------------------------------------------------------------
# raw parameters, shared and repeated layers, wrapped calls
# ----------------------------------------------------------------------------------------------------------------


@rows("a w1 w2", w1=lambda: weight(12, 16), w2=lambda: nn.ParameterList([weight(8, 12)]))
def raw_weights(net: Any, x: Tensor) -> Tensor:
    x = functional.linear(functional.linear(net.a(x).relu(), net.w1).relu(), net.w2[0])
    return net.o(x.relu())


@rows("p", p=lambda: nn.ParameterDict({"w": weight(16, 6), "b": weight(16), "v": weight(3, 16)}))
def parameters_in_a_dictionary(net: Any, x: Tensor) -> Tensor:
    return functional.linear(functional.linear(x, net.p["w"], net.p["b"]).relu(), net.p["v"])


@rows("a b", c=lambda: torch.randn(4, 8))
def a_buffer_as_a_weight(net: Any, x: Tensor) -> Tensor:
    return functional.linear(net.b(net.a(x).relu()).relu(), net.c)


@images("a.0", w=lambda: weight(16, 1, 3, 3), o=lambda: tail(16))
def depthwise_by_hand(net: Any, x: Tensor) -> Tensor:
    return net.o(functional.conv2d(net.a(x), net.w, groups=net.w.shape[0]).relu())


@images("a.0 b.0", g=lambda: nn.Parameter(torch.ones(8)), m=lambda: torch.zeros(8), v=lambda: torch.ones(8))
def batch_norm_by_hand(net: Any, x: Tensor) -> Tensor:
    return net.o(functional.batch_norm(net.b(net.a(x)), net.m, net.v, net.g, None, net.training).relu())


@built("0", ROWS)
def one_bias_in_two_layers() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    model[2].bias = model[0].bias
    return model


@built("w", ROWS)
def a_weight_under_two_names() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    model.register_parameter("w", model[0].weight)
    return model


@images("n.0", n=lambda: conv(3, 16), h=lambda: nn.Conv2d(16, 4, 1))
def one_stage_at_two_scales(net: Any, x: Tensor) -> list[Tensor]:
    return [net.h(net.n(x)), net.h(net.n(functional.avg_pool2d(x, 2)))]


@images("p", IMAGES.flip(0), p=lambda: nn.Conv2d(3, 16, 3), q=lambda: nn.Conv2d(3, 16, 3), n=lambda: nn.BatchNorm2d(16))
def one_norm_after_two_layers(net: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return net.b(net.n(net.p(x)).relu()).mean((2, 3)), net.b(net.n(net.q(y)).relu()).mean((2, 3))


@images("a.0 b.0")
def checkpointed(net: Any, x: Tensor) -> Tensor:
    return net.o(checkpoint(lambda value: net.b(net.a(value)), x, use_reentrant=False))


@rows("a b")
def called_by_function(net: Any, x: Tensor) -> Tensor:
    return net.o(torch.func.functional_call(net.b, dict(net.b.named_parameters()), (net.a(x).relu(),)).relu())


@rows("a b", torch.tensor([True, False, True, True, False]))
def rows_picked_by_a_mask(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    return net.o(net.b(net.a(x[mask]).relu()).relu())


@built("student.0 teacher.0", ROWS)
def teacher_and_student() -> nn.Module:
    student, teacher = (nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)) for _ in range(2))
    teacher.requires_grad_(False)
    return Net(lambda net, x: (net.student(x), net.teacher(x).detach()), {"student": student, "teacher": teacher})


# ----------------------------------------------------------------------------------------------------------------
# joins, cuts and gates
# ----------------------------------------------------------------------------------------------------------------


@images("f", o=lambda: tail(16), f=lambda: nn.Linear(6, 32))
def modulated_by_rows(net: Any, x: Tensor) -> Tensor:
    scale, shift = net.f(x.new_ones(len(x), 6)).chunk(2, 1)
    return net.o((net.a(x) * scale[..., None, None] + shift[..., None, None]).relu())


@images("a b.0", a=lambda: nn.Conv2d(3, 16, 3), b=lambda: conv(32, 8))
def both_signs(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(torch.cat([y, -y], 1).relu()))


@rows("a b", b=lambda: nn.Linear(8, 8))
def largest_of_pairs(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.o(net.b(x.view(x.shape[0], -1, 2).amax(2)).relu())


@images("a b.0", a=lambda: nn.Conv2d(3, 16, 3))
def half_is_overwritten(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y[:, : y.shape[1] // 2].sigmoid_()
    return net.o(net.b(y))


def shifted_in_time(x: Tensor, parts: int) -> Tensor:
    """Take the first part of the channels from the next image, the second from the one before (TSM)."""
    fold, shifted = x.shape[1] // parts, torch.zeros_like(x)
    shifted[:-1, :fold] = x[1:, :fold]
    shifted[1:, fold : 2 * fold] = x[:-1, fold : 2 * fold]
    shifted[:, 2 * fold :] = x[:, 2 * fold :]
    return shifted


@images("a b.0", a=lambda: nn.Conv2d(3, 16, 3))
def quarters_are_shifted_in_time(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(shifted_in_time(net.a(x), 4)))


@images("a.0 f b.0", f=lambda: nn.Linear(16, 4), g=lambda: nn.Linear(4, 16))
def gate_with_views(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    count, width, *_ = y.shape
    gate = net.g(net.f(functional.adaptive_avg_pool2d(y, 1).view(count, width)).relu()).sigmoid()
    return net.o(net.b(y * gate.view(count, width, 1, 1).expand_as(y)))


@images("a.0 b.0")
def gate_by_statistics_in_space(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    d = (y - y.mean((2, 3), keepdim=True)) ** 2
    return net.o(net.b(y * (d / (4 * (d.sum((2, 3), keepdim=True) / 143 + 1e-4)) + 0.5).sigmoid()))


@rows("a e.0", r=lambda: nn.Linear(16, 3), e=lambda: nn.ModuleList(nn.Linear(16, 8) for _ in range(3)), warns="softmax")
def mixture_of_experts(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    mixed = (torch.stack([expert(x) for expert in net.e], 1) * net.r(x).softmax(-1).unsqueeze(-1)).sum(1)
    return net.o(mixed.relu())


@images(
    "a.0",
    b=lambda: conv(16, 16),
    o=lambda: tail(16),
    d=lambda: StochasticDepth(0.5, "row"),
    k=lambda: DropBlock2d(0.3, 3),
)
def stochastic_depth_and_dropped_blocks(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(y + net.d(net.k(net.b(y))))


@images("a.0 b.0", e=lambda: tail(16))
def two_exits_in_training(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    return (net.e(y), net.o(net.b(y))) if net.training else net.o(net.b(y))


@images("a.0 b.0 u", b=lambda: conv(16, 16), u=lambda: nn.ConvTranspose2d(16, 16, 2, 2), o=lambda: tail(32))
def a_skip_that_is_cropped(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(torch.cat([y, net.u(net.b(y))[..., : y.shape[2], : y.shape[3]]], 1))


@built("a.0 b.0 c.0 f.inner_blocks.2.0 f.layer_blocks.2.0", IMAGES)
def feature_pyramid() -> nn.Module:
    def run(net: Any, x: Tensor) -> dict[str, Tensor]:
        a = net.a(x)
        b = net.b(a)
        return {key: net.o(value) for key, value in net.f({"0": a, "1": b, "2": net.c(b)}).items()}

    parts = {"a": conv(3, 8), "b": conv(8, 16, 2), "c": conv(16, 24, 2), "o": nn.Conv2d(12, 4, 1)}
    return Net(run, {**parts, "f": FeaturePyramidNetwork([8, 16, 24], 12)})


@images("a.0 b.0", h=lambda: nn.Conv2d(16, 8, 1), k=lambda: nn.Conv2d(8, 8, 1))
def heads_of_boxes(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    heads = (net.h(y), net.k(net.b(y)))
    return torch.cat([head.permute(0, 2, 3, 1).reshape(len(head), -1, 4) for head in heads], 1)


# ----------------------------------------------------------------------------------------------------------------
# sequences, tables, other numbers of axes, other types
# ----------------------------------------------------------------------------------------------------------------


@built("e a", WORDS)
def words() -> nn.Module:
    parts = {"e": nn.Embedding(20, 8, padding_idx=0), "a": nn.Linear(8, 16), "o": nn.Linear(16, 3)}
    return Net(lambda net, x: net.o(net.a(net.e(x)).relu()), parts)


@built("e a", WORDS)
def bags_of_words() -> nn.Module:
    parts = {"e": nn.EmbeddingBag(20, 8), "a": nn.Linear(8, 16), "o": nn.Linear(16, 3)}
    return Net(lambda net, x: net.o(net.a(net.e(x)).relu()), parts)


@built("e a", WORDS)
def words_in_and_out() -> nn.Module:
    parts = {"e": nn.Embedding(20, 8), "a": nn.Linear(8, 16), "b": nn.Linear(16, 8)}
    return Net(lambda net, x: functional.linear(net.e(x) + net.b(net.a(net.e(x)).relu()), net.e.weight), parts)


@built("c.0 c.2", SERIES)
def convolutions_before_a_recurrence() -> nn.Module:
    layers = nn.Sequential(nn.Conv1d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 12, 3, padding=1))
    recurrent = nn.LSTM(12, 10, batch_first=True)
    return Net(lambda net, x: net.r(net.c(x).transpose(1, 2))[0][:, -1], {"c": layers, "r": recurrent})


@built("x", torch.randn(2, 3, 3, 6, 6))
def recurrent_convolutions() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        hidden = cell = None
        for step in x.unbind(1):
            gates = net.x(step) if hidden is None else net.x(step) + net.h(hidden)
            i, f, out, new = gates.chunk(4, 1)
            cell = i.sigmoid() * new.tanh() if cell is None else f.sigmoid() * cell + i.sigmoid() * new.tanh()
            hidden = out.sigmoid() * cell.tanh()
        return net.o(hidden)

    parts = {"x": nn.Conv2d(3, 32, 3, padding=1), "h": nn.Conv2d(8, 32, 3, padding=1, bias=False)}
    return Net(run, {**parts, "o": nn.Conv2d(8, 2, 1)})


@built("0 3 5", CLIPS)
def clips() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 8, 3, padding=1),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.Conv3d(8, 12, (1, 3, 3)),
        nn.ReLU(),
        nn.ConvTranspose3d(12, 6, 2, 2),
        nn.ReLU(),
        nn.Conv3d(6, 2, 1),
    )


@rows(
    "e mu d",
    e=lambda: nn.Linear(6, 16),
    mu=lambda: nn.Linear(16, 8),
    lv=lambda: nn.Linear(16, 8),
    d=lambda: nn.Linear(8, 8),
)
def noise_inside(net: Any, x: Tensor) -> Tensor:
    h = net.e(x).relu()
    mean, log = net.mu(h), net.lv(h)
    return net.o(net.d(mean + 0 * torch.randn_like(mean) * log.exp()).relu())


@built("0 3", IMAGES)
def norms_without_a_scale() -> nn.Module:
    second = nn.BatchNorm2d(8, track_running_stats=False)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12, affine=False), nn.ReLU(), nn.Conv2d(12, 8, 3), second, tail(8)
    )


@built("0 3", IMAGES)
def instance_norm_with_statistics() -> nn.Module:
    norm = nn.InstanceNorm2d(12, affine=True, track_running_stats=True)
    return nn.Sequential(nn.Conv2d(3, 12, 3), norm, nn.ReLU(), nn.Conv2d(12, 8, 3), nn.PReLU(8), tail(8))


@built("0.0 1.0", IMAGES)
def synchronised_batch_norm() -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(conv(3, 12), conv(12, 8), tail(8)))


@built("0.0 1.0", IMAGES.to(memory_format=torch.channels_last))
def channels_last() -> nn.Module:
    return nn.Sequential(conv(3, 12), conv(12, 8), tail(8)).to(memory_format=torch.channels_last)


@built("3", IMAGES, warns="pools over the channels")
def response_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.LocalResponseNorm(5), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), tail(8)
    )


@built("0 2", IMAGES)
def parametrised_weight_norm() -> nn.Module:
    first, second = (parametrizations.weight_norm(layer) for layer in (nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3)))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), tail(8))


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@images("a.0 b.0")
def binary_activations(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(_Sign.apply(net.a(x))))
