"""What a report says of a source that was run at several granularities, against numbers that are known."""

import json
from pathlib import Path

import pandas as pd
import pytest

from reports import granularity
from reports.findings import Findings, load
from tests.report_tables import tables, write_run

RUNGS = {"no_position": ("coarse", 8.0), "bbox_mlp": ("default", 16.0), "decoder_pe": ("fine", 24.0)}


@pytest.fixture(scope="module")
def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Quality rises from coarse (.50) over default (.56) to fine (.625), in the synthetic tables."""
    results, samples = tables(num_images=40, num_seeds=2)
    for arm, (name, tokens) in RUNGS.items():
        rung = results["arm"] == arm
        results.loc[rung, "spec"] = json.dumps({"superpixels": {"name": "sam", "granularity": name}, "seed": "all"})
        results.loc[rung, "tokens"] = tokens
    return results, samples


def _findings(folder: Path, results: pd.DataFrame, samples: pd.DataFrame) -> Findings:
    return load(write_run(folder, results, samples))


def test_a_ladder_is_one_source_from_the_fewest_tokens_on(tmp_path, frames):
    found = granularity.granularity_sweeps(_findings(tmp_path, *frames))
    assert [(one.source, [rung.name for rung in one.levels]) for one in found] == [("sam", list(RUNGS))]


def test_arms_that_differ_in_more_than_superpixels_are_no_ladder(tmp_path, frames):
    results, samples = frames
    other = results.copy()
    spec = json.dumps({"superpixels": {"name": "sam"}, "seed": "other"})
    other.loc[other["arm"] == "bbox_mlp", "spec"] = spec
    assert granularity.granularity_sweeps(_findings(tmp_path, other, samples)) == []


def test_the_sentences_say_what_the_numbers_say(tmp_path, frames):
    results, samples = frames
    samples = samples.assign(elongation=samples["expression_id"].map(lambda number: 3.0 if number % 2 else 1.0))
    findings = _findings(tmp_path, results, samples)
    knee, false_positives, families, elongated, cost = granularity.answers(findings)
    assert "no knee within the sweep; the finest, decoder_pe (24.0 tokens" in knee
    apart = findings.score_table.compare("decoder_pe", "no_position", "fp_rate")
    assert apart.high < 0, "the synthetic masks miss less where quality is higher"
    assert "finer granularity lowers the FP rate" in false_positives
    assert f"{abs(apart.delta):.3f}" in false_positives
    assert "relation" in families
    assert "2.5 times as long" in elongated
    assert "tokens go from 8.0 to 24.0" in cost


def test_the_knee_is_the_cheapest_within_the_margin(tmp_path, frames):
    results, samples = frames
    copied = samples[samples["arm"] == "decoder_pe"].assign(arm="bbox_mlp")
    seeds = results[results["arm"] == "bbox_mlp"].set_index("seed")["cell"]
    copied["cell"] = copied["seed"].map(seeds)
    same = pd.concat([samples[samples["arm"] != "bbox_mlp"], copied])
    first = next(granularity.answers(_findings(tmp_path, results, same)))
    assert "the knee is at bbox_mlp (16.0 tokens" in first
