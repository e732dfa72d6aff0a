"""D-Abstractor: queries at the cells of a coarse grid attend to the patches by deformable attention.

Source: Honeybee, https://arxiv.org/abs/2312.06742, section 3.2; kakaobrain/honeybee@68a8d84,
honeybee/projectors/dabs.py and configs/model_config/d-abs.yaml, with the layers of Deformable DETR in transformers.
Licence: Apache-2.0; the authors' weights are CC-BY-NC-4.0.
Differs from the release: runs in any precision and on any device, where the release casts to float32 on CUDA; padding
is zero in the attention, like positions outside the grid, and excluded from means; a query whose cell holds only
padding has no token, and other queries do not attend to it; the grid need not be square. The release uses the encoder's
last block; here the study selects the block, as for every projector.
"""

from typing import ClassVar

import torch
from einops import rearrange, repeat
from pydantic import Field
from torch import Tensor, nn
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrDecoderLayer

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import GridAverage, HeadedConfig, SquareCount, draw_normal
from projectors.registry import register

MAX_DEPTH = 12
_STD = 0.02
_DROPOUT = 0.1
_RENAMED = {"self_attn.out_proj.": "self_attn.o_proj.", "fc1.": "mlp.fc1.", "fc2.": "mlp.fc2."}


@register
class DAbstractor(Projector):
    """A grid of tokens, each of which attends to a few learned locations anywhere in the image."""

    official_names: ClassVar = {
        "query_position_embeddings.weight": "queries",
        "reference_points": "reference_points",
        "v_pos_emb": "positions",
        "input_proj.0.": "enter.",
        "output_proj.": "project.",
        **{
            f"layers.{layer}.{theirs}": f"layers.{layer}.{ours}"
            for layer in range(MAX_DEPTH)
            for theirs, ours in _RENAMED.items()
        },
    }
    official_prefix = "abstractor."

    class Config(HeadedConfig, ProjectorConfig):
        tokens: SquareCount = Field(
            default=144, ge=1, description="visual tokens of an unpadded image; a square number"
        )
        depth: int = Field(default=6, ge=1, le=MAX_DEPTH, description="layers of attention")
        width: int = Field(default=1024, ge=1, description="of queries, keys and values, and between the linear layers")
        heads: int = Field(default=8, ge=1, description="attention heads")
        points: int = Field(default=4, ge=1, description="sampling locations of a head of a query")

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        width = config.width
        self.average = GridAverage(dims.grid, config.tokens)
        self.enter = nn.Identity() if width == dims.vision else nn.Linear(dims.vision, width)
        self.positions = nn.Parameter(torch.empty(1, dims.num_patches, width))
        self.queries = nn.Parameter(torch.empty(config.tokens, width))
        self.reference_points = nn.Parameter(_evenly_spaced(self.average.side, dims.grid))
        layer = DeformableDetrConfig(
            d_model=width,
            decoder_attention_heads=config.heads,
            decoder_ffn_dim=width,
            decoder_n_points=config.points,
            num_feature_levels=1,
            dropout=_DROPOUT,
        )
        # Its default attention does not support a mask.
        layer._attn_implementation = "sdpa"
        self.layers = nn.ModuleList(DeformableDetrDecoderLayer(layer) for _ in range(config.depth))
        self.project = nn.Identity() if width == dims.language else nn.Linear(width, dims.language)
        self.apply(draw_normal)
        nn.init.trunc_normal_(self.positions, std=_STD)
        nn.init.normal_(self.queries, std=_STD)

    @property
    def max_tokens(self) -> int:
        """The configured number, for an image without padding."""
        return self.average.side**2

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D), in the order of the queries' cells."""
        patches = self.enter(features.patches) + self.positions
        pooled, mask = self.average(patches, features.patch_mask)
        states = repeat(self.queries, "t e -> b t e", b=len(patches))
        shape = torch.tensor([self.dims.grid], device=patches.device)
        for layer in self.layers:
            states = layer(
                states,
                object_queries_position_embeddings=pooled,
                reference_points=rearrange(self.reference_points, "1 t xy -> 1 t 1 xy"),
                spatial_shapes=shape,
                spatial_shapes_list=[self.dims.grid],
                level_start_index=shape.new_zeros(1),
                encoder_hidden_states=patches,
                encoder_attention_mask=features.patch_mask,
                attention_mask=rearrange(mask, "b t -> b 1 1 t"),
            )
        embeds = self.project(states) * mask[..., None]
        return VisualTokens(embeds, mask, self.average.regions(features.patch_mask) * mask[..., None])


def _evenly_spaced(side: int, grid: tuple[int, int]) -> Tensor:
    """(1, T, 2): x and y in 0..1 of the frame, row by row, from the centre of the first patch to that of the last."""
    y, x = (torch.linspace(0.5, length - 0.5, side) / length for length in grid)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return rearrange(torch.stack([columns, rows], dim=-1), "i j xy -> 1 (i j) xy")
