"""The HTML report: one file, no network; verdicts first, then an explorer of every run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from benchmarks.analysis.comparison import MAIN_METHODS, Comparison, rank
from benchmarks.analysis.evidence import TIER_WORDS, TIERS
from benchmarks.analysis.verdicts import NOT_RUN, Finding, Verdict
from benchmarks.escape import for_script, one_line
from benchmarks.experiments import EXPERIMENTS
from benchmarks.machine.paths import REPORT_ASSETS
from benchmarks.methods.registry import find_method
from benchmarks.records.published import RESNET50, RESNET56, read_published
from benchmarks.records.record import STATES, STATES_OF, Record
from benchmarks.reporting.comparison_table import NO_VERDICT, standing, warning
from benchmarks.reporting.figures.accuracy import before_and_after
from benchmarks.reporting.figures.style import look_of
from benchmarks.reporting.headline import headline_comparison
from benchmarks.reporting.ledger import (
    EXPLANATION,
    TITLES,
    amount,
    counts,
    first_findings,
    highest_tier,
    in_order,
    interval_text,
    of_tier,
    p_text,
)
from benchmarks.reporting.numbers import NONE
from benchmarks.reporting.paper_tables import PROFILE_ORDER
from benchmarks.reporting.study import title_of

STATE_NAMES = {
    "pruned": "pruned, before fine-tuning",
    "recalibrated": "recalibrated, before fine-tuning",
    "finetuned": "fine-tuned",
    "regularized": "regularised, before pruning",
    "dense": "dense",
}

QUOTED = (("ResNet-56 on CIFAR-10", RESNET56), ("ResNet-50 on ImageNet", RESNET50))

ON_BOTH = "#7B4FB5"  # instead of black, which a dark page swallows

# What the first screen shows: the paper's claim, the strongest rival before fine-tuning, and the same after it.

FIRST_METHODS = ("oicsr-gl", "oicsr-gl-norm", "gl-out", "gl-separate", "depgraph", "none")

PAPER, CODE = "https://arxiv.org/abs/1905.11664", "../README.md"  # the project's folder, with the code, is one above


def html_report(records: Sequence[Record], comparisons: Sequence[Comparison], verdicts: Sequence[Verdict]) -> str:
    """Return the page; links to records are relative to the results folder.

    Every text is escaped by the template for the place where it stands; the page's policy lets a browser run the one
    script whose hash it names, and nothing else.
    """
    css, script = (f"\n{(REPORT_ASSETS / name).read_text(encoding='utf-8')}" for name in ("report.css", "report.js"))
    complete = sum(record.complete for record in records)
    first = _first_comparison(comparisons, verdicts)
    return _template().render(
        policy=_policy(css, script),
        css=Markup(css),
        script=Markup(script),
        data=Markup(for_script(page_data(records, comparisons, first))),
        complete=complete,
        failed=len(records) - complete,
        paper=PAPER,
        code=CODE,
        numbers=_first_numbers(verdicts),
        evidence=_first_evidence(verdicts),
        figure=_first_figure(first) if first else None,
        tiers=[_tier(verdicts, tier) for tier in reversed(TIERS) if any(v.at(tier) for v in verdicts)],
        absent=[_entry(verdict, verdict.best) for verdict in verdicts if verdict.best.tier is None],
        explanation=EXPLANATION.replace("*", "").replace("`", ""),
        states=[(name, STATE_NAMES[name]) for name in STATE_NAMES if name in _states(records)],
        quoted=[(title, _quoted_rows(name)) for title, name in QUOTED],
        quoted_header=("Method", "Base", "Pruned", "Speed-up", "Protocol", "Source"),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(REPORT_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        finalize=_seen,
    )
    return environment.get_template("report.html")


def _seen(value: Any) -> Any:
    """Remove characters that no page may hold, or that change the reading order."""
    return one_line(value) if type(value) is str else value


def _policy(css: str, script: str) -> str:
    """Return the content security policy: the page's own style and script by their hashes, no network at all."""
    return (
        f"default-src 'none'; style-src '{_hash(css)}'; script-src '{_hash(script)}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def page_data(
    records: Sequence[Record], comparisons: Sequence[Comparison], first: Comparison | None = None
) -> dict[str, Any]:
    """Return what the explorer shows: experiments, looks of the methods, and every complete run.

    It opens with the comparison `first`, or else with the first of the list.
    """
    complete = [record for record in records if record.complete]
    studies = [_study(comparison) for comparison in sorted(comparisons, key=_importance)]
    methods = sorted({record.method for record in complete}, key=rank)
    return {
        "states": _states(records),
        "main": [method for method in methods if method in MAIN_METHODS or method.endswith("-prox")],
        "titles": {method: find_method(method).title for method in methods},
        "looks": _looks(methods),
        "studies": studies,
        "first": first.name if first else studies[0]["name"] if studies else "",
        "runs": [_run(record) for record in complete],
    }


def _states(records: Sequence[Record]) -> list[str]:
    """Return the states in the records, in order."""
    there = {state for record in records for state in record.states}
    return [state for state in STATES if state in (there or STATES_OF[1])]


def _importance(comparison: Comparison) -> tuple[int, str]:
    known = comparison.profile in PROFILE_ORDER
    return (PROFILE_ORDER.index(comparison.profile) if known else len(PROFILE_ORDER)), comparison.experiment


def _looks(methods: Sequence[str]) -> dict[str, str]:
    colours = {method: look_of(method).colour for method in methods}
    return {method: ON_BOTH if colour == "#000000" else colour for method, colour in colours.items()}


def _study(comparison: Comparison) -> dict[str, Any]:
    experiment = EXPERIMENTS.get(comparison.experiment)
    title = experiment.title if experiment else comparison.experiment
    quick, dense = comparison.profile == "quick", comparison.dense
    silent = " (quick: says nothing about the claim)" if quick else ""
    if not quick and standing(comparison) == NO_VERDICT:
        silent = f" ({NO_VERDICT})"
    return {
        "name": comparison.name,
        "label": f"{title}, profile {comparison.profile}{silent}",
        "profile": comparison.profile,
        "level": comparison.level,
        "warning": _warning(comparison),
        "about": f"dense networks {100 * dense.mean:.2f} % over {dense.n} {'seed' if dense.n == 1 else 'seeds'}",
        "methods": sorted({record.method for record in comparison.records}, key=rank),
    }


def _warning(comparison: Comparison) -> str:
    """Return why no verdict rests on a comparison, or on some of its rows, as above its table; empty for none."""
    said = [warning(comparison).replace("`", "")]
    if comparison.profile == "quick":
        said.insert(0, "Quick run: it shows that the pipeline works; no verdict rests on it.")
    elif comparison.evidence.tier is None:
        said.insert(0, f"Carries {NO_VERDICT}: {comparison.evidence.reason}.")
    return " ".join(part for part in said if part)


def _run(record: Record) -> dict[str, Any]:
    state = record.states["finetuned"]
    return {
        "study": f"{record.experiment}-{record.profile}",
        "run": record.run_id,
        "method": record.method,
        "title": find_method(record.method).title,
        "seed": record.seed,
        "target": round(record.macs_kept, 6),
        "macs": state["macs"],
        "dense_macs": record.states["dense"]["macs"],
        "params": state["params"],
        "top1": {name: round(record.states[name]["top1"], 6) for name in STATES if name in record.states},
        "link": _link(f"{record.experiment}/{record.run_id}"),
    }


def _link(run: str) -> str:
    return f"runs/{quote(run)}/record.json"


def _first_evidence(verdicts: Sequence[Verdict]) -> str:
    """Return what the numbers of the first screen rest on."""
    tier = highest_tier(verdicts)
    return f"{of_tier(verdicts, tier)}: {TIER_WORDS[tier]}" if tier else ""


def _first_numbers(verdicts: Sequence[Verdict]) -> list[dict[str, str]]:
    """Return the three numbers of the first screen, from the highest tier that judges; losses first."""
    return [_number(verdict, finding) for verdict, finding in first_findings(verdicts)]


def _number(verdict: Verdict, finding: Finding | None) -> dict[str, str]:
    entry = _entry(verdict, finding or Finding(NOT_RUN, ""))
    number, _, unit = str(entry["effect"]).partition(" ")
    about = f"{unit} (95 % {entry['interval']}, n = {entry['n']})".strip() if number else entry["reason"]
    return {**entry, "number": number or NONE, "about": about}


def _first_comparison(comparisons: Sequence[Comparison], verdicts: Sequence[Verdict]) -> Comparison | None:
    """Return the headline comparison: of the tier that the first numbers come from, where there is one."""
    tier = highest_tier(verdicts)
    of_that_tier = [comparison for comparison in comparisons if comparison.evidence.tier == tier]
    return headline_comparison(of_that_tier) or headline_comparison(comparisons)


def _first_figure(comparison: Comparison) -> dict[str, str]:
    """Return the headline figure."""
    drawn = before_and_after(comparison, FIRST_METHODS)["svg"]
    where = f"{title_of(comparison.experiment)}, profile {comparison.profile}"
    low, high = int(comparison.table["n"].min()), int(comparison.table["n"].max())
    seeds = "one seed only" if high == 1 else f"{low} seeds" if low == high else f"{low} to {high} seeds"
    return {
        "source": f"data:image/svg+xml;base64,{base64.b64encode(drawn).decode()}",
        "caption": f"{where}, {seeds}; bars: 95 % intervals. Left as pruned, right fine-tuned.",
        "alternative": f"Test accuracy against MACs kept, before and after fine-tuning: {where}. "
        "The table of runs below holds the numbers.",
    }


def _tier(verdicts: Sequence[Verdict], tier: str) -> dict[str, Any]:
    """Return the verdicts of a tier, losses first; those on too few networks separately."""
    found = [(verdict, finding) for verdict in in_order(verdicts, tier) if (finding := verdict.at(tier))]
    return {
        "title": of_tier(verdicts, tier),
        "words": TIER_WORDS[tier],
        "counts": counts(verdicts, tier),
        "judged": [_entry(verdict, finding) for verdict, finding in found if finding.effect],
        "begun": [_entry(verdict, finding) for verdict, finding in found if not finding.effect],
    }


def _entry(verdict: Verdict, finding: Finding) -> dict[str, Any]:
    claim = verdict.claim
    runs = sorted({run for stratum in finding.strata for run in stratum.runs})
    return {
        "claim": claim.id,
        "kind": finding.verdict.replace(" ", ""),
        "verdict": "Loss" if finding.lost else TITLES[finding.verdict],
        "short": claim.short,
        "statement": claim.statement,
        "reason": finding.reason,
        "effect": amount(claim, finding.effect.mean) if finding.effect else "",
        "interval": interval_text(claim, finding),
        "p": p_text(finding.p_holm),
        "n": str(finding.n),
        "where": "; ".join(stratum.where for stratum in finding.strata),
        "runs": [(run, _link(run)) for run in runs],
    }


def _quoted_rows(name: str) -> list[list[str]]:
    return [
        [
            str(row["method"]),
            f"{row['base_percent']:.2f}",
            f"{row['pruned_percent']:.2f}",
            f"{row['speedup']:.2f}×",
            str(row["protocol"]),
            str(row["source"]),
        ]
        for row in read_published(name).to_dict("records")
    ]
