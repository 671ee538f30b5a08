"""Method cards: what each method is, from the registry. `make report` writes docs/methods.md."""

from __future__ import annotations

from collections.abc import Iterable

from baselines.method import ImportanceSpec, Method, RegularizerSpec, SelectionSpec
from benchmarks.methods.registry import IMPORTANCES, METHODS, REGULARIZERS, SELECTIONS

INTRODUCTION = """\
# Method cards

`make report` writes this page from the registries in `benchmarks/methods/registry.py` and `baselines/`; `make check`
verifies that the page matches the code. A method is a regulariser, an importance and a selection. Besides the named
methods, any combination can be run: `--methods oicsr-gl+taylor+uniform` trains with `oicsr-gl`, scores with `taylor`
and selects with `uniform` (`greedy` if the third part is omitted).

Symbols: W^l_{i,:} are the weights that produce channel i: row i of layer l, including the filters of depthwise and
grouped convolutions that belong to the channel. W^{l+1}_{:,i} are the weights that read it: column i of the next layer.
⊕ joins two groups of weights into one, λ is the strength, and η is the learning rate. γ_i and β_i are the scale and the
shift of the normalisation layer behind channel i (γ_BN where a card has another γ), and σ_i² is its running variance.
n is the number of channels of a layer. Other symbols are explained on their cards. Sums run over prunable channels
only. No method penalises biases or the shifts of normalisation layers, unless its card says so.

Strengths are searched on the validation split, from the grid of the card, which profiles may scale; the search goes on
beyond the grid while the best strength is at an edge. A *control* is a method of this project, which shows what a part
of another method does.

Entries from the literature were checked, formula by formula, against the code that their cards name (GitHub repository:
files). "Differs there" says what that code does otherwise. (OICSR has no released training or pruning code.)
These differences apply to all entries and are not repeated:

- Training starts from a trained network; its schedule and the fine-tuning are the experiment's.
- Channels are scored once per removal, and how many each layer loses follows from the target and the selection. Most
  sources set the share of each layer by hand.
- Where several layers produce or read the same channels (residual blocks), their filters or columns are one group per
  channel. Most sources treat each layer by itself, or leave such channels alone.
- Linear layers and depthwise convolutions are treated like any other convolution.
"""


def render() -> str:
    """Return the page."""
    parts = [
        INTRODUCTION,
        "## Methods\n",
        _table(METHODS.values()),
        "## Regularisers\n",
        *(_regularizer_card(spec) for spec in REGULARIZERS.values()),
        "## Importances\n\nChannels with the lowest scores are removed first.\n",
        *(_importance_card(spec) for spec in IMPORTANCES.values()),
        "## Selections\n\nThe target in MACs is met within 1 %; no layer loses more channels than its cap allows.\n",
        *(_selection_card(spec) for spec in SELECTIONS.values()),
    ]
    return "\n".join(parts)


def _table(methods: Iterable[Method]) -> str:
    rows = ["| name | method | regulariser | importance | selection | source |", "|---|---|---|---|---|---|"]
    for method in methods:
        parts = [f"`{part.name}`" for part in (method.regularizer, method.importance, method.selection)]
        rows.append(f"| `{method.name}` | {method.title} | {' | '.join(parts)} | {method.source} |")
    return "\n".join(rows) + "\n"


def _regularizer_card(spec: RegularizerSpec) -> str:
    return _card(
        spec.name,
        spec.title,
        {
            "formula": spec.formula,
            "penalised": spec.penalised,
            "normalisation": spec.normalisation,
            "weight decay": spec.weight_decay_note,
            "strength": _strength(spec),
            "source": spec.source,
            **_comparison(spec),
        },
    )


def _strength(spec: RegularizerSpec) -> str:
    if not spec.has_strength:
        return "none"
    grid = ", ".join(f"{value:g}" for value in spec.grid)
    return f"searched from the grid {grid}"


def _importance_card(spec: ImportanceSpec) -> str:
    fields = {"formula": spec.formula, "normalisation": spec.normalisation, "source": spec.source}
    return _card(spec.name, spec.title, fields | _comparison(spec))


def _selection_card(spec: SelectionSpec) -> str:
    return _card(spec.name, spec.title, {"rule": spec.formula, "source": spec.source} | _comparison(spec))


def _comparison(spec: RegularizerSpec | ImportanceSpec | SelectionSpec) -> dict[str, str]:
    """Return what the entry was checked against and what is otherwise there; nothing for controls."""
    return {"compared with": spec.compared, "differs there": spec.differs} if spec.compared else {}


def _card(name: str, title: str, fields: dict[str, str]) -> str:
    lines = [f"- **{field}:** {text}" for field, text in fields.items()]
    return "\n".join([f"### `{name}`: {title}\n", *lines, ""])
