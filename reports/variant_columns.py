"""Columns of tables that have one row per variant; labels, units and directions come from the registry of metrics."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from harness.results.metrics import METRICS
from harness.results.statistics import Estimate
from reports.findings import Findings, Variant
from reports.numbers import DASH, between, count, fixed, is_missing, p_value, percent
from reports.tables import Cell, Column, Table, mark_best

ARM = Column("arm", "arm", is_text=True)
VariantColumn = tuple[Column, Callable[[Variant], Cell]]
"""A column, and the function that makes the cell of a variant."""


def variant_table(name: str, title: str, caption: str, columns: Iterable[VariantColumn], findings: Findings) -> Table:
    """A table with one row per variant; a column without any value is left out."""
    made = [(column, [make(variant) for variant in findings.variants]) for column, make in columns]
    kept = [(column, cells) for column, cells in made if any(cell.text != DASH for cell in cells)]
    headings = (ARM, *(column for column, _ in kept))
    names = [Cell(variant.name) for variant in findings.variants]
    rows = list(zip(names, *(cells for _, cells in kept), strict=True))
    return Table(name, title, caption, headings, mark_best(headings, rows))


def mean_column(name: str) -> VariantColumn:
    """A measured column, averaged over seeds."""
    metric = METRICS[name]
    decimals = None if metric.is_abbreviated else metric.decimals
    return Column(name, metric.heading), lambda variant: number_cell(variant.means.get(name), decimals)


def score_column(findings: Findings, name: str, is_brief: bool = False) -> VariantColumn:
    """A score with its interval; a brief column leaves the interval to the CSV file."""
    metric = METRICS[name]

    def make(variant: Variant) -> Cell:
        return estimate_cell(findings.score_table.estimate(variant.name, name), is_brief)

    return Column(name, metric.heading, metric.higher_is_better), make


def ranking_column(findings: Findings) -> VariantColumn:
    """The score by which variants are ranked."""
    column, _ = score_column(findings, findings.metric)
    return column, lambda variant: estimate_cell(variant.score)


def group_columns(estimates: Mapping[str, Mapping[str, Estimate]]) -> list[VariantColumn]:
    """The score by group, from estimates by group and variant."""
    return [
        (Column(group, group, True), partial(_estimate_of, of_variants)) for group, of_variants in estimates.items()
    ]


def brief_comparison_columns(findings: Findings, baseline: str) -> list[VariantColumn]:
    """Difference, p-value and verdict; headings name the baseline if there are several."""
    is_alone = len(findings.baselines) == 1
    key, label = ("", f"Δ {findings.label}") if is_alone else (f"_{baseline}", f"Δ to {baseline}")
    return [
        (Column(f"difference{key}", label), partial(_difference, baseline)),
        (Column(f"holm_p{key}", "Holm p"), partial(_adjusted_p, baseline)),
        (Column(f"verdict{key}", "verdict", is_text=True), partial(_verdict, baseline)),
    ]


def comparison_columns(findings: Findings, baseline: str) -> list[VariantColumn]:
    """Every statistic of the comparisons with one baseline."""
    difference, adjusted_p, verdict = brief_comparison_columns(findings, baseline)
    others = [each for each in findings.variants if each.name != baseline]
    counts = {each.name: len(findings.score_table.common_seeds(each.name, baseline)) for each in others}
    if all(counts[each.name] == each.score.num_seeds for each in others):
        counts = {}
    return [
        (Column("seeds", "seeds"), lambda variant: _count(variant.score.num_seeds)),
        (Column("compared_seeds", "common seeds"), partial(_compared_seeds, counts)),
        (Column("scored", f"{findings.query_noun}s"), lambda variant: _count(variant.score.num_expressions)),
        ranking_column(findings),
        (Column("seed_sd", "SD over seeds"), lambda variant: number_cell(variant.score.seed_sd, 4)),
        (Column("difference", f"Δ {findings.label}"), difference[1]),
        (Column("p", "p"), partial(_unadjusted_p, baseline)),
        (Column("holm_p", "Holm p"), adjusted_p[1]),
        (Column("minimum_detectable", "MDE"), partial(_minimum_detectable, baseline)),
        (Column("front_share", "on the front"), _front_share),
        (Column("verdict", "verdict", is_text=True), verdict[1]),
    ]


def estimate_cell(estimate: Estimate, is_brief: bool = False) -> Cell:
    """A score with its interval."""
    if is_missing(estimate.value):
        return Cell(DASH)
    note = "" if is_brief else between(estimate.low, estimate.high)
    return Cell(fixed(estimate.value), estimate.value, estimate.low, estimate.high, note)


def number_cell(value: float | None, decimals: int | None) -> Cell:
    """A number with fixed decimals; with three digits and a scale if `decimals` is None."""
    if is_missing(value):
        return Cell(DASH)
    return Cell(count(value) if decimals is None else fixed(value, decimals), value)


def _estimate_of(estimates: Mapping[str, Estimate], variant: Variant) -> Cell:
    return estimate_cell(estimates[variant.name])


def _compared_seeds(counts: Mapping[str, int], variant: Variant) -> Cell:
    """The number of common seeds; `counts` is empty if every arm is compared over all of its seeds."""
    return _count(counts[variant.name]) if variant.name in counts else Cell(DASH)


def _count(value: int) -> Cell:
    return Cell(f"{value:,}", value)


def _difference(baseline: str, variant: Variant) -> Cell:
    comparison = variant.against.get(baseline)
    if comparison is None or is_missing(comparison.difference.delta):
        return Cell(DASH)
    difference = comparison.difference
    note = between(difference.low, difference.high, signed=True)
    return Cell(fixed(difference.delta, signed=True), difference.delta, difference.low, difference.high, note)


def _unadjusted_p(baseline: str, variant: Variant) -> Cell:
    comparison = variant.against.get(baseline)
    return _p(comparison.difference.p if comparison else None)


def _adjusted_p(baseline: str, variant: Variant) -> Cell:
    comparison = variant.against.get(baseline)
    return _p(comparison.adjusted_p if comparison else None)


def _p(value: float | None) -> Cell:
    return Cell(p_value(value), value)


def _minimum_detectable(baseline: str, variant: Variant) -> Cell:
    comparison = variant.against.get(baseline)
    return number_cell(comparison.minimum_detectable if comparison else None, 3)


def _front_share(variant: Variant) -> Cell:
    return Cell(percent(variant.front_share), None if is_missing(variant.front_share) else variant.front_share)


def _verdict(baseline: str, variant: Variant) -> Cell:
    comparison = variant.against.get(baseline)
    if comparison is None:
        return Cell("baseline" if variant.name == baseline else DASH)
    return Cell(str(comparison.verdict))
