"""The learning-rate schedule: linear warm-up, a stable rate, and a linear decay to zero.

While the rate is stable, the end can be moved: from one stable run, a short decay before each of several ends gives
models of several budgets.

Source: WSD, MiniCPM, https://arxiv.org/abs/2404.06395; linear decay to zero, Haegele et al., https://arxiv.org/abs/2405.18392.
"""

from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from harness.study.training_config import DECAY, decay_start


@dataclass
class WarmupStableDecay:
    """Factor of the learning rate by step.

    Attributes:
        warmup: steps of the linear rise.
        end: number of steps; the factor is zero there.
        decay: share of the steps over which the factor falls to zero.
    """

    warmup: int
    end: int
    decay: float = DECAY

    def __call__(self, step: int) -> float:
        """The factor of the update after `step` steps."""
        return min(
            1.0, (step + 1) / (self.warmup + 1), (self.end - step) / (self.end - decay_start(self.end, self.decay))
        )

    def of(self, optimizer: Optimizer) -> LambdaLR:
        """This schedule as torch applies it to an optimiser."""
        return LambdaLR(optimizer, self)
