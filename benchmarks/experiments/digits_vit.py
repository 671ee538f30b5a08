"""Handwritten digits, a small vision transformer: channels of attention and of MLPs (docs/anatomy.md).

Command: `make digits-vit`. Claim: the paper's, where no BatchNorm stands between a filter and its readers: rows of the
value projection and the columns of the output projection that read them are an out-in-channel, and so are the rows of
an MLP. Transformers are not in the paper. `digits-vit-heads` removes heads in the place of their channels; both start
from the same dense networks.
"""

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import DIGITS_VIT

EXPERIMENT = Experiment(
    name="digits-vit",
    title="Digits, small ViT, channels of attention",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="digits-vit",
    dataset="digits",
    profiles={"cpu": DIGITS_VIT},
    priority=55,
)
