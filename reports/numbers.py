"""Numbers and lists as text: fixed decimals for scores, k/M/G for counts, a dash for a missing number."""

import math
from collections.abc import Sequence

DASH = "—"
MINUS = "\u2212"
MAX_LISTED, NUM_FIRST = 24, 10
"""Up to so many names are written out in a sentence, and so many of a longer list; tables have all of them."""
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def is_missing(value: float | None) -> bool:
    """Whether a number is None or not finite."""
    return value is None or not math.isfinite(value)


def fixed(value: float | None, decimals: int = 3, signed: bool = False) -> str:
    """0.123; with `signed`, +0.123."""
    if value is None or is_missing(value):
        return DASH
    return (f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}").replace("-", MINUS)


def count(value: float | None) -> str:
    """Three digits and a scale: 950, 12.3k, 1.25M, 41.0G."""
    if value is None or is_missing(value):
        return DASH
    for scale, letter in _SCALES:
        scaled = value / scale
        if scaled >= 0.9995:
            return f"{scaled:.{max(0, 2 - int(math.log10(max(scaled, 1)) + 1e-9))}f}{letter}"
    return f"{value:.0f}"


def between(low: float | None, high: float | None, decimals: int = 3, signed: bool = False) -> str:
    """[0.100, 0.200]; empty without an interval."""
    if is_missing(low) or is_missing(high):
        return ""
    return f"[{fixed(low, decimals, signed)}, {fixed(high, decimals, signed)}]"


def p_value(value: float | None) -> str:
    """0.034, or <0.001."""
    if value is None or is_missing(value):
        return DASH
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`; of many names, the first and the number of the others."""
    if len(names) > MAX_LISTED:
        names = [*names[:NUM_FIRST], f"{len(names) - NUM_FIRST:,} others"]
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def plural(number: int, noun: str) -> str:
    """`1 seed`, or `3 seeds`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def percent(value: float | None) -> str:
    """A share as a whole percentage."""
    return DASH if value is None or is_missing(value) else f"{100 * value:.0f}%"
