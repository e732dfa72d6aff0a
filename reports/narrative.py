"""The result in sentences: the answer to the study's question, and the numbers behind the verdict on each claim."""

from collections.abc import Iterator

from harness.results.budget_scores import STEPS_TO_GIOU
from harness.results.claims import Finding, Judgement
from harness.results.metrics import METRICS
from harness.results.score_table import seeds_in_words
from harness.results.statistics import Verdict
from reports import granularity, learning
from reports.findings import Comparison, Findings, Variant
from reports.numbers import MAX_LISTED, NUM_FIRST, between, fixed, is_missing, listed, p_value, percent, plural
from reports.unfinished import scored_but_unfinished


def answers(findings: Findings) -> list[str]:
    """The result in a few sentences."""
    best = findings.best
    if best is None:
        return ["No cell finished, so the question cannot be answered.", *scored_but_unfinished(findings)]
    return [
        learning.sentence(findings),
        _best(findings, best),
        *(sentence for baseline in findings.baselines for sentence in _verdicts(findings, baseline)),
        *_not_compared(findings),
        *_front(findings),
        *_weakest_family(findings, best),
        *granularity.answers(findings),
    ]


def finding_sentences(judgement: Judgement) -> list[str]:
    """The numbers behind a verdict, for each comparison; of many, the first and the number of the others."""
    compared = [each for each in judgement.findings if each.difference.is_compared]
    shown = compared if len(compared) <= MAX_LISTED else compared[:NUM_FIRST]
    rest = [f"{len(compared) - len(shown):,} other comparisons are not shown."] if len(shown) < len(compared) else []
    return [*(finding_sentence(judgement, each) for each in shown), *rest]


def finding_sentence(judgement: Judgement, finding: Finding) -> str:
    """The numbers behind one comparison of a claim."""
    claim, difference = judgement.claim, finding.difference
    if claim.metric == STEPS_TO_GIOU:
        return (
            f"{finding.variant} minus {finding.other}: {difference.delta:+,.0f} training steps to gIoU "
            f"{fixed(claim.reaches)} [{difference.low:+,.0f}, {difference.high:+,.0f}]; "
            f"Holm p {p_value(finding.adjusted_p)} over {plural(finding.num_comparisons, 'test')}; "
            f"{plural(difference.num_seeds, 'seed')}."
        )
    metric = METRICS[claim.metric]
    if claim.better:
        test = f"Holm p {p_value(finding.adjusted_p)} over {plural(finding.num_comparisons, 'test')}; "
    else:
        test = f"allowed margin {fixed(claim.within)}; " if claim.within else ""
    parts = "".join(f" on {part}" for part in (claim.family, claim.domain) if part)
    at = f" at budget {claim.at_budget:g}" if claim.at_budget else ""
    return (
        f"{finding.variant} minus {finding.other}: {fixed(difference.delta, signed=True)} {metric.label}{parts}{at} "
        f"{between(difference.low, difference.high, signed=True)}; {test}"
        f"{plural(difference.num_expressions, metric.applies_to or 'expression')} of "
        f"{plural(difference.num_images, 'image')}, {plural(difference.num_seeds, 'seed')}; "
        f"minimum detectable effect {fixed(difference.minimum_detectable(finding.num_comparisons))}."
        f"{_since_half(finding)}"
    )


def _since_half(finding: Finding) -> str:
    """The difference at half of the training, and its change since then."""
    if finding.half is None or finding.change is None:
        return ""
    half, change = finding.half, finding.change
    return (
        f" At half of the training steps it was {fixed(half.delta, signed=True)} "
        f"{between(half.low, half.high, signed=True)}; the change is {fixed(change.delta, signed=True)} "
        f"{between(change.low, change.high, signed=True)}."
    )


def _best(findings: Findings, best: Variant) -> str:
    shown = f"{fixed(best.score.value)} {between(best.score.low, best.score.high)}"
    if len(findings.variants) == 1:
        return f"{best.name} is the only arm with a finished cell: {findings.label} {shown}."
    score = f"{best.name} has the highest {findings.label}, {shown}"
    if not best.against:
        return f"{score}{', and is the baseline' if best.name in findings.baselines else ''}."
    differences = listed([_difference(baseline, comparison) for baseline, comparison in best.against.items()])
    return f"{score}: {differences}. The maximum of {len(findings.variants)} scores is biased upward."


def _difference(baseline: str, comparison: Comparison) -> str:
    difference = comparison.difference
    return (
        f"{fixed(difference.delta, signed=True)} {between(difference.low, difference.high, signed=True)} compared with "
        f"{baseline} (Holm p {p_value(comparison.adjusted_p)}; {comparison.verdict})"
    )


def _verdicts(findings: Findings, baseline: str) -> Iterator[str]:
    compared = [(variant, variant.against[baseline]) for variant in findings.variants if baseline in variant.against]
    wording = {
        Verdict.BETTER: "Better than {baseline}: {names}.",
        Verdict.WORSE: "Worse than {baseline}: {names}.",
        Verdict.EQUIVALENT: "Equivalent to {baseline} within {margin:g} {score}: {names}.",
        Verdict.INCONCLUSIVE: "Inconclusive compared with {baseline}: {names}. Differences below about {detectable} "
        "{score} are too small for this study to detect with 80% power.",
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
    """The comparisons of the study that cannot be made."""
    score_table = findings.score_table
    if findings.missing_baselines:
        yield f"No arm is compared with {listed(findings.missing_baselines)}, because none of its cells finished."
    for baseline in findings.baselines:
        missing = [v.name for v in findings.variants if v.name != baseline and baseline not in v.against]
        seeds = {name: score_table.seeds_of(name) for name in missing if not score_table.common_seeds(name, baseline)}
        if seeds:
            names = [f"{name} ({seeds_in_words(own)})" for name, own in seeds.items()]
            own_seeds = seeds_in_words(score_table.seeds_of(baseline))
            yield (
                f"Not compared with {baseline} ({own_seeds}), because there is no common seed: {listed(names)}. Run "
                "them with the same seeds."
            )
        others = [name for name in missing if name not in seeds]
        if others:
            yield (
                f"Not compared with {baseline}, because no {findings.query_noun} was scored by both: {listed(others)}."
            )


def _front(findings: Findings) -> Iterator[str]:
    front = [variant for variant in findings.variants if variant.is_on_front]
    if front:
        shown = [
            f"{variant.name} ({fixed(variant.means.get('tokens'), 1)} tokens, {findings.label} "
            f"{fixed(variant.score.value)}, on the front in {percent(variant.front_share)} of resamples)"
            for variant in front
        ]
        yield f"On the Pareto front of {findings.label} and visual tokens: {listed(shown)}."


def _weakest_family(findings: Findings, best: Variant) -> Iterator[str]:
    if len(findings.families) < 2:
        return
    scores = {family: findings.score_table.estimate(best.name, findings.metric, family) for family in findings.families}
    scores = {family: score for family, score in scores.items() if not is_missing(score.value)}
    weak, strong = (choose(scores, key=lambda family: scores[family].value) for choose in (min, max))
    yield (
        f"{best.name} scores lowest on {weak} {findings.query_noun}s ({fixed(scores[weak].value)}) and highest on "
        f"{strong} {findings.query_noun}s ({fixed(scores[strong].value)})."
    )
