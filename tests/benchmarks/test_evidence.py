"""The tier of evidence is computed from records, and published dense accuracies have sources."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.analysis.evidence import FULL, SMALL, TOY, evidence_of
from benchmarks.experiments import EXPERIMENTS
from benchmarks.records.published import PublishedDense, published_dense
from benchmarks.records.record import Record
from tests.benchmarks.synthetic import experiment, records_of

RECORDS = records_of(experiment(methods=("none",), macs_kept=(0.5,)))
FIELD = {("resnet56", "cifar10"): PublishedDense(0.9303, 160, 200, "a paper")}
LONG = {"dense": 200, "regularized": 100, "finetune": 100}


def changed(epochs: dict[str, int] | None = None, dense: float | None = None, **config: Any) -> list[Record]:
    found = []
    for record in RECORDS:
        states = (
            record.states if dense is None else {**record.states, "dense": {**record.states["dense"], "top1": dense}}
        )
        own = {**record.config, **config}
        found.append(replace(record, config=own, epochs=epochs or record.epochs, states=states))
    return found


@pytest.mark.parametrize(
    ("records", "tier", "reason"),
    [
        (RECORDS, SMALL, "all images, 40 epochs in all: dense 93.5 %, published 93.0 %"),
        (changed(LONG), FULL, "the field's length"),
        (changed({**LONG, "dense": 20}), SMALL, "all images"),
        (changed({**LONG, "finetune": 20}), SMALL, "all images"),
        # a control from scratch trains longer at its end, whichever record is read first
        (
            [*changed({**LONG, "finetune": 400})[:1], *changed({**LONG, "finetune": 20})],
            SMALL,
            "all images, 320 epochs",
        ),
        (changed({**LONG, "dense": 0}, weights="pretrained"), FULL, "the field's length"),
        (changed(dataset="digits"), TOY, "digits is a toy"),
        (changed(train_images=4000, test_images=3000), None, "4,000 training images and 3,000 test images"),
        (changed(dense=0.8804), SMALL, "dense 88.0 %"),
        (changed(dense=0.8802), None, "more than five points below the published accuracy: dense 88.0 %"),
        (changed(model="my-net"), None, "no published accuracy of my-net on CIFAR-10"),
        ([replace(record, profile="quick") for record in RECORDS], None, "quick"),
        ([replace(record, seed=1000 + record.seed) for record in RECORDS], None, "tuning alone"),
    ],
)
def test_tiers(records: list[Record], tier: str | None, reason: str) -> None:
    found = evidence_of(records, FIELD)
    assert found.tier == tier and reason in found.reason


def test_published_dense_networks_are_plausible_and_cover_the_experiments() -> None:
    published = published_dense()
    for entry in published.values():
        assert 0.5 < entry.top1 < 0.97 and entry.dense_epochs > 50 and entry.pruning_epochs > 50 and entry.source
    natural = {(e.model, e.dataset) for e in EXPERIMENTS.values() if e.dataset != "digits"}
    unprinted = {"densenet89", "vgg16-plain", "vit"}  # nobody gives a number for these
    assert natural - published.keys() == {(name, "cifar10") for name in unprinted}


def test_a_dense_network_without_a_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dense.csv").write_text(
        "model,dataset,top1_percent,dense_epochs,pruning_epochs,source\nm,d,90,10,10,\n"
    )
    with pytest.raises(ValueError, match=r"\['m'\] have no source"):
        published_dense(tmp_path)
