"""A backbone small enough to run in a test: real classes, random patches, a handful of scenes."""

import torch
from torch import Tensor

import projectors
from harness.backbone.config import LLMConfig, MaskHeadConfig
from harness.backbone.llm import LanguageModel, build_llm
from harness.backbone.sam import PatchEmbedding, build_mask_head
from harness.backbone.segmenter import Query, Segmenter
from projectors import Dims, VisualFeatures

GRID, FRAME, VISION = (4, 4), 32, 24
WORDS = "the red blue green square circle star left right of".split()


def tiny_llm(visual_attention: str = "bidirectional") -> LanguageModel:
    """Two layers of width 32 over ten words."""
    config = LLMConfig(
        name="tiny", width=32, layers=2, heads=4, visual_attention=visual_attention, template="{expression} ."
    )
    return build_llm(config, WORDS)


def tiny_segmenter(projector: str = "pooling", visual_attention: str = "bidirectional", **settings: object) -> Segmenter:
    """A whole segmenter on 4 x 4 patches of 8 pixels."""
    llm = tiny_llm(visual_attention)
    mask_head = build_mask_head(MaskHeadConfig(width=32, depth=2, mlp_width=32, heads=4), GRID, FRAME)
    kind = projectors.get(projector)
    dims = Dims(
        vision=VISION, language=llm.width, grid=GRID, frame=FRAME, decoder=mask_head.width, max_superpixels=6
    )
    settings = settings or {"tokens": 4}
    built = kind(kind.Config(**settings), dims)
    return Segmenter(built, llm, PatchEmbedding(VISION, mask_head.width, GRID), mask_head)


def tiny_features(num_images: int, generator: torch.Generator) -> tuple[VisualFeatures, Tensor]:
    """Random patches and frames of some images, nothing padded."""
    patches = torch.randn(num_images, GRID[0] * GRID[1], VISION, generator=generator)
    mask = torch.ones(num_images, GRID[0] * GRID[1], dtype=torch.bool)
    return VisualFeatures(patches, mask), torch.rand(num_images, 3, FRAME, FRAME, generator=generator)


def ask(llm: LanguageModel, texts: list[list[str]]) -> Query:
    """Texts an image to prompts, padded to the image with the most."""
    width = max(map(len, texts))
    prompts = llm.prompts([text for row in texts for text in [*row, *[""] * (width - len(row))]])
    real = torch.tensor([[e < len(row) for e in range(width)] for row in texts])
    shape = (len(texts), width, -1)
    return Query(prompts.ids.reshape(shape), prompts.mask.reshape(shape) & real[..., None])

