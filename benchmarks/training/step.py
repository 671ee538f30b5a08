"""The training step: forward, backward, the regulariser in the way that it offers, and the update of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.config import Phase, Precision
from benchmarks.training.depthwise import FastDepthwiseGradients
from oicsr import GradientRegularizer, ProximalRegularizer, Regularizer, ScheduledRegularizer


class OptimizationStep:
    """SGD with momentum on a network and its regulariser.

    Args:
        model: On its device already.
        phase: Learning rate, momentum and weight decay.
        regularizer: Acts by what it offers (see `oicsr.Regularizer`).
        precision: Of forward and backward; weights and updates are float32.
    """

    def __init__(self, model: nn.Module, phase: Phase, regularizer: Regularizer | None, precision: Precision) -> None:
        self._model, self._regularizer, self._precision = model, regularizer, precision
        on_gpu = next(model.parameters()).device.type == "cuda"
        self._fused = True if on_gpu else None  # no faster on a CPU, where most is convolution
        self._optimizer = torch.optim.SGD(
            model.parameters(),
            lr=phase.learning_rate,
            momentum=phase.momentum,
            weight_decay=phase.weight_decay,
            nesterov=phase.momentum > 0,
            fused=self._fused,
        )

    def take(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        rate: float | Tensor,
        *,
        static: bool = False,
        keep_gradients: bool = False,
    ) -> Tensor:
        """Take one optimisation step; return sums over its images: loss, penalty and right answers, float64 `(3,)`.

        `network` is the model, or its wrapper if several processes share a batch; the penalty is computed from the
        model's own weights, which are the same on all. With `static`, no state may be kept between calls outside the
        tensors themselves; with `keep_gradients`, gradients keep their memory.
        """
        regularizer = self._regularizer
        if isinstance(regularizer, ScheduledRegularizer):
            regularizer.advance(self._model)
        with autocast(images.device, self._precision, cache=not static):
            logits = network(images)
            loss = functional.cross_entropy(logits.float(), labels)
        self._optimizer.zero_grad(set_to_none=not keep_gradients)
        penalty = torch.zeros((), device=images.device)
        if isinstance(regularizer, ProximalRegularizer):
            penalty = self._value(regularizer)
            loss.backward()
            self._optimizer.step()
            regularizer.proximal_step(self._model, rate)
        elif isinstance(regularizer, GradientRegularizer):
            loss.backward()
            regularizer.add_gradient(self._model)
            known = getattr(regularizer, "last_value", None)  # of the same weights, from the same pass
            penalty = self._value(regularizer) if known is None else known
            self._optimizer.step()
        else:
            penalty = penalty if regularizer is None else regularizer(self._model)
            (loss + penalty).backward()
            self._optimizer.step()
        correct = (logits.detach().argmax(1) == labels).sum()
        count = len(labels)
        return torch.stack([loss.detach().double() * count, penalty.detach().double() * count, correct.double()])

    @torch.no_grad()
    def _value(self, regularizer: Regularizer) -> Tensor:
        """Return the penalty, for the history alone."""
        return regularizer(self._model)

    def set_rate(self, rate: float | Tensor) -> None:
        """Set the learning rate."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def changed(self) -> dict[str, Tensor]:
        """Return the tensors that an optimisation step changes, by a name that begins with its kind."""
        changed: dict[str, Tensor] = {f"parameter {name}": value for name, value in self._model.named_parameters()}
        changed |= {f"buffer {name}": buffer for name, buffer in self._model.named_buffers()}
        for name, parameter in self._model.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    changed[f"{key} {name}"] = value
        return changed

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self._optimizer.load_state_dict(state)
        for group in self._optimizer.param_groups:
            group["fused"] = self._fused  # of this device, not of the one that the checkpoint is from


@contextmanager
def autocast(device: torch.device, precision: Precision, *, cache: bool = True) -> Iterator[None]:
    """The context in which the forward pass runs; `cache`: whether converted weights may be kept in it."""
    with ExitStack() as stack:
        if precision == "bfloat16":
            stack.enter_context(torch.autocast(device.type, torch.bfloat16, cache_enabled=cache))
            if device.type == "cpu" and torch.is_grad_enabled():
                stack.enter_context(FastDepthwiseGradients())
        yield
