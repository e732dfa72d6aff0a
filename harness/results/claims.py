"""Claims that a study states before it runs, and their verdicts.

A claim in a study's YAML is one of two kinds:

    - {claim: SSPE beats a bounding-box MLP on relations, better: sspe, than: bbox_mlp, family: relation}
    - {claim: SVP keeps up with pooling on attributes, no_worse: svp, than: pooling, within: 0.05, family: attribute}

The second is a claim of non-inferiority: it is supported if the whole interval of the difference lies above -`within`,
and inconclusive if both arms are at chance.

An arm with several search points is tested at every point, so that none is selected after the fact. `at` restricts the
points: `at: {projector.position.blocks: 3}`. A claim is supported if every point supports it, refuted if every point
refutes it, and otherwise inconclusive. It is also inconclusive if a point has no seed in common with the other arm. The
p-values of all `better` comparisons of a study form one Holm family.

A difference that still moves with the budget of training is no verdict. A comparison is supported or refuted only if it
is so at half of the training steps and at all of them, and if the difference changed by less than the study's
`tolerance` in between; otherwise it is *still moving*. A claim about one budget says so (`at_budget: 0.25`), and so
does one about the speed of learning (`metric: steps_to_giou`, `reaches: 0.5`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from harness.errors import shorten, suggest
from harness.results.budget_scores import STEPS_TO_GIOU, BudgetScores
from harness.results.metrics import METRICS, SCORES
from harness.results.score_table import ScoreTable
from harness.results.statistics import Change, Difference, Verdict, holm, judge

_MARGIN_OF_STEPS = 0.05
"""Smallest relevant difference in the speed of learning, as a share of the training steps."""


class ClaimVerdict(StrEnum):
    """The verdict on a claim."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    STILL_MOVING = "still moving"
    INCONCLUSIVE = "inconclusive"


class Claim(BaseModel):
    """One claim of a study: `better` ... `than` ..., or `no_worse` ... `than` ... `within` a margin."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    claim: str = Field(description="the claim as a sentence")
    better: str | None = Field(default=None, description="the arm that is claimed to be better")
    no_worse: str | None = Field(default=None, description="the arm that is claimed to be no worse")
    than: str = Field(description="the arm it is compared with")
    within: float | None = Field(
        default=None, gt=0, description="the margin by which it may be worse; the study's margin if left out"
    )
    metric: str = Field(default="giou", description=f"one of {', '.join([*SCORES, STEPS_TO_GIOU])}")
    reaches: float | None = Field(
        default=None, gt=0, lt=1, description=f"the gIoU that is to be reached; for metric {STEPS_TO_GIOU}"
    )
    at_budget: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="judge the models of this share of the training steps only, whether or not the difference still "
        "moves; must be one of training.budgets",
    )
    family: str | None = Field(default=None, description="only expressions of this family")
    domain: str | None = Field(default=None, description="only images of this domain")
    at: dict[str, bool | int | float | str] = Field(default={}, description="only search points with these settings")

    @field_validator("metric")
    @classmethod
    def _metric_is_scored_per_expression(cls, metric: str) -> str:
        if metric not in (*SCORES, STEPS_TO_GIOU):
            names = [*SCORES, STEPS_TO_GIOU]
            raise ValueError(f"{shorten(metric)!r} is not a metric of samples; {suggest(metric, names)}")
        return metric

    @model_validator(mode="after")
    def _is_one_kind(self) -> "Claim":
        if (self.better is None) == (self.no_worse is None):
            raise ValueError("a claim must have either better: ARM, than: ARM or no_worse: ARM, than: ARM")
        if self.within is not None and self.better:
            raise ValueError("within is allowed only with no_worse; better uses the study's margin")
        if self.than in (self.better, self.no_worse):
            raise ValueError(f"the claim compares {shorten(self.than)!r} with itself; name another arm in than")
        if (self.metric == STEPS_TO_GIOU) != (self.reaches is not None):
            raise ValueError(f"metric {STEPS_TO_GIOU} and reaches: gIoU must be set together")
        if self.metric == STEPS_TO_GIOU:
            if self.no_worse or self.family or self.domain or self.at_budget:
                raise ValueError(f"metric {STEPS_TO_GIOU} allows better, than, at and reaches only")
            return self
        if self.within is not None and self.within >= METRICS[self.metric].maximum:
            raise ValueError(
                f"found within: {self.within}; {self.metric} ranges from 0 to {METRICS[self.metric].maximum:g}, so a "
                "margin must be less than that"
            )
        return self

    @property
    def arms(self) -> tuple[str, str]:
        """The arm the claim is about and the arm it is compared with."""
        return (self.better or self.no_worse or "", self.than)


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison for a claim: two variants, their difference and the verdict.

    Attributes:
        half: the difference at half of the training steps; None if it was not judged there.
        change: of the difference since then.
    """

    variant: str
    other: str
    difference: Difference
    adjusted_p: float
    num_comparisons: int
    verdict: ClaimVerdict
    half: Difference | None = None
    change: Change | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """A claim's verdict with the comparisons behind it.

    `reason` explains why comparisons are missing or disagree.
    """

    claim: Claim
    verdict: ClaimVerdict
    findings: tuple[Finding, ...]
    reason: str = ""


def judge_claims(claims: Sequence[Claim], scores: BudgetScores, margin: float, tolerance: float) -> list[Judgement]:
    """The verdict on every claim, in order.

    Args:
        margin: smallest relevant difference.
        tolerance: largest change of a difference between half of the training steps and all of them.
    """
    whole = [_compare(claim, scores, claim.at_budget or 1.0) for claim in claims]
    findings = _with_verdicts(claims, whole, scores.last, margin, scores.steps[1.0])
    half: list[list[Finding]] = [[] for _ in claims]
    if scores.half is not None:
        compared = [_compare(claim, scores, 0.5) if _is_about_the_end(claim) else [] for claim in claims]
        half = _with_verdicts(claims, compared, scores.half, margin, scores.steps[1.0])
    judgements = []
    for claim, at_end, before in zip(claims, findings, half, strict=True):
        missing = _missing_budget(claim, scores)
        if _is_about_the_end(claim) and not missing:
            at_end = [_settled(claim, finding, before, scores, tolerance) for finding in at_end]
        judgement = _judge(claim, tuple(at_end), scores.last)
        if missing and (claim.at_budget is not None or judgement.verdict is not ClaimVerdict.INCONCLUSIVE):
            judgement = replace(judgement, verdict=ClaimVerdict.INCONCLUSIVE, reason=missing)
        judgements.append(judgement)
    return judgements


Compared = list[tuple[str, str, Difference]]


def _is_about_the_end(claim: Claim) -> bool:
    """Whether a claim is about trained models, and not about one budget or about the speed of learning."""
    return claim.at_budget is None and claim.metric != STEPS_TO_GIOU


def _missing_budget(claim: Claim, scores: BudgetScores) -> str:
    """Why a claim lacks a budget; empty if it does not."""
    known = ", ".join(f"{budget:g}" for budget in scores.tables)
    if claim.at_budget is not None and claim.at_budget not in scores.tables:
        return f"no cell was scored at budget {claim.at_budget:g}; training.budgets has {known}"
    if _is_about_the_end(claim) and scores.half is None:
        return (
            "cells were scored at the end of training only, so it is unknown whether the difference still moves; add "
            "0.5 to training.budgets, or state at_budget: 1.0"
        )
    return ""


def _compare(claim: Claim, scores: BudgetScores, budget: float) -> Compared:
    table = scores.tables.get(budget)
    if table is None:
        return []
    if claim.metric == STEPS_TO_GIOU:
        assert claim.reaches is not None
        return [(a, b, scores.steps_to_giou(a, b, claim.reaches)) for a, b in _pairs(claim, table)]
    chosen = (claim.metric, claim.family, claim.domain)
    return [(left, right, table.compare(left, right, *chosen)) for left, right in _pairs(claim, table)]


def _with_verdicts(
    claims: Sequence[Claim], compared: Sequence[Compared], score_table: ScoreTable, margin: float, steps: int
) -> list[list[Finding]]:
    """The comparisons of each claim with Holm's p-values and a verdict of their own."""
    tested = [
        difference.p
        for claim, comparisons in zip(claims, compared, strict=True)
        for _, _, difference in comparisons
        if claim.better
    ]
    adjusted = iter(holm(tested))
    num_tests = max(1, sum(not math.isnan(p) for p in tested))
    found = []
    for claim, comparisons in zip(claims, compared, strict=True):
        smallest = _MARGIN_OF_STEPS * steps if claim.metric == STEPS_TO_GIOU else margin
        findings = []
        for left, right, difference in comparisons:
            p = next(adjusted) if claim.better else difference.p
            is_uninformative = not difference.is_compared or _are_at_chance(claim, left, right, score_table)
            verdict = ClaimVerdict.INCONCLUSIVE if is_uninformative else _verdict(claim, difference, p, smallest)
            findings.append(Finding(left, right, difference, p, num_tests if claim.better else 1, verdict))
        found.append(findings)
    return found


def _settled(
    claim: Claim, finding: Finding, before: Sequence[Finding], scores: BudgetScores, tolerance: float
) -> Finding:
    """A finding with its verdict at half of the training; still moving if they differ or the difference changed."""
    assert scores.half is not None
    earlier = next((each for each in before if (each.variant, each.other) == (finding.variant, finding.other)), None)
    pair = (finding.variant, finding.other, claim.metric, claim.family, claim.domain)
    change = scores.last.change_since(scores.half, *pair)
    half = earlier.difference if earlier else None
    is_settled = (
        earlier is not None
        and earlier.verdict is finding.verdict
        and change is not None
        and abs(change.delta) < tolerance
    )
    is_open = finding.verdict is ClaimVerdict.INCONCLUSIVE
    verdict = finding.verdict if is_settled or is_open else ClaimVerdict.STILL_MOVING
    return replace(finding, verdict=verdict, half=half, change=change)


def _are_at_chance(claim: Claim, left: str, right: str, score_table: ScoreTable) -> bool:
    """Whether a claim of non-inferiority compares two variants at chance."""
    return claim.no_worse is not None and not any(
        score_table.is_above_chance(variant, claim.metric) for variant in (left, right)
    )


def _pairs(claim: Claim, score_table: ScoreTable) -> list[tuple[str, str]]:
    """The variants to compare: every point of one arm with every point of the other."""
    if (
        claim.family is not None
        and claim.metric != STEPS_TO_GIOU
        and claim.family not in score_table.families_of(claim.metric)
    ):
        return []
    if claim.domain is not None and claim.domain not in score_table.domains:
        return []
    left, right = (score_table.variants_of(arm, claim.at) for arm in claim.arms)
    return [(one, other) for one in left for other in right]


def _verdict(claim: Claim, difference: Difference, adjusted_p: float, margin: float) -> ClaimVerdict:
    higher_is_better = claim.metric != STEPS_TO_GIOU and bool(METRICS[claim.metric].higher_is_better)
    if claim.better:
        outcome = judge(difference, adjusted_p, margin, higher_is_better)
        if outcome is Verdict.BETTER:
            return ClaimVerdict.SUPPORTED
        return ClaimVerdict.INCONCLUSIVE if outcome is Verdict.INCONCLUSIVE else ClaimVerdict.REFUTED
    worst, best = (difference.low, difference.high) if higher_is_better else (-difference.high, -difference.low)
    within = claim.within or margin
    if worst > -within:
        return ClaimVerdict.SUPPORTED
    return ClaimVerdict.REFUTED if best < -within else ClaimVerdict.INCONCLUSIVE


def _missing_part(claim: Claim, score_table: ScoreTable) -> str:
    is_domain = claim.domain is not None and claim.domain not in score_table.domains
    part = f"domain {claim.domain}" if is_domain else f"family {claim.family}"
    return f"no {METRICS[claim.metric].applies_to} of {part} was scored"


def _why_not_compared(claim: Claim, finding: Finding, score_table: ScoreTable) -> str:
    reason = score_table.why_not_compared(finding.variant, finding.other)
    if not score_table.common_seeds(finding.variant, finding.other):
        return reason
    parts = {"family": claim.family, "domain": claim.domain}
    return reason + "".join(f", {kind} {part}" for kind, part in parts.items() if part)


def _judge(claim: Claim, findings: tuple[Finding, ...], score_table: ScoreTable) -> Judgement:
    if not findings:
        missing = [arm for arm in claim.arms if not score_table.variants_of(arm, claim.at)]
        reason = f"no cell of {' or '.join(missing)} has finished" if missing else _missing_part(claim, score_table)
        return Judgement(claim, ClaimVerdict.INCONCLUSIVE, (), reason)
    apart = [each for each in findings if not each.difference.is_compared]
    if apart:
        reasons = [_why_not_compared(claim, finding, score_table) for finding in apart]
        return Judgement(claim, ClaimVerdict.INCONCLUSIVE, findings, "; ".join(dict.fromkeys(reasons)))
    verdicts = [finding.verdict for finding in findings]
    if len(set(verdicts)) == 1:
        is_uninformative = any(
            _are_at_chance(claim, finding.variant, finding.other, score_table) for finding in findings
        )
        reason = "both arms are no better than chance" if is_uninformative else ""
        return Judgement(claim, verdicts[0], findings, reason)
    counts = [f"{verdict} at {verdicts.count(verdict)}" for verdict in ClaimVerdict if verdict in verdicts]
    reason = f"the search points disagree: {', '.join(counts)} of {len(verdicts)}"
    return Judgement(claim, ClaimVerdict.INCONCLUSIVE, findings, reason)
