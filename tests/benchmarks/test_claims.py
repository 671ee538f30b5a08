"""The ledger: what carries a verdict, what does not, and what each verdict rests on."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.analysis.claims import CLAIMS, Claim
from benchmarks.analysis.verdicts import INCONCLUSIVE, REFUTED, SUPPORTED, Finding, Verdict, judge, to_plain
from benchmarks.methods.registry import find_method
from benchmarks.records.histories import Details
from benchmarks.records.record import Record, read_records
from benchmarks.reporting.ledger import (
    by_network_lines,
    headline,
    hinge_text,
    ledger_lines,
    overview_lines,
    readme_lines,
)
from benchmarks.reporting.readme_headline import contest, in_a_word, readme_headline
from tests.benchmarks.synthetic import experiment, records_of, write_records

NOTHING = Details(Path("nowhere"))


def claim(name: str) -> Claim:
    return next(entry for entry in CLAIMS if entry.id == name)


def verdict_on(name: str, records: list[Record], details: Details = NOTHING) -> tuple[str, str]:
    [found] = judge(records, details, [claim(name)])
    return found.verdict, found.reason


def test_the_ledger_has_every_claim_and_only_known_methods() -> None:
    numbers = {entry.id.rstrip("abcfr") for entry in CLAIMS}
    assert numbers == {str(number) for number in range(1, 17)}
    assert len({entry.id for entry in CLAIMS}) == len(CLAIMS)
    for entry in CLAIMS:
        assert entry.matters > 0 and entry.source and entry.short and entry.statement.endswith(".")
        for arm in (arm for pair in entry.pairs for arm in pair if arm):
            assert find_method(arm.method).name == arm.method


def test_planted_effect_is_supported_and_its_opposite_refuted() -> None:
    assert verdict_on("1", records_of(experiment()))[0] == "supported"
    worse = records_of(experiment(), effect={"oicsr-gl": -0.2})
    assert verdict_on("1", worse) == ("refuted", "the opposite: the interval is below zero")
    assert judge(worse, NOTHING, [claim("1")])[0].best.lost
    assert verdict_on("3a", records_of(experiment()))[0] == "supported"


def test_a_loss_is_adjusted_over_all_claims_too() -> None:
    records = records_of(experiment(methods=("oicsr-gl", "gl-out"), seeds=(0, 1, 2)))

    def worse(record: Record) -> Record:
        less = (0.003, 0.004, 0.005)[record.seed] * (record.method == "oicsr-gl")
        after = {name: {**record.states[name], "top1": 0.7 - less} for name in ("pruned", "recalibrated", "finetuned")}
        return replace(record, states={**record.states, **after})

    found = [worse(record) for record in records]
    # -0.4 points, sd 0.1, so t = -6.93 with 2 degrees of freedom: p = 0.020 of a loss, 0.0017 of one point or more
    two = judge(found, NOTHING, [claim("1"), claim("1r")])
    assert [(v.best.verdict, v.best.lost) for v in two] == [("refuted", True)] * 2
    three = judge(found, NOTHING, [claim("1"), claim("1r"), claim("3a")])
    assert [(v.best.verdict, v.best.lost) for v in three] == [("refuted", False)] * 2 + [("refuted", True)]
    assert three[0].best.reason == "an effect as large as the margin is excluded"


def test_quick_untuned_and_few_carry_no_verdict() -> None:
    assert verdict_on("1", records_of(experiment(), "quick")) == ("not run", "quick runs only")
    assert verdict_on("1", records_of(experiment(), tuned=False)) == ("not run", "strengths not tuned")
    assert verdict_on("1", records_of(experiment(seeds=(0, 1)))) == (
        "inconclusive",
        "fewer than 3 networks at one target",
    )
    assert verdict_on("1", []) == ("not run", "no records")
    assert verdict_on("10", records_of(experiment())) == ("not run", "no records")
    older = records_of(experiment(), protocol=1)
    assert verdict_on("1", older) == ("not run", "records of protocol 1 only")
    failed = [replace(record, status="failed") for record in records_of(experiment())]
    assert verdict_on("1", failed)[0] == "not run"


def diverging(records: list[Record], method: str, *, kind: str = "DivergedError", **changes: Any) -> list[Record]:
    """Return the records with the first one of a method replaced by that of a failed run."""
    failed = next(record for record in records if record.method == method)
    failure = {"reason": "the loss is nan", "kind": kind}
    changed = replace(failed, status="failed", states={}, failure=failure, **changes)
    return [changed if record is failed else record for record in records]


def test_runs_that_diverged_win_nothing_for_their_method() -> None:
    """They are in no mean: what is left of their method is better than the method."""
    records = records_of(experiment(seeds=tuple(range(6))))
    why = "1 run of ours diverged, and is in no mean"
    assert verdict_on("1", diverging(records, "oicsr-gl")) == ("inconclusive", why)
    assert verdict_on("3a", diverging(records, "oicsr-gl")) == ("inconclusive", why)
    assert verdict_on("1", diverging(records, "gl-out"))[0] == "supported"  # it would have been no better for it
    assert verdict_on("1", diverging(diverging(records, "gl-out"), "oicsr-gl"))[0] == "supported"  # so did its pair
    worse = records_of(experiment(seeds=tuple(range(6))), effect={"oicsr-gl": -0.2})
    assert verdict_on("1", diverging(worse, "gl-out"))[1] == "1 run of the rival diverged, and is in no mean"
    assert not judge(diverging(worse, "gl-out"), NOTHING, [claim("1")])[0].best.lost
    assert verdict_on("1", diverging(worse, "oicsr-gl"))[0] == "refuted"


def test_runs_that_ended_for_other_reasons_or_elsewhere_open_no_claim() -> None:
    records = records_of(experiment(seeds=tuple(range(6))))
    assert verdict_on("1", diverging(records, "oicsr-gl", kind="WorkerDied"))[0] == "supported"
    others: list[dict[str, Any]] = [{"seed": 1000}, {"protocol": 1}, {"experiment": "another"}]
    for changes in others:
        assert verdict_on("1", diverging(records, "oicsr-gl", **changes))[0] == "supported"


def test_a_quick_record_moves_no_number() -> None:
    full = records_of(experiment())
    odd = records_of(experiment("demo"), "quick", effect={"oicsr-gl": -0.5})
    assert judge(full, NOTHING) == judge([*full, *odd], NOTHING)


def test_importances_are_compared_on_the_same_weights_only() -> None:
    records = records_of(experiment(methods=("gl-out", "gl-out-oi")))
    assert verdict_on("5", records)[0] != "not run"
    other = [replace(r, strength=9.0) if r.method == "gl-out" else r for r in records]
    assert verdict_on("5", other) == ("not run", "no pair of comparable records")


def test_several_removals_are_compared_with_one_at_equal_epochs() -> None:
    one = records_of(experiment("once", methods=("oicsr-gl",), macs_kept=(0.3,)))
    several = records_of(experiment("often", methods=("oicsr-gl",), macs_kept=(0.3,), steps=5))
    assert verdict_on("8", [*one, *several]) == ("not run", "no pair of comparable records")
    equal = [replace(record, epochs=one[0].epochs) for record in several]
    [found] = judge([*one, *equal], NOTHING, [claim("8")])
    assert found.verdict in ("supported", "refuted", "inconclusive") and found.n == 3
    assert found.strata[0].where == "often (cpu); once (cpu)" and len(found.strata[0].runs) == 6
    dense = {**equal[0].states["dense"], "loss": 9.0}  # of another device: not the same network
    elsewhere = replace(equal[0], states={**equal[0].states, "dense": dense})
    assert judge([*one, elsewhere, *equal[1:]], NOTHING, [claim("8")])[0].n == 2


def test_recovery_is_read_from_histories(tmp_path: Path) -> None:
    records = records_of(experiment(methods=("oicsr-gl", "gl-out")))
    assert verdict_on("9", records)[0] == "not run"
    write_records(tmp_path, records)
    [found] = judge(read_records(tmp_path), Details(tmp_path), [claim("9")])
    assert found.verdict == "supported" and found.effect is not None and 0.05 < found.effect.mean < 1


def test_effect_is_the_mean_over_targets_of_paired_differences() -> None:
    records = records_of(experiment(methods=("oicsr-gl", "gl-out"), macs_kept=(0.5, 0.3)))
    top1 = {(r.method, r.macs_kept, r.seed): r.states["pruned"]["top1"] for r in records}
    by_hand = [sum(top1["oicsr-gl", t, seed] - top1["gl-out", t, seed] for t in (0.5, 0.3)) / 2 for seed in (0, 1, 2)]
    [found] = judge(records, NOTHING, [claim("1")])
    assert list(found.strata[0].by_network.values()) == pytest.approx(by_hand)
    plain = to_plain(found)
    assert plain["effect"] == pytest.approx(sum(by_hand) / 3, rel=1e-5) and len(plain["records"]) == 12
    assert [target["macs_kept"] for target in plain["strata"][0]["targets"]] == [0.5, 0.3]
    json.dumps(plain, allow_nan=False)


def test_words_say_what_was_counted_and_corrected() -> None:
    verdicts = judge(records_of(experiment()), NOTHING)
    line = headline(verdicts)
    assert (
        line.startswith("Small evidence, on CIFAR-10 (resnet56; 3 trained networks): Not shown: ")
        and "; holds: " in line
    )
    assert "its own 95 % interval" in "\n".join(overview_lines(verdicts))
    text = "\n".join(ledger_lines(verdicts))
    assert "the middle of those that tie with the lowest within a standard error" in text
    assert "Holm" in text and "cifar10-resnet56 (cpu)" in text and "|  |" not in text


def toys(effect: dict[str, float]) -> list[Record]:
    study = experiment("toys", seeds=tuple(range(5)))
    return [
        replace(record, config={**record.config, "dataset": "digits", "model": "digits-resnet"})
        for record in records_of(study, effect=effect)
    ]


def test_readme_speaks_of_toys_as_toys_and_tells_losses_first() -> None:
    lines = readme_lines(judge(toys({"oicsr-gl": -0.2}), NOTHING))
    assert lines[0] == (
        "**Toy evidence, on digits (digits-resnet; 5 trained networks)** "
        "(a toy shows how methods work, not how they do elsewhere):"
    )
    rows = [line for line in lines if line.startswith("| ") and "against" in line]
    assert rows[0].startswith("| OICSR-GL against ") and "**loss**, −" in rows[0]
    assert len({row.split(" | ")[0] for row in rows}) == len(rows)
    lost = ["**loss**" in row for row in rows]
    assert lost == sorted(lost, reverse=True)


def test_readme_speaks_of_the_highest_tier_and_counts_the_lower() -> None:
    verdicts = judge([*toys({"oicsr-gl": -0.2}), *records_of(experiment())], NOTHING)
    lines = readme_lines(verdicts)
    assert lines[0].startswith("**Small evidence, on CIFAR-10 (resnet56; 3 trained networks)**")
    assert not any("loss" in line for line in lines if line.startswith("| "))
    assert any(
        line.startswith("Toy evidence, on digits (digits-resnet; 5 trained networks): Does not hold: ")
        for line in lines
    )
    table = overview_lines(verdicts)
    assert table[0] == "| | Claim | Source | Small: CIFAR-10 | Toy: digits |" and "**loss** −" in "".join(table)


def test_the_means_behind_a_verdict_stand_beside_it_network_by_network() -> None:
    records = records_of(experiment(methods=("oicsr-gl", "gl-out", "none"), macs_kept=(0.5, 0.3), seeds=(0, 1, 2)))

    def moved(record: Record, model: str, points: float) -> Record:
        states = dict(record.states)
        for name in ("recalibrated", "finetuned"):
            more = points / 100 * (record.method == "oicsr-gl") * (1 if name == "finetuned" else 2)
            states[name] = {**states[name], "top1": 0.7 + more + 0.001 * record.seed}
        return replace(record, config={**record.config, "model": model}, states=states)

    first = [moved(record, "resnet56", 1.0 if record.macs_kept == 0.5 else -3.0) for record in records]
    other = [moved(record, "vgg16", 0.5) for record in records if record.macs_kept == 0.5 and record.method != "none"]
    other = [replace(record, experiment="cifar10-vgg16") for record in other]
    verdicts = judge([*first, *other], NOTHING)
    lines = by_network_lines(verdicts, "small")
    head = (
        "| By network and share of the MACs | resnet56, 50 % (n = 3) | resnet56, 30 % (n = 3) | vgg16, 50 % (n = 3) |"
    )
    assert lines[1].replace("\N{NO-BREAK SPACE}", " ") == head
    assert set(lines[3:5]) == {
        "| OICSR-GL minus Group Lasso (out) | +2.0 / +1.0 | −6.0 / −3.0 | +1.0 / +0.5 |",
        "| OICSR-GL minus No regulariser | +2.0 / +1.0 | −6.0 / −3.0 | – |",
    }
    assert lines[1] in readme_lines(verdicts)
    one = [record for record in first if record.macs_kept == 0.5]
    assert by_network_lines(judge(one, NOTHING), "small") == []  # the verdicts' table says it all


def test_a_verdict_that_one_network_decides_says_which_and_what_it_would_be_without() -> None:
    """Ten points lost on one of two networks, one won on the other: a loss on the mean, and none without the first."""
    records = records_of(experiment(methods=("oicsr-gl", "none"), macs_kept=(0.5,), seeds=(0, 1, 2, 3)))

    def moved(record: Record, model: str, points: float) -> Record:
        top1 = 0.7 + 0.001 * record.seed + points / 100 * (record.method == "oicsr-gl")
        states = {**record.states, "finetuned": {**record.states["finetuned"], "top1": top1}}
        return replace(record, experiment=model, config={**record.config, "model": model}, states=states)

    first, other = ([moved(record, *to) for record in records] for to in (("resnet56", -10.0), ("vgg16", 1.0)))
    [found] = judge([*first, *other], NOTHING, [claim("3c")])
    assert found.best.lost and found.effect is not None and found.effect.mean == pytest.approx(-0.045)
    ((stratum, without),) = found.best.hinges
    assert stratum.model == "resnet56" and without.verdict == SUPPORTED
    assert without.effect is not None and without.effect.mean == pytest.approx(0.01)
    assert hinge_text(found.claim, found.best) == "without resnet56: +1.00, holds"
    assert "; without resnet56: +1.00, holds |" in "".join(ledger_lines([found]))
    assert "(**loss**; without resnet56: +1.0, holds)" in readme_headline([found])
    lines = readme_lines([found])
    assert any("**loss**, −4.5 † |" in line for line in lines) and any(
        "†: the verdict would be" in line for line in lines
    )
    assert to_plain(found)["hinges"] == [
        {"model": "resnet56", "dataset": "cifar10", "verdict": "supported", "lost": False, "effect": 0.01}
    ]
    [alike] = judge([*first, *(moved(record, "vgg16", -10.0) for record in records)], NOTHING, [claim("3c")])
    assert alike.best.lost and not alike.best.hinges and "†" not in "".join(readme_lines([alike]))


def test_one_network_on_two_data_sets_has_a_column_for_each() -> None:
    first = records_of(experiment(methods=("oicsr-gl", "none"), macs_kept=(0.5,)))

    def on_cifar100(record: Record) -> Record:
        states = {**record.states, "dense": {**record.states["dense"], "top1": 0.72}}
        return replace(record, experiment="other", config={**record.config, "dataset": "cifar100"}, states=states)

    other = [on_cifar100(record) for record in first]
    verdicts = judge([*first, *other], NOTHING)
    heads = by_network_lines(verdicts, "small")[1].replace("\N{NO-BREAK SPACE}", " ")
    assert "| CIFAR-10, resnet56, 50 % (n = 3) | CIFAR-100, resnet56, 50 % (n = 3) |" in heads
    assert "Small evidence, on CIFAR-10 and CIFAR-100 (resnet56; 6 trained networks)" in headline(verdicts)
    assert overview_lines(verdicts)[0] == "| | Claim | Source | Small: CIFAR-10 and CIFAR-100 |"
    few = judge([*first, *(record for record in other if record.seed < 2)], NOTHING)
    assert "on CIFAR-10 (resnet56; 3 trained networks)" in headline(few)  # what judges nothing is not named


def test_the_means_behind_a_verdict_say_where_they_rest_on_fewer_networks_and_count_each_once() -> None:
    everywhere = records_of(
        experiment(methods=("oicsr-gl", "gl-out", "none"), macs_kept=(0.5, 0.3), seeds=(0, 1, 2, 3))
    )

    def moved(record: Record) -> Record:
        points = 4.0 if record.seed == 3 else 1.0
        more = points / 100 * (record.method == "oicsr-gl")
        return replace(
            record, states={**record.states, "finetuned": {**record.states["finetuned"], "top1": 0.7 + more}}
        )

    # the fourth network has the rival at one target alone: its verdict leaves that network out, and so must its means
    records = [
        moved(record) for record in everywhere if (record.method, record.seed, record.macs_kept) != ("gl-out", 3, 0.3)
    ]
    again = [replace(record, experiment="cifar10-again") for record in records if record.seed == 0]
    lines = by_network_lines(judge([*records, *again], NOTHING), "small")
    assert lines[1].count("(n = 4)") == 2
    [row] = [line for line in lines if line.startswith("| OICSR-GL minus Group Lasso (out)")]
    assert row.count(" / +1.0 (3) |") == 2
    [row] = [line for line in lines if line.startswith("| OICSR-GL minus No regulariser")]
    assert row.count(" / +1.8 |") == 2  # 1.75, the first network once: with it twice, 1.6


def test_a_tier_that_is_only_begun_hides_no_loss() -> None:
    begun = [record for record in records_of(experiment()) if record.seed < 2]
    verdicts = judge([*toys({"oicsr-gl": -0.2}), *begun], NOTHING)
    table = overview_lines(verdicts)
    assert table[0] == "| | Claim | Source | Toy: digits |"
    lost = ["**loss**" in line for line in table if line.startswith("| ")][1:]
    assert any(lost) and lost == sorted(lost, reverse=True)
    assert "2 trained networks): only begun, fewer than 3 networks. Toy evidence" in headline(verdicts)


def test_readme_begins_with_what_holds_on_what_evidence_and_what_does_not() -> None:
    records = records_of(experiment(methods=("oicsr-gl", "gl-out", "depgraph", "none"), seeds=(0, 1, 2, 3, 4)))
    verdicts = judge(records, NOTHING)
    first, _, answer, _, *told = readme_headline(verdicts).split("\n")
    assert first == (
        "**Results so far.** Small evidence, on CIFAR-10 (resnet56; 5 trained networks): all training images, short "
        "training. [More](#results)."
    )
    kinds = [line.partition(":**")[0].removeprefix("- **") for line in told]
    every = ("Tested and lost", "Tested, does not hold", "Tested, and holds", "Tested, undecided")
    assert kinds and kinds == [kind for kind in every if kind in kinds]
    assert re.fullmatch(
        r"\*\*Does OICSR-GL beat separated regularisation\?\*\* "
        r"(?:In part|Not on this evidence)\. "
        r"Against Group Lasso \(out\): \+\S+ points before fine-tuning \(holds\), \S+ recalibrated \(.+?\), "
        r"\S+ fine-tuned \(.+?\)\. Against No regulariser: \S+ points before fine-tuning .+ fine-tuned \(.+?\)\.",
        answer,
    )
    judged = [verdict for verdict in verdicts if (own := verdict.at("small")) and own.effect]
    text = "\n".join(told)
    listed = [verdict for verdict in judged if verdict.claim.short in text or contest(verdict.claim) in text]
    shown = len(listed) + answer.count(", ") + answer.count(": ")
    more = sum(int(line.rpartition("; and ")[2].split()[0]) for line in told if "; and " in line)
    assert shown + more == len(judged) > 8  # nothing is passed over
    assert readme_headline(judge([], NOTHING)) == "**Results so far:** none that carries a verdict."


@pytest.mark.parametrize(
    ("held", "open_or_refuted", "said"),
    [
        (("1", "1r", "1b", "1br", "3a"), {}, "Yes."),
        (("1", "1r", "1b", "1br"), {"3a": INCONCLUSIVE}, "Yes."),  # that it is not worse is not needed to be better
        (("1", "1r", "1b", "1br"), {"3a": REFUTED}, "In part."),
        (("1", "1r", "1b"), {"1br": INCONCLUSIVE}, "In part."),
        (("1", "1r"), {}, "In part."),  # nothing is known of the other separated rival
        (("1br",), {"1": REFUTED, "1r": REFUTED, "1b": REFUTED}, "In part."),
        (("3a", "2c"), {"1": INCONCLUSIVE, "1b": REFUTED}, "Not on this evidence."),
        (("2c",), {}, ""),
    ],
)
def test_the_answer_in_a_word_rests_on_separated_rivals_alone(
    held: tuple[str, ...], open_or_refuted: dict[str, str], said: str
) -> None:
    found = {**dict.fromkeys(held, SUPPORTED), **open_or_refuted}
    answers: dict[str, list[Verdict]] = {}
    for name, verdict in found.items():
        [(_, rival)] = claim(name).pairs
        finding = Finding(verdict, "", tier="small")
        answers.setdefault(rival.method, []).append(Verdict(claim(name), (finding,)))
    assert in_a_word(answers, "small") == said
    assert in_a_word(answers, "full") == ""


def test_claims_that_do_not_hold_are_told_without_a_winner() -> None:
    assert contest(claim("11")) == "OICSR-GL against DepGraph, before fine-tuning"
    assert contest(claim("11f")) == "OICSR-GL against DepGraph, fine-tuned"
    assert contest(claim("15a")) == "joint groups against the in-side alone, before fine-tuning"
    assert contest(claim("6")) == f"whether {claim('6').short}"


def test_readme_names_losses_first_and_tells_the_highest_tier_alone() -> None:
    lost = records_of(experiment(methods=("oicsr-gl", "gl-out"), seeds=(0, 1, 2, 3, 4)), effect={"gl-out": 0.5})
    text = readme_headline(judge([*lost, *toys({"oicsr-gl": 0.9})], NOTHING))
    answer = text.split("\n")[2]
    assert answer.startswith("**Does OICSR-GL beat separated regularisation?** Not on this evidence. Against Group ")
    assert "before fine-tuning (**loss**)" in answer
    assert "Toy" not in text and "digits" not in text


def test_without_evidence_nothing_is_said_to_hold() -> None:
    verdicts = judge(records_of(experiment(), protocol=1), NOTHING)
    assert readme_lines(verdicts)[0] == "**No verdicts yet**: no records of the present protocol carry one."
    assert headline(verdicts) == f"None of {len(CLAIMS)} claims carries a verdict yet."
    assert "records of protocol 1 only" in overview_lines(verdicts)[0]
