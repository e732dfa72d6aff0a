"""Trains sam-scenes, the small SAM that ships with this package: `python -m harness.pretraining.sam_scenes --out DIR`.

Each step uses new scenes of the train split, from all domains in turn. The same command resumes an interrupted
training. After the last step, the model is measured on test scenes; `model.safetensors` and `scores.json` are written.

Source: Segment Anything, https://arxiv.org/abs/2304.02643, appendix A.
Differs from the paper: small and trained from scratch, without masked-autoencoder pretraining; an auxiliary head during
training (`dense_head.py`); at most two corrections; Muon for the matrices of hidden layers; a constant learning rate
with a linear cooldown, so that the number of steps can be changed while the rate is constant.
"""

import argparse
import json
import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from torch import Tensor, nn

from harness.data import scenes
from harness.data.example import Example
from harness.data.frame import to_tensor
from harness.model.mask_decoder.fused_attention import fuse_attention
from harness.model.mask_decoder.sam import LoadedSam, build_sam_scenes, load_sam
from harness.model.weights.resolution import WeightsRecord
from harness.pretraining.dense_head import DenseHead
from harness.pretraining.mask_losses import mask_loss, shares
from harness.pretraining.pretrain import Hyperparameters, build_optimization, linear_weights, pretrain
from harness.pretraining.prompts import draw
from harness.pretraining.sam_initialization import initialise_sam
from harness.pretraining.sam_scores import best, decode, means, means_by_domain, measure, restored
from harness.system.files import replace_file, write_atomically
from harness.training.loop import Interval, Point, TrainingLoop

logger = logging.getLogger(__name__)

DOMAINS = tuple(scenes.DOMAINS)
NUM_ROUNDS = (1, 2, 3)
NUM_ROUNDS_PROBABILITIES = (0.75, 0.15, 0.1)
CORRECTIONS_FROM = 0.4
"""Share of the steps without corrections: early masks are too poor for corrections to be informative."""
DENSE_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class Options(Hyperparameters):
    """Settings of a training.

    Attributes:
        images, prompts: images per step, prompts per image.
        begin: a SAM of this architecture, by name or file, from whose weights training starts; None for random weights.
        first_image: index in the train split; with `begin`, choose it so that no image is used twice.
        validation_images: scored with each point of the curve; no setting depends on these scores.
        test_images: scored after the last step.
    """

    images: int = 4
    prompts: int = 6
    begin: str | None = None
    first_image: int = 0
    validation_images: int = 24
    test_images: int = 200


class Trainer:
    """A SAM in training: a task of the training loop."""

    def __init__(self, options: Options) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.sam = build_sam_scenes()
        if options.begin is None:
            initialise_sam(self.sam)
        else:
            self.sam.load_state_dict(load_sam(options.begin).sam.state_dict())
        fuse_attention(self.sam.image_encoder)
        self.dense = DenseHead(self.sam.mask_decoder.transformer_dim)
        parameters = [*self.sam.parameters(), *self.dense.parameters()]
        self.optimization = build_optimization(parameters, _hidden_matrices(self.sam), options)
        self.validation = [scene("validation", options.seed, index) for index in range(options.validation_images)]

    def backward(self, step: int) -> dict[str, Tensor]:
        """Adds the gradients of the objective; returns its terms."""
        objective, terms = self.compute_losses(step)
        objective.backward()
        return terms

    def compute_losses(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses on the scenes of this step; all sampling depends on the seed and the step only."""
        options = self.options
        rng = np.random.default_rng((options.seed, step))
        first = options.first_image + step * options.images
        examples = [scene("train", options.seed, first + i) for i in range(options.images)]
        embeddings = self._embed(examples)
        objects = [example.id_map() for example in examples]
        dense = self.dense.loss(embeddings, np.stack(objects))
        is_early = options.begin is None and step < CORRECTIONS_FROM * options.steps
        rounds = 1 if is_early else int(rng.choice(NUM_ROUNDS, p=NUM_ROUNDS_PROBABILITIES))
        losses = [self._mask_loss(one, ids, rounds, rng) for one, ids in zip(embeddings, objects, strict=True)]
        masks = torch.stack(losses).mean()
        return masks + DENSE_WEIGHT * dense, {"masks": masks, "dense": dense}

    def _embed(self, examples: list[Example]) -> Tensor:
        pixels = self.sam.preprocess(255 * to_tensor([example.image for example in examples]))
        return torch.cat([self.sam.image_encoder(pair) for pair in pixels.split(2)])  # two images fit the CPU's cache

    def _mask_loss(self, embedding: Tensor, objects: np.ndarray, rounds: int, rng: np.random.Generator) -> Tensor:
        """The mean loss over the rounds for one image."""
        prompts = draw(objects, self.options.prompts, rng)
        logits, scores = decode(self.sam, embedding, prompts)
        targets = shares(torch.from_numpy(prompts.masks), logits.shape[-1])
        loss = mask_loss(logits, scores, targets)
        for _ in range(rounds - 1):
            previous = best(logits, scores).detach()
            prompts = prompts.corrected(restored(previous, objects.shape[-1]), rng)
            logits, scores = decode(self.sam, embedding, prompts, previous)
            loss = loss + mask_loss(logits, scores, targets)
        return loss / rounds

    def curve_point(self, averages: dict[str, Tensor]) -> Point:
        """Mean losses, and the scores on the validation scenes."""
        point = {name: mean.item() for name, mean in averages.items()}
        if not self.validation:
            return point
        record = WeightsRecord("in training", "path", None, "")
        scores = means(measure(LoadedSam(self.sam, record), self.validation))
        self.sam.requires_grad_(True).train()  # LoadedSam freezes it
        return point | scores

    def state_dict(self) -> dict[str, Any]:
        """Weights of the SAM and of the auxiliary head."""
        return {"sam": self.sam.state_dict(), "dense": self.dense.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.sam.load_state_dict(state["sam"])
        self.dense.load_state_dict(state["dense"])


def scene(split: str, seed: int, index: int) -> Example:
    """One scene of a split, from the domains in turn; rendered on demand, because a training uses thousands."""
    config = {"seed": seed, "domains": DOMAINS, "expressions_per_image": 1, f"{split}_images": index + 1}
    return scenes.load(scenes.Config.model_validate(config), split)[index]


def train(options: Options, out: Path, minutes_between: float = 2.0) -> tuple[Trainer, TrainingLoop]:
    """Trains up to the last step, with a checkpoint and a point of the curve every few minutes.

    Args:
        out: folder in which `checkpoint.pt` and `curve.jsonl` are written.
    """
    trainer = Trainer(options)
    interval = Interval(seconds=60 * minutes_between)
    return trainer, pretrain(trainer, trainer.optimization, options.steps, out, interval)


def _hidden_matrices(sam: Sam) -> list[nn.Parameter]:
    """Weights of the linear layers between the first and the last, for Muon."""
    decoder = sam.mask_decoder
    modules = [*sam.image_encoder.blocks.modules(), *decoder.transformer.modules()]
    modules += [layer for mlp in decoder.output_hypernetworks_mlps for layer in mlp.layers[:-1]]
    return linear_weights(modules)


def write_model(sam: Sam, path: Path) -> None:
    """Writes the weights in float16, half the size; scores are measured with the model loaded from this file."""
    state = {key: value.half().contiguous() for key, value in sam.state_dict().items()}
    replace_file(path, lambda partial: save_file(state, partial, metadata={"format": "pt"}))


def main() -> None:
    """Trains, writes the model and measures it."""
    parser = argparse.ArgumentParser(prog="python -m harness.pretraining.sam_scenes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint, the model and its scores")
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps of 4 images each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--begin", help="name (sam-scenes) or file of a SAM whose weights training starts from")
    parser.add_argument("--first-image", type=int, default=0, help="index of the first image in the train split")
    parser.add_argument("--cooldown", type=float, default=0.4, help="share of the steps over which the rate falls")
    parser.add_argument("--validation-images", type=int, default=24)
    parser.add_argument("--test-images", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=2.0, help="minutes between checkpoints")
    arguments = parser.parse_args()
    names = [field.name for field in fields(Options) if hasattr(arguments, field.name)]
    options = Options(**{name: getattr(arguments, name) for name in names})
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    trainer, loop = train(options, arguments.out, arguments.minutes)
    write_model(trainer.sam, arguments.out / "model.safetensors")
    rows = measure(
        load_sam(str(arguments.out / "model.safetensors")),
        [scene("test", options.seed, index) for index in range(options.test_images)],
    )
    scores = {"images": options.test_images, "objects": len(rows), **means(rows), "domains": means_by_domain(rows)}
    scores |= {"seconds": round(loop.seconds), "steps": loop.step, "seed": options.seed}
    write_atomically(arguments.out / "scores.json", json.dumps(scores, indent=2).encode())
    logger.info(json.dumps(scores))


if __name__ == "__main__":
    main()
