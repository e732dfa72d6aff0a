"""A backbone small enough to run in a test: the real classes, random patches, two images."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import reduce, repeat
from torch import Tensor

import projectors
from harness.assembly.batches import BatchMaker
from harness.data.example import Example, Expression, encode_ids
from harness.model.config import LLMConfig, MaskDecoderConfig
from harness.model.llm.language_model import LanguageModel, build_llm
from harness.model.mask_decoder.decoder import PatchEmbedding
from harness.model.mask_decoder.from_scratch import build_mask_decoder
from harness.model.segmenter import Query, Segmenter
from projectors import Dims, VisualFeatures

GRID, FRAME, VISION = (4, 4), 32, 24
WORDS = ["the", "red", "blue", "green", "square", "circle", "star", "left", "right", "of", "what"]


def tiny_llm(visual_attention: str = "bidirectional", seg_state: str = "predict") -> LanguageModel:
    """Two layers of width 32 over eleven words."""
    settings = {"visual_attention": visual_attention, "seg_state": seg_state}
    config = LLMConfig(name="tiny", width=32, layers=2, heads=4, template="{expression} .", **settings)
    return build_llm(config, WORDS)


def tiny_segmenter(
    projector: str = "pooling",
    visual_attention: str = "bidirectional",
    seg_state: str = "predict",
    llm: LanguageModel | None = None,
    **settings: object,
) -> Segmenter:
    """A segmenter on 4 x 4 patches of 8 pixels, with this LLM or else `tiny`."""
    llm = llm or tiny_llm(visual_attention, seg_state)
    mask_decoder = build_mask_decoder(MaskDecoderConfig(width=32, depth=2, mlp_width=32, heads=4), GRID, FRAME)
    kind = projectors.get(projector)
    dims = Dims(
        vision=VISION, language=llm.width, grid=GRID, frame=FRAME, decoder=mask_decoder.width, max_superpixels=6
    )
    settings = settings or {"tokens": 4}
    built = kind(kind.Config(**settings), dims)
    return Segmenter(built, llm, PatchEmbedding(VISION, mask_decoder, GRID), mask_decoder)


def tiny_features(num_images: int, generator: torch.Generator) -> tuple[VisualFeatures, Tensor]:
    """Random patches and frames of unpadded images."""
    patches = torch.randn(num_images, GRID[0] * GRID[1], VISION, generator=generator)
    return _unpadded(patches), torch.rand(num_images, 3, FRAME, FRAME, generator=generator)


def ask(llm: LanguageModel, texts: list[list[str]]) -> Query:
    """Tokenise the expressions of each image, padded to the image with the most."""
    width = max(map(len, texts))
    prompts = llm.prompts([llm.format_prompt(text) for row in texts for text in [*row, *[""] * (width - len(row))]])
    is_valid = torch.tensor([[e < len(row) for e in range(width)] for row in texts])
    shape = (len(texts), width, -1)
    mask = prompts.mask.reshape(shape) & is_valid[..., None]
    return Query(prompts.ids.reshape(shape), mask, prompts.answer_lengths.reshape(shape[:2]), is_expression=is_valid)


class FixedBatches(BatchMaker):
    """Two images of two quadrant objects each, with random patches in place of an encoder's."""

    def __init__(self, llm: LanguageModel) -> None:
        generator = torch.Generator().manual_seed(0)
        self.visual, self.pixels = tiny_features(2, generator)
        super().__init__(llm, PatchesOfTwo(self.visual.patches), None, None, GRID, GRID, torch.device("cpu"))
        self.examples = [two_objects(0), two_objects(1)]


class PatchesOfTwo:
    """The part of `VisionCache` that batches use, over the patches of two images."""

    frame = FRAME

    def __init__(self, patches: Tensor) -> None:
        self.patches = patches

    def load(self, examples: Sequence[Example]) -> VisualFeatures:
        """Select images by the number at the end of their name."""
        return _unpadded(torch.stack([self.patches[int(example.image_id[-1])] for example in examples]))

    def compute(self, frames: Tensor, sizes: Sequence[tuple[int, int]]) -> VisualFeatures:  # noqa: ARG002 - as a cache's
        """Mean pixels of each patch, repeated to the width of the cached patches."""
        means = reduce(frames, "b c (h i) (w j) -> b (h w) c", "mean", h=GRID[0], w=GRID[1])
        return _unpadded(repeat(means, "b n c -> b n (repeats c)", repeats=VISION // 3))


def _unpadded(patches: Tensor) -> VisualFeatures:
    """Patches (B, N, C) of images that fill their frames."""
    return VisualFeatures(patches, torch.ones(patches.shape[:2], dtype=torch.bool))


def two_objects(number: int) -> Example:
    """A red square in one quadrant and a blue one in another; the number decides which is where."""
    half = FRAME // 2
    objects = np.zeros((FRAME, FRAME), np.uint8)
    objects[:half, :half], objects[half:, half:] = (1, 2) if number == 0 else (2, 1)
    image = np.zeros((FRAME, FRAME, 3), np.uint8)
    image[objects == 1, 0] = image[objects == 2, 2] = 255
    expressions = (Expression("the red square", "attribute", (1,)), Expression("the blue square", "attribute", (2,)))
    return Example(f"two-{number}", image, encode_ids(objects), expressions)
