"""The kinds of figures: one line each, by the end of their files' names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.analysis.comparison import Comparison
from benchmarks.records.record import RecordError
from benchmarks.records.strengths import TuningError, read_tuning, tuning_folder
from benchmarks.reporting.figures import accuracy, channels, training_curves
from benchmarks.reporting.figures.style import Files
from benchmarks.reporting.study import Study


@dataclass(frozen=True)
class Kind:
    """A kind of figure.

    Attributes:
        title: Above it on a page.
        draw: Draws it for a comparison, given its title; None where the records do not hold what it needs.
        needed: Whether a page says "not run" where it could not be drawn.
    """

    title: str
    draw: Callable[[Study, Comparison, str], Files | None]
    needed: bool = True


def _strengths(study: Study, comparison: Comparison, title: str) -> Files | None:
    path = tuning_folder(study.results) / f"{comparison.name}.json"
    if not path.exists():
        return None
    return from_file(path, lambda: training_curves.strength_curves(read_tuning(path), title))


def from_file(path: Path, draw: Callable[[], Files | None]) -> Files | None:
    """Draw what a file holds; an error names the file.

    Raises:
        TuningError: It is not a tuning record.
        RecordError: A value in it cannot be drawn.
    """
    try:
        return draw()
    except TuningError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RecordError(f"{path} cannot be drawn, a value in it is not as it should be: {error!r}") from error


KINDS: dict[str, Kind] = {
    "": Kind("Accuracy against MACs", lambda s, c, title: accuracy.accuracy_against_macs(c, title)),
    "methods": Kind("All methods", lambda s, c, title: accuracy.every_method(c, title), needed=False),
    "energy": Kind(
        "Channel energy, cumulative and per layer",
        lambda s, c, title: channels.channel_energy_curves(c, title, s.details),
    ),
    "joint": Kind(
        "Out- and in-energy of every channel", lambda s, c, title: channels.joint_energies(c, title, s.details)
    ),
    "kept": Kind("Channels kept per layer", lambda s, c, title: channels.kept_channels(c, title)),
    "iterations": Kind(
        "Accuracy along the iterations", lambda s, c, title: training_curves.iterations(c, title), needed=False
    ),
    "finetuning": Kind(
        "Fine-tuning curves", lambda s, c, title: training_curves.finetuning_curves(c, title, s.details)
    ),
    "strengths": Kind("Strength search", _strengths),
}


def stem_of(comparison: Comparison, kind: str) -> str:
    """Return the file name of a figure, without suffix."""
    return f"{comparison.name}-{kind}" if kind else comparison.name
