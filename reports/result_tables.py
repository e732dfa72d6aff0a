"""The tables of a report: the main one, families, domains, comparisons, controls and costs."""

import re
from collections.abc import Callable, Mapping, Sequence

from harness.results.metrics import ANSWER_METRICS, METRICS, PIPELINE_STAGES, shuffled
from harness.results.statistics import Estimate
from reports import ceiling
from reports.evaluators import evaluator_table
from reports.findings import Findings
from reports.numbers import DASH, fixed, is_missing, listed, plural
from reports.tables import Table
from reports.unfinished import unfinished_table
from reports.variant_columns import (
    brief_comparison_columns,
    comparison_columns,
    group_columns,
    mean_column,
    ranking_column,
    score_column,
    variant_table,
)


def all_tables(findings: Findings) -> list[Table]:
    """Every table of a report, in the order of the page."""
    unfinished = [unfinished_table(findings)] if len(findings.unfinished) else []
    if not findings.variants:
        return unfinished
    return [
        main_table(findings),
        family_table(findings),
        *([domain_table(findings)] if len(findings.score_table.domains) > 1 else []),
        *ceiling.tables(findings),
        *(comparison_table(findings, baseline) for baseline in findings.baselines),
        control_table(findings),
        *([evaluator_table(findings)] if findings.has_masks else []),
        cost_table(findings),
        *unfinished,
    ]


def main_table(findings: Findings) -> Table:
    """The table that a paper prints: cost, quality with its controls, and the difference from each baseline."""
    others = [
        name for name in ("giou", "ciou", "precision_at_50", "fp_rate", *ANSWER_METRICS) if name != findings.metric
    ]
    columns = [
        *(mean_column(name) for name in ("tokens", "projector_parameters", "flops", "latency_ms")),
        ranking_column(findings),
        *(mean_column(name) for name in (shuffled(findings.metric), "giou_swapped_tokens") if name in METRICS),
        *(score_column(findings, name, is_brief=True) for name in others),
        *(column for baseline in findings.baselines for column in brief_comparison_columns(findings, baseline)),
    ]
    noun = findings.query_noun
    sentences = [
        "Means over seeds with 95% intervals from a bootstrap over images and seeds.",
        _about_differences(findings),
        f"Shuffled {findings.label}: images are paired with the {noun}s of other images."
        if shuffled(findings.metric) in METRICS
        else "",
        "Swapped-token gIoU: the LLM receives the visual tokens of another image." if findings.has_masks else "",
        _about_random_object(findings),
        f"FLOPs and latency are for one image with one {noun}.",
        "The CSV file has the intervals of all scores.",
        _about_dashes(findings, findings.baselines),
    ]
    return variant_table("main", "Main result", _caption(sentences), columns, findings)


def family_table(findings: Findings) -> Table:
    """The score by family of expressions or questions."""
    noun, metric = findings.query_noun, findings.metric
    estimates = _by_group(findings, findings.families, lambda variant, family: (variant, metric, family))
    caption = (
        f"{findings.label} by family of {noun} with 95% intervals. "
        f"Number of {noun}s per family: {_group_sizes(estimates)}."
    )
    return variant_table("families", f"By family of {noun}", caption, group_columns(estimates), findings)


def domain_table(findings: Findings) -> Table:
    """The score by visual domain of the image."""
    domains, metric = findings.score_table.domains, findings.metric
    estimates = _by_group(findings, domains, lambda variant, domain: (variant, metric, None, domain))
    caption = (
        f"{findings.label} by visual domain of the image with 95% intervals. "
        f"Number of {findings.query_noun}s per domain: {_group_sizes(estimates)}."
    )
    return variant_table("domains", "By visual domain", caption, group_columns(estimates), findings)


def comparison_table(findings: Findings, baseline: str) -> Table:
    """The statistics behind the verdicts against one baseline."""
    caption = _caption(
        [
            "p: paired permutation test over images.",
            f"Holm p: adjusted for the study's {plural(findings.num_comparisons, 'comparison')} by Holm's method.",
            "MDE: minimum detectable effect, the smallest true difference that is found with 80% power at the adjusted "
            "level.",
            f"On the front: share of bootstrap resamples in which the arm is on the Pareto front of {findings.label} "
            "and visual tokens.",
            _about_dashes(findings, [baseline]),
        ]
    )
    name = "comparisons" if len(findings.baselines) == 1 else f"comparisons_{_file_name(baseline, findings.baselines)}"
    columns = comparison_columns(findings, baseline)
    return variant_table(name, f"Comparison with {baseline}", caption, columns, findings)


def control_table(findings: Findings) -> Table:
    """Scores beside the controls, which show how much of a score does not depend on the image or the text."""
    columns = [
        score_column(findings, "giou"),
        *(mean_column(name) for name in (shuffled("giou"), "giou_swapped_tokens", "giou_random_object")),
        *(
            score_column(findings, name)
            for name in (
                "giou_with_target",
                "giou_teacher_forced",
                "wrong_object_rate",
                "fn_rate",
                "target_accuracy",
                "no_target_accuracy",
            )
        ),
    ]
    for name in ANSWER_METRICS:
        columns += [score_column(findings, name), mean_column(shuffled(name))]
    sentences = []
    if findings.has_masks:
        sentences += [
            "Shuffled gIoU: the model segments the expression of another image.",
            "Swapped-token gIoU: the LLM receives the visual tokens of another image, while the expression and the "
            "input of the mask decoder stay the same. The remaining score does not come from visual tokens.",
            _random_object_control(findings),
            "Teacher-forced gIoU: [SEG] is inserted instead of generated, so that every expression gets a mask.",
        ]
    if findings.samples["generated_text"].notna().any():
        sentences.append(
            "Shuffled scores of answers: the model answers the question for another image, so the score comes from the "
            "text alone."
        )
    return variant_table("controls", "Controls", _caption(sentences), columns, findings)


def cost_table(findings: Findings) -> Table:
    """Tokens, parameters, FLOPs, latency by stage, memory and training time."""
    names = (
        *("tokens", "tokens_p95", "trainable_parameters", "flops", "latency_ms", "latency_p90_ms"),
        *(f"latency_{stage}_ms" for stage in PIPELINE_STAGES),
        *("peak_memory_mib", "train_seconds"),
    )
    caption = (
        f"Means over seeds. Latency is the median over repeated runs on one image with one {findings.query_noun}; the "
        "caveats describe how the models were timed."
    )
    return variant_table("costs", "Costs", caption, [mean_column(name) for name in names], findings)


def _caption(sentences: Sequence[str]) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _by_group(
    findings: Findings, groups: Sequence[str], arguments: Callable[[str, str], tuple[str | None, ...]]
) -> dict[str, dict[str, Estimate]]:
    """Estimates by group and variant; `arguments` makes those of `ScoreTable.estimate` from both."""
    return {
        group: {
            variant.name: findings.score_table.estimate(*arguments(variant.name, group))  # type: ignore[arg-type]
            for variant in findings.variants
        }
        for group in groups
    }


def _group_sizes(estimates: Mapping[str, Mapping[str, Estimate]]) -> str:
    sizes = {group: max(one.num_expressions for one in found.values()) for group, found in estimates.items()}
    return ", ".join(f"{group} {size}" for group, size in sizes.items())


def _file_name(baseline: str, baselines: Sequence[str]) -> str:
    """A baseline's name without characters that paths, links and LaTeX labels do not allow; unique among them."""
    names = [re.sub(r"[^\w.-]+", "-", each).strip("-") for each in baselines]
    index = baselines.index(baseline)
    before = names[:index].count(names[index])
    return f"{names[index]}-{before + 1}" if before else names[index]


def _about_differences(findings: Findings) -> str:
    if not findings.baselines:
        return "There is no baseline to compare with."
    return (
        f"Δ and the verdict compare {findings.label} with {listed(findings.baselines)} "
        f"(margin {findings.margin:g}); Holm p is the adjusted p-value."
    )


def _about_dashes(findings: Findings, baselines: Sequence[str]) -> str:
    """The meaning of a dash in place of a verdict, if there is one."""
    pairs = [(variant, baseline) for baseline in baselines for variant in findings.variants]
    if all(baseline in variant.against for variant, baseline in pairs if variant.name != baseline):
        return ""
    return f"A verdict of {DASH} means that the arms were not compared; the answer gives the reason."


def _random_object_score(findings: Findings) -> float | None:
    """Mean over variants of the score of choosing an object at random; None if it was not measured."""
    values = [variant.means.get("giou_random_object") for variant in findings.variants]
    known = [value for value in values if value is not None and not is_missing(value)]
    return sum(known) / len(known) if known else None


def _about_random_object(findings: Findings) -> str:
    chance = _random_object_score(findings)
    return "" if chance is None else f"Choosing an object at random has a gIoU of {fixed(chance)}."


def _random_object_control(findings: Findings) -> str:
    if _random_object_score(findings) is not None:
        return (
            "Random-object gIoU: the expected score of choosing one object of the image at random. Chance is the "
            "higher of the swapped-token and the random-object gIoU."
        )
    return (
        "Random-object gIoU was not measured, because the dataset annotates only the objects that expressions refer "
        "to; chance is the swapped-token gIoU."
    )
