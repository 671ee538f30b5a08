"""The rivals, one file each."""

from baselines.group_lasso import GL_OUT, GL_OUT_SCORED_OUT_IN, GL_SEPARATE
from baselines.l1_norm import L1_NORM
from baselines.method import Method, Scoring
from baselines.no_regularizer import NONE
from baselines.random_channels import RANDOM

METHODS: dict[str, Method] = {
    method.name: method for method in (GL_OUT, GL_OUT_SCORED_OUT_IN, GL_SEPARATE, L1_NORM, NONE, RANDOM)
}

__all__ = ["METHODS", "Method", "Scoring"]
