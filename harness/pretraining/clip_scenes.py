"""`python -m harness.pretraining.clip_scenes --out runs/clip-scenes`: trains a small CLIP, clip-scenes.

Every step sees scenes that no step has seen before, from the train split and in all domains, each with the caption that
its scene graph gives. Making one takes 12 ms, a fifth of what learning from it takes, so a pool would save little and
be learnt by heart. The same command goes on where a killed run stopped. At the end, and only then, it measures on test
scenes and writes the folder `model`: what transformers loads, `scores.json` and a model card.

Captions name no places, and nothing is augmented. Two scenes of a batch may be told by one caption, which the loss
counts as an error; among the first 2,000 no caption came twice.

Source: CLIP, https://arxiv.org/abs/2103.00020, section 2 (loss, learned temperature and its bound).
Differs from the paper: small, and a token is a word; batches of 64; Muon for the matrices of hidden layers; a rate
that stays and then falls in a line, so that a run can be made shorter or longer while its rate still stays.
"""

import argparse
import copy
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from harness.data import scenes
from harness.data.frame import Frame
from harness.pretraining.caption_words import MAX_TOKENS, caption_tokenizer
from harness.pretraining.clip_scores import Pair, card, embed, load_clip, measure, retrieval
from harness.system.files import replace_file, write_atomically
from harness.training.muon import Muon

logger = logging.getLogger(__name__)

DOMAINS = tuple(scenes.DOMAINS)
MAX_LOGIT_SCALE = math.log(100)

Pairs = Callable[[range], list[Pair]]
"""The pairs of these indices."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The architecture; a patch is a patch of DINOv2-small's, so that both have one grid.

    Attributes:
        image, patch: sides in pixels.
        width, layers, heads: of the image side.
        text_width, text_layers, text_heads: of the text side.
        shared: width of the space in which both are compared.
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
class Options:
    """How a model is trained.

    Attributes:
        steps: in all.
        batch: pairs a step, each of which is told from all the others.
        learning_rate, muon_learning_rate: while it stays.
        warmup: steps until the rate is reached.
        cooldown: share of the steps over which it falls to zero.
    """

    steps: int
    seed: int = 0
    batch: int = 64
    learning_rate: float = 2e-3
    muon_learning_rate: float = 8e-3
    weight_decay: float = 0.01
    warmup: int = 10
    cooldown: float = 0.4

    def rate(self, step: int) -> float:
        """What the learning rates are multiplied by."""
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / (self.cooldown * self.steps))


class Trainer:
    """A model in training, with all that a checkpoint keeps.

    Args:
        pairs: what is trained on.
    """

    def __init__(self, options: Options, sizes: Sizes, pairs: Pairs) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.pairs = pairs
        self.tokenizer = caption_tokenizer()
        self.model = build(sizes, self.tokenizer)
        matrices = _hidden_matrices(self.model)
        others = [p for p in self.model.parameters() if not any(p is m for m in matrices)]
        self.optimizers = {
            "adamw": torch.optim.AdamW(others, options.learning_rate, (0.9, 0.98), weight_decay=options.weight_decay),
            "muon": Muon(matrices, options.muon_learning_rate, weight_decay=options.weight_decay),
        }
        self.step = 0
        self.seconds = 0.0

    def train_step(self) -> dict[str, float]:
        """One step on pairs of its own; its loss, and retrieval among its pairs before it."""
        first = self.step * self.options.batch
        pairs = self.pairs(range(first, first + self.options.batch))
        images, texts = embed(self.model, self.tokenizer, pairs)
        similarity = self.model.logit_scale.exp() * texts @ images.T
        loss = image_text_contrastive_loss(similarity)
        loss.backward()
        self._update()
        self.step += 1
        return {"loss": loss.item(), **retrieval(images.detach(), texts.detach())}

    def _update(self) -> None:
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
                base = self.options.muon_learning_rate if isinstance(optimizer, Muon) else self.options.learning_rate
                group["lr"] = base * self.options.rate(self.step)
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def save(self, path: Path) -> None:
        """All that going on needs."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "step": self.step,
            "seconds": self.seconds,
        }
        replace_file(path, lambda partial: torch.save(state, partial))

    def restore(self, path: Path) -> None:
        """Goes on where `save` was called."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.step, self.seconds = state["step"], state["seconds"]


def scene_pair(split: str, seed: int, index: int, side: int) -> Pair:
    """One scene of a split with its caption, in the domain whose turn it is; made anew, because a run sees thousands.

    Args:
        side: of the image, in pixels.
    """
    given = {"seed": seed, "domains": DOMAINS, "asks": ["captions"], f"{split}_images": index + 1}
    example = scenes.load(scenes.Config.model_validate(given), split)[index]
    return Pair(Frame.of(example.image.shape[:2], side).place_image(example.image), example.questions[0].answer)


def train(options: Options, out: Path, sizes: Sizes, steps_between: int = 10) -> Trainer:
    """Trains to the last step, with a checkpoint and a line of progress every few steps.

    Args:
        out: a folder; holds `checkpoint.pt` and `curve.jsonl`.
    """

    def pairs(indices: range) -> list[Pair]:
        return [scene_pair("train", options.seed, index, sizes.image) for index in indices]

    trainer, path = Trainer(options, sizes, pairs), out / "checkpoint.pt"
    if path.exists():
        trainer.restore(path)
    started = time.perf_counter() - trainer.seconds
    recent: list[dict[str, float]] = []
    while trainer.step < options.steps:
        recent.append(trainer.train_step())
        if trainer.step < options.steps and trainer.step % steps_between:
            continue
        trainer.seconds = time.perf_counter() - started
        trainer.save(path)
        _report(out, trainer, recent)
        recent = []
    return trainer


def _report(out: Path, trainer: Trainer, recent: Sequence[dict[str, float]]) -> None:
    line = {
        "step": trainer.step,
        "seconds": round(trainer.seconds),
        **{key: float(np.mean([one[key] for one in recent])) for key in recent[0]},
        "temperature": math.exp(-trainer.model.logit_scale.item()),
    }
    text = json.dumps({key: round(value, 4) for key, value in line.items()})
    logger.info(text)
    with (out / "curve.jsonl").open("a") as file:
        file.write(text + "\n")


def build(sizes: Sizes, tokenizer: PreTrainedTokenizerBase) -> CLIPModel:
    """The architecture with random weights, drawn as transformers draws them."""
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
    parts = [*model.vision_model.encoder.modules(), *model.text_model.encoder.modules()]
    weights = [part.weight for part in parts if isinstance(part, nn.Linear)]
    return [weight for weight in weights if isinstance(weight, nn.Parameter)]


def write_model(model: CLIPModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """As `save_pretrained` writes it, in float16, half the size; what is measured is read back from here."""
    copy.deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Trains, writes the model and measures it."""
    parser = argparse.ArgumentParser(prog="python -m harness.pretraining.clip_scenes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the model")
    parser.add_argument("--steps", type=int, default=600, help="steps of 64 scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-images", type=int, default=200)
    parser.add_argument("--report-every", type=int, default=10, help="steps between checkpoints")
    given = parser.parse_args()
    options, sizes = Options(given.steps, given.seed), Sizes()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    given.out.mkdir(parents=True, exist_ok=True)
    trainer = train(options, given.out, sizes, given.report_every)
    folder = given.out / "model"
    write_model(trainer.model, trainer.tokenizer, folder)
    test = [scene_pair("test", options.seed, index, sizes.image) for index in range(given.test_images)]
    scores = {"steps": trainer.step, "seed": options.seed, "pairs": options.batch * trainer.step}
    scores |= {"seconds": round(trainer.seconds), **measure(*load_clip(folder), test)}
    write_atomically(folder / "scores.json", json.dumps(scores, indent=2).encode())
    write_atomically(folder / "README.md", card(folder, scores).encode())
    logger.info(json.dumps(scores))


if __name__ == "__main__":
    main()
