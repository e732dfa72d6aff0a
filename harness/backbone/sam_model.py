"""STAND-IN until branch sam-model brings the real file: the interface only, random weights."""

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from harness.backbone.weights import WeightsRecord


class LoadedSam(nn.Module):
    """A frozen SAM."""

    def __init__(self, sam: Sam, record: WeightsRecord) -> None:
        super().__init__()
        self.sam = sam.requires_grad_(False).eval()
        self.record = record
        self.frame: int = sam.image_encoder.img_size
        self.grid: tuple[int, int] = sam.prompt_encoder.image_embedding_size

    def embed(self, frames: Tensor) -> Tensor:
        """Frames (B, 3, R, R) in 0..1 -> (B, P, g, g)."""
        return self.sam.image_encoder((255 * frames - self.sam.pixel_mean) / self.sam.pixel_std)


def build_sam_scenes() -> Sam:
    """The small SAM, random weights."""
    width, grid, frame = 128, (28, 28), 224
    encoder = ImageEncoderViT(
        frame, 8, embed_dim=96, depth=2, num_heads=4, mlp_ratio=2, out_chans=width, use_rel_pos=True, window_size=7
    )
    decoder = MaskDecoder(transformer_dim=width, transformer=TwoWayTransformer(2, width, 8, 512))
    return Sam(encoder, PromptEncoder(width, grid, (frame, frame), 16), decoder)


def load_sam(name: str) -> LoadedSam:
    """Random weights under any name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LoadedSam(build_sam_scenes(), WeightsRecord(name, "random", "seed 0", "0" * 64))
