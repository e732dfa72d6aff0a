"""Turns examples into a segmenter's input tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from harness.assembly.location_targets import LocationTargets
from harness.cache.encodings import SamCache, VisionCache
from harness.cache.superpixel_labels import SuperpixelCache
from harness.data.example import Example, Expression, Question, TextQuery
from harness.data.frame import Frame, to_tensor
from harness.model.llm.language_model import REJ, SEG, LanguageModel
from harness.model.segmenter import Query
from projectors import VisualFeatures


@dataclass(frozen=True, slots=True)
class MaskTargets:
    """Ground truth of B images and their S expressions in the padded frame.

    Args:
        targets: (S, R, R) float, the target mask of each expression.
        valid: (B, R, R) float, 0 in the padding and in ignored regions, 1 elsewhere.
    """

    targets: Tensor
    valid: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """B images with their queries and ground truth; expressions and answer tokens are in row-major order of (B, E).

    Args:
        features: the projector's input.
        mask_inputs: the mask decoder's input besides the patches: frames (B, 3, R, R) in 0..1 for a mask decoder from
            scratch, image embeddings (B, P, g, g) for that of a SAM. None if no masks are decoded.
        query: the tokenised expressions and questions, with the answers to the questions, (B, E, L).
        image: (S,) int64, index of each expression's image.
        answers: (A,) int64, id of the correct token for each row of `Answer.answer_logits`.
        location_targets: (S, g, g), the share of each cell of the location grid that the expression's target covers.
        masks: the ground truth in pixels; None if no masks are decoded.
    """

    features: VisualFeatures
    mask_inputs: Tensor | None
    query: Query
    image: Tensor
    answers: Tensor
    location_targets: Tensor
    masks: MaskTargets | None


class BatchMaker:
    """Builds batches on one device from cached features.

    Args:
        llm: provides the tokenizer and the vocabulary.
        vision: cached features of the vision encoder.
        superpixels: cached label maps; None if the projector requires no superpixels.
        decoder_pe: returns the mask decoder's current positional encoding (P, h, w), which loading a checkpoint may
            change; None if the projector requires none.
        grid: (H, W) of the patches.
        location_grid: (g, g) of the location logits.
        sam: cached image embeddings of the mask decoder's SAM; None for a mask decoder from scratch.
    """

    def __init__(
        self,
        llm: LanguageModel,
        vision: VisionCache,
        superpixels: SuperpixelCache | None,
        decoder_pe: Callable[[], Tensor] | None,
        grid: tuple[int, int],
        location_grid: tuple[int, int],
        device: torch.device,
        sam: SamCache | None = None,
    ) -> None:
        self.llm = llm
        self.vision = vision
        self.superpixels = superpixels
        self.decoder_pe = decoder_pe
        self.grid = grid
        self.location_targets = LocationTargets.shared(vision.frame, location_grid)
        self.device = device
        self.sam = sam

    def make(
        self, examples: Sequence[Example], chosen: Sequence[Sequence[TextQuery]], *, with_mask_inputs: bool = True
    ) -> Batch:
        """A batch with the chosen queries of each image, in this order, and their ground truth."""
        query = self.query(chosen, with_answers=True)
        image, _ = query.is_expression.nonzero(as_tuple=True)
        expressions = [
            (example, one)
            for example, queries in zip(examples, chosen, strict=True)
            for one in queries
            if isinstance(one, Expression)
        ]
        return Batch(
            features=self.features(examples),
            mask_inputs=self.mask_inputs(examples) if with_mask_inputs else None,
            query=query,
            image=image,
            answers=self._answers(chosen, query),
            location_targets=self.location_targets.load(expressions).to(self.device),
            masks=self._masks(examples, expressions) if with_mask_inputs else None,
        )

    def _masks(self, examples: Sequence[Example], expressions: Sequence[tuple[Example, Expression]]) -> MaskTargets:
        side = self.vision.frame
        valid = [Frame.of(one.size, side).place_mask(one.valid_mask()) for one in examples]
        targets = [Frame.of(of.size, side).place_mask(of.mask(one)) for of, one in expressions]
        masks = np.array(targets, dtype=bool).reshape(-1, side, side)
        return MaskTargets(*(torch.from_numpy(part).to(self.device).float() for part in (masks, np.stack(valid))))

    def _answers(self, chosen: Sequence[Sequence[TextQuery]], query: Query) -> Tensor:
        """Correct token ids (A,): [SEG] or [REJ] for an expression; the answer's and the end token's for a question."""
        is_valid, answers, vocabulary_size = query.is_valid, list[int](), self.llm.vocabulary_size
        rows = zip(
            query.ids[is_valid].tolist(),
            query.mask.sum(-1)[is_valid].tolist(),
            query.answer_lengths[is_valid].tolist(),
            strict=True,
        )
        for one, (ids, length, answer_length) in zip([one for queries in chosen for one in queries], rows, strict=True):
            if isinstance(one, Expression):
                answers.append(vocabulary_size + (SEG if one.targets else REJ))
            else:
                answers += [*ids[length - answer_length : length], self.llm.end_id]
        return torch.tensor(answers, device=self.device)

    def features(self, examples: Sequence[Example]) -> VisualFeatures:
        """Load the projector's input for these images from the caches."""
        superpixels = None if self.superpixels is None else self.superpixels.load(examples).to(self.device)
        return self.build_features(self.vision.load(examples), superpixels)

    def build_features(self, encoded: VisualFeatures, superpixels: Tensor | None) -> VisualFeatures:
        """Complete the vision encoder's output to the projector's input, in float32 on the device.

        Args:
            encoded: without superpixels and positional encoding, on any device.
            superpixels: (B, R, R) label maps on the device; None if the projector requires none.
        """
        computed = {field.name: getattr(encoded, field.name) for field in fields(encoded)}
        moved = {
            name: (value.float() if value.is_floating_point() else value).to(self.device)
            for name, value in computed.items()
            if value is not None
        }
        decoder_pe = None if self.decoder_pe is None else self.decoder_pe()
        return replace(encoded, **{**moved, "superpixels": superpixels, "decoder_pe": decoder_pe})

    @property
    def mask_frame(self) -> int:
        """Side in pixels of the frame that predicted masks cover: SAM's, or else the vision encoder's."""
        return self.vision.frame if self.sam is None else self.sam.frame

    def _frames(self, examples: Sequence[Example]) -> list[Frame]:
        return [Frame.of(example.size, self.vision.frame) for example in examples]

    def mask_inputs(self, examples: Sequence[Example]) -> Tensor:
        """The mask decoder's input besides the patches: frames (B, 3, R, R) or SAM's embeddings (B, P, g, g)."""
        if self.sam is not None:
            return self.sam.load(examples).to(self.device)
        placed = zip(self._frames(examples), examples, strict=True)
        return to_tensor([frame.place_image(example.image) for frame, example in placed]).to(self.device)

    def query(self, chosen: Sequence[Sequence[TextQuery]], *, with_answers: bool = False) -> Query:
        """Tokenise the queries of each image, (B, E, L), padded to the largest E.

        Args:
            with_answers: append the answers to the questions, for training.
        """
        width = max(len(row) for row in chosen)
        padded = [one for row in chosen for one in [*row, *[None] * (width - len(row))]]
        texts = [
            one.text if isinstance(one, Question) else self.llm.format_prompt(one.text if one else "") for one in padded
        ]
        answers = [one.answer if isinstance(one, Question) and with_answers else "" for one in padded]
        prompts = self.llm.prompts(texts, answers)
        is_valid = torch.tensor([[one is not None] for one in padded])
        is_expression = torch.tensor([isinstance(one, Expression) for one in padded])
        parts = (prompts.ids, prompts.mask & is_valid, prompts.answer_lengths, is_expression)
        return Query(*(rearrange(part, "(b e) ... -> b e ...", e=width).to(self.device) for part in parts))
