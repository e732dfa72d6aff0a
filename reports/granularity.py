"""Where a study cut superpixels finer and coarser: the knee, false positives, elongated objects and cost, in sentences.

A *sweep* is one superpixel source at three or more granularities with nothing else changed, ordered by tokens. False
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
class GranularitySweep:
    """One source, from the fewest tokens to the most."""

    source: str
    levels: tuple[Variant, ...]


def granularity_sweeps(findings: Findings) -> list[GranularitySweep]:
    """Every source that was run at three or more granularities with all else equal."""
    groups: dict[tuple[str, str], list[Variant]] = {}
    for variant in findings.variants:
        spec = findings.spec(variant.name)
        superpixels = spec.pop("superpixels", None)
        if superpixels is not None and not is_missing(variant.means.get("tokens")):
            groups.setdefault((superpixels["name"], json.dumps(spec, sort_keys=True)), []).append(variant)
    return [
        GranularitySweep(source, tuple(sorted(levels, key=lambda variant: variant.means["tokens"])))
        for (source, _), levels in groups.items()
        if len(levels) >= _FEWEST
    ]


def answers(findings: Findings) -> Iterator[str]:
    """The sentences; none in a study without a sweep."""
    for sweep in granularity_sweeps(findings) if findings.metric == "giou" else ():
        yield _knee(sweep, findings.margin)
        yield _false_positives(sweep, findings.score_table, "")
        if _ends(sweep, findings.score_table, None).is_compared:
            yield _families(sweep, findings)
        yield from _elongated(sweep, findings)
        yield from _cost(sweep)


def _knee(sweep: GranularitySweep, margin: float) -> str:
    best = max(sweep.levels, key=lambda variant: variant.score.value)
    knee = next(variant for variant in sweep.levels if variant.score.value >= best.score.value - margin)
    if knee is sweep.levels[-1]:
        return (
            f"{sweep.source}: no knee within the sweep; the finest, {_level(knee)}, is above all coarser ones by more "
            f"than the margin of {margin:g}."
        )
    best_words = "is itself the best" if knee is best else f"is within {margin:g} of the best, {_level(best)}"
    return f"{sweep.source}: the knee is at {_level(knee)}, the fewest tokens whose gIoU {best_words}."


def _false_positives(sweep: GranularitySweep, score_table: ScoreTable, where: str) -> str:
    difference = _ends(sweep, score_table, None)
    if not difference.is_compared:
        why = score_table.why_not_compared(sweep.levels[-1].name, sweep.levels[0].name)
        return f"{sweep.source}{where}: the coarsest and the finest are not compared, {why}."
    return f"{sweep.source}{where}: {_direction(difference)} the FP rate: {_apart(sweep, difference)}."


def _families(sweep: GranularitySweep, findings: Findings) -> str:
    """Which families' FP rate changes between the ends, by Holm among the families."""
    differences = {
        family: _ends(sweep, findings.score_table, family) for family in findings.families if family != "absent"
    }
    changed = [
        f"{family} {fixed(one.delta, signed=True)} {between(one.low, one.high, signed=True)}, p {p_value(p)}"
        for (family, one), p in zip(differences.items(), holm([one.p for one in differences.values()]), strict=True)
        if p < ALPHA and one.low * one.high > 0
    ]
    which = "; ".join(changed) if changed else "none that this study can tell from zero"
    return f"{sweep.source}: families whose FP rate changes from the coarsest to the finest (Holm): {which}."


def _elongated(sweep: GranularitySweep, findings: Findings) -> Iterator[str]:
    if "elongation" not in findings.samples:
        return
    elongated = findings.samples[findings.samples["elongation"] >= ELONGATED]
    if elongated.empty:
        return
    score_table = ScoreTable(findings.results, elongated)
    if not {sweep.levels[0].name, sweep.levels[-1].name} <= {*score_table.variants}:
        return
    yield _false_positives(sweep, score_table, f", objects {ELONGATED:g} times as long as wide or more")


def _cost(sweep: GranularitySweep) -> Iterator[str]:
    ends = (sweep.levels[0], sweep.levels[-1])
    if any(is_missing(_without_generation(variant)) for variant in ends):
        return
    tokens = " to ".join(fixed(variant.means["tokens"], 1) for variant in ends)
    whole = " to ".join(fixed(variant.means["latency_ms"], 0) for variant in ends)
    without = " to ".join(fixed(_without_generation(variant), 0) for variant in ends)
    yield (
        f"{sweep.source}: from the coarsest to the finest, tokens go from {tokens} an image and latency from {whole} "
        f"ms; with superpixels at hand already, from {without} ms."
    )


def _without_generation(variant: Variant) -> float:
    """Latency less making superpixels; SAM's encoder stays, since a mask decoder may need it."""
    whole, superpixels = (variant.means.get(f"latency_{part}ms", math.nan) for part in ("", "superpixels_"))
    return whole - superpixels


def _ends(sweep: GranularitySweep, score_table: ScoreTable, family: str | None) -> Difference:
    """Finest minus coarsest."""
    return score_table.compare(sweep.levels[-1].name, sweep.levels[0].name, "fp_rate", family)


def _direction(difference: Difference) -> str:
    if is_missing(difference.low) or difference.low <= 0 <= difference.high:
        return "it is inconclusive whether finer granularity changes"
    return "finer granularity lowers" if difference.delta < 0 else "finer granularity raises"


def _apart(sweep: GranularitySweep, difference: Difference) -> str:
    interval = between(difference.low, difference.high, signed=True)
    return (
        f"{sweep.levels[-1].name} minus {sweep.levels[0].name} {fixed(difference.delta, signed=True)} {interval}, "
        f"p {p_value(difference.p)}, {difference.num_expressions:,} expressions"
    )


def _level(variant: Variant) -> str:
    return f"{variant.name} ({fixed(variant.means['tokens'], 1)} tokens, gIoU {fixed(variant.score.value)})"
