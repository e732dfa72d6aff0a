"""Sentences about granularity sweeps: the knee, false positives, elongated objects and cost.

A *sweep* is one superpixel source at three or more granularities with nothing else changed, ordered by tokens. The FP
rate is compared between the finest and the coarsest granularity, paired and with intervals.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

from harness.results.metrics import METRICS
from harness.results.score_table import ScoreTable
from harness.results.statistics import ALPHA, Difference, holm
from reports.findings import Findings, Variant
from reports.numbers import between, fixed, is_missing, p_value

ELONGATED = 2.5
"""Smallest ratio of length to width of an elongated object."""
_MIN_LEVELS = 3
_FP_RATE = METRICS["fp_rate"].label


@dataclass(frozen=True, slots=True)
class GranularitySweep:
    """The variants of one source, from the fewest to the most tokens."""

    source: str
    levels: tuple[Variant, ...]


def granularity_sweeps(findings: Findings) -> list[GranularitySweep]:
    """Every source with three or more granularities and otherwise equal settings."""
    groups: dict[tuple[str, str], list[Variant]] = {}
    for variant in findings.variants:
        spec = findings.spec(variant.name)
        superpixels = spec.pop("superpixels", None)
        if superpixels is not None and not is_missing(variant.means.get("tokens")):
            groups.setdefault((superpixels["name"], json.dumps(spec, sort_keys=True)), []).append(variant)
    return [
        GranularitySweep(source, tuple(sorted(levels, key=lambda variant: variant.means["tokens"])))
        for (source, _), levels in groups.items()
        if len(levels) >= _MIN_LEVELS
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
            f"{sweep.source}: there is no knee within the sweep. The finest granularity, {_level(knee)}, exceeds all "
            f"coarser ones by more than the margin of {margin:g}."
        )
    reason = "the highest score" if knee is best else f"the fewest tokens within {margin:g} of the best, {_level(best)}"
    return f"{sweep.source}: the knee is at {_level(knee)}, which has {reason}."


def _false_positives(sweep: GranularitySweep, score_table: ScoreTable, where: str) -> str:
    difference = _ends(sweep, score_table, None)
    if not difference.is_compared:
        why = score_table.why_not_compared(sweep.levels[-1].name, sweep.levels[0].name)
        return f"{sweep.source}{where}: the coarsest and the finest granularity were not compared: {why}."
    return f"{sweep.source}{where}: {_direction(difference)}: {_difference(sweep, difference)}."


def _families(sweep: GranularitySweep, findings: Findings) -> str:
    """The families whose FP rate differs between the ends, by Holm's method over the families."""
    differences = {
        family: _ends(sweep, findings.score_table, family) for family in findings.families if family != "absent"
    }
    changed = [
        f"{family} {fixed(one.delta, signed=True)} {between(one.low, one.high, signed=True)}, Holm p {p_value(p)}"
        for (family, one), p in zip(differences.items(), holm([one.p for one in differences.values()]), strict=True)
        if p < ALPHA and one.low * one.high > 0
    ]
    return (
        f"{sweep.source}: families with a significant change of the {_FP_RATE} from the coarsest to the finest "
        f"granularity: {'; '.join(changed) if changed else 'none'}."
    )


def _elongated(sweep: GranularitySweep, findings: Findings) -> Iterator[str]:
    if "elongation" not in findings.samples:
        return
    elongated = findings.samples[findings.samples["elongation"] >= ELONGATED]
    if elongated.empty:
        return
    score_table = ScoreTable(findings.results, elongated)
    if not {sweep.levels[0].name, sweep.levels[-1].name} <= {*score_table.variants}:
        return
    yield _false_positives(sweep, score_table, f", objects at least {ELONGATED:g} times as long as wide")


def _cost(sweep: GranularitySweep) -> Iterator[str]:
    ends = (sweep.levels[0], sweep.levels[-1])
    if any(is_missing(_without_generation(variant)) for variant in ends):
        return
    tokens = " to ".join(fixed(variant.means["tokens"], 1) for variant in ends)
    whole = " to ".join(fixed(variant.means["latency_ms"], 0) for variant in ends)
    without = " to ".join(fixed(_without_generation(variant), 0) for variant in ends)
    yield (
        f"{sweep.source}: from the coarsest to the finest granularity, tokens per image change from {tokens} and "
        f"latency from {whole} ms. Without the computation of superpixels, latency changes from {without} ms."
    )


def _without_generation(variant: Variant) -> float:
    """Latency without superpixels; SAM's encoder is included, because a mask decoder may require it."""
    whole, superpixels = (variant.means.get(f"latency_{part}ms", math.nan) for part in ("", "superpixels_"))
    return whole - superpixels


def _ends(sweep: GranularitySweep, score_table: ScoreTable, family: str | None) -> Difference:
    """Finest minus coarsest."""
    return score_table.compare(sweep.levels[-1].name, sweep.levels[0].name, "fp_rate", family)


def _direction(difference: Difference) -> str:
    if is_missing(difference.low) or difference.low <= 0 <= difference.high:
        return f"the effect of finer granularity on the {_FP_RATE} is inconclusive"
    return f"finer granularity {'lowers' if difference.delta < 0 else 'raises'} the {_FP_RATE}"


def _difference(sweep: GranularitySweep, difference: Difference) -> str:
    interval = between(difference.low, difference.high, signed=True)
    return (
        f"{sweep.levels[-1].name} minus {sweep.levels[0].name} {fixed(difference.delta, signed=True)} {interval}, "
        f"p {p_value(difference.p)}, {difference.num_expressions:,} expressions"
    )


def _level(variant: Variant) -> str:
    score = f"{METRICS['giou'].label} {fixed(variant.score.value)}"
    return f"{variant.name} ({fixed(variant.means['tokens'], 1)} tokens, {score})"
