"""CIFAR-10, ResNet-20, strengths chosen by what is left after fine-tuning: is a regulariser worth it in the end?

Command: `make cifar10-resnet20-end`. Profile `study` is that of `cifar10-resnet20`; but where that one takes the
strength with the lowest validation loss before fine-tuning, which favours strong penalties, this one fine-tunes each
try. So it is the better comparison of fine-tuned networks, and none of the states before. It carries no verdict: the
claims are about strengths that were chosen before fine-tuning.

Four strengths per method instead of five, the weaker ones of each grid: for these methods that study's search never
found the strongest of the five best at 50 % of the MACs, and what a network can win back in a few epochs asks for less,
not more.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import CIFAR_STUDY, STUDY_HEADLINE

EXPERIMENT = Experiment(
    name="cifar10-resnet20-end",
    title="CIFAR-10, ResNet-20, strengths for the fine-tuned network",
    claim="Fine-tuned, OICSR-GL is at least as good as no regulariser and as DepGraph.",
    model="resnet20",
    dataset="cifar10",
    profiles={
        "study": replace(CIFAR_STUDY, methods=STUDY_HEADLINE, macs_kept=(0.5, 0.3), search_state="finetuned", tries=4),
    },
    priority=18,
)
