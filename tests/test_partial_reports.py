"""Reports of studies that are not complete: arms with different seeds, unfinished cells, and rows of different code."""

import re
from pathlib import Path

import pandas as pd
import pytest

import reports
from harness.errors import DataError
from harness.results.claims import Claim, ClaimVerdict, judge_claims
from harness.results.score_table import ScoreTable
from reports.findings import load
from reports.narrative import answers, caveats
from reports.numbers import DASH
from reports.result_tables import all_tables
from tests.report_tables import tables, with_failures, write_run

SEEDS = {"pooling": (0, 1), "bbox_mlp": (1, 2), "decoder_pe": (3,)}
CLAIMS = """\
claims:
- {claim: Sees the same, better: bbox_mlp, than: pooling}
- {claim: Sees nothing alike, better: decoder_pe, than: pooling}
- {claim: Keeps up, no_worse: decoder_pe, than: bbox_mlp, within: 0.2, family: relation}
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
    folder = write_run(tmp_path_factory.mktemp("runs") / "apart", *frames, num_gallery=2)
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


def test_arms_without_a_common_seed_are_not_compared_and_the_report_says_so(apart: Path) -> None:
    text = output(apart)
    assert "Not compared with pooling (seeds 0 and 1): decoder_pe (seed 3), without a seed in common" in text
    shown = table(apart, "comparisons")
    assert (
        shown.loc["decoder_pe", ["difference", "p", "holm_p", "minimum_detectable", "verdict"]].tolist() == [DASH] * 5
    )
    assert shown.loc["bbox_mlp", "verdict"] != DASH
    assert shown["compared_seeds"].to_dict() == {"pooling": DASH, "bbox_mlp": "1", "decoder_pe": "0"}
    assert f"{DASH} as the verdict: not compared, see the answer." in text
    assert "Holm over all 1 comparisons" in text, "what is not compared is no test"


def test_differences_over_some_seeds_only_are_said_to_be_so(apart: Path) -> None:
    assert "Compared over their common seeds only: bbox_mlp and pooling over seed 1 (of 2 and 2 seeds)." in output(
        apart
    )


def test_claims_about_arms_without_a_common_seed_are_not_resolved(apart: Path) -> None:
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


def test_a_claim_without_a_common_expression_says_of_which_family(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    results, samples = frames
    samples = samples[~((samples["arm"] == "pooling") & (samples["family"] == "relation"))]
    claim = Claim(claim="stated", better="bbox_mlp", than="pooling", family="relation")
    (judgement,) = judge_claims([claim], ScoreTable(results, samples), margin=0.01)
    assert judgement.reason == "no expression was scored by both bbox_mlp and pooling, family relation"


def test_complete_seeds_are_not_spoken_of(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "whole", *tables(num_images=4, num_seeds=2), num_gallery=0)
    findings = load(folder)
    assert not re.search(r"ommon|Not compared", " ".join([*answers(findings), *caveats(findings)]))
    assert "compared_seeds" not in table(folder, "comparisons")


def test_a_baseline_that_did_not_finish_is_named(tmp_path: Path) -> None:
    results, samples = tables(num_images=4, num_seeds=1)
    results.loc[results["arm"] == "pooling", "status"] = "failed"
    findings = load(write_run(tmp_path / "none", results, samples, num_gallery=0))
    assert "Nothing is compared with pooling, of which no cell finished." in answers(findings)


def test_a_table_of_failures_alone_is_reported(tmp_path: Path) -> None:
    results, samples = tables(num_images=4, num_seeds=2)
    none = results.assign(**dict.fromkeys(results.columns[results.columns.get_loc("projector") :]))
    failed = none.assign(status="failed", reason="out of memory", stage="trained", failed_stage="scored")
    folder = write_run(tmp_path / "failed", failed, samples.iloc[:0], num_gallery=0)
    reports.build(folder)
    text = output(folder)
    assert "No cell finished" in text
    assert "12 cells failed (2 of pooling while scoring, 2 of no_position while scoring" in text
    assert (
        table(folder, "unfinished").loc["pooling", ["stage", "failed_stage", "reason"]].to_numpy().tolist()
        == [["trained", "scoring", "out of memory"]] * 2
    )
    assert 'href="#main"' not in (folder / "report" / "index.html").read_text()


def test_unfinished_cells_are_said_with_how_far_they_got(tmp_path: Path) -> None:
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
    assert "4 cells unfinished (2 of pooling trained, not scored and 2 of bbox_mlp scored, cost not measured)" in text
    shown = table(folder, "unfinished")
    assert set(shown.loc["pooling", "giou"]) == {DASH}
    assert set(shown.loc["bbox_mlp", "giou"]) == {
        f"{value:.3f}" for value in results.loc[results["arm"] == "bbox_mlp", "giou"]
    }
    assert "pooling" not in table(folder, "main").index


def test_a_study_of_scored_cells_alone_says_where_their_scores_are(tmp_path: Path) -> None:
    results, samples = tables(num_images=4, num_seeds=1)
    open_cells = results.assign(status="unfinished", stage="scored").drop(columns=["latency_ms", "curve", "spec"])
    folder = write_run(tmp_path / "scored", open_cells, samples, num_gallery=0)
    reports.build(folder)
    assert "6 cells scored but not finished (pooling, no_position, bbox_mlp, decoder_pe and sspe)" in output(folder)


def test_finished_cells_may_lack_columns(tmp_path: Path) -> None:
    """As those of a table that an earlier version of the harness wrote."""
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
        ({"pooling": "aa-bb", "sspe": "aa-cc"}, "aa-bb made pooling; aa-cc made sspe. A difference between them"),
    ],
)
def test_rows_of_different_code_are_told_apart(tmp_path: Path, codes: dict | None, sentence: str | None) -> None:
    results, samples = tables(num_images=4, num_seeds=2)
    if codes:
        results["code"] = results["arm"].map(codes)
    found = " ".join(caveats(load(write_run(tmp_path / "code", results, samples, num_gallery=0))))
    assert ("The harness's code changed between cells" in found) == (sentence is not None)
    assert sentence is None or (sentence in found and "--rerun" in found)


def test_an_arm_whose_seeds_come_from_different_code_is_told_by_seed(tmp_path: Path) -> None:
    results, samples = tables(num_images=4, num_seeds=3)
    results["code"] = results["seed"].map({0: "aa", 1: "aa", 2: "bb"})
    results = results[results["arm"] == "pooling"]
    found = " ".join(caveats(load(write_run(tmp_path / "code", results, samples, num_gallery=0))))
    assert "aa made pooling (seeds 0 and 1); bb made pooling (seed 2)." in found


@pytest.mark.parametrize(
    ("rounds", "sentence"),
    [
        (("ab12",) * 3, "All models were timed in turns"),
        (("ab12", "ab12", None), "one after another, not in turns: differences in latency may be the machine's"),
        (("ab12/1", "ab12/1", "ab12/2"), "in turns in 2 groups, not all together"),
        (None, "one after another, not in turns"),
    ],
)
def test_a_report_says_how_latency_was_timed(tmp_path: Path, rounds: tuple | None, sentence: str) -> None:
    results, samples = tables(num_images=4, num_seeds=3)
    if rounds:
        results = results.assign(
            latency_round=results["seed"].map(dict(enumerate(rounds))), latency_runs=40, latency_p90_ms=99.0
        )
    folder = write_run(tmp_path / "timed", with_failures(results), samples, num_gallery=0)
    found = " ".join(caveats(load(folder)))
    assert sentence in found
    over = "the median over 40 timed runs of each trained model, averaged over seeds; p90 is in the cost table."
    assert (over in found) == (rounds is not None)
    costs = table(folder, "costs")
    assert (costs["latency_p90_ms"].tolist() == ["99.0"] * 6) if rounds else "latency_p90_ms" not in costs


def test_tables_of_an_earlier_version_are_refused_with_the_new_names(tmp_path: Path) -> None:
    results, samples = tables(num_images=12, num_seeds=1)
    folder = write_run(tmp_path / "old", results, samples.rename(columns={"predicted_seg": "answered"}))
    with pytest.raises(DataError, match=r"earlier version \(answered is now predicted_seg\); rename the columns"):
        load(folder)
