"""The scores by the formulas of published evaluators, for comparison with published numbers."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from harness.results.metrics import METRICS
from harness.results.published_metrics import PRESETS, Counts, gsva
from reports.findings import Findings
from reports.numbers import DASH, fixed, is_missing
from reports.tables import Cell, Column, Table, mark_best

_SHOWN = {
    "lisa": ("giou", "ciou"),
    "rela": ("giou", "ciou", "no_target_accuracy", "target_accuracy"),
    "gsva": ("giou", "ciou"),
    "lavt": ("giou", "ciou"),
}
_SEG_COLUMNS = ["target_area", "predicted_seg"]
_NAMES = {"lisa": "LISA", "rela": "ReLA", "gsva": "GSVA", "lavt": "LAVT"}


def evaluator_table(findings: Findings) -> Table:
    """One row per variant, means over seeds."""
    shown = [(preset, score) for preset, scores in _SHOWN.items() for score in scores]
    columns = (
        Column("arm", "arm", is_text=True),
        *(
            Column(f"{preset}_{score}", f"{_NAMES[preset]} {METRICS[score].label}", METRICS[score].higher_is_better)
            for preset, score in shown
        ),
        Column("without_seg", "without [SEG]", False),
    )
    rows = []
    for variant in findings.variants:
        means = _means(findings, variant.name)
        scores = (_cell(means[preset][score]) for preset, score in shown)
        rows.append((Cell(variant.name), *scores, _cell(_without_seg(findings, variant.name))))
    caption = (
        "The same predictions, scored by the formulas of four published evaluators. LISA and LAVT score the "
        "teacher-forced mask of every expression. ReLA (IoUs in percent) and GSVA count a missing [SEG] as a rejection "
        "of the expression. Without [SEG]: share of expressions with a target for which the model generated no [SEG]; "
        "ReLA counts an empty mask for them. The main result and the claims do not use these scores."
    )
    return Table("evaluators", "Scores of published evaluators", caption, columns, mark_best(columns, rows))


def _means(findings: Findings, variant: str) -> Mapping[str, Mapping[str, float]]:
    of_cells = [findings.samples_of(cell) for cell in findings.cells(variant)["cell"]]
    counts = [Counts.of_samples(samples[samples["scoring"].isna()]) for samples in of_cells]
    data = findings.spec(variant).get("data", {}).get("name")
    presets = dict(PRESETS) | {"gsva": partial(gsva, counts_hallucinations=data != "ref_zom")}
    scores = {name: [preset(each) for each in counts] for name, preset in presets.items()}
    return {name: {key: float(np.mean([s[key] for s in found])) for key in found[0]} for name, found in scores.items()}


def _without_seg(findings: Findings, variant: str) -> float:
    """Share of the expressions with a target for which the model generated no [SEG]."""
    samples = pd.concat([findings.samples_of(cell)[_SEG_COLUMNS] for cell in findings.cells(variant)["cell"]])
    targeted = samples[samples["target_area"] > 0]
    return float(1 - targeted["predicted_seg"].astype(float).mean())


def _cell(value: float) -> Cell:
    return Cell(DASH) if is_missing(value) else Cell(fixed(value), value)
