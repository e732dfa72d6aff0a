"""Fits the linear reader: L-BFGS finds the only optimum of a convex objective, then a threshold for masks is chosen.

The correct alternatives of an expression are the tokens whose union has the highest IoU with the target, as in the
token ceiling (`harness.superpixels.best_unions`; approximately, if regions overlap), each with the same probability.
Without a target, it is "no target". The objective is the mean cross-entropy of these plus a ridge penalty. The ridge is
the one with the lowest cross-entropy on training images that are held out for this choice. The threshold is the one
whose masks have the highest mean IoU over the first training images.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import reduce
from scipy import optimize
from torch import Tensor

from harness.assembly.batches import BatchMaker
from harness.data.example import Example
from harness.data.frame import Frame
from harness.data.overlap import iou
from harness.model.linear.bag_of_words import word_counts
from harness.model.linear.frozen_tokens import FrozenVisualTokens
from harness.model.linear.masks import TokenPointMasks
from harness.model.linear.reader import LinearReader
from harness.superpixels.best_unions import best_unions, pixels_of
from projectors import IncompatibleError

logger = logging.getLogger(__name__)
RIDGES = (1e-1, 1e-2, 1e-3)
"""Half of the ridge times the squared norm of the weights is added to the mean cross-entropy."""
HELD_OUT = 5
"""Every fifth training image is held out while the ridge is chosen."""
MAX_ITERATIONS = 1000
TOLERANCE = 1e-5
"""Largest absolute entry of the gradient at the optimum."""
ACCEPTED = 1e-3
"""The same, above which a fit counts as not converged: rounding in float32 may stop it before `TOLERANCE`."""
IMAGES_AT_ONCE = 16
THRESHOLD_IMAGES = 256
"""Training images over which the threshold is chosen."""
POINT_THRESHOLD_IMAGES = 64
"""The same for the masks of a SAM, which take seconds per image."""
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Regions:
    """The regions of an image's tokens as sets of cells, and the targets of its expressions in pixels of them.

    Attributes:
        members: (T, n) the share of each cell that belongs to each token; cells are superpixels or patches.
        areas: (n,) valid pixels of each cell.
        inside: (E, n) pixels of each cell inside the target of each expression.
    """

    members: np.ndarray
    areas: np.ndarray
    inside: np.ndarray

    def correct(self) -> np.ndarray:
        """(E, T + 1) probability of each alternative, the last of them "no target"."""
        chosen = best_unions(self.inside @ self.members.T, self.members @ self.areas)
        chosen = np.concatenate([chosen, ~chosen.any(axis=1, keepdims=True)], axis=1).astype(np.float32)
        return chosen / chosen.sum(axis=1, keepdims=True)

    def overlaps(self, chosen: np.ndarray) -> np.ndarray:
        """(E,) IoU of the selected tokens (E, T) with the targets; a cell counts if at least half of it is selected."""
        is_drawn = (chosen.astype(np.float32) @ self.members) >= 0.5
        intersections = (is_drawn * self.inside).sum(axis=1)
        return iou(intersections, is_drawn @ self.areas + self.inside.sum(axis=1) - intersections)


def regions_of(example: Example, tokens: FrozenVisualTokens, number: int, grid: tuple[int, int], side: int) -> Regions:
    """The regions of image `number` of the tokens, and the targets of its expressions.

    Args:
        grid: (H, W) of the patches.
        side: R, of the frame.
    """
    frame = Frame.of(example.size, side)
    valid_mask = frame.place_mask(example.valid_mask())
    targets = list(dict.fromkeys(expression.targets for expression in example.expressions))
    masks = [frame.place_mask(example.target_mask(one)) for one in targets]
    if tokens.superpixels is not None:
        labels = tokens.superpixels[number].cpu().numpy()
        members = np.eye(tokens.mask.shape[1], dtype=np.float32)
    else:
        assert tokens.regions is not None
        row, column = (np.arange(side) * cells // side for cells in grid)
        labels = row[:, None] * grid[1] + column
        members = tokens.regions[number].float().cpu().numpy()
    inside, areas = pixels_of(labels, valid_mask, masks)
    rows = [targets.index(expression.targets) for expression in example.expressions]
    missing = members.shape[1] - len(areas)  # images with fewer superpixels than others
    return Regions(members, np.pad(areas, (0, missing)), np.pad(inside, ((0, 0), (0, missing)))[rows])


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some images with E expressions each, some of which may be padding.

    Attributes:
        embeds: (B, T, F), standardised.
        mask: (B, T) bool.
        texts: (B, E) int64, index of each expression among the distinct texts; -1 for padding.
        correct: (B, E, T + 1) probabilities.
    """

    embeds: Tensor
    mask: Tensor
    texts: Tensor
    correct: Tensor

    def part(self, is_chosen: Tensor) -> "Chunk":
        """The chunk with the expressions of other images than the chosen ones, (B,) bool, as padding."""
        return replace(self, texts=self.texts.masked_fill(~is_chosen[:, None], -1))

    @property
    def num_expressions(self) -> int:
        """Without padding."""
        return int((self.texts >= 0).sum())

    def loss(self, vectors: Tensor, no_target: Tensor) -> Tensor:
        """Cross-entropy summed over the expressions, from vectors (M, F) and scores (M,) of the distinct texts."""
        is_valid, rows = self.texts >= 0, self.texts.clamp(min=0)
        scores = (vectors[rows] @ self.embeds.mT).masked_fill(~self.mask[:, None], -1e9)
        scores = torch.cat([scores, no_target[rows][..., None]], dim=-1)
        return -(self.correct * scores.log_softmax(dim=-1)).sum(dim=-1)[is_valid].sum()


class LinearFit:
    """Fits a reader to training images.

    Args:
        log: called with progress messages.

    Attributes:
        ridge: the chosen one of `RIDGES`.
        curve: objective by iteration of the last fit.
    """

    def __init__(self, reader: LinearReader, batches: BatchMaker, log: Callable[[str], None]) -> None:
        self.reader = reader
        self.batches = batches
        self.log = log
        self.ridge = RIDGES[len(RIDGES) // 2]
        self.curve: list[dict[str, float]] = []

    def run(self, examples: Sequence[Example]) -> None:
        """Fits weights and threshold in place, to data that passes `check_queries`."""
        texts = sorted({expression.text for example in examples for expression in example.expressions})
        chunks, measured = self._collect(examples, {text: number for number, text in enumerate(texts)})
        words = word_counts(self.reader.words, texts).to(self.batches.device)
        if len(examples) >= HELD_OUT:
            self.ridge = self._best_ridge(chunks, words)
        self._minimise(chunks, words, self.ridge)
        self.reader.threshold.fill_(self._threshold(examples, measured))

    @torch.no_grad()
    def _collect(self, examples: Sequence[Example], numbers: dict[str, int]) -> tuple[list[Chunk], list[Regions]]:
        """All images in chunks with standardised tokens, and the regions of the first ones."""
        chunks, measured, grid = list[Chunk](), list[Regions](), self.batches.grid
        for part in _parts(examples, len(examples)):
            self.log(f"tokens {len(chunks) * IMAGES_AT_ONCE}/{len(examples)}")
            tokens = self.reader.projector(self.batches.features(part))
            found = [regions_of(one, tokens, i, grid, self.batches.vision.frame) for i, one in enumerate(part)]
            measured += found[: max(0, THRESHOLD_IMAGES - len(measured))]
            longest = max(1, *(len(example.expressions) for example in part))
            texts = torch.full((len(part), longest), -1)
            correct = torch.zeros(len(part), longest, tokens.mask.shape[1] + 1)
            for i, (example, regions) in enumerate(zip(part, found, strict=True)):
                count = len(example.expressions)
                # The target of an expression may have no pixel in the frame, where it cannot be learnt.
                texts[i, :count] = torch.tensor(
                    [
                        numbers[one.text] if pixels.any() or not one.targets else -1
                        for one, pixels in zip(example.expressions, regions.inside, strict=True)
                    ]
                )
                correct[i, :count] = torch.from_numpy(regions.correct())
            chunks.append(
                Chunk(tokens.embeds, tokens.mask, *(each.to(self.batches.device) for each in (texts, correct)))
            )
        self._standardise(chunks)
        return chunks, measured

    def _standardise(self, chunks: Sequence[Chunk]) -> None:
        """Sets the reader's mean and scale to those of all tokens, and standardises the tokens in place."""
        reader, count = self.reader, sum(int(chunk.mask.sum()) for chunk in chunks)
        mean = torch.stack([chunk.embeds[chunk.mask].double().sum(dim=0) for chunk in chunks]).sum(dim=0) / count
        squares = [(chunk.embeds[chunk.mask] - mean).square().sum(dim=0) for chunk in chunks]
        reader.mean.copy_(mean)
        reader.scale.copy_((torch.stack(squares).sum(dim=0) / count).sqrt().clamp(min=1e-6))
        for chunk in chunks:
            chunk.embeds.copy_(reader.standardise(chunk.embeds))

    def _best_ridge(self, chunks: Sequence[Chunk], words: Tensor) -> float:
        """The ridge whose weights, fitted to the other images, have the lowest cross-entropy on those held out."""
        sizes = [len(chunk.texts) for chunk in chunks]
        is_held = (torch.arange(sum(sizes), device=words.device) % HELD_OUT == HELD_OUT - 1).split(sizes)
        fitted = [chunk.part(~held) for chunk, held in zip(chunks, is_held, strict=True)]
        others = [chunk.part(held) for chunk, held in zip(chunks, is_held, strict=True)]
        losses = {}
        for ridge in RIDGES:
            self._minimise(fitted, words, ridge)
            with torch.no_grad():
                vectors, no_target = words @ self.reader.weight, words @ self.reader.no_target
                losses[ridge] = sum(float(chunk.loss(vectors, no_target)) for chunk in others)
        return min(losses, key=losses.__getitem__)

    def _minimise(self, chunks: Sequence[Chunk], words: Tensor, ridge: float) -> None:
        """Sets the weights to the optimum.

        Args:
            words: (M, V) counts of the distinct texts.
        """
        reader, split = self.reader, self.reader.weight.numel()
        total = sum(chunk.num_expressions for chunk in chunks)

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            values = torch.from_numpy(flat).float().to(words.device)
            weight, no_target = values[:split].view_as(reader.weight), values[split:]
            vectors, scores = ((words @ part).requires_grad_() for part in (weight, no_target))
            loss = 0.0
            for chunk in chunks:
                part = chunk.loss(vectors, scores) / total
                part.backward()
                loss += float(part.detach())
            assert vectors.grad is not None
            assert scores.grad is not None
            gradient = torch.cat([(words.T @ vectors.grad).flatten(), words.T @ scores.grad]) + ridge * values
            return loss + ridge / 2 * float(values.double().square().sum()), gradient.double().cpu().numpy()

        def record(intermediate_result: optimize.OptimizeResult) -> None:
            self.curve.append({"step": len(self.curve) + 1, "loss": float(intermediate_result.fun)})
            self.log(f"ridge {ridge}, iteration {len(self.curve)}, objective {intermediate_result.fun:.4f}")

        self.curve = []
        start = np.zeros(split + reader.no_target.numel())
        options = {"maxiter": MAX_ITERATIONS, "gtol": TOLERANCE, "ftol": 0.0, "maxcor": 20}
        found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", callback=record, options=options)
        largest = float(np.abs(found.jac).max())
        if largest > ACCEPTED:
            logger.warning(
                "the linear fit with ridge %g stopped after %d iterations with a gradient of %.1e, more than %g: its "
                "result is not the optimum",
                ridge,
                found.nit,
                largest,
                ACCEPTED,
            )
        values = torch.from_numpy(found.x).to(reader.weight)
        with torch.no_grad():
            reader.weight.copy_(values[:split].view_as(reader.weight))
            reader.no_target.copy_(values[split:])

    @torch.no_grad()
    def _threshold(self, examples: Sequence[Example], measured: Sequence[Regions]) -> float:
        """The threshold with the highest mean IoU over the expressions with a target; of equal ones, the highest."""
        found: list[np.ndarray] = []
        masks, sam = self.reader.masks, self.batches.sam
        if isinstance(masks, TokenPointMasks):
            assert sam is not None
            measured = measured[:POINT_THRESHOLD_IMAGES]
            sam.ensure([examples[i] for i in range(len(measured))], lambda done, total: self.log(f"SAM {done}/{total}"))
        regions = iter(measured)
        for part in _parts(examples, len(measured)):
            own = [next(regions) for _ in part]
            if not any(one.expressions for one in part):
                continue
            tokens = self.reader.projector(self.batches.features(part))
            query = self.batches.query([one.expressions for one in part])
            scores, _ = self.reader.log_probabilities(tokens, query)
            if isinstance(masks, TokenPointMasks):
                overlaps = self._overlaps_of_points(masks, part, tokens, scores)
            else:
                overlaps = self._overlaps_of_regions(part, own, scores)
            has_target = np.concatenate([one.inside.any(axis=1) for one in own])
            found.append(overlaps[:, has_target])
        means = np.concatenate(found, axis=1).mean(axis=1) if found else np.zeros(len(THRESHOLDS))
        return max(zip(means.tolist(), THRESHOLDS, strict=True))[1]

    def _overlaps_of_regions(self, part: Sequence[Example], regions: Sequence[Regions], scores: Tensor) -> np.ndarray:
        """IoU of the masks of each of `THRESHOLDS`, for each expression of the images."""
        rows = scores.split([len(one.expressions) for one in part])
        overlaps = []
        for threshold in THRESHOLDS:
            self.reader.threshold.fill_(threshold)
            chosen = [self.reader.choose(row).cpu().numpy() for row in rows]
            overlaps.append(np.concatenate([one.overlaps(each) for one, each in zip(regions, chosen, strict=True)]))
        return np.stack(overlaps)

    def _overlaps_of_points(
        self, masks: TokenPointMasks, part: Sequence[Example], tokens: FrozenVisualTokens, scores: Tensor
    ) -> np.ndarray:
        """The same, of SAM's masks at the most probable tokens, at the resolution of SAM's masks."""
        image = torch.cat([torch.full((len(one.expressions),), number) for number, one in enumerate(part)])
        image = image.to(scores.device)
        prompts = masks.prompts(tokens, scores.isfinite(), scores, image)
        drawn = masks.by_point(self.batches.mask_inputs(part), prompts, image) > 0
        best = scores.topk(drawn.shape[1], dim=1).values
        targets, valid = self._targets(part, drawn.shape[-1])
        overlaps = []
        for threshold in THRESHOLDS:
            is_used = best >= best[:, :1] + np.log(threshold)
            predicted = (drawn & is_used[..., None, None]).any(dim=1).cpu().numpy() & valid
            overlaps.append(iou((predicted & targets).sum((1, 2)), (predicted | targets).sum((1, 2))))
        return np.stack(overlaps)

    def _targets(self, part: Sequence[Example], side: int) -> tuple[np.ndarray, np.ndarray]:
        """Target and valid pixels of each expression of the images in SAM's frame, (S, side, side) bool."""
        targets, valid = list[np.ndarray](), list[np.ndarray]()
        for example in part:
            frame = Frame.of(example.size, self.batches.mask_frame)
            own_valid = frame.place_mask(example.valid_mask())
            for expression in example.expressions:
                targets.append(_pooled(frame.place_mask(example.mask(expression)) & own_valid, side))
                valid.append(_pooled(own_valid, side))
        return np.stack(targets), np.stack(valid)


def _pooled(mask: np.ndarray, side: int) -> np.ndarray:
    """A mask (R, R) at a lower resolution, (side, side) bool: cells that it covers by half or more."""
    return reduce(mask.astype(np.float32), "(h i) (w j) -> h w", "mean", h=side, w=side) >= 0.5


def check_queries(training: Sequence[Example], scored: Sequence[Example]) -> None:
    """Refuse data that a linear reader cannot be fitted to, before anything is computed.

    Raises:
        IncompatibleError: the data has questions, or no expressions.
    """
    if any(example.questions for examples in (training, scored) for example in examples):
        raise IncompatibleError("llm 'linear' answers expressions only, and the data has questions; use another llm")
    if not any(example.expressions for example in training):
        raise IncompatibleError("llm 'linear' is fitted to expressions, and the training split has none")


def _parts(examples: Sequence[Example], count: int) -> Iterator[list[Example]]:
    """The first images, some at a time."""
    for first in range(0, count, IMAGES_AT_ONCE):
        yield [examples[i] for i in range(first, min(first + IMAGES_AT_ONCE, count))]
