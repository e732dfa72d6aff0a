"""Learning-rate schedules: factors of an optimiser's learning rate, by step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def warmup_cosine(optimizer: Optimizer, warmup: int, steps: int) -> LRScheduler:
    """Linear rise over `warmup` steps, then a cosine to zero at `steps`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return LambdaLR(optimizer, factor)


def warmup_stable_decay(optimizer: Optimizer, warmup: int, steps: int, decay: float) -> LRScheduler:
    """Linear rise over `warmup` steps, a constant rate, then a linear fall to zero over the last `decay` of `steps`."""

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warmup, (steps - step) / (decay * steps))

    return LambdaLR(optimizer, factor)
