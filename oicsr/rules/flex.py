"""Flex attention (`torch.nn.attention.flex_attention`): attention whose scores and mask are functions in the code."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, fx

from oicsr.rules.broadcasting import Operand
from oicsr.rules.calls import argument, shape_of
from oicsr.rules.ids import varying
from oicsr.rules.products import attend
from oicsr.rules.registry import Result, Value, register_rule
from oicsr.rules.tracer import Tracer

SCORE_HEAD, MASK_HEAD = 2, 1  # which argument of `score_mod` and of `mask_mod` is the number of the head
SCORE_ARGUMENTS = 5


@register_rule("python::flex_attention")
def flex_attention(tracer: Tracer, node: fx.Node) -> Result:
    """As scaled dot-product attention. `score_mod` may look the head up in a table of one number per head.

    Heads stay where it uses their numbers in any other way, or where the mask does.
    """

    def modify(scores: Operand) -> Operand:
        """Let tables of `score_mod` follow the heads, or keep the heads."""
        heads = _heads(scores)
        if heads is None:
            return scores
        tables = _tables(node)
        if tables is None or _masks_heads(node):
            reason = tracer.notable(f"{tracer.where(node)} counts heads in score_mod or in its mask")
            tracer.sets.fix(heads, reason)
            return replace(scores, ids=None, reason=reason)
        for table in tables:
            tracer.follow_vector(table, heads, "norm", counts=False)
        return scores

    found = attend(tracer, node, modify, grouped=True)
    nothing = Value(None, found.reason)
    return [found, *[nothing] * (len(node.meta["val"]) - 1)]


def _heads(scores: Operand) -> Tensor | None:
    return None if scores.ids is None or varying(scores.ids) != [1] else scores.ids.flatten()


def _block(node: fx.Node, name: fx.Node) -> list[fx.Node]:
    """Return the nodes of a function that a call was given."""
    block = getattr(node.graph.owning_module, str(name.target))
    return list(block.graph.nodes)


def _tables(node: fx.Node) -> list[fx.Node] | None:
    """Return the tables that `score_mod` looks heads up in; None where it uses the number of a head otherwise."""
    nodes = _block(node, argument(node, 3))
    inputs = [n for n in nodes if n.op == "placeholder"]
    tables = dict(zip(inputs[SCORE_ARGUMENTS:], argument(node, 7), strict=True))
    found = []
    for user in inputs[SCORE_HEAD].users:
        read = [n for n in user.all_input_nodes if n.op == "placeholder"]
        table = tables.get(read[0]) if len(read) == 2 and read[1] is inputs[SCORE_HEAD] else None
        if table is None or len(shape_of(table)) != 1:
            return None
        found.append(table)
    return found


def _masks_heads(node: fx.Node) -> bool:
    """Return whether the mask differs from head to head."""
    mask = argument(node, 4)
    inputs = [n for n in _block(node, mask[-1]) if n.op == "placeholder"]
    blocks = next((part for part in mask if isinstance(part, fx.Node) and part.op != "get_attr"), None)
    return bool(inputs[MASK_HEAD].users) or (blocks is not None and shape_of(blocks)[1] > 1)
