"""Trains clip-scenes, a small CLIP: `python -m harness.pretraining.clip_scenes --out DIR`.

Each step uses new scenes of the train split, from all domains in turn, each with the caption of its scene graph.
Rendering a scene takes 12 ms, a fifth of its share of a training step, so a fixed pool of scenes would save little time
and would be overfitted. The same command resumes an interrupted training. After the last step, the model is measured on
test scenes, and the folder `model` is written: files that transformers loads, `scores.json` and a model card.

Captions contain no positions, and images are not augmented. If two scenes of a batch have the same caption, the loss
counts each as a negative of the other; the first 2,000 captions are all different.

Source: CLIP, https://arxiv.org/abs/2103.00020, section 2 (loss, learned temperature and its bound).
Differs from the paper: small, with one token per word; batches of 64; Muon for the matrices of hidden layers; a
constant learning rate with a linear cooldown, so that the number of steps can be changed while the rate is constant.
"""

import argparse
import copy
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from harness.data import scenes
from harness.data.frame import Frame
from harness.pretraining.caption_words import MAX_TOKENS, caption_tokenizer
from harness.pretraining.clip_scores import Pair, card, embed, load_clip, measure, retrieval
from harness.pretraining.pretrain import Hyperparameters, build_optimization, linear_weights, pretrain
from harness.system.files import write_atomically
from harness.training.loop import Interval, Point, TrainingLoop

logger = logging.getLogger(__name__)

DOMAINS = tuple(scenes.DOMAINS)
MAX_LOGIT_SCALE = math.log(100)

Pairs = Callable[[range], list[Pair]]
"""Returns the training pairs of these indices."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The architecture; patches have DINOv2-small's size, so that both encoders have the same grid.

    Attributes:
        image, patch: sides in pixels.
        width, layers, heads: of the vision encoder.
        text_width, text_layers, text_heads: of the text encoder.
        shared: width of the joint embedding space.
    """

    image: int = 224
    patch: int = 14
    width: int = 192
    layers: int = 4
    heads: int = 3
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 2
    shared: int = 128


@dataclass(frozen=True, slots=True)
class Options(Hyperparameters):
    """Settings of a training.

    Attributes:
        batch: pairs per step; each is contrasted with all the others.
    """

    batch: int = 64
    muon_learning_rate: float = 8e-3
    warmup: int = 10


class Trainer:
    """A CLIP in training: a task of the training loop.

    Args:
        pairs: returns the training pairs of some indices.
    """

    def __init__(self, options: Options, sizes: Sizes, pairs: Pairs) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.pairs = pairs
        self.tokenizer = caption_tokenizer()
        self.model = build(sizes, self.tokenizer)
        self.optimization = build_optimization(self.model.parameters(), _hidden_matrices(self.model), options)
        for optimizer in self.optimization.optimizers:
            optimizer.register_step_post_hook(self._bound_temperature)

    @torch.no_grad()
    def _bound_temperature(self, *_: object) -> None:
        self.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def backward(self, step: int) -> dict[str, Tensor]:
        """Adds the gradients of the objective; returns its terms."""
        objective, terms = self.compute_losses(step)
        objective.backward()
        return terms

    def compute_losses(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrastive loss on the pairs of this step, and retrieval among them."""
        first = step * self.options.batch
        pairs = self.pairs(range(first, first + self.options.batch))
        images, texts = embed(self.model, self.tokenizer, pairs)
        similarity = self.model.logit_scale.exp() * texts @ images.T
        loss = image_text_contrastive_loss(similarity)
        shares = retrieval(images.detach(), texts.detach())
        return loss, {"loss": loss, **{name: torch.tensor(share) for name, share in shares.items()}}

    def curve_point(self, averages: dict[str, Tensor]) -> Point:
        """Mean loss and retrieval, and the temperature."""
        temperature = math.exp(-self.model.logit_scale.item())
        return {**{name: mean.item() for name, mean in averages.items()}, "temperature": temperature}

    def state_dict(self) -> dict[str, Any]:
        """Weights of the model."""
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.model.load_state_dict(state["model"])


def scene_pair(split: str, seed: int, index: int, side: int) -> Pair:
    """One scene of a split with its caption, from the domains in turn; rendered on demand.

    Args:
        side: of the image, in pixels.
    """
    config = {"seed": seed, "domains": DOMAINS, "asks": ["captions"], f"{split}_images": index + 1}
    example = scenes.load(scenes.Config.model_validate(config), split)[index]
    return Pair(Frame.of(example.image.shape[:2], side).place_image(example.image), example.questions[0].answer)


def train(options: Options, out: Path, sizes: Sizes, steps_between: int = 10) -> tuple[Trainer, TrainingLoop]:
    """Trains up to the last step, with a checkpoint and a point of the curve every few steps.

    Args:
        out: folder in which `checkpoint.pt` and `curve.jsonl` are written.
    """

    def pairs(indices: range) -> list[Pair]:
        return [scene_pair("train", options.seed, index, sizes.image) for index in indices]

    trainer = Trainer(options, sizes, pairs)
    interval = Interval(steps=steps_between)
    return trainer, pretrain(trainer, trainer.optimization, options.steps, out, interval)


def build(sizes: Sizes, tokenizer: PreTrainedTokenizerBase) -> CLIPModel:
    """The architecture, with random weights as transformers initialises them."""
    vision = {
        "hidden_size": sizes.width,
        "intermediate_size": 4 * sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "image_size": sizes.image,
        "patch_size": sizes.patch,
    }
    text = {
        "hidden_size": sizes.text_width,
        "intermediate_size": 4 * sizes.text_width,
        "num_hidden_layers": sizes.text_layers,
        "num_attention_heads": sizes.text_heads,
        "max_position_embeddings": MAX_TOKENS,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=sizes.shared))


def _hidden_matrices(model: CLIPModel) -> list[nn.Parameter]:
    """Weights of the linear layers between the embeddings and the projections, for Muon."""
    return linear_weights([*model.vision_model.encoder.modules(), *model.text_model.encoder.modules()])


def write_model(model: CLIPModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the model in float16, half the size; scores are measured with the model loaded from this folder."""
    copy.deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Trains, writes the model and measures it."""
    parser = argparse.ArgumentParser(prog="python -m harness.pretraining.clip_scenes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the model")
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps of 64 scenes each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-images", type=int, default=200)
    parser.add_argument("--report-every", type=int, default=10, help="steps between checkpoints")
    arguments = parser.parse_args()
    options, sizes = Options(arguments.steps, arguments.seed), Sizes()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    trainer, loop = train(options, arguments.out, sizes, arguments.report_every)
    folder = arguments.out / "model"
    write_model(trainer.model, trainer.tokenizer, folder)
    test = [scene_pair("test", options.seed, index, sizes.image) for index in range(arguments.test_images)]
    scores = {"steps": loop.step, "seed": options.seed, "pairs": options.batch * loop.step}
    scores |= {"seconds": round(loop.seconds), **measure(*load_clip(folder), test)}
    write_atomically(folder / "scores.json", json.dumps(scores, indent=2).encode())
    write_atomically(folder / "README.md", card(folder, scores).encode())
    logger.info(json.dumps(scores))


if __name__ == "__main__":
    main()
