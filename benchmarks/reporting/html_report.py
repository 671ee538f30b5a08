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
from benchmarks.analysis.verdicts import Verdict
from benchmarks.escape import for_script, one_line
from benchmarks.experiments import EXPERIMENTS
from benchmarks.machine.paths import REPORT_ASSETS
from benchmarks.methods.registry import find_method
from benchmarks.records.published import RESNET50, RESNET56, read_published
from benchmarks.records.record import STATES, STATES_OF, Record
from benchmarks.reporting.figures.style import look_of
from benchmarks.reporting.ledger import EXPLANATION, amount, headline, interval_text, p_text
from benchmarks.reporting.paper_tables import PROFILE_ORDER

STATE_NAMES = {
    "pruned": "pruned, before fine-tuning",
    "recalibrated": "recalibrated, before fine-tuning",
    "finetuned": "fine-tuned",
    "regularized": "regularised, before pruning",
    "dense": "dense",
}

QUOTED = (("ResNet-56 on CIFAR-10", RESNET56), ("ResNet-50 on ImageNet", RESNET50))

ON_BOTH = "#7B4FB5"  # instead of black, which a dark page swallows


def html_report(records: Sequence[Record], comparisons: Sequence[Comparison], verdicts: Sequence[Verdict]) -> str:
    """Return the page; links to records are relative to the results folder.

    Every text is escaped by the template for the place where it stands; the page's policy lets a browser run the one
    script whose hash it names, and nothing else.
    """
    css, script = (f"\n{(REPORT_ASSETS / name).read_text(encoding='utf-8')}" for name in ("report.css", "report.js"))
    complete = sum(record.complete for record in records)
    return _template().render(
        policy=_policy(css, script),
        css=Markup(css),
        script=Markup(script),
        data=Markup(for_script(page_data(records, comparisons))),
        complete=complete,
        failed=len(records) - complete,
        headline=headline(verdicts).replace("**", ""),
        explanation=EXPLANATION.replace("*", "").replace("`", ""),
        cards=[_card(verdict) for verdict in verdicts],
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
    """Take characters from a text that no page may hold, or that turn the order of what is read."""
    return one_line(value) if type(value) is str else value


def _policy(css: str, script: str) -> str:
    """Return the content security policy: the page's own style and script by their hashes, no network at all."""
    return (
        f"default-src 'none'; style-src '{_hash(css)}'; script-src '{_hash(script)}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def page_data(records: Sequence[Record], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return what the explorer shows: experiments, looks of the methods, and every complete run."""
    complete = [record for record in records if record.complete]
    methods = sorted({record.method for record in complete}, key=rank)
    return {
        "states": _states(records),
        "main": list(MAIN_METHODS),
        "titles": {method: find_method(method).title for method in methods},
        "looks": _looks(methods),
        "studies": [_study(comparison) for comparison in sorted(comparisons, key=_importance)],
        "runs": [_run(record) for record in complete],
    }


def _states(records: Sequence[Record]) -> list[str]:
    """Return the states that records tell of, in their order."""
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
    quick = " (quick: says nothing about the claim)" if comparison.profile == "quick" else ""
    dense = comparison.dense
    return {
        "name": comparison.name,
        "label": f"{title}, profile {comparison.profile}{quick}",
        "profile": comparison.profile,
        "level": comparison.level,
        "about": f"dense networks {100 * dense.mean:.2f} % over {dense.n} {'seed' if dense.n == 1 else 'seeds'}",
        "methods": sorted({record.method for record in comparison.records}, key=rank),
    }


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


def _card(verdict: Verdict) -> dict[str, Any]:
    claim, numbers = verdict.claim, ""
    if verdict.effect is not None:
        numbers = f"{amount(claim, verdict.effect.mean)}, 95 % {interval_text(claim, verdict.best)}, n = {verdict.n}"
        numbers += f", p (Holm) {p_text(verdict.p_holm)}"
    where = "; ".join(stratum.where for stratum in verdict.strata)
    runs = sorted({run for stratum in verdict.strata for run in stratum.runs})
    return {
        "claim": claim.id,
        "kind": verdict.verdict.replace(" ", ""),
        "verdict": verdict.sentence,
        "statement": claim.statement,
        "numbers": numbers,
        "where": "; ".join(part for part in (verdict.reason, where) if part),
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
