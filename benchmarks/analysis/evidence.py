"""The tier of a record's evidence, computed from what was run and never declared.

toy: digits, or another data set that is not a benchmark of image recognition. small: a natural-image data set, all of
its images, and dense networks within five points of the published accuracy. full: that, and the field's recipe at its
length. Everything else (fewer images, shorter training, no published accuracy to hold it against) carries no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.records.published import PublishedDense, published_dense
from benchmarks.records.record import STATES_OF, Record
from benchmarks.records.strengths import FIRST_TUNING_SEED

TOY, SMALL, FULL = "toy", "small", "full"

TIERS = (TOY, SMALL, FULL)  # the weakest first

TOYS = ("digits",)  # data sets that say nothing about image recognition

NEAR = 0.05  # a dense network further below its published accuracy was not trained

CURRENT_PROTOCOL = max(STATES_OF)  # verdicts rest on no other

TIER_WORDS = {
    TOY: "handwritten digits",
    SMALL: "all training images, short training",
    FULL: "the field's recipe and length",
}

DATASET_TITLES = {
    "digits": "digits",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet",
}

PHASES_BEFORE_THE_END = ("regularized", "finetune")


@dataclass(frozen=True)
class Evidence:
    """The tier of some records.

    Attributes:
        tier: One of `TIERS`, or None where they carry no verdict.
        reason: Why they have that tier.
    """

    tier: str | None
    reason: str


def dataset_title(dataset: str) -> str:
    """Return the usual name of a data set."""
    return DATASET_TITLES.get(dataset, dataset)


def evidence_of(
    records: Sequence[Record], published: Mapping[tuple[str, str], PublishedDense] | None = None
) -> Evidence:
    """Return the tier of the records of one experiment and profile.

    Args:
        records: Complete ones, of one network and data set.
        published: Dense networks of the field by model and data set; those of `results/published` by default.
    """
    config = records[0].config
    model, dataset = str(config.get("model")), str(config.get("dataset"))
    if records[0].profile == "quick":
        return Evidence(None, "profile quick shows that the pipeline works")
    if all(record.seed >= FIRST_TUNING_SEED for record in records):
        return Evidence(None, f"trials on networks that serve tuning alone (seeds from {FIRST_TUNING_SEED} on)")
    if dataset in TOYS:
        return Evidence(TOY, f"{dataset_title(dataset)} is a toy")
    quoted = (published_dense() if published is None else published).get((model, dataset))
    if quoted is None:
        return Evidence(None, f"no published accuracy of {model} on {dataset_title(dataset)} to hold it against")
    parts = [name for name in ("train_images", "test_images") if config.get(name) is not None]
    if parts:
        counts = " and ".join(f"{config[name]:,} {name.removesuffix('_images')}ing images" for name in parts)
        return Evidence(None, f"a part of {dataset_title(dataset)} only: {counts}".replace("testing", "test"))
    dense = {record.seed: float(record.states["dense"]["top1"]) for record in records}
    mean = sum(dense.values()) / len(dense)
    beside = f"dense {100 * mean:.1f} %, published {100 * quoted.top1:.1f} %"
    if mean < quoted.top1 - NEAR:
        return Evidence(None, f"more than five points below the published accuracy: {beside}")
    # of the shortest: a control from scratch trains for longer at the end
    epochs = min((record.epochs for record in records), key=lambda epochs: sum(epochs.values()))
    long = epochs.get("dense", 0) >= quoted.dense_epochs or config.get("weights") is not None
    pruning = sum(epochs.get(phase, 0) for phase in PHASES_BEFORE_THE_END) >= quoted.pruning_epochs
    if long and pruning:
        return Evidence(FULL, f"the field's length: {beside}")
    return Evidence(SMALL, f"all images, {sum(epochs.values())} epochs in all: {beside}")
