"""Granularity sweeps: which arms form one, its knee, and the direction of the FP rate."""

import json
from pathlib import Path

import pandas as pd
import pytest

from reports import granularity
from reports.findings import Findings, load
from tests.report_tables import tables, write_run

LEVELS = {"no_position": ("coarse", 8.0), "bbox_mlp": ("default", 16.0), "decoder_pe": ("fine", 24.0)}


@pytest.fixture(scope="module")
def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Quality rises from coarse (.50) over default (.56) to fine (.625), in the synthetic tables."""
    results, samples = tables(num_images=40, num_seeds=2)
    for arm, (name, tokens) in LEVELS.items():
        is_arm = results["arm"] == arm
        results.loc[is_arm, "spec"] = json.dumps({"superpixels": {"name": "sam", "granularity": name}, "seed": "all"})
        results.loc[is_arm, "tokens"] = tokens
    return results, samples


def _findings(folder: Path, results: pd.DataFrame, samples: pd.DataFrame) -> Findings:
    return load(write_run(folder, results, samples))


def test_a_sweep_is_one_source_in_order_of_tokens(tmp_path, frames):
    found = granularity.granularity_sweeps(_findings(tmp_path, *frames))
    assert [(sweep.source, [level.name for level in sweep.levels]) for sweep in found] == [("sam", list(LEVELS))]


def test_arms_that_differ_in_more_than_superpixels_are_no_sweep(tmp_path, frames):
    results, samples = frames
    other = results.copy()
    spec = json.dumps({"superpixels": {"name": "sam"}, "seed": "other"})
    other.loc[other["arm"] == "bbox_mlp", "spec"] = spec
    assert granularity.granularity_sweeps(_findings(tmp_path, other, samples)) == []


def test_the_fp_rate_is_compared_between_the_finest_and_the_coarsest(tmp_path, frames):
    findings = _findings(tmp_path, *frames)
    sentence = next(each for each in granularity.answers(findings) if "lowers the FP rate" in each)
    difference = findings.score_table.compare("decoder_pe", "no_position", "fp_rate")
    assert difference.high < 0, "false positives are fewer where quality is higher"
    assert f"{abs(difference.delta):.3f}" in sentence


def test_the_knee_has_the_fewest_tokens_within_the_margin(tmp_path, frames):
    results, samples = frames
    copied = samples[samples["arm"] == "decoder_pe"].assign(arm="bbox_mlp")
    seeds = results[results["arm"] == "bbox_mlp"].set_index("seed")["cell"]
    copied["cell"] = copied["seed"].map(seeds)
    same = pd.concat([samples[samples["arm"] != "bbox_mlp"], copied])
    first = next(granularity.answers(_findings(tmp_path, results, same)))
    assert "the knee is at bbox_mlp (16.0 tokens" in first
