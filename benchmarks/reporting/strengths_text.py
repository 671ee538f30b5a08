"""How the strengths of a comparison were chosen, in words: from the tuning record that they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.analysis.comparison import Comparison, rank
from benchmarks.escape import for_markdown
from benchmarks.experiments import EXPERIMENTS
from benchmarks.machine.paths import PUBLISHED_TUNING
from benchmarks.methods.registry import find_method
from benchmarks.records.strengths import (
    AS_PUBLISHED,
    SCHEMA,
    compared_seeds,
    read_tuning,
    search_state,
    tuned_under,
    tuning_folder,
    tuning_path,
)
from benchmarks.reporting.numbers import share

ONE_CHOICE = {
    "recalibrated": "Chosen by the validation loss of the pruned and recalibrated network; the same strength serves "
    "the fine-tuned network, for which none was searched separately.",
    "finetuned": "Chosen by the validation loss of the fine-tuned network; states before fine-tuning are not what they "
    "were chosen for.",
}

MIDDLE = "Of those that tie with the lowest loss, within a standard error over these networks, the middle one is taken."

NOT_INSIDE = {
    "edge": "The best is still at an edge of the strengths tried",
    "chance": "No strength works, the accuracy of the best is at chance level",
    "diverged": "No strength works, training diverged with all",
}


def strengths_text(results: Path, comparison: Comparison) -> str:
    """Return how strengths were chosen, and for which methods the best one is not inside those tried; may be empty.

    Methods that the results folder has not tuned take the published strengths, and are described by that record.
    """
    experiment = EXPERIMENTS.get(comparison.experiment)
    if experiment is None or comparison.profile not in experiment.profiles:
        return ""
    owner = tuned_under(experiment, experiment.profile(comparison.profile))
    methods = {str(name) for name in comparison.table["method"]}
    published = {record.method for record in comparison.records if AS_PUBLISHED in record.strength_source}
    folder = tuning_folder(results)
    if folder.resolve() == PUBLISHED_TUNING.resolve():
        published = set()
    whose = "" if owner == comparison.experiment else f"They are those of `{owner}`."
    of_targets = {f"{target:g}" for target in comparison.targets}
    texts = [_text(tuning_path(folder, owner, comparison.profile), methods - published, of_targets, whose)]
    if published:
        text = _text(tuning_path(PUBLISHED_TUNING, owner, comparison.profile), published, of_targets, whose)
        titles = ", ".join(for_markdown(find_method(method).title) for method in sorted(published, key=rank))
        texts.append(text.replace("Strengths:", f"Published strengths ({titles}):", 1))
    return " ".join(text for text in texts if text)


def _text(path: Path, methods: set[str], targets: set[str], whose: str) -> str:
    """Return what a tuning record says of some methods at some targets; nothing where it holds none of them."""
    if not path.is_file():
        return ""
    record = read_tuning(path)
    scores, again, reasons = (_at(record[name], methods, targets) for name in ("scores", "again", "reason"))
    used = {name: tries for name, tries in scores.items() if tries}
    seeds = record.get("seeds", [])
    if not used or record["schema"] != SCHEMA or compared_seeds(seeds):
        return ""
    counts = sorted({len(t) for targets in used.values() for t in targets.values()})
    tries = (
        f"{counts[0]} tried for every method and target"
        if len(counts) == 1
        else f"{counts[0]} to {counts[-1]} tried, depending on method and target"
    )
    networks = f"{len(seeds)} {'network' if len(seeds) == 1 else 'networks'} that no comparison uses"
    rule = f" {MIDDLE}" if len(seeds) > 1 else ""
    choice = f"{ONE_CHOICE[search_state(record)]}{rule}"
    first = f"Strengths: {tries}, on {networks}. {choice}"
    return " ".join([first, *([whose] if whose else []), *_again(again), *_not_inside(reasons)])


def _at(values: Mapping[str, Mapping[str, Any]], methods: set[str], targets: set[str]) -> dict[str, dict[str, Any]]:
    """Return the entries of some methods at some targets, of what is kept by method and target."""
    return {
        method: {target: value for target, value in by_target.items() if f"{float(target):g}" in targets}
        for method, by_target in values.items()
        if method in methods
    }


def _again(again: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a sentence for every number of further networks that the best two strengths were tried on."""
    numbers = {method: {target: len(seeds) for target, seeds in of.items()} for method, of in again.items()}
    for number in sorted({number for targets in numbers.values() for number in targets.values()}):
        if found := _methods_at(numbers, number):
            networks = "a further network" if number == 1 else f"{number} further networks"
            yield (
                f"The best two were tried again on {networks}, and chosen from over all, the weaker one where they tie "
                f"within a standard error: {', '.join(found)}."
            )


def _not_inside(reasons: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a sentence for every way in which the best strength is not inside those tried."""
    for reason, words in NOT_INSIDE.items():
        if found := _methods_at(reasons, reason):
            yield f"{words}: {', '.join(found)}."


def _methods_at(values: Mapping[str, Mapping[str, Any]], wanted: Any) -> list[str]:
    """Return the titles of methods with the targets that have a value."""
    found = []
    for method, targets in sorted(values.items()):
        at = sorted((float(target) for target, value in targets.items() if value == wanted), reverse=True)
        if at:
            found.append(f"{for_markdown(find_method(method).title)} (at {', '.join(map(share, at))})")
    return found
