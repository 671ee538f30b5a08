"""Where the project is: the one place that counts folders upwards."""

from __future__ import annotations

from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
METHOD_CARDS = ROOT / "docs" / "methods.md"
PUBLISHED = ROOT / "results" / "published"  # numbers quoted from papers
PUBLISHED_TUNING = ROOT / "results" / "tuning"
REPORT_ASSETS = BENCHMARKS / "reporting" / "assets"
