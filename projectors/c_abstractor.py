"""C-Abstractor: convolutions over the patches, average pooling to a coarse grid, convolutions over its cells.

Source: Honeybee, https://arxiv.org/abs/2312.06742, section 3.2; kakaobrain/honeybee@68a8d84,
honeybee/projectors/projectors.py and configs/model_config/c-abs.yaml.
Licence: Apache-2.0; the authors' weights are CC-BY-NC-4.0.
Differs from the release: padding is zero in the convolutions, like positions outside the grid, and excluded from means;
a cell of padding only has no token; the grid need not be square. The release uses the encoder's last block; here the
study selects the block, as for every projector.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from einops import rearrange
from pydantic import Field
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from torch import Tensor, nn

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import GridAverage, SquareCount, draw_normal
from projectors.registry import register

_STD = 0.02


@register
class CAbstractor(Projector):
    """Preserves local structure: a token depends on the patches within the receptive field of the convolutions."""

    official_names: ClassVar = {
        "pos_emb": "positions",
        "net.0.": "among_patches.",
        "net.2.": "among_cells.",
        "readout.": "project.",
    }
    official_prefix = "abstractor."

    class Config(ProjectorConfig):
        tokens: SquareCount = Field(
            default=144, ge=1, description="visual tokens of an unpadded image; a square number"
        )
        depth: int = Field(default=3, ge=1, description="blocks before the average, and as many after it")
        width: int = Field(default=1024, ge=4, description="channels of the convolutions")

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        stage = partial(RegStage, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)
        self.positions = nn.Parameter(torch.empty(1, dims.num_patches, dims.vision))
        self.among_patches = stage(config.depth, dims.vision, config.width)
        self.average = GridAverage(dims.grid, config.tokens)
        self.among_cells = stage(config.depth, config.width, config.width)
        self.project = nn.Sequential(
            nn.Linear(config.width, dims.language), nn.SiLU(), nn.Linear(dims.language, dims.language)
        )
        self.apply(draw_normal)
        nn.init.trunc_normal_(self.positions, std=_STD)

    @property
    def max_tokens(self) -> int:
        """The configured number, for an image without padding."""
        return self.average.side**2

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D), the T cells row by row."""
        patches = _convolve(
            self.among_patches, features.patches + self.positions, features.patch_mask, self.dims.grid[0]
        )
        cells, mask = self.average(patches, features.patch_mask)
        cells = _convolve(self.among_cells, cells, mask, self.average.side)
        return VisualTokens(
            self.project(cells) * mask[..., None], mask, self.average.regions(features.patch_mask) * mask[..., None]
        )

    def load_official(self, state_dict: Mapping[str, Tensor]) -> None:
        """As in `Projector`; drops the unused position embedding of CLS in older releases."""
        name = next((name for name in state_dict if name.removeprefix(self.official_prefix) == "pos_emb"), None)
        if name is not None and state_dict[name].shape[1] == self.positions.shape[1] + 1:
            state_dict = {**state_dict, name: state_dict[name][:, 1:]}
        super().load_official(state_dict)


def _convolve(stage: nn.Module, values: Tensor, mask: Tensor, height: int) -> Tensor:
    """Apply the blocks of a stage on a grid, values (B, N, E) and mask (B, N) -> (B, N, E')."""
    maps = rearrange(values, "b (h w) e -> b e h w", h=height)
    is_valid = rearrange(mask, "b (h w) -> b 1 h w", h=height)
    for block in stage.children():
        maps = _masked(block, maps, is_valid)
    return rearrange(maps, "b e h w -> b (h w) e")


def _masked(block: Any, maps: Tensor, is_valid: Tensor) -> Tensor:
    """The forward pass of a `Bottleneck` without padding in the 3x3 convolution and in the mean of its gate."""
    inner = block.conv2(block.conv1(maps) * is_valid)
    mean = (inner * is_valid).sum((2, 3), keepdim=True) / is_valid.sum((2, 3), keepdim=True)
    inner = inner * block.se.gate(block.se.fc2(block.se.act(block.se.fc1(mean))))
    return block.act3(block.conv3(inner) + block.downsample(maps))
