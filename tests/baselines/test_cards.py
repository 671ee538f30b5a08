"""The page of method cards says everything of every entry; `make check` keeps the committed one up to date."""

from __future__ import annotations

import re

from benchmarks.methods import cards
from benchmarks.methods.registry import IMPORTANCES, METHODS, REGULARIZERS, SELECTIONS


def test_every_entry_has_a_card_with_every_field() -> None:
    page = cards.render()
    for spec in [*REGULARIZERS.values(), *IMPORTANCES.values(), *SELECTIONS.values()]:
        assert f"### `{spec.name}`: {spec.title}\n" in page
        assert all(spec.__dict__[field].strip() for field in ("title", "formula", "source"))
    for method in METHODS.values():
        assert f"| `{method.name}` | {method.title} |" in page
    assert page.count("- **penalised:** ") == page.count("- **weight decay:** ") == len(REGULARIZERS)


def test_no_cell_of_the_table_is_cut() -> None:
    rows = [line for line in cards.render().splitlines() if line.startswith("| ")]
    assert len(rows) == len(METHODS) + 1 and {row.count("|") for row in rows} == {7}


def test_every_entry_from_the_literature_says_what_it_was_compared_with_and_what_differs() -> None:
    page = cards.render()
    for spec in [*REGULARIZERS.values(), *IMPORTANCES.values(), *SELECTIONS.values()]:
        cites = re.search(r"(et al\.|Hwang) \d{4}|torch-pruning", spec.source)
        own = spec.source.startswith("control") or "(OICSR)" in spec.source  # OICSR's authors released no code
        assert bool(spec.compared) == bool(spec.differs) == (bool(cites) and not own), spec.name
        if spec.compared:
            assert f"- **compared with:** {spec.compared}\n- **differs there:** {spec.differs}\n" in page, spec.name
