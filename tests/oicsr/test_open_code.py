"""Attention in a module's own code that reshapes to known widths: opened, it computes the same and loses channels."""

from __future__ import annotations

import copy
import importlib
import io
import math
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
import torch as th
from torch import Tensor, fx, nn
from torch.nn import functional

import oicsr
from oicsr.opened.code import freed, is_freed
from tests.oicsr.networks import drop_third
from tests.oicsr.test_attention import check_exact, found

HEADS, WIDTH, TOKENS = 3, 12, 5


class WithAttention(nn.Module):
    """A residual attention, and a linear layer."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.head = attention, nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.attention(x))


class Fused(nn.Module):
    """Queries, keys and values in one layer, as timm's BEiT has them."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, 0.5
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attention = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(B, N, C))


class Small(Fused):
    """Its code in the class above."""


class ThroughSuper(Small):
    """A forward that calls that of its base."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(x.shape)


def with_heads(x: Tensor, heads: int) -> Tensor:
    b, t, c = x.shape
    return x.reshape(b, t, heads, c // heads).transpose(1, 2)


class Projections(nn.Module):
    """Layers for queries, keys, values and what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.n_head = HEADS
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)


class Separate(Projections):
    """A scale from the width, as in minGPT."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = self.parts(x, b, t, c)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).contiguous().view(b, t, c))

    def parts(self, x: Tensor, b: int, t: int, c: int) -> list[Tensor]:
        return [m(x).view(b, t, self.n_head, c // self.n_head).transpose(1, 2) for m in (self.q, self.k, self.v)]


class Shapes(Separate):
    """The sizes in other words, and a private name."""

    __power = -0.5

    def forward(self, x: Tensor) -> Tensor:
        q = torch.reshape(self.q(x), (x.shape[0], x.shape[1], self.n_head, x.shape[-1] // self.n_head))
        k, v = (m(x).unflatten(2, (self.n_head, x.size(-1) // self.n_head)) for m in (self.k, self.v))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        y = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** self.__power, -1) @ v
        return self.out(y.transpose(1, 2).reshape(x.shape))


class Helped(Separate):
    """A function outside of the class divides by the width of what it gets; its own code puts together."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (with_heads(m(x), self.n_head) for m in (self.q, self.k, self.v))
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c))


class Outside(Separate):
    """A function outside of the class is at fault."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (with_heads(m(x), self.n_head) for m in (self.q, self.k, self.v))
        return self.out(put_together(functional.scaled_dot_product_attention(q, k, v).view(b, self.n_head, t, -1), c))


def put_together(y: Tensor, c: int) -> Tensor:
    return y.transpose(1, 2).reshape(len(y), -1, c)


class Numbers(Projections):
    """The sizes as numbers, and without a word of attention but its name."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).view(2, -1, HEADS, 4).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = (q @ k.transpose(-2, -1) / math.sqrt(4)).exp().mul(0.1) @ v
        return self.out(y.transpose(1, 2).reshape([2, TOKENS, 12]))


class NumbersAttention(Numbers):
    pass


class Names(Projections):
    """The width of the input and of a head under other names."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, features = x.shape
        size = features // self.n_head
        q, k, v = (m(x).view(*x.shape[:2], self.n_head, size).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, n, features))


class Beside(Projections):
    """A division by what stands beside it, and sizes by their number."""

    def forward(self, x: Tensor) -> Tensor:
        anything = x.size(2)
        shape = x.shape[0], x.shape[1], anything
        q, k, v = (m(x).view(*x.shape[:-1], self.n_head, anything // self.n_head) for m in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.out(torch.reshape(y.transpose(1, 2), (*x.shape[:-1], x.size(2)))).reshape(shape)


class TokensFirst(Projections):
    """Heads lie in the batch, as in fairseq: views of what was made contiguous."""

    def forward(self, x: Tensor) -> Tensor:
        t, b, embed_dim = x.transpose(0, 1).shape
        head_dim = embed_dim // self.n_head
        q, k, v = (
            m(x.transpose(0, 1)).contiguous().view(t, b * self.n_head, head_dim).transpose(0, 1)
            for m in (self.q, self.k, self.v)
        )
        y = torch.bmm(torch.softmax(torch.bmm(q * 0.5, k.transpose(1, 2)), -1), v)
        return self.out(y.transpose(0, 1).contiguous().view(t, b, embed_dim)).transpose(0, 1)


class Images(nn.Module):
    """Channels lie behind the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.q, self.k, self.v = (nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(3))
        self.out = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).unsqueeze(-1)
        B, C, H, W = x.shape
        q, k, v = (m(x).reshape(B, self.num_heads, C // self.num_heads, H * W) for m in (self.q, self.k, self.v))
        y = v @ (q.transpose(-2, -1) @ k / 2).softmax(-1).transpose(-2, -1)
        return self.out(y.reshape(B, C, H, W)).squeeze(-1).transpose(1, 2)


KINDS = {
    "fused": Fused,
    "inherited": Small,
    "through super": ThroughSuper,
    "separate": Separate,
    "shapes": Shapes,
    "helped": Helped,
    "names": Names,
    "beside": Beside,
    "tokens first": TokensFirst,
    "images": Images,
}


def network(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return WithAttention(kind()).double().eval(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("granularity", ["channel", "head"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_the_same_and_loses_channels_and_heads_exactly(kind: str, granularity: str) -> None:
    model, x = network(KINDS[kind])
    opened = oicsr.open_attention(model)
    assert type(model.attention) is KINDS[kind]
    assert isinstance(opened.attention, KINDS[kind])
    assert torch.equal(opened(x), model(x))
    assert [*opened.state_dict()] == [*model.state_dict()]
    couplings = found(opened, x, granularity)
    assert couplings
    assert {c.kind for c in couplings if c.name.startswith("attention.")} == {granularity}
    small, _ = check_exact(opened, (x,), couplings, drop_third(couplings))
    assert oicsr.count_macs(small, x) < oicsr.count_macs(model, x)


@pytest.mark.parametrize("kind", KINDS)
def test_as_it_is_the_warning_says_what_to_call(kind: str) -> None:
    model, x = network(KINDS[kind])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", oicsr.UnprunedChannelsWarning)
        couplings = oicsr.find_couplings(model, x, granularity="head")
    assert not couplings
    said = [str(entry.message) for entry in caught]
    assert any("stays: " in text and text.count("oicsr.open_attention(model) sets its widths free") for text in said)
    assert not any("write -1 in its place" in text for text in said)


def test_a_function_outside_of_the_class_is_refused_in_other_words() -> None:
    model, x = network(Outside)
    opened = oicsr.open_attention(model)  # its other methods are freed
    assert torch.equal(opened(x), model(x))
    with pytest.warns(oicsr.UnprunedChannelsWarning, match=r"write -1 in its place"):
        couplings = oicsr.find_couplings(opened, x, granularity="head")
    assert not couplings


def test_numbers_are_widths_where_nothing_else_is() -> None:
    model, x = network(NumbersAttention)
    assert freed(Numbers()) is None  # neither its name nor its code say that it is an attention
    opened = oicsr.open_attention(model)
    assert torch.equal(opened(x), model(x))
    code = type(opened.attention).forward.__code__
    assert 12 not in str(code.co_consts).replace(",", " ").split()


def test_it_is_copied_pickled_and_opened_once(tmp_path: Path) -> None:
    model, x = network(Fused)
    opened = oicsr.open_attention(model)
    couplings = found(opened, x)
    small = oicsr.remove_channels(opened, oicsr.PruningPlan.from_kept(couplings, drop_third(couplings)))
    buffer = io.BytesIO()
    torch.save(small, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(x), small(x))
        assert type(twin.attention) is type(small.attention)
    assert type(small.attention).__name__ == "Fused"
    assert str(small.attention).startswith("Fused(")
    with pytest.raises(ValueError, match="holds no attention whose widths open_attention can free"):
        oicsr.open_attention(opened)


def test_files_say_that_it_was_opened(tmp_path: Path) -> None:
    model, x = network(Fused)
    opened = oicsr.open_attention(model)
    couplings, path = found(opened, x), tmp_path / "small.safetensors"
    plan = oicsr.PruningPlan.from_kept(couplings, drop_third(couplings))
    small = oicsr.remove_channels(opened, plan)
    oicsr.save_pruned(path, small, plan)
    loaded = oicsr.load_pruned(path, lambda: oicsr.open_attention(WithAttention(Fused())))
    assert torch.equal(loaded(x), small(x))
    with pytest.raises(ValueError, match=r"'attention' was opened before .* oicsr\.open_attention .* build_model"):
        oicsr.load_pruned(path, lambda: WithAttention(Fused()))


def test_a_file_of_a_network_whose_attention_is_whole_needs_no_opening(tmp_path: Path) -> None:
    model, x = network(Fused)
    model = nn.Sequential(model, nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)).double()
    opened = oicsr.open_attention(model)
    plan = oicsr.PruningPlan.from_kept(found(opened, x), {"1": [0, 2, 3]})
    small = oicsr.remove_channels(opened, plan).eval()
    oicsr.save_pruned(tmp_path / "small.safetensors", small, plan)
    loaded = oicsr.load_pruned(tmp_path / "small.safetensors", lambda: copy.deepcopy(model))
    assert torch.equal(loaded(x), small(x))


class OwnView(Separate):
    """A method of its own has the name of a tensor's, and other things than tensors are reshaped."""

    def view(self, x: Tensor, b: int, c: int) -> Tensor:
        return x.transpose(1, 2).reshape(b, x.shape[2], c) * c

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        y = functional.scaled_dot_product_attention(*self.parts(x, b, t, c))
        table = np.reshape(np.arange(t * c), (t, c))
        return self.out(self.view(y, b, c) + torch.from_numpy(table) + th.reshape(x, (b, t, c)))


def closed_over(dim: int) -> nn.Module:
    class LocalAttention(Separate):
        def forward(self, x: Tensor) -> Tensor:
            b, t = x.shape[:2]
            y = functional.scaled_dot_product_attention(*self.parts(x, b, t, dim))
            return self.out(y.transpose(1, 2).reshape(b, t, dim))

    return LocalAttention()


class Listed(Separate):
    """Every subclass is entered into a list, by a keyword."""

    known: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, *, tag: str) -> None:
        cls.known[tag] = cls


class Entered(Listed, tag="entered"):
    pass


@pytest.mark.parametrize("make", [OwnView, lambda: closed_over(WIDTH), Entered])
def test_opening_changes_no_output_and_no_register(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = WithAttention(make()).double().eval(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    opened = oicsr.open_attention(model)
    assert is_freed(opened.attention)
    for tokens in (TOKENS, 3):
        assert torch.equal(opened(x[:, :tokens]), model(x[:, :tokens]))
    assert Listed.known == {"entered": Entered}


def test_a_method_that_is_replaced_later_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(Separate)
    before = oicsr.open_attention(model)(x)
    monkeypatch.setattr(Separate, "forward", Helped.forward)  # not causal
    assert not torch.equal(model(x), before)
    assert torch.equal(oicsr.open_attention(model)(x), model(x))


def test_an_opened_network_is_traced_by_fx() -> None:
    model, x = network(Shapes)
    traced = fx.symbolic_trace(oicsr.open_attention(model))
    assert torch.equal(traced(x), model(x))


class TokensNamedD(nn.Module):
    """`d` tokens of 16 channels: no width where it is not the last size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, d, c = x.shape
        y = self.a(x).view(b, d, 4, 4).relu()
        return self.out(y.reshape(b, d, -1)) * x.softmax(-1).view(b, d, c)


def test_the_free_size_is_not_that_of_tokens() -> None:
    model, x = network(TokensNamedD)
    opened = oicsr.open_attention(model)
    assert not found(opened, x[:, :4])  # 4 of 16 channels could go if 3 tokens came of 4


class Products(nn.Module):
    """An attention without parameters: the layers are those of what it is in."""

    def forward(self, qkv: Tensor, c: int) -> Tensor:
        b, n, _ = qkv.shape
        q, k, v = qkv.reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.products, self.proj = nn.Linear(WIDTH, 3 * WIDTH), Products(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.products(self.qkv(x), x.shape[-1]))


def with_a_gain(model: nn.Module) -> nn.Module:
    attention: Any = model.attention
    nn.utils.parametrize.register_parametrization(attention.qkv, "bias", nn.Identity())
    attention.register_parameter("gain", nn.Parameter(torch.ones(2)))
    nn.utils.parametrize.register_parametrization(attention, "gain", nn.Identity())
    return model


@pytest.mark.parametrize(("kind", "name"), [(Around, "attention.products"), (Fused, "attention")])
def test_files_name_what_was_opened_wherever_its_layers_are(kind: type[nn.Module], name: str, tmp_path: Path) -> None:
    model, x = network(kind)
    change = with_a_gain if kind is Fused else nn.Module.eval
    opened = change(oicsr.open_attention(model))
    plan = oicsr.PruningPlan.from_kept(couplings := found(opened, x), drop_third(couplings))
    small, path = oicsr.remove_channels(opened, plan), tmp_path / "small.safetensors"
    oicsr.save_pruned(path, small, plan)
    loaded = oicsr.load_pruned(path, lambda: change(oicsr.open_attention(WithAttention(kind()))))
    assert torch.equal(loaded(x), small(x))
    with pytest.raises(ValueError, match=f"'{name}' was opened before"):
        oicsr.load_pruned(path, lambda: change(WithAttention(kind())))


class PickledByHand(Fused):
    def __reduce__(self) -> tuple[Any, ...]:
        return PickledByHand, (), self.__dict__


class AsksForItsClass(Fused):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * len(self.__class__.__name__)


class MadeWithArguments(Fused):
    def __new__(cls, size: int) -> Self:
        return super().__new__(cls)

    def __init__(self, size: int) -> None:
        super().__init__()


class Meta(type):
    pass


class OfAnotherKind(Fused, metaclass=Meta):
    pass


def test_what_is_no_plain_code_is_left_alone() -> None:
    own_forward = Fused()
    own_forward.forward = own_forward.forward  # type: ignore[method-assign]
    names: dict[str, Any] = {"nn": nn, "__name__": "nowhere"}
    exec("class Attention(nn.Module):\n def forward(self, x):\n  b, n, c = x.shape\n  return x.view(b, n, c)", names)
    special = [PickledByHand(), AsksForItsClass(), MadeWithArguments(3), OfAnotherKind()]
    plain = [names["Attention"](), fx.symbolic_trace(Fused()), nn.Softmax(), nn.Linear(1, 1)]
    for module in (own_forward, with_a_gain(WithAttention(Fused())).attention, *special, *plain):
        assert freed(module) is None
        assert not is_freed(module)


def test_code_that_changed_since_it_was_imported_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from torch import nn\n\n\nclass Attention(nn.Module):\n"
        "    def forward(self, x):\n        b, n, c = x.shape\n        return x.softmax(-1).reshape(b, n, c)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, later in (("stays_as_it_is", code), ("changes_later", code.replace("softmax(-1)", "softmax(1)"))):
        path = tmp_path / f"{name}.py"
        path.write_text(code, encoding="utf-8")
        module = importlib.import_module(name)
        path.write_text(later, encoding="utf-8")
        kind = freed(module.Attention())
        assert (kind is not None) == (later == code)
        del sys.modules[name]


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "cait_xxs24_224", "davit_tiny"])
def test_transformers_of_timm_lose_half_of_each_attention(name: str) -> None:
    import timm

    small: dict[str, Any] = {"depth": 1, "img_size": 32, "embed_dim": 24, "num_heads": 3}
    if name == "davit_tiny":
        small = {"depths": (1, 1), "embed_dims": (12, 24), "num_heads": (2, 3), "window_size": 4}
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, **small).double().eval()
    opened, x = oicsr.open_attention(model), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(opened(x), model(x))
    couplings = [c for c in found(opened, x) if c.products]
    assert couplings
    assert not [c for c in found(model, x) if c.products and "cls" not in c.name]
    check_exact(opened, (x,), couplings, {c.name: [*range(c.num_channels // 2)] for c in couplings})
