"""No regulariser: ordinary training, pruned by the paper's importance. Tells what the penalty is worth."""

from __future__ import annotations

from baselines.group_lasso import out_in_importance
from baselines.method import Method, no_regularizer

NONE = Method(
    name="none",
    title="No regulariser",
    regularizer="none",
    make_regularizer=no_regularizer,
    importance=out_in_importance,
    formula="no penalty; importance as OICSR-GL",
    source="control",
)
