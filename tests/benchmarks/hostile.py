"""Texts that somebody wrote to be taken for something else, and records that hold them wherever a text may be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.records.record import Record
from tests.benchmarks.synthetic import experiment, records_of

TEXTS = {
    "attribute": 'x" onmouseover="document.title=1" y="',
    "single quote": "x' onclick='document.title=1' y='",
    "script": "<script>document.title=1</script>",
    "end of script": "</script><script>document.title=1</script>",
    "comment": "<!--<script>",
    "image": "<img src=x onerror=document.title=1>",
    "entity": "&lt;script&gt;document.title=1&lt;/script&gt;",
    "template": "{{ 7 * 7 }}{% raw %}${7*7}",
    "CDATA": "]]><svg onload=document.title=1>",
    "style": "</style><style>*{display:none}</style>",
    "address": "javascript:document.title=1",
    "Markdown link": "[press](javascript:document.title=1)",
    "Markdown image": "![see](https://example.com/track.png)",
    "bare address": "https://example.com/ www.example.com a@example.com",
    "Markdown heading": "a\n# Verdicts\n\n| x | y |\n|---|---|\n",
    "Markdown cell": "a | b || ** c ** `d` _e_ ~f~ $g$",
    "LaTeX": r"\input{/etc/passwd} $x$ % & # _ ^ ~ { } \\ ^^M",
    "formula": "=HYPERLINK(A1)",
    "formula with a sign": "@SUM(1)+cmd|' /C calc'!A0",
    "formula in full width": "\uff1dHYPERLINK(A1)",
    "formula after a space": "\xa0=HYPERLINK(A1)",
    "terminal": "\x1b]0;title\x07\x1b[2J\x1b[31mred\r\b",
    "direction": "a\u202egnp.exe\u2066",
    "separators": "a\u2028b\u2029c\x85d\x0be",
    "console markup": "[red]red[/red] [link=file:///etc/passwd]x[/link]",
}


def hostile_values(text: str) -> dict[str, Any]:
    """Return every field of a record that may hold any text at all."""
    return {
        "title": text,
        "regularizer": text,
        "importance": text,
        "selection": text,
        "strength_source": f"tuned on validation{text}",
    }


def hostile_records(text: str, *, names: bool = False) -> list[Record]:
    """Return records of a small comparison with a text everywhere; `names`: in those too that a file cannot have."""
    study = experiment("digits", methods=("oicsr-gl", "gl-out", "none"), macs_kept=(0.5,))
    records = [
        replace(
            record,
            **hostile_values(text),
            config={**record.config, "model": text, "dataset": text},
            provenance={**record.provenance, "device": text, "commit": text, "versions": {text: text}, "command": text},
            widths={f"{text}{name}": widths for name, widths in record.widths.items()},
        )
        for record in records_of(study)
    ]
    failed = replace(
        records[0], seed=9, run_id="cpu-oicsr-gl-keep50-seed9", status="failed", failure={"reason": text, "kind": text}
    )
    records.append(failed)
    if names:
        records = [replace(r, experiment=text, profile=f"cpu{text}", run_id=f"{text}{r.run_id}") for r in records]
    return records
