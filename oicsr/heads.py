"""Networks of timm keep the width that their classifier reads as a number, by which they build another classifier."""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = ("num_features", "head_hidden_size", "in_features")
BEHIND_FEATURES = (
    "conv_head",
    "pre_logits",
    "head",
)  # what may stand between features and classifier


class Head:
    """The widths that a network and its head keep, to be brought in line after surgery: `reset_classifier` reads them.

    A network counts as one of timm's where it has `reset_classifier` and `get_classifier`; any other is left alone.
    """

    def __init__(self, model: nn.Module, classifier: nn.Module | None, width: int) -> None:
        self._model = model
        self._classifier = classifier
        self._width = width
        self._reader = _reader_of_features(model, width) if classifier is not None else None

    @staticmethod
    def of(model: nn.Module) -> Head:
        """Take note of the width that the classifier reads before surgery."""
        get_classifier = getattr(model, "get_classifier", None)
        if not callable(get_classifier) or not hasattr(model, "reset_classifier"):
            return Head(model, None, 0)
        classifier = get_classifier()
        if isinstance(classifier, tuple | list):  # one for each token of a distilled network, all alike
            classifier = classifier[0] if classifier else None
        for layer in classifier.modules() if isinstance(classifier, nn.Module) else ():
            width = _columns(layer)
            if width is not None:
                return Head(model, layer, width)
        return Head(model, None, 0)

    def follow(self) -> None:
        """Set the kept widths to what the layers read now."""
        columns = _columns(self._classifier)
        if columns is None:
            return
        poolings = self._poolings()  # as many copies of the features stand side by side
        owners = [m for m in self._model.modules() if m is self._model or hasattr(m, "reset")]
        for owner in owners:
            for name in WIDTHS:
                width = vars(owner).get(name)
                if type(width) is int and width in (self._width, self._width // poolings):
                    setattr(owner, name, columns if width == self._width else columns // poolings)
        read = _columns(self._reader)
        if read is not None:
            self._model.num_features = read  # type: ignore[assignment]

    def _poolings(self) -> int:
        multiplier = getattr(getattr(self._model, "global_pool", None), "feat_mult", None)
        return int(multiplier()) if callable(multiplier) else 1


def _columns(layer: nn.Module | None) -> int | None:
    """Return how many channels a layer reads; None where it has no weight that says so."""
    weight = getattr(layer, "weight", None)
    return int(weight.shape[1]) if isinstance(weight, Tensor) and weight.ndim > 1 else None


def _reader_of_features(model: nn.Module, width: int) -> nn.Module | None:
    """Return the layer that reads the features, where that is another one than the classifier."""
    features = vars(model).get("num_features")
    if type(features) is not int or features == width:
        return None
    for name in BEHIND_FEATURES:
        part = getattr(model, name, None)
        for layer in part.modules() if isinstance(part, nn.Module) else ():
            if _columns(layer) == features:
                return layer
    return None
