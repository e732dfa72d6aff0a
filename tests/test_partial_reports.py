"""Reports of incomplete studies: arms with different seeds, unfinished cells, and rows of different code."""

import json
from pathlib import Path

import pandas as pd
import pytest

import reports
from harness.errors import DataError
from harness.results.budget_scores import BudgetScores
from harness.results.claims import Claim, ClaimVerdict, judge_claims
from harness.results.score_table import ScoreTable
from reports.caveats import caveats
from reports.findings import load
from reports.narrative import answers
from reports.numbers import DASH
from reports.result_tables import all_tables
from tests.report_tables import at_budgets, tables, with_failures, write_run

SEEDS = {"pooling": (0, 1), "bbox_mlp": (1, 2), "decoder_pe": (3,)}
CLAIMS = """\
claims:
- {claim: A common seed, better: bbox_mlp, than: pooling}
- {claim: No common seed, better: decoder_pe, than: pooling}
- {claim: No worse, no_worse: decoder_pe, than: bbox_mlp, within: 0.2, family: relation}
"""


@pytest.fixture(scope="module")
def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Three arms: one pair has a seed in common, the others have none."""
    results, samples = tables(num_images=8, num_seeds=4)
    is_kept = [seed in SEEDS.get(arm, ()) for arm, seed in zip(results["arm"], results["seed"], strict=True)]
    results = results[is_kept]
    return results, samples[samples["cell"].isin(results["cell"])]


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, frames: tuple[pd.DataFrame, pd.DataFrame]) -> Path:
    whole = at_budgets(*frames, {0.5: {}})
    folder = write_run(tmp_path_factory.mktemp("runs") / "apart", *whole, num_gallery=2)
    study = folder / "study.resolved.yaml"
    text = study.read_text()
    study.write_text(text[: text.index("claims:")] + CLAIMS)
    reports.build(folder)
    return folder


def output(folder: Path) -> str:
    """The Markdown report without its line breaks."""
    return " ".join((folder / "report" / "report.md").read_text().split())


def table(folder: Path, name: str) -> pd.DataFrame:
    found = next(table for table in all_tables(load(folder)) if table.name == name)
    texts = [[cell.text for cell in row] for row in found.rows]
    return pd.DataFrame(texts, columns=[column.key for column in found.columns]).set_index("arm")


def test_a_difference_is_over_the_seeds_that_both_arms_have(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    results, samples = frames
    score_table = ScoreTable(results, samples)
    difference = score_table.compare("bbox_mlp", "pooling")
    means = samples[samples["seed"] == 1].groupby("arm")["iou"].mean()
    assert difference.delta == pytest.approx(means["bbox_mlp"] - means["pooling"])
    assert (difference.num_seeds, difference.is_compared) == (1, True)


def test_arms_without_a_common_seed_are_not_compared(apart: Path) -> None:
    text = output(apart)
    shown = table(apart, "comparisons")
    assert (
        shown.loc["decoder_pe", ["difference", "p", "holm_p", "minimum_detectable", "verdict"]].tolist() == [DASH] * 5
    )
    assert shown.loc["bbox_mlp", "verdict"] != DASH
    assert shown["compared_seeds"].to_dict() == {"pooling": DASH, "bbox_mlp": "1", "decoder_pe": "0"}
    assert "adjusted for the study's 1 comparison by" in text, "pairs without a common seed are not tests"


def test_claims_about_arms_without_a_common_seed_are_inconclusive(apart: Path) -> None:
    judgements = load(apart).judgements
    assert judgements[0].reason == ""
    assert judgements[0].findings[0].num_comparisons == 1
    why = "no seed in common: decoder_pe has seed 3, {}"
    assert [(one.verdict, one.reason) for one in judgements[1:]] == [
        (ClaimVerdict.INCONCLUSIVE, why.format("pooling has seeds 0 and 1")),
        (ClaimVerdict.INCONCLUSIVE, why.format("bbox_mlp has seeds 1 and 2")),
    ]
    page = (apart / "report" / "index.html").read_text()
    assert "No seed in common: decoder_pe has seed 3, pooling has seeds 0 and 1." in page
    assert f"decoder_pe minus pooling: {DASH}" not in page


def test_the_reason_names_the_family_without_common_expressions(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    results, samples = frames
    samples = samples[~((samples["arm"] == "pooling") & (samples["family"] == "relation"))]
    claim = Claim(claim="stated", better="bbox_mlp", than="pooling", family="relation")
    scores = BudgetScores.of(*at_budgets(results, samples, {0.5: {}}))
    (judgement,) = judge_claims([claim], scores, margin=0.01, tolerance=0.02)
    assert judgement.reason == "no expression was scored by both bbox_mlp and pooling, family relation"


def test_a_baseline_that_did_not_finish_is_named(tmp_path: Path) -> None:
    results, samples = tables(num_images=4, num_seeds=1)
    results.loc[results["arm"] == "pooling", "status"] = "failed"
    findings = load(write_run(tmp_path / "none", results, samples, num_gallery=0))
    assert "No arm is compared with pooling, because none of its cells finished." in answers(findings)


def test_a_table_of_failures_alone_is_reported(tmp_path: Path) -> None:
    results, samples = tables(num_images=4, num_seeds=2)
    none = results.assign(**dict.fromkeys(results.columns[results.columns.get_loc("projector") :]))
    failed = none.assign(status="failed", reason="out of memory", stage="trained", failed_stage="scored")
    folder = write_run(tmp_path / "failed", failed, samples.iloc[:0], num_gallery=0)
    reports.build(folder)
    text = output(folder)
    assert "No cell finished, so" in text
    assert "12 cells failed (while scoring: 2 of pooling, 2 of no_position" in text
    assert (
        table(folder, "unfinished").loc["pooling", ["stage", "failed_stage", "reason"]].to_numpy().tolist()
        == [["trained", "scoring", "out of memory"]] * 2
    )
    assert 'href="#main"' not in (folder / "report" / "index.html").read_text()


def test_unfinished_cells_are_reported_with_their_last_stage(tmp_path: Path) -> None:
    results, samples = tables(num_images=4, num_seeds=2)
    stages = {"pooling": "trained", "bbox_mlp": "scored"}
    results["stage"] = results["arm"].map(stages).fillna("illustrated")
    is_open = results["arm"].isin(stages)
    costs = [column for column in results if column.startswith(("latency", "flops"))]
    results.loc[is_open, "status"] = "unfinished"
    results.loc[is_open, [*costs, "curve", "weights"]] = None
    results.loc[results["arm"] == "pooling", "giou"] = None
    folder = write_run(tmp_path / "open", results, samples, num_gallery=0)
    reports.build(folder)
    text = output(folder)
    assert "4 cells unfinished (trained, not scored: 2 of pooling; scored, cost not measured: 2 of bbox_mlp)." in text
    shown = table(folder, "unfinished")
    assert set(shown.loc["pooling", "giou"]) == {DASH}
    assert set(shown.loc["bbox_mlp", "giou"]) == {
        f"{value:.3f}" for value in results.loc[results["arm"] == "bbox_mlp", "giou"]
    }
    assert "pooling" not in table(folder, "main").index


def test_a_study_of_scored_cells_alone_names_the_table_of_their_scores(tmp_path: Path) -> None:
    results, samples = tables(num_images=4, num_seeds=1)
    open_cells = results.assign(status="unfinished", stage="scored").drop(columns=["latency_ms", "curve", "spec"])
    folder = write_run(tmp_path / "scored", open_cells, samples, num_gallery=0)
    reports.build(folder)
    assert "6 cells scored but not finished (pooling, no_position, bbox_mlp, decoder_pe and sspe)" in output(folder)


def test_finished_cells_may_lack_columns(tmp_path: Path) -> None:
    """Tables of earlier versions of the harness have fewer columns."""
    results, samples = tables(num_images=4, num_seeds=1)
    lacking = [column for column in results if column.startswith(("latency", "flops", "tokens"))]
    folder = write_run(
        tmp_path / "old", results.drop(columns=[*lacking, "curve", "spec", "weights", "environment"]), samples
    )
    reports.build(folder)
    assert not [sentence for sentence in caveats(load(folder)) if "atency" in sentence]
    assert set(table(folder, "main").columns).isdisjoint({"latency_ms", "tokens", "flops"})


def test_some_arms_may_lack_a_curve(tmp_path: Path) -> None:
    results, samples = tables(num_images=4, num_seeds=1)
    results.loc[results["arm"] == "pooling", ["curve", "spec"]] = None
    reports.build(write_run(tmp_path / "curve", results, samples, num_gallery=0))
    assert (tmp_path / "curve" / "report" / "figures" / "training.png").exists()


@pytest.mark.parametrize(
    ("codes", "sentence"),
    [
        (None, None),
        ({"pooling": None, "sspe": "aa-bb"}, None),
        (
            {"pooling": "aa-bb", "sspe": "aa-cc"},
            "aa-bb produced pooling; aa-cc produced sspe. A difference between them",
        ),
    ],
)
def test_rows_of_different_code_have_a_caveat(tmp_path: Path, codes: dict | None, sentence: str | None) -> None:
    results, samples = tables(num_images=4, num_seeds=2)
    if codes:
        results["code"] = results["arm"].map(codes)
    found = " ".join(caveats(load(write_run(tmp_path / "code", results, samples, num_gallery=0))))
    assert ("Cells come from different code" in found) == (sentence is not None)
    assert sentence is None or (sentence in found and "--rerun" in found)


@pytest.mark.parametrize("has_other", [False, True])
def test_different_weights_of_one_name_have_a_caveat(tmp_path: Path, has_other: bool) -> None:
    results, samples = tables(num_images=4, num_seeds=2)
    if has_other:
        weights = json.loads(results["weights"].iloc[0])
        results.loc[0, "weights"] = json.dumps([{**weights[0], "sha256": "f" * 64}, *weights[1:]])
    found = " ".join(caveats(load(write_run(tmp_path / "weights", results, samples, num_gallery=0))))
    assert ("Cells have different weights of the name" in found) == has_other
    assert not has_other or ("ffffffff" in found and weights[0]["name"] in found)


@pytest.mark.parametrize(
    ("rounds", "sentence"),
    [
        (("ab12",) * 3, "All models were timed in turns"),
        (("ab12", "ab12", None), "one after another, not in turns: differences in latency may come from"),
        (("ab12/1", "ab12/1", "ab12/2"), "in turns, but in 2 separate groups"),
        (None, "one after another, not in turns"),
    ],
)
def test_a_caveat_describes_how_latency_was_measured(tmp_path: Path, rounds: tuple | None, sentence: str) -> None:
    results, samples = tables(num_images=4, num_seeds=3)
    if rounds:
        results = results.assign(
            latency_round=results["seed"].map(dict(enumerate(rounds))), latency_runs=40, latency_p90_ms=99.0
        )
    folder = write_run(tmp_path / "timed", with_failures(results), samples, num_gallery=0)
    found = " ".join(caveats(load(folder)))
    assert sentence in found
    runs = "the median over 40 timed runs of each trained model, averaged over seeds; the cost table has the 90th"
    assert (runs in found) == (rounds is not None)
    costs = table(folder, "costs")
    assert (costs["latency_p90_ms"].tolist() == ["99.0"] * 6) if rounds else "latency_p90_ms" not in costs


def test_tables_of_an_earlier_version_are_refused_with_the_new_names(tmp_path: Path) -> None:
    results, samples = tables(num_images=12, num_seeds=1)
    folder = write_run(tmp_path / "old", results, samples.rename(columns={"predicted_seg": "answered"}))
    with pytest.raises(DataError, match=r"earlier version \(answered is now predicted_seg\); rename the columns"):
        load(folder)
