"""Where a study cut superpixels finer and coarser: the knee, false positives, elongated objects and cost, in sentences.

A *ladder* is one superpixel source at three or more granularities with nothing else changed, ordered by tokens. False
positives are compared between its two ends: FP rate, coarsest against finest, paired and with intervals.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

from harness.results.score_table import ScoreTable
from harness.results.statistics import ALPHA, Difference, holm
from reports.findings import Findings, Variant
from reports.numbers import between, fixed, is_missing, p_value

ELONGATED = 2.5
"""Length to width from which an object is called elongated."""
_FEWEST = 3


@dataclass(frozen=True, slots=True)
class Ladder:
    """One source, from the fewest tokens to the most."""

    source: str
    rungs: tuple[Variant, ...]


def ladders(findings: Findings) -> list[Ladder]:
    """Every source that was run at three or more granularities with all else equal."""
    groups: dict[tuple[str, str], list[Variant]] = {}
    for variant in findings.variants:
        spec = findings.spec(variant.name)
        superpixels = spec.pop("superpixels", None)
        if superpixels is not None and not is_missing(variant.means.get("tokens")):
            groups.setdefault((superpixels["name"], json.dumps(spec, sort_keys=True)), []).append(variant)
    return [
        Ladder(source, tuple(sorted(rungs, key=lambda variant: variant.means["tokens"])))
        for (source, _), rungs in groups.items()
        if len(rungs) >= _FEWEST
    ]


def answers(findings: Findings) -> Iterator[str]:
    """The sentences; none in a study without a ladder."""
    for ladder in ladders(findings) if findings.metric == "giou" else ():
        yield _knee(ladder, findings.margin)
        yield _false_positives(ladder, findings.panel, "")
        if _ends(ladder, findings.panel, None).is_compared:
            yield _families(ladder, findings)
        yield from _elongated(ladder, findings)
        yield from _cost(ladder)


def _knee(ladder: Ladder, margin: float) -> str:
    best = max(ladder.rungs, key=lambda variant: variant.score.value)
    knee = next(variant for variant in ladder.rungs if variant.score.value >= best.score.value - margin)
    if knee is ladder.rungs[-1]:
        return (
            f"{ladder.source}: no knee within the sweep; the finest, {_rung(knee)}, is above all coarser ones by more "
            f"than the margin of {margin:g}."
        )
    best_words = "is itself the best" if knee is best else f"is within {margin:g} of the best, {_rung(best)}"
    return f"{ladder.source}: the knee is at {_rung(knee)}, the fewest tokens whose gIoU {best_words}."


def _false_positives(ladder: Ladder, panel: ScoreTable, where: str) -> str:
    difference = _ends(ladder, panel, None)
    if not difference.is_compared:
        why = panel.why_not_compared(ladder.rungs[-1].name, ladder.rungs[0].name)
        return f"{ladder.source}{where}: the coarsest and the finest are not compared, {why}."
    return f"{ladder.source}{where}: {_direction(difference)} the FP rate: {_apart(ladder, difference)}."


def _families(ladder: Ladder, findings: Findings) -> str:
    """Which families' FP rate changes between the ends, by Holm among the families."""
    differences = {family: _ends(ladder, findings.panel, family) for family in findings.families if family != "absent"}
    changed = [
        f"{family} {fixed(one.delta, signed=True)} {between(one.low, one.high, signed=True)}, p {p_value(p)}"
        for (family, one), p in zip(differences.items(), holm([one.p for one in differences.values()]), strict=True)
        if p < ALPHA and one.low * one.high > 0
    ]
    which = "; ".join(changed) if changed else "none that this study can tell from zero"
    return f"{ladder.source}: families whose FP rate changes from the coarsest to the finest (Holm): {which}."


def _elongated(ladder: Ladder, findings: Findings) -> Iterator[str]:
    if "elongation" not in findings.samples:
        return
    elongated = findings.samples[findings.samples["elongation"] >= ELONGATED]
    if elongated.empty:
        return
    panel = ScoreTable(findings.results, elongated)
    if not {ladder.rungs[0].name, ladder.rungs[-1].name} <= {*panel.variants}:
        return
    yield _false_positives(ladder, panel, f", objects {ELONGATED:g} times as long as wide or more")


def _cost(ladder: Ladder) -> Iterator[str]:
    ends = (ladder.rungs[0], ladder.rungs[-1])
    if any(is_missing(_without_generation(variant)) for variant in ends):
        return
    tokens = " to ".join(fixed(variant.means["tokens"], 1) for variant in ends)
    whole = " to ".join(fixed(variant.means["latency_ms"], 0) for variant in ends)
    without = " to ".join(fixed(_without_generation(variant), 0) for variant in ends)
    yield (
        f"{ladder.source}: from the coarsest to the finest, tokens go from {tokens} an image and latency from {whole} "
        f"ms; with superpixels at hand already, from {without} ms."
    )


def _without_generation(variant: Variant) -> float:
    """Latency less making superpixels; SAM's encoder stays, since a mask head may need it."""
    whole, superpixels = (variant.means.get(f"latency_{part}ms", math.nan) for part in ("", "superpixels_"))
    return whole - superpixels


def _ends(ladder: Ladder, panel: ScoreTable, family: str | None) -> Difference:
    """Finest minus coarsest."""
    return panel.compare(ladder.rungs[-1].name, ladder.rungs[0].name, "fp_rate", family)


def _direction(difference: Difference) -> str:
    if is_missing(difference.low) or difference.low <= 0 <= difference.high:
        return "it is inconclusive whether finer granularity changes"
    return "finer granularity lowers" if difference.delta < 0 else "finer granularity raises"


def _apart(ladder: Ladder, difference: Difference) -> str:
    interval = between(difference.low, difference.high, signed=True)
    return (
        f"{ladder.rungs[-1].name} minus {ladder.rungs[0].name} {fixed(difference.delta, signed=True)} {interval}, "
        f"p {p_value(difference.p)}, {difference.num_expressions:,} expressions"
    )


def _rung(variant: Variant) -> str:
    return f"{variant.name} ({fixed(variant.means['tokens'], 1)} tokens, gIoU {fixed(variant.score.value)})"
