"""Verdicts on the claims of a study."""

import pytest
from pydantic import ValidationError

from harness.results.budget_scores import BudgetScores
from harness.results.claims import Claim, ClaimVerdict, Judgement, judge_claims
from harness.results.score_table import ScoreTable
from tests.report_tables import at_budgets, tables


@pytest.fixture(scope="module")
def scores() -> BudgetScores:
    """Cells that had stopped learning at half of the training steps."""
    return BudgetScores.of(*at_budgets(*tables(), {0.5: {}}))


def verdict(scores: BudgetScores, **claim: object) -> ClaimVerdict:
    return judged(scores, Claim(claim="stated", **claim))[0].verdict


def judged(scores: BudgetScores, *claims: Claim) -> list[Judgement]:
    return judge_claims(claims, scores, margin=0.01, tolerance=0.02)


def test_a_large_difference_supports_its_claim_and_refutes_the_opposite(scores: BudgetScores):
    assert verdict(scores, better="pooling", than="no_position") is ClaimVerdict.SUPPORTED
    assert verdict(scores, better="no_position", than="pooling") is ClaimVerdict.REFUTED


def test_fewer_false_positives_support_better(scores: BudgetScores):
    assert verdict(scores, better="pooling", than="no_position", metric="fp_rate") is ClaimVerdict.SUPPORTED


def test_non_inferiority_depends_on_the_margin(scores: BudgetScores):
    assert verdict(scores, no_worse="decoder_pe", than="pooling", within=0.2) is ClaimVerdict.SUPPORTED
    assert verdict(scores, no_worse="no_position", than="pooling", within=0.02) is ClaimVerdict.REFUTED
    assert verdict(scores, no_worse="decoder_pe", than="pooling", within=0.001) is ClaimVerdict.INCONCLUSIVE


def test_non_inferiority_of_arms_at_chance_is_inconclusive():
    results, samples = tables()
    claim = Claim(claim="stated", no_worse="pooling", than="no_position", within=0.2)
    for chance, above in ((0.1, ["pooling", "no_position"]), (0.55, ["pooling"]), (0.9, [])):
        controlled = results.assign(giou_random_object=0.1, giou_swapped_tokens=chance)
        scores = BudgetScores.of(*at_budgets(controlled, samples, {0.5: {}}))
        score_table = scores.last
        assert [arm for arm in ("pooling", "no_position") if score_table.is_above_chance(arm)] == above
        judgement = judged(scores, claim)[0]
        assert judgement.verdict is (ClaimVerdict.SUPPORTED if above else ClaimVerdict.INCONCLUSIVE)
        assert judgement.reason == ("" if above else "both arms are no better than chance")


def test_chance_is_the_swapped_token_giou_if_no_random_object_was_scored():
    results, samples = tables()
    for chance, above in ((0.1, ["pooling", "no_position"]), (0.55, ["pooling"])):
        score_table = ScoreTable(results.assign(giou_random_object=float("nan"), giou_swapped_tokens=chance), samples)
        assert [arm for arm in ("pooling", "no_position") if score_table.is_above_chance(arm)] == above


def test_a_better_arm_is_no_worse(scores: BudgetScores):
    for metric in ("giou", "fp_rate"):
        settings = {"within": 0.001, "metric": metric}
        assert verdict(scores, no_worse="pooling", than="no_position", **settings) is ClaimVerdict.SUPPORTED
        assert verdict(scores, no_worse="no_position", than="pooling", **settings) is ClaimVerdict.REFUTED


def test_every_search_point_is_tested(scores: BudgetScores):
    judgement = judged(scores, Claim(claim="stated", better="pooling", than="sspe"))[0]
    assert [finding.other for finding in judgement.findings] == ["sspe (blocks=1)", "sspe (blocks=3)"]


def test_a_claim_is_inconclusive_if_search_points_disagree(scores: BudgetScores):
    judgement = judged(scores, Claim(claim="stated", no_worse="sspe", than="pooling", within=0.036))[0]
    verdicts = {finding.verdict for finding in judgement.findings}
    assert len(verdicts) == 2
    assert judgement.verdict is ClaimVerdict.INCONCLUSIVE
    assert "disagree" in judgement.reason


def test_at_selects_a_search_point(scores: BudgetScores):
    claim = Claim(claim="stated", better="pooling", than="sspe", at={"projector.position.blocks": 3})
    (finding,) = judged(scores, claim)[0].findings
    assert (finding.variant, finding.other) == ("pooling", "sspe (blocks=3)")


def test_claims_share_one_holm_family(scores: BudgetScores):
    claim = Claim(claim="stated", better="pooling", than="no_position")
    (alone,) = judged(scores, claim)[0].findings
    (one, other) = (judgement.findings[0] for judgement in judged(scores, claim, claim))
    assert one.adjusted_p == other.adjusted_p == pytest.approx(2 * alone.adjusted_p)


def test_a_claim_about_an_unfinished_arm_is_inconclusive(scores: BudgetScores):
    judgement = judged(scores, Claim(claim="stated", better="qformer", than="pooling"))[0]
    assert judgement.verdict is ClaimVerdict.INCONCLUSIVE
    assert judgement.reason == "no cell of qformer has finished"


def test_a_claim_about_a_family_without_expressions_is_inconclusive(scores: BudgetScores):
    claim = Claim(claim="stated", better="sspe", than="pooling", family="colour")
    assert judged(scores, claim)[0].reason == "no expression of family colour was scored"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"better": "a"}, "Field required"),
        ({"better": "a", "than": "b", "no_worse": "c"}, "a claim must have either"),
        ({"than": "b"}, "a claim must have either"),
        ({"better": "a", "than": "b", "within": 0.1}, "within is allowed only with no_worse"),
        ({"better": "a", "than": "b", "metric": "gious"}, "did you mean giou"),
        ({"better": "a", "than": "b", "metric": "steps_to_giou"}, "must be set together"),
        ({"better": "a", "than": "b", "reaches": 0.5}, "must be set together"),
        ({"no_worse": "a", "than": "b", "metric": "steps_to_giou", "reaches": 0.5}, "allows better, than, at"),
        ({"better": "a", "than": "b", "famly": "relation"}, "Extra inputs"),
    ],
)
def test_an_invalid_claim_is_refused(fields: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        Claim(claim="stated", **fields)
