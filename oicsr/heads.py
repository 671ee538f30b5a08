"""Networks of timm keep the width that their classifier reads as a number, by which they build another classifier."""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = ("num_features", "head_hidden_size", "in_features")


class Head:
    """The widths that a network and its head keep, to be brought in line after surgery: `reset_classifier` reads them.

    A network counts as one of timm's where it has `reset_classifier` and `get_classifier`; any other is left alone.
    """

    def __init__(self, model: nn.Module, classifier: nn.Module | None, width: int) -> None:
        self._model = model
        self._classifier = classifier
        self._width = width

    @staticmethod
    def of(model: nn.Module) -> Head:
        """Take note of the width that the classifier reads before surgery."""
        get_classifier = getattr(model, "get_classifier", None)
        if not callable(get_classifier) or not hasattr(model, "reset_classifier"):
            return Head(model, None, 0)
        classifier = get_classifier()
        weight = getattr(classifier, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2:
            return Head(model, None, 0)
        return Head(model, classifier, weight.shape[1])

    def follow(self) -> None:
        """Set the kept widths to what the layers read now."""
        weight = getattr(self._classifier, "weight", None)
        if not isinstance(weight, Tensor):
            return
        poolings = self._poolings()  # as many copies of the features stand side by side
        owners = [m for m in self._model.modules() if m is self._model or hasattr(m, "reset")]
        for owner in owners:
            for name in WIDTHS:
                width = vars(owner).get(name)
                if type(width) is int and width in (self._width, self._width // poolings):
                    setattr(owner, name, weight.shape[1] if width == self._width else weight.shape[1] // poolings)
        last = getattr(self._model, "conv_head", None)  # a convolution between the features and the classifier
        if isinstance(last, nn.Conv2d) and "num_features" in vars(self._model):
            self._model.num_features = last.in_channels  # type: ignore[assignment]

    def _poolings(self) -> int:
        multiplier = getattr(getattr(self._model, "global_pool", None), "feat_mult", None)
        return int(multiplier()) if callable(multiplier) else 1
