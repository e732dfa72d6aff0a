"""Every sentence of a report, compared with tests/golden/sentences.txt.

After a deliberate change, regenerate the file and review the difference:

    UPDATE_GOLDEN=1 python -m pytest -n0 tests/test_report_sentences.py
    git diff tests/golden
"""

import json
import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from reports.caveats import caveats
from reports.figures import captions
from reports.findings import Findings, load
from reports.narrative import answers, finding_sentence
from reports.result_tables import all_tables
from tests.report_tables import as_questions, tables, with_failures, write_run

GOLDEN = Path(__file__).parent / "golden" / "sentences.txt"
Frames = tuple[pd.DataFrame, pd.DataFrame]


def finished() -> Frames:
    """Six arms with three seeds each, a failed cell and a skipped one."""
    results, samples = tables()
    return with_failures(results), samples


def few_common_seeds() -> Frames:
    """One pair of arms has a common seed, the others have none; two rounds of latency and two versions of the code."""
    results, samples = tables(num_images=8, num_seeds=4)
    seeds = {"pooling": (0, 1), "bbox_mlp": (1, 2), "decoder_pe": (3,)}
    is_kept = [seed in seeds.get(arm, ()) for arm, seed in zip(results["arm"], results["seed"], strict=True)]
    results = results[is_kept].assign(latency_runs=40, latency_p90_ms=99.0, giou_random_object=np.nan)
    results["latency_round"] = results["arm"].map({"pooling": "ab/1", "bbox_mlp": "ab/1", "decoder_pe": "ab/2"})
    results["code"] = results["seed"].map({0: "aa-bb", 1: "aa-bb", 2: "aa-cc", 3: "aa-bb"})
    results["environment"] = [json.dumps({"device": "cpu", "cpu": arm}) for arm in results["arm"]]
    return results, samples[samples["cell"].isin(results["cell"])]


def granularity() -> Frames:
    """Three granularities of one superpixel source; every second object is elongated."""
    results, samples = tables(num_images=40, num_seeds=2)
    levels = {"no_position": ("coarse", 8.0), "bbox_mlp": ("default", 16.0), "decoder_pe": ("fine", 24.0)}
    results = results[results["arm"].isin(["pooling", *levels])].copy()
    for arm, (name, tokens) in levels.items():
        is_arm = results["arm"] == arm
        results.loc[is_arm, "spec"] = json.dumps({"superpixels": {"name": "sam", "granularity": name}})
        results.loc[is_arm, "tokens"] = tokens
    elongation = samples["expression_id"].map(lambda number: 3.0 if number % 2 else 1.0)
    return results, samples.assign(elongation=elongation)


def at_chance() -> Frames:
    """Controls as high as the scores; a truncated LLM; seeds that differ strongly; two visual domains."""
    results, samples = tables(num_images=8, num_seeds=2)
    results["spec"] = json.dumps({"llm": {"name": "some-llm", "layers": 8}})
    results = results.assign(giou_random_object=0.9, giou_swapped_tokens=0.6, giou_shuffled=0.5, llm="some-llm")
    samples.loc[(samples["arm"] == "pooling") & (samples["seed"] == 0), "iou"] /= 2
    samples["domain"] = np.where(samples["image_id"].rank(method="dense") % 2 == 0, "night", "studio")
    return results, samples


def questions() -> Frames:
    """Questions instead of expressions; the only arms with one seed."""
    return as_questions(*tables(num_images=12, num_seeds=1))


def unfinished() -> Frames:
    """No cell has finished, and some are scored."""
    results, samples = tables(num_images=4, num_seeds=1)
    stages = results["arm"].map({"pooling": "trained"}).fillna("scored")
    results = results.assign(status="unfinished", stage=stages)
    results.loc[results["arm"] == "pooling", "giou"] = None
    return results, samples.iloc[:0]


def sentences(findings: Findings, known: set[str]) -> Iterator[str]:
    """The sentences of one report, with headings; without the captions in `known`, to which it adds its own."""
    yield from ("Answer:", *answers(findings))
    for judgement in findings.judgements:
        yield f"Claim ({judgement.verdict}): {judgement.claim.claim}"
        yield from filter(None, [judgement.reason])
        yield from (finding_sentence(judgement, each) for each in judgement.findings if each.difference.is_compared)
    for table in all_tables(findings):
        heading = f"[{' | '.join(column.heading for column in table.columns)}]"
        if not {heading, table.caption} <= known:
            yield from (f"Table: {table.title}", heading, table.caption)
        known |= {heading, table.caption}
    figures = [caption for caption in captions(findings) if caption not in known]
    known.update(figures)
    if figures:
        yield from ("Figures:", *figures)
    yield from ("Caveats:", *caveats(findings))


def scenario(folder: Path, make: Callable[[], Frames], known: set[str]) -> str:
    results, samples = make()
    written = write_run(folder / make.__name__, results, samples.reset_index(drop=True), num_gallery=0)
    if "generated_text" in samples:
        study = written / "study.resolved.yaml"
        text = study.read_text().replace("giou: maximize", "accuracy: maximize")
        study.write_text(text[: text.index("claims:")])
    lines = [f"== {make.__name__}: {make.__doc__}"]
    for sentence in sentences(load(written), known):
        is_heading = sentence.endswith(":") or sentence.startswith(("Claim (", "Table: "))
        lines.append(f"\n{sentence}" if is_heading else textwrap.fill(f"- {sentence}", 110, subsequent_indent="  "))
    return "\n".join(lines)


def test_the_sentences_are_the_golden_ones(tmp_path: Path) -> None:
    scenarios = (finished, few_common_seeds, granularity, at_chance, questions, unfinished)
    known: set[str] = set()
    reports = [scenario(tmp_path, make, known) for make in scenarios]
    written = "\n\n\n".join(["Captions that are the same as in an earlier report are left out.", *reports]) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(written)
    assert written == GOLDEN.read_text()
