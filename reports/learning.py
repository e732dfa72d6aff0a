"""Whether the arms of a study had stopped learning: a sentence, and the score by training steps."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from reports.findings import Findings
from reports.numbers import between, fixed, listed, plural
from reports.style import Draw, styles


def sentence(findings: Findings) -> str:
    """Whether the arms had stopped learning, from the change between half of the training steps and all of them."""
    scores, label = findings.scores, findings.label
    trained = [variant.name for variant in findings.variants if not is_fitted(findings, variant.name)]
    if not trained:
        return "The linear readers were fitted to their optimum, so that no training steps change the scores."
    changes = {name: scores.gained(name, findings.metric) for name in trained}
    known = {name: change for name, change in changes.items() if change is not None}
    if not known:
        return "It is unknown whether the arms had stopped learning: they were scored at the end of training only."
    span = f"from half of the training to its end at {plural(scores.steps[1.0], 'step')}"
    if all(abs(change.delta) < findings.tolerance for change in known.values()):
        largest = max(known.values(), key=lambda change: abs(change.delta))
        return (
            f"The arms had stopped learning: {span}, {label} changed by at most {fixed(largest.delta, signed=True)} "
            f"{between(largest.low, largest.high, signed=True)}."
        )
    moving = {name: change for name, change in known.items() if abs(change.delta) >= findings.tolerance}
    shown = [f"{name} {fixed(change.delta, signed=True)}" for name, change in moving.items()]
    return (
        f"{len(moving)} of {len(known)} arms had not stopped learning: {span}, {label} changed by "
        f"{findings.tolerance:g} or more ({listed(shown)}). Scores are those of {plural(scores.steps[1.0], 'step')}."
    )


def is_fitted(findings: Findings, variant: str) -> bool:
    """Whether a variant's LLM is the linear reader, which takes no training steps."""
    return bool((findings.cells(variant)["llm"] == "linear").all())


def figures(findings: Findings) -> Iterator[tuple[str, str, Draw]]:
    """Name, caption and function of the figure, if cells were scored at several budgets."""
    has_trained = any(not is_fitted(findings, variant.name) for variant in findings.variants)
    if len(findings.scores.tables) > 1 and has_trained:
        caption = (
            f"{findings.label} of the models of each training budget, with 95% intervals. Where lines are flat and do "
            "not cross, longer training would hardly change the order of arms."
        )
        yield "learning", caption, by_steps


def by_steps(findings: Findings) -> Figure:
    """The score of each variant by training steps."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes, scores = figure.add_subplot(), findings.scores
    steps = [scores.steps[budget] for budget in scores.tables]
    for variant, style in zip(findings.variants, styles(findings), strict=True):
        scored = [
            (number, table.estimate(variant.name, findings.metric))
            for number, table in zip(steps, scores.tables.values(), strict=True)
            if variant.name in table.variants
        ]
        values = np.array([(each.value, each.value - each.low, each.high - each.value) for _, each in scored]).T
        axes.errorbar(
            [number for number, _ in scored],
            values[0],
            yerr=values[1:].clip(min=0),
            color=style.color,
            marker=style.marker,
            ms=6,
            lw=1.5,
            capsize=3,
            label=variant.name,
        )
    axes.set_xticks(steps)
    axes.set_xlim(0, None)
    axes.set_xlabel("training steps")
    axes.set_ylabel(findings.label)
    figure.legend(loc="outside right upper", frameon=False, fontsize=10)
    return figure
