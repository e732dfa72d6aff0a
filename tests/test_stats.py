"""Statistics: values computed by hand, parity with scipy, and coverage of intervals."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from harness.results.metrics import ANSWER_METRICS, SCORES, score
from harness.results.score_table import ScoreTable, variant_name
from harness.results.statistics import NOT_COMPARED, Difference, Sums, Verdict, holm, is_on_front, judge, swap_test
from tests.report_tables import tables


def table(scores: dict[str, np.ndarray]) -> ScoreTable:
    """A score table from IoUs (S, I, E) by arm; every target has 100 pixels."""
    results, samples = [], []
    for arm, values in scores.items():
        for (seed, image, number), iou in np.ndenumerate(values):
            samples.append({"cell": f"{arm}{seed}", "arm": arm, "seed": seed, "image_id": f"i{image:03d}",
                            "expression_id": number, "family": "all", "domain": "", "iou": iou,
                            "intersection": iou * 100, "union": 100,
                            "predicted_area": 100, "target_area": 100})  # fmt: skip
        results.extend(
            {"cell": f"{arm}{seed}", "arm": arm, "point": "{}", "seed": seed, "status": "done"}
            for seed in range(len(values))
        )
    return ScoreTable(pd.DataFrame(results), pd.DataFrame(samples))


def sums(values: np.ndarray) -> Sums:
    return Sums(values, np.ones_like(values), values.size)


def difference(delta: float, low: float, high: float) -> Difference:
    return Difference(delta, low, high, 0.01, 0.001, num_seeds=3, num_images=60, num_expressions=420)


def test_holm_equals_values_computed_by_hand():
    # sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04, then never falling: .02 .03 .06 .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_an_undefined_p_out_of_the_family():
    adjusted = holm([0.02, math.nan, 0.5])
    assert adjusted[0] == pytest.approx(0.04)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.5)


def test_swapping_equals_scipy_exact_sign_flips():
    generator = np.random.default_rng(0)
    ours, theirs = generator.uniform(size=(2, 1, 10))
    expected = scipy_stats.permutation_test(
        ((ours - theirs)[0],), np.mean, permutation_type="samples", n_resamples=10_000
    ).pvalue
    assert swap_test(sums(ours), sums(theirs)) == pytest.approx(expected, abs=1e-12)


def test_many_images_are_swapped_at_random_and_still_agree_with_a_t_test():
    generator = np.random.default_rng(1)
    theirs = generator.normal(size=(1, 200))
    ours = theirs + generator.normal(0.15, 1.0, size=(1, 200))
    expected = scipy_stats.ttest_rel(ours[0], theirs[0]).pvalue
    assert swap_test(sums(ours), sums(theirs)) == pytest.approx(expected, abs=0.01)


def test_identical_arms_have_p_one_and_no_difference():
    values = np.random.default_rng(2).uniform(size=(2, 20, 3))
    compared = table({"a": values, "b": values}).compare("a", "b")
    assert compared.p == 1.0
    assert (compared.delta, compared.low, compared.high) == (0.0, 0.0, 0.0)
    assert judge(compared, 1.0, margin=0.01) is Verdict.EQUIVALENT


def test_a_paired_difference_is_found_although_single_intervals_overlap():
    generator = np.random.default_rng(3)
    theirs = np.broadcast_to(generator.uniform(0.1, 0.8, size=(1, 40, 1)), (1, 40, 4))
    score_table = table({"better": theirs + generator.normal(0.02, 0.01, size=theirs.shape), "base": theirs})
    better, base = score_table.estimate("better"), score_table.estimate("base")
    assert better.low < base.high
    compared = score_table.compare("better", "base")
    assert compared.low > 0
    assert judge(compared, compared.p, margin=0.01) is Verdict.BETTER


def test_expressions_of_an_image_do_not_count_as_independent():
    per_image = np.random.default_rng(4).uniform(size=(1, 30, 1))
    once, copied = table({"a": per_image}), table({"a": np.repeat(per_image, 10, axis=2)})
    width = {
        score_table: score_table.estimate("a").high - score_table.estimate("a").low for score_table in (once, copied)
    }
    assert width[copied] == pytest.approx(width[once])


def test_seeds_that_disagree_widen_the_interval():
    images = np.random.default_rng(5).uniform(0.4, 0.6, size=(1, 50, 1))
    seeds = np.array([-0.1, 0.0, 0.1])[:, None, None]
    agree, disagree = table({"a": images + 0 * seeds}).estimate("a"), table({"a": images + seeds}).estimate("a")
    assert disagree.high - disagree.low > 3 * (agree.high - agree.low)
    assert disagree.seed_sd == pytest.approx(0.1)
    assert agree.seed_sd == pytest.approx(0.0)


@pytest.mark.parametrize(("num_seeds", "seed_sd"), [(1, 0.0), (5, 0.05)])
def test_the_coverage_of_intervals_is_close_to_nominal(num_seeds: int, seed_sd: float):
    generator, num_covered, num_trials = np.random.default_rng(6), 0, 60
    for _ in range(num_trials):
        images = generator.normal(0, 0.1, size=(1, 40, 1)) + generator.normal(0, 0.1, size=(num_seeds, 40, 2))
        estimate = table({"a": 0.5 + images + generator.normal(0, seed_sd, size=(num_seeds, 1, 1))}).estimate("a")
        num_covered += estimate.low <= 0.5 <= estimate.high
    # 60 trials at 95%: 7 points are 2.5 standard errors; five seeds cannot show their own tails
    assert num_covered >= num_trials * (0.88 if num_seeds == 1 else 0.82)


def test_a_ratio_is_resampled_as_a_ratio_of_sums():
    results, samples = tables(num_images=20)
    seeds = [
        rows["intersection"].sum() / rows["union"].sum()
        for _, rows in samples[samples["arm"] == "pooling"].groupby("seed")
    ]
    estimate = ScoreTable(results, samples).estimate("pooling", "ciou")
    assert estimate.value == pytest.approx(np.mean(seeds))
    assert estimate.low < estimate.value < estimate.high


def test_scores_equal_the_means_over_seeds_of_cell_scores():
    results, samples = tables(num_images=10)
    score_table = ScoreTable(results, samples)
    cells = [score(rows) for _, rows in samples[samples["arm"] == "pooling"].groupby("seed")]
    for metric in set(SCORES) - set(ANSWER_METRICS):
        assert score_table.estimate("pooling", metric).value == pytest.approx(
            np.mean([cell[metric] for cell in cells])
        ), metric


def test_questions_and_expressions_are_scored_separately():
    results, samples = tables(num_images=10)
    alone = ScoreTable(results, samples)
    questions = samples.assign(
        expression_id=samples["expression_id"] + 100,
        scoring=np.where(samples["family"] == "texture", "accuracy", "cider"),
        score=samples["iou"].round(),
        iou=np.nan,
    )
    both = ScoreTable(results, pd.concat([samples, questions]))
    assert both.estimate("pooling") == alone.estimate("pooling")
    of_accuracy = questions[(questions["arm"] == "pooling") & (questions["scoring"] == "accuracy")]
    estimate = both.estimate("pooling", "accuracy")
    assert estimate.value == pytest.approx(of_accuracy.groupby("seed")["score"].mean().mean())
    assert estimate.num_expressions == 10
    assert both.families_of("accuracy") == ["texture"]
    assert both.compare("bbox_mlp", "pooling", "cider").num_expressions == 60
    assert score(pd.concat([samples, questions]))["giou"] == score(samples)["giou"]
    assert set(score(questions)) == {"accuracy", "cider"}


def test_equal_tables_give_equal_numbers():
    first, second = (ScoreTable(*tables(num_images=15)) for _ in range(2))
    assert first.estimate("bbox_mlp") == second.estimate("bbox_mlp")
    assert first.compare("bbox_mlp", "pooling") == second.compare("bbox_mlp", "pooling")


def test_a_metric_without_a_denominator_is_nan_and_never_better():
    results, samples = tables(num_images=5)
    samples = samples.assign(predicted_area=0, intersection=0)
    score_table = ScoreTable(results, samples)
    assert math.isnan(score_table.estimate("pooling", "fp_rate").value)
    compared = score_table.compare("bbox_mlp", "pooling", "fp_rate")
    assert math.isnan(compared.p)
    assert judge(compared, compared.p, margin=0.01) is Verdict.INCONCLUSIVE


def test_a_missing_score_is_not_ignored():
    results, samples = tables(num_images=5)
    samples.loc[samples.index[0], "iou"] = np.nan
    assert math.isnan(ScoreTable(results, samples).estimate("pooling").value)


def test_only_shared_seeds_and_expressions_are_compared():
    results, samples = tables(num_images=10)
    samples = samples[~((samples["arm"] == "bbox_mlp") & (samples["seed"] == 2))]
    compared = ScoreTable(results, samples).compare("bbox_mlp", "pooling")
    assert (compared.num_seeds, compared.num_expressions) == (2, 70)


def test_arms_without_a_common_seed_are_not_compared():
    results, samples = tables(num_images=4)
    samples = samples[~((samples["arm"] == "bbox_mlp") & (samples["seed"] != 2))]
    samples = samples[~((samples["arm"] == "pooling") & (samples["seed"] == 2))]
    score_table = ScoreTable(results, samples)
    assert score_table.compare("bbox_mlp", "pooling") is NOT_COMPARED
    assert score_table.why_not_compared("bbox_mlp", "pooling") == (
        "no seed in common: bbox_mlp has seed 2, pooling has seeds 0 and 1"
    )


@pytest.mark.parametrize(
    ("compared", "p", "verdict"),
    [
        (difference(0.03, 0.01, 0.05), 0.01, Verdict.BETTER),
        (difference(-0.03, -0.05, -0.01), 0.01, Verdict.WORSE),
        (difference(0.03, 0.01, 0.05), 0.2, Verdict.INCONCLUSIVE),
        (difference(0.03, -0.01, 0.07), 0.01, Verdict.INCONCLUSIVE),
        (difference(0.008, 0.002, 0.014), 0.01, Verdict.INCONCLUSIVE),
        (difference(0.004, 0.001, 0.007), 0.01, Verdict.EQUIVALENT),
        (difference(0.0, -0.02, 0.02), 1.0, Verdict.INCONCLUSIVE),
    ],
)
def test_verdicts_follow_the_rules(compared: Difference, p: float, verdict: Verdict):
    assert judge(compared, p, margin=0.01) is verdict


def test_fewer_false_positives_are_better():
    assert judge(difference(-0.03, -0.05, -0.01), 0.01, margin=0.01, higher_is_better=False) is Verdict.BETTER


def test_the_minimum_detectable_effect_equals_the_textbook_formula():
    # (1.95996 + 0.84162) standard errors of 0.01
    assert difference(0, 0, 0).minimum_detectable() == pytest.approx(0.0280158, abs=1e-6)
    assert difference(0, 0, 0).minimum_detectable(comparisons=5) > difference(0, 0, 0).minimum_detectable()


def test_points_on_the_front_are_not_dominated():
    quality, cost = np.array([0.6, 0.5, 0.5, 0.6, np.nan, 0.4]), np.array([36.0, 24.0, 36.0, 36.0, 1.0, np.nan])
    assert is_on_front(quality, cost).tolist() == [True, True, False, True, False, False]


def test_the_front_of_random_points_equals_a_comparison_of_all_pairs():
    generator = np.random.default_rng(8)
    quality, cost = generator.integers(0, 6, size=(40, 9)) / 5, generator.integers(0, 5, size=9).astype(float)
    expected = [
        [
            not any(
                (q >= row[i] and c <= cost[i]) and (q > row[i] or c < cost[i]) for q, c in zip(row, cost, strict=True)
            )
            for i in range(9)
        ]
        for row in quality
    ]
    assert is_on_front(quality, cost).tolist() == expected


def test_front_shares_follow_the_quality_of_arms():
    results, samples = tables(num_images=20)
    score_table = ScoreTable(results, samples)
    costs = dict.fromkeys(score_table.variants, 24.0) | {"pooling": 36.0}
    shares = score_table.front_share(costs)
    assert shares["decoder_pe"] > 0.9
    assert shares["no_position"] == 0.0
    assert shares["pooling"] < 0.5  # it costs more and is hardly ever better


def test_the_name_of_a_variant_has_its_search_point():
    assert variant_name("sspe", '{"projector.position.blocks": 3, "projector.position.queries": 4}') == (
        "sspe (blocks=3, queries=4)"
    )
    assert variant_name("pooling", "{}") == "pooling"
