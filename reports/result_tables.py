"""The tables of a report: the main one, families, domains, comparisons, controls and costs."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from harness.results.run_folder import ANSWER_METRICS, METRICS
from harness.results.statistics import Estimate
from reports.cells import unfinished_table
from reports.evaluators import evaluator_table
from reports.findings import Findings, Variant
from reports.numbers import DASH, between, count, fixed, is_missing, p_value, percent
from reports.tables import Cell, Column, Table, mark_best

ARM = Column("arm", "arm", is_text=True)
_Make = Callable[[Variant], Cell]


def all_tables(findings: Findings) -> list[Table]:
    """Every table of a report, in the order of the page."""
    unfinished = [unfinished_table(findings)] if len(findings.unfinished) else []
    if not findings.variants:
        return unfinished
    return [
        main_table(findings),
        family_table(findings),
        *([domain_table(findings)] if len(findings.score_table.domains) > 1 else []),
        *(comparison_table(findings, baseline) for baseline in findings.baselines),
        control_table(findings),
        *([evaluator_table(findings)] if findings.is_drawn else []),
        cost_table(findings),
        *unfinished,
    ]


def main_table(findings: Findings) -> Table:
    """What a paper would print: cost, quality with its controls, and the difference from each baseline."""
    score = partial(_estimate, findings, is_brief=True)
    columns: list[tuple[Column, _Make]] = [
        (Column("tokens", "tokens"), _mean("tokens", 1)),
        (Column("projector_parameters", "projector params"), _mean("projector_parameters")),
        (Column("flops", "FLOPs"), _mean("flops")),
        (Column("latency_ms", "latency, ms"), _mean("latency_ms", 1)),
        _score_column(findings),
        (Column(f"{findings.metric}_shuffled", "shuffled"), _mean(f"{findings.metric}_shuffled", 3)),
        (Column("giou_swapped_tokens", "other tokens"), _mean("giou_swapped_tokens", 3)),
        *(
            (Column(metric, METRICS[metric].label, METRICS[metric].higher_is_better), score(metric))
            for metric in ("giou", "ciou", "precision_at_50", "fp_rate", *ANSWER_METRICS)
            if metric != findings.metric
        ),
        *(column for baseline in findings.baselines for column in _compared(findings, baseline)),
    ]
    baselines = " and ".join(findings.baselines) or "no baseline"
    caption = (
        f"Means over seeds; 95% intervals by bootstrap over images and seeds. Δ and the verdict compare "
        f"{findings.label} with {baselines} (margin {findings.margin:g}). shuffled: {findings.label} with "
        f"{findings.query_noun}s swapped between images. {_chance(findings)}{_other_tokens(findings)}"
        "FLOPs and latency are of one image, asked once. Intervals of all scores are in the CSV."
        f"{_footnote(findings, findings.baselines)}"
    )
    return _table("main", "Main result", caption, columns, findings)


def _score_column(findings: Findings) -> tuple[Column, _Make]:
    """The score that variants are ranked by."""
    return Column(findings.metric, findings.label, True), lambda variant: _scored(variant.score)


def _compared(findings: Findings, baseline: str) -> list[tuple[Column, _Make]]:
    """The difference from one baseline in brief; its name is in the headings where there are several."""
    is_alone = len(findings.baselines) == 1
    key, heading = ("", f"Δ {findings.label}") if is_alone else (f"_{baseline}", f"Δ to {baseline}")
    return [
        (Column(f"difference{key}", heading), partial(_difference, baseline)),
        (Column(f"holm_p{key}", "Holm p"), partial(_adjusted_p, baseline)),
        (Column(f"verdict{key}", "verdict", is_text=True), partial(_verdict, baseline)),
    ]


def family_table(findings: Findings) -> Table:
    """The score by family of what was asked."""
    metric, what = findings.metric, findings.query_noun
    columns, sizes = _by_group(findings, findings.families, lambda variant, family: (variant, metric, family))
    caption = f"{findings.label} by family of {what} with 95% intervals. {what.title()}s per family: {sizes}."
    return _table("families", f"By family of {what}", caption, columns, findings)


def domain_table(findings: Findings) -> Table:
    """The score by what the image looks like."""
    domains, metric = findings.score_table.domains, findings.metric
    columns, sizes = _by_group(findings, domains, lambda variant, domain: (variant, metric, None, domain))
    caption = f"{findings.label} by visual domain of the image with 95% intervals. Scored per domain: {sizes}."
    return _table("domains", "By visual domain", caption, columns, findings)


def _by_group(
    findings: Findings, groups: Sequence[str], keys_of: Callable[[str, str], tuple[str | None, ...]]
) -> tuple[list[tuple[Column, _Make]], str]:
    """A column a group, and how many expressions each has; `asked` says what of the panel is estimated."""
    columns: list[tuple[Column, _Make]] = []
    sizes = []
    for group in groups:
        known = {each.name: findings.score_table.estimate(*keys_of(each.name, group)) for each in findings.variants}  # type: ignore[arg-type]
        sizes.append(f"{group} {max(estimate.num_expressions for estimate in known.values())}")
        columns.append((Column(group, group, True), partial(_of, known)))
    return columns, ", ".join(sizes)


def _of(known: Mapping[str, Estimate], variant: Variant) -> Cell:
    return _scored(known[variant.name])


def comparison_table(findings: Findings, baseline: str) -> Table:
    """The statistics behind the verdicts against one baseline."""
    columns: list[tuple[Column, _Make]] = [
        (Column("seeds", "seeds"), lambda variant: _count(variant.score.num_seeds)),
        (Column("compared_seeds", "seeds compared"), partial(_compared_seeds, findings, baseline)),
        (Column("scored", "scored"), lambda variant: _count(variant.score.num_expressions)),
        _score_column(findings),
        (Column("seed_sd", "sd over seeds"), lambda variant: _number(variant.score.seed_sd, 4)),
        (Column("difference", f"Δ {findings.label}"), partial(_difference, baseline)),
        (Column("p", "p"), partial(_plain_p, baseline)),
        (Column("holm_p", "Holm p"), partial(_adjusted_p, baseline)),
        (Column("minimum_detectable", "MDE"), partial(_minimum_detectable, baseline)),
        (Column("front_share", "on the front"), _front_share),
        (Column("verdict", "verdict", is_text=True), partial(_verdict, baseline)),
    ]
    caption = (
        f"p: paired permutation over images; Holm over all {findings.num_comparisons} comparisons of the study; MDE: "
        "smallest true difference found with 80% power at the family's level; on the front: share of resamples in "
        f"which nothing has both a higher {findings.label} and no more tokens.{_footnote(findings, [baseline])}"
    )
    name = "comparisons" if len(findings.baselines) == 1 else f"comparisons_{_file_name(baseline, findings.baselines)}"
    return _table(name, f"Against {baseline}", caption, columns, findings)


def _file_name(baseline: str, baselines: Sequence[str]) -> str:
    """A baseline's name without the characters that paths, links and LaTeX labels do not take; unique among them."""
    names = [re.sub(r"[^\w.-]+", "-", each).strip("-") for each in baselines]
    place = baselines.index(baseline)
    before = names[:place].count(names[place])
    return f"{names[place]}-{before + 1}" if before else names[place]


def control_table(findings: Findings) -> Table:
    """Scores beside the controls that a model which ignores the expression would also reach."""
    score = partial(_estimate, findings)
    columns: list[tuple[Column, _Make]] = [
        (Column("giou", "gIoU", True), score("giou")),
        (Column("giou_shuffled", "shuffled expressions"), _mean("giou_shuffled", 3)),
        (Column("giou_swapped_tokens", "tokens of another image"), _mean("giou_swapped_tokens", 3)),
        (Column("giou_random_object", "random object"), _mean("giou_random_object", 3)),
        (Column("giou_teacher_forced", "teacher-forced gIoU"), score("giou_teacher_forced")),
        (Column("wrong_object_rate", "wrong object", False), score("wrong_object_rate")),
        (Column("fn_rate", "FN rate", False), score("fn_rate")),
        (Column("target_accuracy", "target accuracy", True), score("target_accuracy")),
        (Column("no_target_accuracy", "no-target accuracy", True), score("no_target_accuracy")),
    ]
    for metric, label in ANSWER_METRICS.items():
        columns.append((Column(metric, label, True), score(metric)))
        columns.append((Column(f"{metric}_shuffled", f"{label}, images shuffled"), _mean(f"{metric}_shuffled", 3)))
    random_object = (
        "gIoU of picking one object at random, which is chance"
        if _chance(findings)
        else "not measured, as the dataset annotates only the objects that expressions refer to; chance is the gIoU "
        "with tokens of another image"
    )
    about_masks = (
        "shuffled expressions: the model answers another image's expression; tokens of another image: the LLM reads "
        "them, while the expression and the mask decoder keep the image, so the remaining score does not come from "
        "visual tokens; random "
        f"object: {random_object}; teacher-forced: [SEG] is given instead of generated. "
    )
    about_answers = "images shuffled: the model answers while it looks at another image, so from the words alone."
    is_answered = bool(findings.samples["generated_text"].notna().any())
    caption = f"{about_masks if findings.is_drawn else ''}{about_answers if is_answered else ''}".strip()
    return _table("controls", "Controls", caption, columns, findings)


def cost_table(findings: Findings) -> Table:
    """Where the time, the arithmetic and the memory go."""
    stages = ("vision", "sam", "superpixels", "projector", "llm", "mask")
    columns: list[tuple[Column, _Make]] = [
        (Column("tokens", "tokens, mean"), _mean("tokens", 1)),
        (Column("tokens_p95", "tokens, p95"), _mean("tokens_p95", 1)),
        (Column("trainable_parameters", "trainable params"), _mean("trainable_parameters")),
        (Column("flops", "FLOPs"), _mean("flops")),
        (Column("latency_ms", "latency, ms"), _mean("latency_ms", 1)),
        (Column("latency_p90_ms", "latency p90, ms"), partial(_latency_p90, findings)),
        *((Column(f"latency_{stage}_ms", f"{stage}, ms"), _mean(f"latency_{stage}_ms", 1)) for stage in stages),
        (Column("peak_memory_mib", "peak memory, MiB"), _mean("peak_memory_mib", 0)),
        (Column("train_seconds", "training, s"), _mean("train_seconds", 0)),
    ]
    caption = (
        "Means over seeds. Latency is the median of repeated runs of one image, asked once; the caveats say how the "
        "models were timed."
    )
    return _table("costs", "What it costs", caption, columns, findings)


def _table(name: str, title: str, caption: str, columns: list[tuple[Column, _Make]], findings: Findings) -> Table:
    """A row a variant; a column that no variant has anything in is left out."""
    made = [(column, [make(variant) for variant in findings.variants]) for column, make in columns]
    kept = [(column, cells) for column, cells in made if any(cell.text != DASH for cell in cells)]
    headings = (ARM, *(column for column, _ in kept))
    names = [Cell(variant.name) for variant in findings.variants]
    rows = list(zip(names, *(cells for _, cells in kept), strict=True))
    return Table(name, title, caption, headings, mark_best(headings, rows))


def _estimate(findings: Findings, metric: str, is_brief: bool = False) -> _Make:
    return lambda variant: _scored(findings.score_table.estimate(variant.name, metric), is_brief)


def _scored(estimate: Estimate, is_brief: bool = False) -> Cell:
    """A score with its interval; in brief, the interval is left to the CSV."""
    if is_missing(estimate.value):
        return Cell(DASH)
    note = "" if is_brief else between(estimate.low, estimate.high)
    return Cell(fixed(estimate.value), estimate.value, estimate.low, estimate.high, note)


def _number(value: float | None, decimals: int | None) -> Cell:
    if is_missing(value):
        return Cell(DASH)
    return Cell(count(value) if decimals is None else fixed(value, decimals), value)


def _mean(key: str, decimals: int | None = None) -> _Make:
    return lambda variant: _number(variant.means.get(key), decimals)


def _latency_p90(findings: Findings, variant: Variant) -> Cell:
    return _number(findings.cells(variant.name)["latency_p90_ms"].astype(float).mean(), 1)


def _compared_seeds(findings: Findings, baseline: str, variant: Variant) -> Cell:
    """How many seeds a difference is over, where for any arm it is not all of its seeds."""
    others = [each for each in findings.variants if each.name != baseline]
    counts = {each.name: len(findings.score_table.common_seeds(each.name, baseline)) for each in others}
    if variant.name == baseline or all(counts[each.name] == each.score.num_seeds for each in others):
        return Cell(DASH)
    return _count(counts[variant.name])


def _footnote(findings: Findings, baselines: Sequence[str]) -> str:
    """What a dash in the place of a difference means, where there is one."""
    others = [(variant, baseline) for baseline in baselines for variant in findings.variants]
    if all(baseline in variant.against for variant, baseline in others if variant.name != baseline):
        return ""
    return f" {DASH} as the verdict: not compared, see the answer."


def _count(value: int) -> Cell:
    return Cell(f"{value:,}", value)


def _p(value: float | None) -> Cell:
    return Cell(p_value(value), value)


def _difference(baseline: str, variant: Variant) -> Cell:
    comparison = variant.against.get(baseline)
    if comparison is None or is_missing(comparison.difference.delta):
        return Cell(DASH)
    apart = comparison.difference
    note = between(apart.low, apart.high, signed=True)
    return Cell(fixed(apart.delta, signed=True), apart.delta, apart.low, apart.high, note)


def _plain_p(baseline: str, variant: Variant) -> Cell:
    comparison = variant.against.get(baseline)
    return _p(comparison.difference.p if comparison else None)


def _adjusted_p(baseline: str, variant: Variant) -> Cell:
    comparison = variant.against.get(baseline)
    return _p(comparison.adjusted_p if comparison else None)


def _minimum_detectable(baseline: str, variant: Variant) -> Cell:
    comparison = variant.against.get(baseline)
    return _number(comparison.minimum_detectable if comparison else None, 3)


def _front_share(variant: Variant) -> Cell:
    return Cell(percent(variant.front_share), None if is_missing(variant.front_share) else variant.front_share)


def _verdict(baseline: str, variant: Variant) -> Cell:
    comparison = variant.against.get(baseline)
    if comparison is None:
        return Cell("baseline" if variant.name == baseline else DASH)
    return Cell(str(comparison.verdict))


def _other_tokens(findings: Findings) -> str:
    return "other tokens: gIoU where the LLM reads another image. " if findings.is_drawn else ""


def _chance(findings: Findings) -> str:
    chances = [variant.means.get("giou_random_object") for variant in findings.variants]
    known = [value for value in chances if value is not None and not is_missing(value)]
    return f"Picking an object at random scores {fixed(sum(known) / len(known))}. " if known else ""
