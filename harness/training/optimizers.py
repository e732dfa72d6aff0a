"""Optimisers of the segmenter's parameters."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from harness.model.segmenter import Segmenter
from harness.study.training_config import TrainingConfig
from harness.training.muon import Muon


def build_optimizers(
    segmenter: Segmenter, parameters: Sequence[nn.Parameter], config: TrainingConfig
) -> list[Optimizer]:
    """AdamW for all of these parameters, or Muon for the hidden matrices among them and AdamW for the rest."""
    hidden = hidden_matrices(segmenter) if config.optimizer == "muon" else set()
    matrices = [p for p in parameters if id(p) in hidden]
    others = [p for p in parameters if id(p) not in hidden]
    decayed = [p for p in others if p.ndim > 1]
    plain = [p for p in others if p.ndim <= 1]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    if not matrices:
        return [adamw]
    return [adamw, Muon(matrices, config.learning_rate, weight_decay=config.weight_decay)]


def hidden_matrices(segmenter: Segmenter) -> set[int]:
    """Identities of the weights of linear layers, without the LLM's output layer."""
    linear = {id(module.weight) for module in segmenter.modules() if isinstance(module, nn.Linear)}
    return linear - {id(segmenter.llm.model.get_output_embeddings().weight)}
