"""Caveats that follow from the data: chance, seeds, unfinished cells, code, latency, weights and controls."""

import json
from collections.abc import Iterator

import numpy as np
import pandas as pd

from harness.results.metrics import shuffled
from harness.results.score_table import seeds_in_words
from harness.results.statistics import ratio
from reports.findings import Findings
from reports.learning import is_fitted
from reports.numbers import MAX_LISTED, NUM_FIRST, is_missing, listed, percent, plural
from reports.unfinished import FAILED_WHILE

WIDE_SPREAD = 0.05
"""Standard deviation over seeds, in units of the score, above which the report has a caveat."""
FEW_SEEDS = 5
"""With fewer seeds, the report has a caveat about the variation between training runs."""
LARGE_SHARE = 0.5
"""Share of a score that a control keeps, above which the report has a caveat."""
_REACHED = {"trained": "trained, not scored", "scored": "scored, cost not measured", "costed": "scored and costed"}


def caveats(findings: Findings) -> list[str]:
    """What a reader must know before quoting a number."""
    return [
        *_about_chance(findings),
        *_about_seeds(findings),
        *_about_common_seeds(findings),
        *_about_status(findings.unfinished),
        *_about_code(findings.done),
        *_about_environments(findings.done),
        *_about_latency(findings.done),
        *_about_models(findings.done),
        *_about_text(findings),
        *_about_tokens(findings),
    ]


def _about_chance(findings: Findings) -> Iterator[str]:
    score_table, metric = findings.score_table, findings.metric
    names = [variant.name for variant in findings.variants if not score_table.is_above_chance(variant.name, metric)]
    if names:
        yield (
            f"No better than chance: {_arms(names, findings)}. With this amount of training, differences between "
            "these arms show nothing about projectors."
        )


def _about_seeds(findings: Findings) -> Iterator[str]:
    trained = [variant for variant in findings.variants if not is_fitted(findings, variant.name)]
    counts = {variant.name: variant.score.num_seeds for variant in trained}
    single = [name for name, number in counts.items() if number == 1]
    fewest = min(counts.values(), default=FEW_SEEDS)
    if single:
        yield (
            f"One seed ({_arms(single, findings)}): intervals and p-values do not include the variation between "
            "training runs."
        )
    elif fewest < FEW_SEEDS:
        yield f"With {fewest} seeds, the variation between training runs is only roughly known."
    apart = [variant.name for variant in trained if variant.score.seed_sd > WIDE_SPREAD]
    if apart:
        yield (
            f"Scores differ strongly between seeds ({listed(apart)}: standard deviation above {WIDE_SPREAD:g}). They "
            "depend on the random initialization, and longer training may change the ranking."
        )
    planned = len(findings.study.get("seeds") or [])
    short = [variant.name for variant in findings.variants if variant.score.num_seeds < planned]
    if short:
        yield f"Fewer seeds than the {planned} of the study: {_arms(short, findings)}."


def _about_common_seeds(findings: Findings) -> Iterator[str]:
    """Differences that leave out seeds of one of the two arms."""
    score_table, partly = findings.score_table, []
    for variant in findings.variants:
        for baseline in variant.against:
            common = score_table.common_seeds(variant.name, baseline)
            ours, theirs = len(score_table.seeds_of(variant.name)), len(score_table.seeds_of(baseline))
            if len(common) < max(ours, theirs):
                partly.append(
                    f"{variant.name} and {baseline} over {seeds_in_words(common)} (of {ours} and {theirs} seeds)"
                )
    if partly:
        several = partly if len(partly) <= MAX_LISTED else [*partly[:NUM_FIRST], f"{len(partly) - NUM_FIRST:,} others"]
        yield f"Compared over their common seeds only: {'; '.join(several)}. Scores are means over all seeds of an arm."


def _about_status(cells: pd.DataFrame) -> Iterator[str]:
    failing = {stage: f"while {activity}" for stage, activity in FAILED_WHILE.items()}
    for status, stage, words, end in (
        ("failed", "failed_stage", failing, "The reasons are below the tables."),
        ("skipped", "failed_stage", {}, "The reasons are below the tables."),
        ("unfinished", "stage", _REACHED, "Run the study's command again to continue."),
    ):
        found = cells[cells["status"] == status]
        if found.empty:
            continue
        stages = [words.get(each, "") for each in found[stage]]
        groups = []
        for reached, of_stage in found.assign(stage=stages).groupby("stage", sort=False):
            counts = of_stage["arm"].value_counts(sort=False)
            arms = listed([f"{number} of {arm}" if number > 1 else str(arm) for arm, number in counts.items()])
            groups.append(f"{reached}: {arms}" if reached else arms)
        yield f"{plural(len(found), 'cell')} {status} ({'; '.join(groups)}). {end}"


def _about_code(done: pd.DataFrame) -> Iterator[str]:
    """Whether cells were trained or scored by different code."""
    known = done[done["code"].notna() & (done["code"] != "")]
    if known["code"].nunique() < 2:
        return
    is_mixed = known.groupby("arm")["code"].nunique() > 1
    produced = []
    for code, cells in known.groupby("code", sort=False):
        arms = [
            f"{arm} ({seeds_in_words(sorted(of_arm['seed'].astype(int).unique()))})" if is_mixed[arm] else str(arm)
            for arm, of_arm in cells.groupby("arm", sort=False)
        ]
        produced.append(f"{code} produced {listed(arms)}")
    yield (
        f"Cells come from different code of the harness: {'; '.join(produced)}. A difference between them may come "
        "from the code; --rerun runs the cells of earlier code again."
    )


def _about_environments(done: pd.DataFrame) -> Iterator[str]:
    if done["environment"].nunique() > 1:
        yield (
            "Cells ran in different environments (listed in results.parquet). Compare latency and memory only between "
            "cells of the same environment."
        )


def _about_latency(done: pd.DataFrame) -> Iterator[str]:
    timed = done[done["latency_ms"].notna()]
    if timed.empty:
        return
    runs = timed["latency_runs"].dropna().astype(int)
    number = " over the timed runs"
    if len(runs):
        least, most = runs.min(), runs.max()
        number = f" over {least if least == most else f'{least} to {most}'} timed runs of each trained model"
    p90 = "; the cost table has the 90th percentile" if timed["latency_p90_ms"].notna().any() else ""
    clock = "On a CPU it is the processor time of one thread."
    yield f"Latency is the median{number}, averaged over seeds{p90}. {clock} {_about_rounds(timed['latency_round'])}"
    devices = {str(json.loads(environment).get("device", "")) for environment in done["environment"].dropna()}
    if any(device.startswith("cpu") for device in devices):
        yield "Latency was measured on a CPU: it compares arms on this machine and does not predict other hardware."


def _about_rounds(rounds: pd.Series) -> str:
    if rounds.notna().all() and rounds.nunique() == 1:
        return (
            "All models were timed in turns on the same images, so that a slowdown of the machine affects all of them."
        )
    groups = rounds.nunique() if rounds.notna().all() else 0
    how = f"in turns, but in {groups} separate groups" if groups else "one after another, not in turns"
    return f"The models were timed {how}: differences in latency may come from changes in the load of the machine."


def _about_models(done: pd.DataFrame) -> Iterator[str]:
    if (done["llm"] == "tiny").any():
        yield "The LLM is small and trained from scratch: differences may not carry over to a pretrained LLM."
    specs = [json.loads(spec) for spec in done["spec"].dropna()]
    truncated = {(llm["name"], layers) for spec in specs if (layers := (llm := spec.get("llm", {})).get("layers"))}
    for name, layers in sorted(truncated):
        if name != "tiny":
            yield f"Only the first {layers} layers of {name} are used: the whole LLM may show other differences."
    checkpoints = {source["name"] for spec in specs if (source := spec.get("init_from"))}
    if checkpoints:
        yield (
            f"The LLM was initialized from {listed(sorted(checkpoints))}, which was trained with a projector of its "
            "own: arms with a similar projector may learn faster."
        )
    used = [weight for weights in done["weights"].dropna() for weight in json.loads(weights)]
    random = {weight["name"] for weight in used if weight["source"] == "random"}
    if random:
        yield f"Random weights, as the study specifies: {listed(sorted(random))}."
    hashes: dict[str, set[str]] = {}
    for weight in used:
        hashes.setdefault(weight["name"], set()).add(str(weight["sha256"]))
    for name, found in sorted(hashes.items()):
        if len(found) > 1 and name not in random:
            shown = listed(sorted(sha256[:8] for sha256 in found))
            yield (
                f"Cells have different weights of the name {name} (sha256 {shown}), for example from two sources: copy "
                "one file to all machines and run the cells again."
            )


def _about_text(findings: Findings) -> Iterator[str]:
    """How much of the score is left if texts and images are shuffled."""
    shares = _kept_shares(findings, shuffled(findings.metric), findings.metric)
    if shares and max(shares.values()) > LARGE_SHARE:
        ignored = "image" if findings.query_noun == "question" else "expression"
        yield (
            f"With {findings.query_noun}s shuffled between images, an arm keeps {percent(max(shares.values()))} of its "
            f"{findings.label}: much of the score does not depend on the {ignored}."
        )


def _about_tokens(findings: Findings) -> Iterator[str]:
    """How much of gIoU is left with the visual tokens of another image."""
    shares = _kept_shares(findings, "giou_swapped_tokens", "giou")
    if shares and max(shares.values()) > LARGE_SHARE:
        most = max(shares, key=lambda name: shares[name])
        yield (
            f"With the visual tokens of another image, {most} keeps {percent(shares[most])} of its gIoU. That part of "
            "the score comes from the expression and the mask decoder, so only the rest can tell projectors apart."
        )


def _kept_shares(findings: Findings, control: str, score: str) -> dict[str, float]:
    """The share of a score that a control keeps, by variant; without variants that have neither."""
    kept, scores = (
        np.array([variant.means.get(name, np.nan) for variant in findings.variants], dtype=float)
        for name in (control, score)
    )
    shares = zip(findings.variants, ratio(kept, scores).tolist(), strict=True)
    return {variant.name: share for variant, share in shares if not is_missing(share)}


def _arms(names: list[str], findings: Findings) -> str:
    return listed(names) if len(names) < len(findings.variants) else "every arm"
