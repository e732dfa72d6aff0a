"""The scores as published evaluators would print them, to be put beside published numbers."""

from collections.abc import Mapping
from functools import partial

import numpy as np

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
_PROPER = {"lisa": "LISA", "rela": "ReLA", "gsva": "GSVA", "lavt": "LAVT"}
_LABELS = {"giou": "gIoU", "ciou": "cIoU", "no_target_accuracy": "N-acc", "target_accuracy": "T-acc"}


def evaluator_table(findings: Findings) -> Table:
    """A row a variant, means over seeds."""
    shown = [(preset, score) for preset, scores in _SHOWN.items() for score in scores]
    columns = (
        Column("arm", "arm", is_text=True),
        *(Column(f"{preset}_{score}", f"{_PROPER[preset]} {_LABELS[score]}", True) for preset, score in shown),
        Column("without_seg", "no [SEG]", False),
    )
    rows = []
    for variant in findings.variants:
        means = _means(findings, variant.name)
        scores = (_cell(means[preset][score]) for preset, score in shown)
        rows.append((Cell(variant.name), *scores, _cell(_without_seg(findings, variant.name))))
    caption = (
        "The same predictions through the arithmetic of four published evaluators. LISA and LAVT are given [SEG]; ReLA "
        "(IoUs in percent) and GSVA take no [SEG] as a rejection. no [SEG]: share of expressions with a target that "
        "were answered without it, for which ReLA counts no mask. Main result and claims use none."
    )
    return Table("evaluators", "As published evaluators count", caption, columns, mark_best(columns, rows))


def _means(findings: Findings, variant: str) -> Mapping[str, Mapping[str, float]]:
    samples = findings.samples
    samples = samples[samples["scoring"].isna()]
    cells = findings.cells(variant)
    counts = [Counts.of_samples(samples[samples["cell"] == cell]) for cell in cells["cell"]]
    data = findings.spec(variant).get("data", {}).get("name")
    presets = dict(PRESETS) | {"gsva": partial(gsva, counts_hallucinations=data != "ref_zom")}
    scores = {name: [preset(each) for each in counts] for name, preset in presets.items()}
    return {name: {key: float(np.mean([s[key] for s in found])) for key in found[0]} for name, found in scores.items()}


def _without_seg(findings: Findings, variant: str) -> float:
    """Share of the expressions with a target to which the model itself did not say [SEG]."""
    samples = findings.samples
    targeted = samples[samples["cell"].isin(findings.cells(variant)["cell"]) & (samples["target_area"] > 0)]
    return float(1 - targeted["predicted_seg"].astype(float).mean())


def _cell(value: float) -> Cell:
    return Cell(DASH) if is_missing(value) else Cell(fixed(value), value)
