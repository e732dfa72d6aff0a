"""Turns examples into the tensors that a segmenter takes."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from harness.backbone.llm import REJ, SEG, LanguageModel
from harness.backbone.segmenter import Query
from harness.backbone.vision import Encoding
from harness.data.example import Example, Expression
from harness.encodings import SamCache, VisionCache
from harness.features import SuperpixelCache
from harness.frame import Frame, to_tensor
from projectors import VisualFeatures


@dataclass(frozen=True, slots=True)
class Batch:
    """B images with what is asked of them and what the answers should be; M real expressions in row-major order.

    Args:
        features: what the projector sees.
        view: what masks are drawn from beside the patches: frames (B, 3, R, R) in 0..1 for a mask head from scratch,
            SAM's embeddings (B, P, g, g) for one of a SAM.
        inside: (B, R, R) float, 1 where the image is judged, 0 in the padding and where it is ignored.
        query: the prompts, (B, E, L).
        image: (M,) which image an expression is asked of.
        answers: (M,) index of the right answer word.
        targets: (M, R, R) float, the target masks in the frame.
    """

    features: VisualFeatures
    view: Tensor
    inside: Tensor
    query: Query
    image: Tensor
    answers: Tensor
    targets: Tensor


class BatchMaker:
    """Builds batches on one device from cached features.

    Args:
        llm: whose tokenizer and vocabulary the prompts use.
        vision: what the projector reads of the vision encoder.
        superpixels: the source's cache, or None where the projector needs no superpixels.
        decoder_pe: (P, h, w) the mask decoder's positional encoding, or None where the projector needs none.
        grid: (H, W) of the patches.
        sam: the image embeddings of the mask head's SAM, or None for a mask head from scratch.
    """

    def __init__(
        self,
        llm: LanguageModel,
        vision: VisionCache,
        superpixels: SuperpixelCache | None,
        decoder_pe: Tensor | None,
        grid: tuple[int, int],
        device: torch.device,
        sam: SamCache | None = None,
    ) -> None:
        self.llm = llm
        self.vision = vision
        self.superpixels = superpixels
        self.decoder_pe = decoder_pe
        self.grid = grid
        self.device = device
        self.sam = sam

    def training(self, examples: Sequence[Example], num_expressions: int, generator: torch.Generator) -> Batch:
        """At most `num_expressions` of each image's expressions, drawn without replacement."""
        chosen = []
        for example in examples:
            order = torch.randperm(len(example.expressions), generator=generator)[:num_expressions]
            chosen.append([example.expressions[i] for i in order.tolist()])
        return self.make(examples, chosen)

    def make(self, examples: Sequence[Example], chosen: Sequence[Sequence[Expression]]) -> Batch:
        """These expressions of these images, in this order."""
        frames = [Frame.of(example.size, self.vision.frame) for example in examples]
        targets = [
            frame.place_mask(example.mask(expression))
            for example, frame, asked in zip(examples, frames, chosen, strict=True)
            for expression in asked
        ]
        inside = np.stack([frame.place_mask(example.judged()) for example, frame in zip(examples, frames, strict=True)])
        has_target = torch.tensor([bool(expression.targets) for asked in chosen for expression in asked])
        answers = torch.where(has_target, SEG, REJ) + self.llm.vocabulary
        image = torch.tensor([i for i, asked in enumerate(chosen) for _ in asked])
        return Batch(
            features=self.features(examples, frames),
            view=self.view(examples, frames),
            inside=torch.from_numpy(inside).float().to(self.device),
            query=self.query([[expression.text for expression in asked] for asked in chosen]),
            image=image.to(self.device),
            answers=answers.to(self.device),
            targets=torch.from_numpy(np.stack(targets)).float().to(self.device),
        )

    def features(self, examples: Sequence[Example], frames: Sequence[Frame]) -> VisualFeatures:
        """What the projector sees of these images."""
        superpixels = None if self.superpixels is None else self.superpixels.load(examples).to(self.device)
        patch_mask = torch.from_numpy(np.stack([frame.patch_mask(self.grid) for frame in frames])).to(self.device)
        return self.see(self.vision.load(examples), patch_mask, superpixels)

    def see(self, encoding: Encoding, patch_mask: Tensor, superpixels: Tensor | None) -> VisualFeatures:
        """What the projector sees of images that are encoded and cut."""
        asked = {field.name: getattr(encoding, field.name) for field in fields(encoding)}
        given = {name: value.float().to(self.device) for name, value in asked.items() if value is not None}
        return VisualFeatures(**given, patch_mask=patch_mask, superpixels=superpixels, decoder_pe=self.decoder_pe)

    @property
    def mask_frame(self) -> int:
        """Side of the frame that masks are drawn in, in pixels: SAM's own, or else the vision encoder's."""
        return self.vision.frame if self.sam is None else self.sam.frame

    def view(self, examples: Sequence[Example], frames: Sequence[Frame]) -> Tensor:
        """What masks are drawn from beside the patches: pixels (B, 3, R, R) in 0..1, or SAM's embeddings."""
        if self.sam is not None:
            return self.sam.load(examples).to(self.device)
        placed = [frame.place_image(example.image) for example, frame in zip(examples, frames, strict=True)]
        return to_tensor(placed).to(self.device)

    def query(self, texts: Sequence[Sequence[str]]) -> Query:
        """Texts an image -> prompts (B, E, L), padded to the largest E."""
        width = max(len(row) for row in texts)
        padded = [text for row in texts for text in [*row, *[""] * (width - len(row))]]
        prompts = self.llm.prompts(padded)
        real = torch.tensor([[e < len(row) for e in range(width)] for row in texts])
        ids = rearrange(prompts.ids, "(b e) l -> b e l", e=width)
        mask = rearrange(prompts.mask, "(b e) l -> b e l", e=width) & real[..., None]
        return Query(ids.to(self.device), mask.to(self.device))
