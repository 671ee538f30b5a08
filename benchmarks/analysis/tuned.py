"""Was the strength of a run tuned for what it is used on?

A penalty acts in proportion to learning rate times steps, and on every network differently: on ResNet-56 the strengths
of ResNet-20 were two to four times too large, and cost 3.5 points (LOG.md). So a strength counts as tuned only where
the network, the data and the training up to the removal are those that it was tuned for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from benchmarks.config import Experiment, canonical
from benchmarks.experiments import EXPERIMENTS
from benchmarks.records.record import Record
from benchmarks.records.strengths import TRAINING, is_tuned_source, tuning_file

_FILE = re.compile(r"\((\S+\.json)\)")  # how the source of a strength names its tuning record


def is_tuned(record: Record) -> bool:
    """Return whether the strength of a run was tuned on validation data for this training, or it has none."""
    return is_tuned_source(record.strength_source) and not tuned_for(record)


def tuned_for(record: Record) -> str:
    """Return the experiment that the strength was tuned for, if network, data or training differ there; else ""."""
    owner = _owner(record)
    if owner is None or owner.name == record.experiment:
        return ""
    own = {"model": owner.model, "dataset": owner.dataset, "weights": owner.weights}
    same = _training({**own, **owner.profile(record.profile).shared}) == _training(record.config)
    return "" if same else owner.name


def searched_state(record: Record) -> str:
    """Return the state that the search for a run's strength compared: `"recalibrated"` or `"finetuned"`."""
    owner = _owner(record)
    return "recalibrated" if owner is None else owner.profile(record.profile).search_state


def _owner(record: Record) -> Experiment | None:
    """Return the experiment whose tuning record the strength of a run is from; None for none, or an unknown one."""
    named = _FILE.search(record.strength_source)
    if named is None:
        return None
    known = (each for each in EXPERIMENTS.values() if record.profile in each.profiles)
    return next((each for each in known if named[1] == tuning_file(each.name, record.profile)), None)


def _training(config: Mapping[str, Any]) -> str:
    return canonical({name: config.get(name) for name in TRAINING})
