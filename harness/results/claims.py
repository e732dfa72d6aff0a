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
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from harness.errors import shorten, suggest
from harness.results.metrics import METRICS, SCORES
from harness.results.score_table import ScoreTable
from harness.results.statistics import Difference, Verdict, holm, judge


class ClaimVerdict(StrEnum):
    """The verdict on a claim."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
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
    metric: str = Field(default="giou", description=f"one of {', '.join(SCORES)}")
    family: str | None = Field(default=None, description="only expressions of this family")
    domain: str | None = Field(default=None, description="only images of this domain")
    at: dict[str, bool | int | float | str] = Field(default={}, description="only search points with these settings")

    @field_validator("metric")
    @classmethod
    def _metric_is_scored_per_expression(cls, metric: str) -> str:
        if metric not in SCORES:
            raise ValueError(f"{shorten(metric)!r} is not a metric of samples; {suggest(metric, SCORES)}")
        return metric

    @model_validator(mode="after")
    def _is_one_kind(self) -> "Claim":
        if (self.better is None) == (self.no_worse is None):
            raise ValueError("a claim must have either better: ARM, than: ARM or no_worse: ARM, than: ARM")
        if self.within is not None and self.better:
            raise ValueError("within is allowed only with no_worse; better uses the study's margin")
        if self.than in (self.better, self.no_worse):
            raise ValueError(f"the claim compares {shorten(self.than)!r} with itself; name another arm in than")
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
    """One comparison for a claim: two variants, their difference and the verdict."""

    variant: str
    other: str
    difference: Difference
    adjusted_p: float
    num_comparisons: int
    verdict: ClaimVerdict


@dataclass(frozen=True, slots=True)
class Judgement:
    """A claim's verdict with the comparisons behind it.

    `reason` explains why comparisons are missing or disagree.
    """

    claim: Claim
    verdict: ClaimVerdict
    findings: tuple[Finding, ...]
    reason: str = ""


def judge_claims(claims: Sequence[Claim], score_table: ScoreTable, margin: float) -> list[Judgement]:
    """The verdict on every claim, in order."""
    compared = [
        [
            (left, right, score_table.compare(left, right, claim.metric, claim.family, claim.domain))
            for left, right in _pairs(claim, score_table)
        ]
        for claim in claims
    ]
    tested = [
        difference.p
        for claim, comparisons in zip(claims, compared, strict=True)
        for _, _, difference in comparisons
        if claim.better
    ]
    adjusted = iter(holm(tested))
    num_tests = max(1, sum(not math.isnan(p) for p in tested))
    judgements = []
    for claim, comparisons in zip(claims, compared, strict=True):
        findings = []
        for left, right, difference in comparisons:
            p = next(adjusted) if claim.better else difference.p
            is_uninformative = not difference.is_compared or _are_at_chance(claim, left, right, score_table)
            verdict = ClaimVerdict.INCONCLUSIVE if is_uninformative else _verdict(claim, difference, p, margin)
            findings.append(Finding(left, right, difference, p, num_tests if claim.better else 1, verdict))
        judgements.append(_judge(claim, tuple(findings), score_table))
    return judgements


def _are_at_chance(claim: Claim, left: str, right: str, score_table: ScoreTable) -> bool:
    """Whether a claim of non-inferiority compares two variants at chance."""
    is_above = any(score_table.is_above_chance(variant, claim.metric) for variant in (left, right))
    return claim.no_worse is not None and not is_above


def _pairs(claim: Claim, score_table: ScoreTable) -> list[tuple[str, str]]:
    """The variants to compare: every point of one arm with every point of the other."""
    if claim.family is not None and claim.family not in score_table.families_of(claim.metric):
        return []
    if claim.domain is not None and claim.domain not in score_table.domains:
        return []
    left, right = (score_table.variants_of(arm, claim.at) for arm in claim.arms)
    return [(one, other) for one in left for other in right]


def _verdict(claim: Claim, difference: Difference, adjusted_p: float, margin: float) -> ClaimVerdict:
    higher_is_better = bool(METRICS[claim.metric].higher_is_better)
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
