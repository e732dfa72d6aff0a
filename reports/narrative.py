"""What the numbers say, in sentences: the answer, the verdict on each claim, and the caveats that the data implies."""

import json
from collections.abc import Iterator

import numpy as np

from harness.results.claims import Finding, Judgement
from harness.results.run_folder import ANSWER_METRICS
from harness.results.score_table import seeds_in_words
from harness.results.statistics import Verdict, ratio
from reports import cells, granularity
from reports.findings import Comparison, Findings, Variant
from reports.numbers import between, fixed, is_missing, listed, p_value, percent

_METRIC_NAMES = {"giou": "gIoU", "giou_teacher_forced": "teacher-forced gIoU", "ciou": "cIoU", "fp_rate": "FP rate",
                 "fn_rate": "FN rate", "wrong_object_rate": "wrong-object rate",
                 "no_target_accuracy": "no-target accuracy", "target_accuracy": "target accuracy",
                 **ANSWER_METRICS}  # fmt: skip

WIDE_SPREAD = 0.05
"""Standard deviation over seeds, in units of the score, from which on a reader is warned."""


def answers(findings: Findings) -> list[str]:
    """The result in a few sentences, each made from numbers."""
    best = findings.best
    if best is None:
        nothing = "No cell finished, so there is nothing to say about the question."
        return [nothing, *cells.scored_but_unfinished(findings)]
    return [
        _best(findings, best),
        *(sentence for baseline in findings.baselines for sentence in _verdicts(findings, baseline)),
        *_not_compared(findings),
        *_front(findings),
        *_weakest_family(findings, best),
        *granularity.answers(findings),
    ]


def metric_name(metric: str) -> str:
    """How a metric is written in prose."""
    if metric.startswith("precision_at_"):
        return f"P@{int(metric.removeprefix('precision_at_')) / 100:g}"
    return _METRIC_NAMES[metric]


def finding_sentence(judgement: Judgement, finding: Finding) -> str:
    """The numbers behind one comparison of a claim."""
    claim, apart = judgement.claim, finding.difference
    if claim.better:
        test = f"p {p_value(finding.adjusted_p)} (Holm, {finding.num_comparisons} tests), "
    else:
        test = f"no worse within {fixed(claim.within)}, " if claim.within else ""
    parts = "".join(f" on {part}" for part in (claim.family, claim.domain) if part)
    noun = "questions" if claim.metric in ANSWER_METRICS else "expressions"
    return (
        f"{finding.variant} minus {finding.other}: "
        f"{fixed(apart.delta, signed=True)} {metric_name(claim.metric)}{parts} "
        f"{between(apart.low, apart.high, signed=True)}, {test}{apart.num_expressions:,} {noun} of "
        f"{apart.num_images:,} images, {_seeds(apart.num_seeds)}; "
        f"MDE {fixed(apart.minimum_detectable(finding.num_comparisons))}."
    )


def caveats(findings: Findings) -> list[str]:
    """What a reader must know before quoting a number."""
    return [
        *_about_chance(findings),
        *_about_seeds(findings),
        *cells.caveats(findings),
        *_about_models(findings),
        *_about_language(findings),
        *_about_tokens(findings),
    ]


def _best(findings: Findings, best: Variant) -> str:
    shown = f"{fixed(best.score.value)} {between(best.score.low, best.score.high)}"
    if len(findings.variants) == 1:
        return f"{best.name} is the only arm with a finished cell: {findings.label} {shown}."
    score = f"{best.name} has the highest {findings.label}, {shown}"
    if not best.against:
        return f"{score}{', and is the baseline' if best.name in findings.baselines else ''}."
    apart = listed([_difference(baseline, comparison) for baseline, comparison in best.against.items()])
    return f"{score}: {apart}. The maximum of {len(findings.variants)} scores is biased upward."


def _difference(baseline: str, comparison: Comparison) -> str:
    apart = comparison.difference
    return (
        f"{fixed(apart.delta, signed=True)} {between(apart.low, apart.high, signed=True)} against {baseline} "
        f"(Holm p {p_value(comparison.adjusted_p)}; {comparison.verdict})"
    )


def _verdicts(findings: Findings, baseline: str) -> Iterator[str]:
    compared = [(variant, variant.against[baseline]) for variant in findings.variants if baseline in variant.against]
    wording = {
        Verdict.BETTER: "Better than {baseline}: {names}.",
        Verdict.WORSE: "Worse than {baseline}: {names}.",
        Verdict.EQUIVALENT: "Equivalent to {baseline} within {margin:g} {score}: {names}.",
        Verdict.INCONCLUSIVE: "Not resolved: {names}; differences from {baseline} under about {detectable} {score} "
        "are too small for this study to find with 80% power.",
    }
    for verdict, sentence in wording.items():
        chosen = [(variant, comparison) for variant, comparison in compared if comparison.verdict is verdict]
        if chosen:
            yield sentence.format(
                baseline=baseline,
                score=findings.label,
                margin=findings.margin,
                names=listed([variant.name for variant, _ in chosen]),
                detectable=fixed(max(comparison.minimum_detectable for _, comparison in chosen)),
            )


def _not_compared(findings: Findings) -> Iterator[str]:
    """Which comparisons the study asks for and cannot have."""
    score_table = findings.score_table
    if findings.missing_baselines:
        yield f"Nothing is compared with {listed(findings.missing_baselines)}, of which no cell finished."
    for baseline in findings.baselines:
        apart = [v.name for v in findings.variants if v.name != baseline and baseline not in v.against]
        seeds = {name: score_table.seeds_of(name) for name in apart if not score_table.common_seeds(name, baseline)}
        if seeds:
            names = [f"{name} ({seeds_in_words(own)})" for name, own in seeds.items()]
            own_seeds = seeds_in_words(score_table.seeds_of(baseline))
            yield (
                f"Not compared with {baseline} ({own_seeds}): {listed(names)}, without a seed in common; run them on "
                "the same seeds."
            )
        others = [name for name in apart if name not in seeds]
        if others:
            yield f"Not compared with {baseline}: {listed(others)}, without an {findings.query_noun} scored by both."


def _front(findings: Findings) -> Iterator[str]:
    front = [variant for variant in findings.variants if variant.is_on_front]
    if front:
        shown = [
            f"{variant.name} ({fixed(variant.means.get('tokens'), 1)} tokens, {findings.label} "
            f"{fixed(variant.score.value)}, on the front in {percent(variant.front_share)} of resamples)"
            for variant in front
        ]
        yield f"On the Pareto front of {findings.label} and tokens: {listed(shown)}."


def _weakest_family(findings: Findings, best: Variant) -> Iterator[str]:
    if len(findings.families) < 2:
        return
    scores = {family: findings.score_table.estimate(best.name, findings.metric, family) for family in findings.families}
    scores = {family: score for family, score in scores.items() if not is_missing(score.value)}
    weak, strong = (choose(scores, key=lambda family: scores[family].value) for choose in (min, max))
    yield (
        f"{best.name} is weakest on {weak} {findings.query_noun}s ({fixed(scores[weak].value)}) and strongest on "
        f"{strong} ({fixed(scores[strong].value)})."
    )


def _about_chance(findings: Findings) -> Iterator[str]:
    metric = findings.metric
    lost = [
        variant.name for variant in findings.variants if not findings.score_table.is_above_chance(variant.name, metric)
    ]
    if lost:
        yield (
            f"No better than chance: {_arms(lost, findings)}. After this many training steps, differences "
            "between these arms say nothing about projectors."
        )


def _about_seeds(findings: Findings) -> Iterator[str]:
    counts = {variant.name: variant.score.num_seeds for variant in findings.variants}
    single = [name for name, number in counts.items() if number == 1]
    if single:
        yield (
            f"One seed ({_arms(single, findings)}): intervals and p speak of these "
            "trained models, not of what training them again would give."
        )
    elif any(number < 5 for number in counts.values()):
        yield f"{_seeds(min(counts.values())).capitalize()}: the spread over training runs is itself roughly known."
    apart = [variant.name for variant in findings.variants if variant.score.seed_sd > WIDE_SPREAD]
    if apart:
        yield (
            f"Seeds lie far apart ({listed(apart)}: sd over {WIDE_SPREAD:g}): what such an arm reaches in this many "
            "steps depends on where it begins, and longer training may order arms otherwise."
        )
    planned = len(findings.study.get("seeds") or [])
    short = [name for name, number in counts.items() if number < planned]
    if short:
        yield f"Fewer seeds than the study's {planned}: {listed(short)}."
    yield from _about_common_seeds(findings)


def _about_common_seeds(findings: Findings) -> Iterator[str]:
    """Which differences leave out seeds that only one of the two arms has."""
    score_table, partly = findings.score_table, []
    for variant in findings.variants:
        for baseline in variant.against:
            common = score_table.common_seeds(variant.name, baseline)
            ours, theirs = len(score_table.seeds_of(variant.name)), len(score_table.seeds_of(baseline))
            if len(common) < max(ours, theirs):
                partly.append(
                    f"{variant.name} and {baseline} over {seeds_in_words(common)} (of {ours} and {theirs} seeds)"
                )
    if partly:
        yield f"Compared over their common seeds only: {'; '.join(partly)}. Scores are means over all seeds of an arm."


def _about_models(findings: Findings) -> Iterator[str]:
    done = findings.done
    if (done["llm"] == "tiny").any():
        yield "The LLM is small and trained from scratch: differences need not carry over to a pretrained LLM."
    specs = [json.loads(spec) for spec in done["spec"].dropna()]
    truncated = {(llm["name"], layers) for spec in specs if (layers := (llm := spec.get("llm", {})).get("layers"))}
    for name, layers in sorted(truncated):
        if name != "tiny":
            yield f"Only the first {layers} layers of {name} are used: the whole LLM may show other differences."
    checkpoints = {source["name"] for spec in specs if (source := spec.get("init_from"))}
    if checkpoints:
        yield (
            f"The LLM was initialized from {listed(sorted(checkpoints))}, which was trained with a projector of its "
            "own: arms with a similar projector may learn sooner."
        )
    random = {
        weight["name"]
        for weights in done["weights"].dropna()
        for weight in json.loads(weights)
        if weight["source"] == "random"
    }
    if random:
        yield f"Random weights, as the study asks: {listed(sorted(random))}."
    devices = {str(json.loads(environment).get("device", "")) for environment in done["environment"].dropna()}
    if any(device.startswith("cpu") for device in devices):
        yield "Latency was measured on a CPU: it compares arms on this machine and claims nothing about accelerators."


def _about_language(findings: Findings) -> Iterator[str]:
    shuffled = f"{findings.metric}_shuffled"
    kept = np.array([variant.means.get(shuffled, np.nan) for variant in findings.variants], dtype=float)
    scores = np.array([variant.score.value for variant in findings.variants], dtype=float)
    known = [share for share in ratio(kept, scores) if not is_missing(share)]
    if known and max(known) > 0.5:
        needless = "the image" if findings.query_noun == "question" else "the expression"
        yield (
            f"With {findings.query_noun}s shuffled between images an arm keeps {percent(max(known))} of its "
            f"{findings.label}, so much of the score does not depend on {needless}."
        )


def _about_tokens(findings: Findings) -> Iterator[str]:
    """How much of the masks comes from what the projector hands on."""
    kept, scores = (
        np.array([variant.means.get(name, np.nan) for variant in findings.variants], dtype=float)
        for name in ("giou_swapped_tokens", "giou")
    )
    shares = zip(findings.variants, ratio(kept, scores), strict=True)
    known = {variant.name: share for variant, share in shares if not is_missing(share)}
    if known and max(known.values()) > 0.5:
        most = max(known, key=lambda name: known[name])
        yield (
            f"With the visual tokens of another image {most} keeps {percent(known[most])} of its gIoU: that much goes "
            "past the projector, from the expression and what the mask decoder sees itself, and only the rest can tell "
            "projectors apart."
        )


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def _arms(names: list[str], findings: Findings) -> str:
    return listed(names) if len(names) < len(findings.variants) else "every arm"
