"""Planted effects that stay, shrink or reverse with the budget of training, and the speed of learning."""

import numpy as np
import pandas as pd
import pytest

from harness.results.budget_scores import BudgetScores
from harness.results.claims import Claim, ClaimVerdict, Judgement, judge_claims
from harness.results.score_table import ScoreTable
from reports.caveats import caveats
from reports.findings import load
from reports.learning import figures, sentence
from tests.report_tables import at_budgets, tables, write_run

BETTER = Claim(claim="stated", better="pooling", than="no_position")
"""True by .14 of gIoU at the end of training."""


def judged(shifts: dict[float, dict[str, float]], claim: Claim = BETTER) -> Judgement:
    return judge_claims([claim], BudgetScores.of(*at_budgets(*tables(), shifts)), margin=0.01, tolerance=0.02)[0]


@pytest.mark.parametrize(
    ("earlier", "expected"),
    [
        ({0.5: 0.0}, ClaimVerdict.SUPPORTED),
        ({0.5: 0.01}, ClaimVerdict.SUPPORTED),
        ({0.5: 0.1}, ClaimVerdict.STILL_MOVING),
        ({0.5: -0.1}, ClaimVerdict.STILL_MOVING),
        ({0.5: -0.3}, ClaimVerdict.STILL_MOVING),
        ({0.25: -0.3, 0.5: 0.0}, ClaimVerdict.SUPPORTED),
    ],
    ids=["stays", "moves within the tolerance", "shrinks", "grows", "reverses at the end", "reverses before half"],
)
def test_a_planted_effect_is_judged_by_how_it_moves(earlier: dict[float, float], expected: ClaimVerdict):
    shifts = {budget: {"pooling": shift} for budget, shift in earlier.items()}
    judgement = judged(shifts)
    assert judgement.verdict is expected
    opposite = judged(shifts, Claim(claim="stated", better="no_position", than="pooling")).verdict
    assert opposite is {ClaimVerdict.SUPPORTED: ClaimVerdict.REFUTED}.get(expected, expected)
    (finding,) = judgement.findings
    assert finding.half is not None
    assert finding.change is not None
    assert finding.change.delta == pytest.approx(finding.difference.delta - finding.half.delta)
    assert finding.change.low <= finding.change.delta <= finding.change.high


def test_no_difference_stays_inconclusive_however_it_moved():
    results, samples = tables(num_images=6)
    scores = BudgetScores.of(*at_budgets(results, samples, {0.5: {"pooling": -0.3}}))
    claim = Claim(claim="stated", better="decoder_pe", than="pooling")
    assert judge_claims([claim], scores, 0.01, 0.02)[0].verdict is ClaimVerdict.INCONCLUSIVE


def test_without_a_score_at_half_a_claim_is_open_unless_it_names_its_budget():
    results, samples = tables()
    scores = BudgetScores.of(results.assign(steps=1000, early="[]"), samples, samples.iloc[:0].assign(steps=0))
    judgement = judge_claims([BETTER], scores, 0.01, 0.02)[0]
    assert judgement.verdict is ClaimVerdict.INCONCLUSIVE
    assert "at the end of training only" in judgement.reason
    at_end = BETTER.model_copy(update={"at_budget": 1.0})
    assert judge_claims([at_end], scores, 0.01, 0.02)[0].verdict is ClaimVerdict.SUPPORTED
    early = BETTER.model_copy(update={"at_budget": 0.25})
    assert judge_claims([early], scores, 0.01, 0.02)[0].reason.startswith("no cell was scored at budget 0.25")


def test_a_claim_about_a_budget_is_judged_there():
    shifts = {0.25: {"pooling": -0.3}, 0.5: {}}
    assert judged(shifts, BETTER.model_copy(update={"at_budget": 0.25})).verdict is ClaimVerdict.REFUTED
    assert judged(shifts, BETTER.model_copy(update={"at_budget": 0.5})).verdict is ClaimVerdict.SUPPORTED


def test_the_faster_arm_reaches_a_giou_in_fewer_steps():
    """pooling has about .62 from a quarter on; no_position gets there never, and decoder_pe at the end."""
    shifts = {0.25: {"decoder_pe": -0.4}, 0.5: {"decoder_pe": -0.2}}

    def claim(better: str, than: str) -> Judgement:
        return judged(shifts, Claim(claim="stated", better=better, than=than, metric="steps_to_giou", reaches=0.55))

    assert claim("pooling", "decoder_pe").verdict is ClaimVerdict.SUPPORTED
    assert claim("decoder_pe", "pooling").verdict is ClaimVerdict.REFUTED
    (finding,) = claim("pooling", "decoder_pe").findings
    assert -800 < finding.difference.low < finding.difference.delta < finding.difference.high < -400
    assert claim("no_position", "no_position2").reason == "no cell of no_position2 has finished"


def test_steps_to_a_score_equal_linear_interpolation():
    results, samples = tables(num_images=10, num_seeds=1)
    scores = BudgetScores.of(*at_budgets(results, samples, {0.25: {}, 0.5: {}}))
    values = np.array([[0.1, 0.6, 0.1], [0.3, 0.6, 0.2], [0.5, 0.7, 0.3]])
    found = scores._steps_to(values, 0.4)
    expected = [np.interp(0.4, [0.3, 0.5], [500, 1000]), np.interp(0.4, [0, 0.6], [0, 250]), 1000]
    assert found == pytest.approx(expected)


def test_the_change_of_a_difference_equals_a_loop_over_common_samples():
    results, samples, early = at_budgets(*tables(num_images=8), {0.5: {"pooling": -0.1}})
    early = early[early["image_id"] != early["image_id"].iloc[0]]
    late, half = ScoreTable(results, samples), ScoreTable(results, early)
    change = late.change_since(half, "pooling", "no_position")
    keys = ["seed", "image_id", "expression_id"]

    def giou(table: pd.DataFrame, arm: str) -> pd.Series:
        return table[table["arm"] == arm].set_index(keys)["iou"]

    common = giou(early, "pooling").index
    parts = [giou(table, arm).loc[common] for table in (samples, early) for arm in ("pooling", "no_position")]
    naive = (parts[0] - parts[1] - parts[2] + parts[3]).groupby("seed").mean().mean()
    assert change.delta == pytest.approx(naive)


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        (0.01, "The arms had stopped learning: from half of the training to its end at 1,000 steps, gIoU changed by at "
               "most"),
        (-0.2, "1 of 6 arms had not stopped learning"),
    ],
)  # fmt: skip
def test_the_answer_begins_with_whether_the_arms_had_stopped_learning(tmp_path, shift, words):
    findings = load(
        write_run(tmp_path / "run", *at_budgets(*tables(num_images=20), {0.5: {"sspe": 0, "pooling": shift}}))
    )
    assert sentence(findings).startswith(words)


def test_a_study_with_one_budget_says_that_it_is_unknown(tmp_path):
    findings = load(write_run(tmp_path / "run", *tables(num_images=4)))
    assert sentence(findings).startswith("It is unknown whether the arms had stopped learning")


def test_linear_readers_neither_learn_nor_stop_learning(tmp_path):
    results, samples = tables(num_images=8)
    one = results.assign(llm=results["llm"].where(results["arm"] != "pooling", "linear"))
    findings = load(write_run(tmp_path / "one", *at_budgets(one, samples, {0.5: {"pooling": -0.2}})))
    assert sentence(findings).startswith("The arms had stopped learning")
    fitted = results.assign(llm="linear")
    findings = load(write_run(tmp_path / "all", *at_budgets(fitted, samples, {0.5: {}})))
    assert sentence(findings).startswith("The linear readers were fitted to their optimum")
    assert not list(figures(findings))


def test_one_seed_of_a_linear_reader_needs_no_caveat(tmp_path):
    results, samples = tables(num_images=8, num_seeds=1)
    one = results.assign(llm=results["llm"].where(results["arm"] == "pooling", "linear"))
    found = caveats(load(write_run(tmp_path / "one", one, samples)))
    assert any(caveat.startswith("One seed (pooling): intervals") for caveat in found)
    found = caveats(load(write_run(tmp_path / "all", results.assign(llm="linear"), samples)))
    assert not any("training runs" in caveat for caveat in found)
    assert "Fewer seeds than the 3 of the study: every arm." in found
