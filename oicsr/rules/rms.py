"""RMSNorm: a channel that is zero everywhere goes exactly, as the mean of squares changes by a known factor.

Where m of n channels stay, the mean of squares grows by n / m, and with it the epsilon has to grow. The output is then
smaller by sqrt(m / n), which the weight makes up for: it is multiplied by sqrt(n / m), old over new width.
"""

from __future__ import annotations

from torch import Tensor, fx, nn

from oicsr.rules.calls import argument, module_path
from oicsr.rules.notes import Norm
from oicsr.rules.registry import Result, follows
from oicsr.rules.tracer import Tracer


@follows("aten::rms_norm")
def rms_norm(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Keeps channels on other axes; those that it runs over go where an `nn.RMSNorm` holds weight and epsilon."""
    axes = list(range(ids.ndim - len(argument(node, 1)), ids.ndim))
    kept = tracer.whole(ids, axes)
    if kept is not None:
        return kept
    path, weight = module_path(node), argument(node, 2)
    module = (tracer.modules or {}).get(path)
    if len(axes) > 1 or not isinstance(module, nn.RMSNorm) or weight not in tracer.parameters:
        return tracer.opaque(node, "normalises over the channels: only nn.RMSNorm over one axis with a weight adapts")
    if not isinstance(module.eps, float):
        return tracer.opaque(
            node,
            f"normalises over the channels with eps={module.eps!r}, which has to change with the width: set it on the "
            "module (torch.finfo(torch.float32).eps is what PyTorch takes for float32)",
        )
    if tracer.modes.get(path) == "none":
        return tracer.opaque(node, "normalises over channels some of which stay for another reason")
    vector = ids.flatten()
    tracer.follow_vector(weight, vector, "norm", counts=True)
    tracer.norms.append(Norm(path, tracer.parameters[weight], vector))
    return ids
