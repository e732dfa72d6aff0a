"""`python -m harness.pretraining.sam_scenes --out runs/sam-scenes`: trains the small SAM that ships as sam-scenes.

Every step sees scenes that no step has seen before, from the train split and in all domains. The same command goes on
where a killed run stopped. At the end, and only then, it measures on test scenes and writes `model.safetensors` and
`scores.json`.

Source: Segment Anything, https://arxiv.org/abs/2304.02643, appendix A.
Differs from the paper: small and from scratch, without the pre-training as a masked autoencoder; a head for training
only (`dense_head.py`); at most two corrections; Muon for the matrices of hidden layers; a rate that stays and then
falls in a line, so that a run can be made shorter or longer while its rate still stays.
"""

import argparse
import json
import logging
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor, nn

from harness.data import scenes
from harness.data.example import Example
from harness.data.frame import to_tensor
from harness.model.mask_decoder.decoder import initialise
from harness.model.mask_decoder.fused_attention import fuse_attention
from harness.model.mask_decoder.sam import LoadedSam, build_sam_scenes, load_sam
from harness.model.weights.resolution import WeightsRecord
from harness.pretraining.dense_head import DenseHead
from harness.pretraining.mask_losses import mask_loss, shares
from harness.pretraining.prompts import draw
from harness.pretraining.sam_scores import best, decode, means, means_by_domain, measure, restored
from harness.system.files import replace_file, write_atomically
from harness.training.muon import Muon

logger = logging.getLogger(__name__)

DOMAINS = tuple(scenes.DOMAINS)
LAST_ROUNDS = (1, 2, 3)
LAST_ROUND_CHANCES = (0.75, 0.15, 0.1)
CORRECTIONS_FROM = 0.4
"""Share of the steps before which masks are not corrected, because there is little to correct them towards."""
DENSE_WEIGHT = 0.5
POSITION_SCALE = 2.0
"""Of the frequencies of point positions: with SAM's own, cells of a grid of 28 look too much like their neighbours."""
KIND_SCALE = 0.2
"""Of the embeddings that tell a point from a box's corner, which segment-anything draws as large as positions."""
CONTENT_SCALE = 0.3
"""Of what an image cell holds, beside its position."""
LOOK_GAIN = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """How a model is trained.

    Attributes:
        steps: in all.
        images, prompts: images a step, prompts an image.
        learning_rate, muon_learning_rate: while it stays.
        warmup: steps until the rate is reached.
        cooldown: share of the steps over which it falls to zero.
        begin: a SAM of this architecture to go on from, by name or file; None begins from nothing.
        first_image: of the train split; a model that goes on sees none of the images that it was begun with.
        validation_images: scored now and then; no choice that a run makes depends on them.
        test_images: scored at the end.
    """

    steps: int
    seed: int = 0
    images: int = 4
    prompts: int = 6
    learning_rate: float = 2e-3
    muon_learning_rate: float = 4e-3
    weight_decay: float = 0.01
    warmup: int = 50
    cooldown: float = 0.4
    begin: str | None = None
    first_image: int = 0
    validation_images: int = 24
    test_images: int = 200

    def rate(self, step: int) -> float:
        """What the learning rates are multiplied by."""
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / (self.cooldown * self.steps))


class Trainer:
    """A model in training, with all that a checkpoint keeps."""

    def __init__(self, options: Options) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.sam = build_sam_scenes()
        if options.begin is None:
            _initialise(self.sam)
        else:
            self.sam.load_state_dict(load_sam(options.begin).sam.state_dict())
        fuse_attention(self.sam.image_encoder)
        self.dense = DenseHead(self.sam.mask_decoder.transformer_dim)
        matrices = _hidden_matrices(self.sam)
        others = [p for p in [*self.sam.parameters(), *self.dense.parameters()] if not any(p is m for m in matrices)]
        self.optimizers = {
            "adamw": torch.optim.AdamW(others, options.learning_rate, (0.9, 0.98), weight_decay=options.weight_decay),
            "muon": Muon(matrices, options.muon_learning_rate, weight_decay=options.weight_decay),
        }
        self.step = 0
        self.seconds = 0.0

    def train_step(self) -> dict[str, float]:
        """One step on scenes of its own; everything drawn depends on the seed and the step only."""
        options = self.options
        rng = np.random.default_rng((options.seed, self.step))
        first = options.first_image + self.step * options.images
        examples = [scene("train", options.seed, first + i) for i in range(options.images)]
        embeddings = self._embed(examples)
        objects = [example.id_map() for example in examples]
        dense = self.dense.loss(embeddings, np.stack(objects))
        is_early = options.begin is None and self.step < CORRECTIONS_FROM * options.steps
        rounds = 1 if is_early else int(rng.choice(LAST_ROUNDS, p=LAST_ROUND_CHANCES))
        losses = [self._prompt(one, ids, rounds, rng) for one, ids in zip(embeddings, objects, strict=True)]
        masks = torch.stack(losses).mean()
        (masks + DENSE_WEIGHT * dense).backward()
        self._update()
        self.step += 1
        return {"masks": masks.item(), "dense": dense.item(), "rounds": rounds}

    def _embed(self, examples: list[Example]) -> Tensor:
        pixels = self.sam.preprocess(255 * to_tensor([example.image for example in examples]))
        return torch.cat([self.sam.image_encoder(pair) for pair in pixels.split(2)])  # two images fit the CPU's cache

    def _prompt(self, embedding: Tensor, objects: np.ndarray, rounds: int, rng: np.random.Generator) -> Tensor:
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

    def _update(self) -> None:
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
                base = self.options.muon_learning_rate if isinstance(optimizer, Muon) else self.options.learning_rate
                group["lr"] = base * self.options.rate(self.step)
            optimizer.step()
            optimizer.zero_grad()

    def save(self, path: Path) -> None:
        """All that going on needs."""
        state = {
            "sam": self.sam.state_dict(),
            "dense": self.dense.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "step": self.step,
            "seconds": self.seconds,
        }
        replace_file(path, lambda partial: torch.save(state, partial))

    def restore(self, path: Path) -> None:
        """Goes on where `save` was called."""
        state = torch.load(path, weights_only=True)
        self.sam.load_state_dict(state["sam"])
        self.dense.load_state_dict(state["dense"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.step, self.seconds = state["step"], state["seconds"]


def scene(split: str, seed: int, index: int) -> Example:
    """One scene of a split, in the domain whose turn it is; made anew each time, because a run sees thousands."""
    given = {"seed": seed, "domains": DOMAINS, "expressions_per_image": 1, f"{split}_images": index + 1}
    return scenes.load(scenes.Config.model_validate(given), split)[index]


def train(options: Options, out: Path, minutes_between: float = 2.0) -> Trainer:
    """Trains to the last step, with a checkpoint and a line of progress every few minutes.

    Args:
        out: a folder; holds `checkpoint.pt` and `curve.jsonl`.
    """
    trainer, path = Trainer(options), out / "checkpoint.pt"
    if path.exists():
        trainer.restore(path)
    validation = [scene("validation", options.seed, index) for index in range(options.validation_images)]
    started, reported = time.perf_counter() - trainer.seconds, time.perf_counter()
    recent: list[dict[str, float]] = []
    while trainer.step < options.steps:
        recent.append(trainer.train_step())
        if trainer.step < options.steps and time.perf_counter() - reported < 60 * minutes_between:
            continue
        trainer.seconds = time.perf_counter() - started
        trainer.save(path)
        line = {key: float(np.mean([one[key] for one in recent])) for key in ("masks", "dense")}
        scores = means(measure(_frozen(trainer.sam), validation)) if validation else {}
        trainer.sam.requires_grad_(True).train()
        _report(out, {"step": trainer.step, "seconds": round(trainer.seconds), **line, **scores})
        recent, reported = [], time.perf_counter()
    return trainer


def _report(out: Path, line: dict[str, float]) -> None:
    text = json.dumps({key: round(value, 4) for key, value in line.items()})
    logger.info(text)
    with (out / "curve.jsonl").open("a") as file:
        file.write(text + "\n")


def _frozen(sam: Sam) -> LoadedSam:
    return LoadedSam(sam, WeightsRecord("in training", "path", None, ""))


def _hidden_matrices(sam: Sam) -> list[nn.Parameter]:
    """Weights of the linear layers between the first and the last, for Muon."""
    decoder = sam.mask_decoder
    parts = [*sam.image_encoder.blocks.modules(), *decoder.transformer.modules()]
    parts += [layer for mlp in decoder.output_hypernetworks_mlps for layer in mlp.layers[:-1]]
    weights = [part.weight for part in parts if isinstance(part, nn.Linear)]
    return [weight for weight in weights if isinstance(weight, nn.Parameter)]


def _initialise(sam: Sam) -> None:
    """Residual branches begin at zero, positions begin as waves, fine enough for a small grid."""
    encoder, decoder = sam.image_encoder, sam.mask_decoder
    initialise(decoder)
    with torch.no_grad():
        sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(POSITION_SCALE)
        side, width = encoder.pos_embed.shape[1], encoder.pos_embed.shape[-1]
        waves = PositionEmbeddingRandom(width // 2, POSITION_SCALE)((side, side))
        encoder.pos_embed.copy_(0.2 * waves.permute(1, 2, 0).unsqueeze(0))
        for block in encoder.blocks:
            for layer in (block.attn.proj, block.mlp.lin2):
                nn.init.zeros_(layer.weight)
        for mlp in decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(0.1)
        nn.init.zeros_(decoder.iou_prediction_head.layers[-1].weight)
        _look_where_prompts_point(sam)


def _look_where_prompts_point(sam: Sam) -> None:
    """Attention begins at the places that a prompt names: positions outweigh what else a token says, and match.

    With independent random projections a decoder of this size finds all objects for every prompt for a long time.
    """
    encoder, transformer = sam.prompt_encoder, sam.mask_decoder.transformer
    for embedding in (*encoder.point_embeddings, encoder.not_a_point_embed, encoder.no_mask_embed):
        embedding.weight.mul_(KIND_SCALE)
    crossings = [transformer.final_attn_token_to_image]
    sam.image_encoder.neck[-1].weight.mul_(CONTENT_SCALE)
    for block in transformer.layers:
        block.norm4.weight.mul_(CONTENT_SCALE)
        crossings += [block.cross_attn_token_to_image, block.cross_attn_image_to_token]
    for attention in crossings:
        nn.init.orthogonal_(attention.q_proj.weight, LOOK_GAIN)
        attention.k_proj.weight.copy_(attention.q_proj.weight)


def write_model(sam: Sam, path: Path) -> None:
    """float16, half the size; what is measured is read back from here."""
    state = {key: value.half().contiguous() for key, value in sam.state_dict().items()}
    replace_file(path, lambda partial: save_file(state, partial, metadata={"format": "pt"}))


def main() -> None:
    """Trains, writes the model and measures it."""
    parser = argparse.ArgumentParser(prog="python -m harness.pretraining.sam_scenes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint, the model and its scores")
    parser.add_argument("--steps", type=int, default=4000, help="steps of 4 images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--begin", help="a SAM to go on from, by name (sam-scenes) or file")
    parser.add_argument("--first-image", type=int, default=0, help="of the train split, where --begin has seen others")
    parser.add_argument("--cooldown", type=float, default=0.4, help="share of the steps over which the rate falls")
    parser.add_argument("--validation-images", type=int, default=24)
    parser.add_argument("--test-images", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=2.0, help="between checkpoints")
    given = parser.parse_args()
    names = [field.name for field in fields(Options) if hasattr(given, field.name)]
    options = Options(**{name: getattr(given, name) for name in names})
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    given.out.mkdir(parents=True, exist_ok=True)
    trainer = train(options, given.out, given.minutes)
    write_model(trainer.sam, given.out / "model.safetensors")
    rows = measure(
        load_sam(str(given.out / "model.safetensors")),
        [scene("test", options.seed, index) for index in range(options.test_images)],
    )
    scores = {"images": options.test_images, "objects": len(rows), **means(rows), "domains": means_by_domain(rows)}
    scores |= {"seconds": round(trainer.seconds), "steps": trainer.step, "seed": options.seed}
    write_atomically(given.out / "scores.json", json.dumps(scores, indent=2).encode())
    logger.info(json.dumps(scores))


if __name__ == "__main__":
    main()
