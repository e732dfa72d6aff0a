"""Random numbers that are the same on every machine and in every release of numpy.

numpy guarantees the stream of a bit generator but not that of `Generator`'s methods, so everything is integer
arithmetic on raw words of the bit generator.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.random import PCG64, SeedSequence

T = TypeVar("T")


class StableRng:
    """A stream of integers that is determined by a key.

    Args:
        key: non-negative integers; different keys give independent streams.
    """

    def __init__(self, key: Sequence[int]) -> None:
        self._bits = PCG64(SeedSequence(list(key)))

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def percent(self, chance: int) -> bool:
        """True with a probability of `chance` percent."""
        return self.between(0, 99) < chance

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[self.between(0, len(options) - 1)]

    def weighted(self, options: Sequence[T], weights: Sequence[int]) -> T:
        """One of the options, with probabilities proportional to the weights."""
        draw = self.between(0, sum(weights) - 1)
        for option, weight in zip(options, weights, strict=True):
            if draw < weight:
                return option
            draw -= weight
        raise AssertionError("the draw is below the sum of the weights")

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """The options in random order."""
        if not options:
            return []
        order = np.argsort(self._bits.random_raw(len(options)), kind="stable")
        return [options[int(i)] for i in order]

    def noise(self, shape: tuple[int, ...], reach: int) -> np.ndarray:
        """Independent integers from -reach to reach (reach <= 127), of this shape, int16."""
        count = int(np.prod(shape))
        words = self._bits.random_raw((count + 7) // 8).astype("<u8")
        scaled = words.view(np.uint8)[:count] * np.uint16(2 * reach + 1)
        return (scaled >> 8).astype(np.int16).reshape(shape) - np.int16(reach)
