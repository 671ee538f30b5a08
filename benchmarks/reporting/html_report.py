"""The HTML report: one file, no network; verdicts first, then an explorer of every run."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from benchmarks.analysis.comparison import MAIN_METHODS, Comparison, rank
from benchmarks.analysis.verdicts import Verdict
from benchmarks.experiments import EXPERIMENTS
from benchmarks.machine.paths import REPORT_ASSETS
from benchmarks.methods.registry import find_method
from benchmarks.records.published import RESNET50, RESNET56, read_published
from benchmarks.records.record import STATES, Record
from benchmarks.reporting.figures.style import COLOURS
from benchmarks.reporting.ledger import EXPLANATION, amount, headline, interval_text, p_text
from benchmarks.reporting.paper_tables import PROFILE_ORDER

STATE_NAMES = {
    "pruned": "pruned, before fine-tuning",
    "finetuned": "fine-tuned",
    "regularized": "regularised, before pruning",
    "dense": "dense",
}

# dark enough on white and light enough on black; those of the main methods are the figures' own
MORE_COLOURS = ("#8C564B", "#9467BD", "#BCBD22", "#17BECF", "#7B8794", "#C05780", "#5B8C2A", "#4A6FA5")

ON_BOTH = "#7B4FB5"  # instead of black, which a dark page swallows


def html_report(records: Sequence[Record], comparisons: Sequence[Comparison], verdicts: Sequence[Verdict]) -> str:
    """Return the page; links to records are relative to the results folder."""
    data = json.dumps(page_data(records, comparisons), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    css, script = ((REPORT_ASSETS / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>OICSR: results</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>",
        _header(records),
        _verdict_cards(verdicts),
        _explorer(),
        _quotations(),
        "</main>",
        f'<script type="application/json" id="data">{data.replace("</", "<" + chr(92) + "/")}</script>',
        f"<script>\n{script}</script>\n</body>\n</html>\n",
    ]
    return "\n".join(parts)


def page_data(records: Sequence[Record], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return what the explorer shows: experiments, looks of the methods, and every complete run."""
    complete = [record for record in records if record.complete]
    methods = sorted({record.method for record in complete}, key=rank)
    return {
        "states": [state for state in STATES if any(state in record.states for record in records)],
        "main": list(MAIN_METHODS),
        "titles": {method: find_method(method).title for method in methods},
        "looks": _looks(methods),
        "studies": [_study(comparison) for comparison in sorted(comparisons, key=_importance)],
        "runs": [_run(record) for record in complete],
    }


def _importance(comparison: Comparison) -> tuple[int, str]:
    known = comparison.profile in PROFILE_ORDER
    return (PROFILE_ORDER.index(comparison.profile) if known else len(PROFILE_ORDER)), comparison.experiment


def _looks(methods: Sequence[str]) -> dict[str, str]:
    looks = {}
    others = [method for method in methods if method not in MAIN_METHODS]
    for method in methods:
        if method in MAIN_METHODS:
            colour = COLOURS[MAIN_METHODS.index(method)]
            looks[method] = ON_BOTH if colour == "#000000" else colour
        else:
            looks[method] = MORE_COLOURS[others.index(method) % len(MORE_COLOURS)]
    return looks


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
        "title": record.title,
        "seed": record.seed,
        "target": round(record.macs_kept, 6),
        "macs": state["macs"],
        "dense_macs": record.states["dense"]["macs"],
        "params": state["params"],
        "top1": {name: round(record.states[name]["top1"], 6) for name in STATES if name in record.states},
        "link": _link(f"{record.experiment}/{record.run_id}"),
    }


def _link(run: str) -> str:
    return f"runs/{run}/record.json".replace("%", "%25").replace("+", "%2B")


def _header(records: Sequence[Record]) -> str:
    complete = sum(record.complete for record in records)
    return (
        "<header><h1>OICSR: does the claim hold?</h1>"
        f'<span class="soft">{complete} complete runs, {len(records) - complete} failed</span>'
        '<button id="theme" type="button">Dark</button></header>'
    )


def _verdict_cards(verdicts: Sequence[Verdict]) -> str:
    cards = "\n".join(_card(verdict) for verdict in verdicts)
    line = html.escape(headline(verdicts).replace("**", ""))
    about = html.escape(EXPLANATION.replace("*", "").replace("`", ""))
    return (
        f'<section id="verdicts"><h2>Verdicts</h2><p>{line}</p><div class="verdicts">\n{cards}\n</div>'
        f"<details><summary>How a verdict is reached</summary><p>{about}</p></details></section>"
    )


def _card(verdict: Verdict) -> str:
    claim = verdict.claim
    kind = verdict.verdict.replace(" ", "")
    lines = [f'<p><span class="verdict {kind}">{verdict.verdict}</span> · claim {claim.id}</p>']
    lines.append(f"<p>{html.escape(claim.statement)}</p>")
    if verdict.effect is not None:
        numbers = f"{amount(claim, verdict.effect.mean)}, 95 % {interval_text(verdict)}, n = {verdict.n}"
        lines.append(f"<p>{html.escape(numbers)}, p (Holm) {html.escape(p_text(verdict.p_holm))}</p>")
    where = "; ".join(stratum.where for stratum in verdict.strata)
    lines.append(f'<p class="soft">{html.escape("; ".join(part for part in (verdict.reason, where) if part))}</p>')
    runs = sorted({run for stratum in verdict.strata for run in stratum.runs})
    if runs:
        links = " ".join(f'<a href="{_link(run)}">{html.escape(run)}</a>' for run in runs)
        lines.append(f"<details><summary>{len(runs)} records</summary><p>{links}</p></details>")
    return f'<article class="card {kind}" data-claim="{claim.id}">{"".join(lines)}</article>'


def _explorer() -> str:
    options = "".join(f'<option value="{name}">{text}</option>' for name, text in STATE_NAMES.items())
    return (
        '<section id="explorer"><h2>Explorer</h2><div class="controls">'
        '<label>Experiment <select id="study"></select></label>'
        f'<label>State <select id="state">{options}</select></label>'
        '<button id="all" type="button">All methods</button><button id="none" type="button">None</button></div>'
        '<fieldset><legend>Methods</legend><div id="methods"></div></fieldset>'
        '<p id="quick" class="quick" hidden>Quick run: it shows that the pipeline works; no verdict rests on it.</p>'
        '<p id="level" class="soft"></p>'
        '<svg id="plot" role="img" aria-label="Accuracy against MACs, one point per run"></svg>'
        '<div id="tip" hidden></div>'
        '<h2>Runs, by method and target</h2><p class="soft">Top-1 in %, mean ± standard deviation over seeds; a click '
        "on a heading sorts; seeds link to their records.</p>"
        '<div class="scroll"><table id="runs"><thead id="head"></thead><tbody id="rows"></tbody></table></div>'
        "</section>"
    )


def _quotations() -> str:
    tables = [("ResNet-56 on CIFAR-10", RESNET56), ("ResNet-50 on ImageNet", RESNET50)]
    parts = [f"<details><summary>{title}</summary>{_quoted_table(name)}</details>" for title, name in tables]
    return (
        '<section id="quoted"><h2>Quoted from papers</h2><p class="soft">As printed, each under a protocol of its own: '
        "no comparison under equal conditions.</p>" + "".join(parts) + "</section>"
    )


def _quoted_table(name: str) -> str:
    head = "".join(f"<th>{text}</th>" for text in ("Method", "Base", "Pruned", "Speed-up", "Protocol", "Source"))
    rows = []
    for row in read_published(name).to_dict("records"):
        numbers = [f"{row['base_percent']:.2f}", f"{row['pruned_percent']:.2f}", f"{row['speedup']:.2f}×"]
        texts = [html.escape(str(row[column])) for column in ("protocol", "source")]
        cells = "".join(f"<td>{text}</td>" for text in (html.escape(str(row["method"])), *numbers))
        rows.append(f"<tr>{cells}" + "".join(f'<td class="wrap">{text}</td>' for text in texts) + "</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
