"""The rivals, one file each."""

from baselines.method import GREEDY, ImportanceSpec, Method, RegularizerSpec, Scoring, SelectionSpec, Target
from baselines.registry import IMPORTANCES, METHODS, REGULARIZERS, SELECTIONS

__all__ = [
    "GREEDY",
    "IMPORTANCES",
    "METHODS",
    "REGULARIZERS",
    "SELECTIONS",
    "ImportanceSpec",
    "Method",
    "RegularizerSpec",
    "Scoring",
    "SelectionSpec",
    "Target",
]
