"""MobileSAM: SAM with a TinyViT image encoder, as timm implements it.

Source: MobileSAM, https://arxiv.org/abs/2306.14289; https://github.com/ChaoningZhang/MobileSAM, commit f706ad9,
`build_sam.py` and `modeling/tiny_vit_sam.py`; Apache-2.0.
Differs from the release: timm's class with timm's names. A checkpoint has the names of the release (`official_name`);
its classifier is not used.
"""

import re
from typing import Any

from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn

FRAME = 1024
GRID = 64
ENCODER_WIDTH = 320
WIDTH = 256
"""P."""
FIRST_WEIGHT = "image_encoder.patch_embed.seq.0.c.weight"
"""A name that identifies a checkpoint of this architecture."""
UNUSED = re.compile(r"image_encoder\.(head|norm_head)\..+")
"""Names of the classifier with which TinyViT was pretrained."""
_RENAMED = (
    (r"\.conv\.", r".c."),
    (r"\.patch_embed\.conv1\.", r".patch_embed.seq.0."),
    (r"\.patch_embed\.conv2\.", r".patch_embed.seq.2."),
    (r"\.stages\.(\d)\.", r".layers.\1."),
)


class TinyVitEncoder(nn.Module):
    """TinyViT-5M at 1024 px with SAM's neck. The last stage keeps the resolution of the one before."""

    def __init__(self) -> None:
        super().__init__()
        backbone = TinyVit(
            num_classes=0,
            embed_dims=(64, 128, 160, ENCODER_WIDTH),
            depths=(2, 2, 6, 2),
            num_heads=(2, 4, 5, 10),
            window_sizes=(7, 7, 14, 7),
            drop_path_rate=0.0,
        )
        last_stage: Any = backbone.stages[3]
        last_stage.downsample.conv2.conv.stride = (1, 1)
        self.patch_embed = backbone.patch_embed
        self.stages = backbone.stages
        self.neck = nn.Sequential(
            nn.Conv2d(ENCODER_WIDTH, WIDTH, 1, bias=False),
            LayerNorm2d(WIDTH),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            LayerNorm2d(WIDTH),
        )
        self.img_size = FRAME

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, 1024, 1024) -> (B, 256, 64, 64)."""
        return self.neck(self.stages(self.patch_embed(pixels)))


def build_mobile_sam() -> Sam:
    """The architecture of MobileSAM with random weights; prompt encoder and mask decoder are those of Meta's SAMs."""
    return Sam(
        image_encoder=TinyVitEncoder(),
        prompt_encoder=PromptEncoder(
            embed_dim=WIDTH,
            image_embedding_size=(GRID, GRID),
            input_image_size=(FRAME, FRAME),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=WIDTH,
            transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=2048, num_heads=8),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=WIDTH,
        ),
    )


def official_name(name: str) -> str:
    """The name in MobileSAM's checkpoint of a parameter or buffer of `build_mobile_sam`."""
    if not name.startswith("image_encoder."):
        return name
    # timm counts the downsampling before a stage to that stage, and the release to the stage before.
    name = re.sub(r"\.stages\.(\d)\.downsample\.", lambda match: f".layers.{int(match[1]) - 1}.downsample.", name)
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
