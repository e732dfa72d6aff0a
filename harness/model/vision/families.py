"""Families of vision encoders: how each takes its input, and how its output is arranged.

A family is identified by the `model_type` of a checkpoint, which is that of a vision encoder, a CLIP or a vision LLM.
Most take the whole padded frame. Encoders of native resolution take the patches of each image only, and InternVL the
tiles that contain part of the image. In every case the output is arranged as the patch grid of the frame.
Differs from the releases: images for encoders of native resolution keep their aspect ratio, but are resized so that the
longer side is that of the frame, because studies fix the resolution; InternVL's release stretches the image to fill its
tiles and adds a thumbnail of the whole image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    InternVLVisionModel,
    PreTrainedModel,
    Siglip2VisionModel,
    SiglipVisionModel,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.vision_utils import get_vision_window_index

Shape = tuple[int, int]
"""Rows and columns of patches that contain part of an image, in the upper left corner of the grid."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OF_CLIP = (r"(vision_model\.)?embeddings\.position_ids", r"text_model\..*", r"(text|visual)_projection\..*", "logit_.*")
"""Weights of a CLIP or SigLIP outside its vision encoder."""
OF_LLM = (r"(model|lm_head|language_model|multi_modal_projector|mlp1)\..*",)
"""Weights of a vision LLM outside its vision encoder."""


@dataclass(frozen=True, slots=True)
class Family:
    """A ViT that takes the whole padded frame; its sequence is [CLS], registers, patches.

    Args:
        model: class of transformers.
        blocks: path of the model's `ModuleList` of blocks.
        normalisation: mean and standard deviation per channel, unless a checkpoint has its own.
        unused: regular expressions of weights that may be missing or unexpected.
        renamed: regular expressions of name prefixes in the checkpoint of a whole model -> prefix in the encoder.
        settings: passed to the model's forward.
        has_cls: whether there is a CLS token.
    """

    model: type[PreTrainedModel]
    blocks: str = "encoder.layers"
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    unused: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    has_cls: bool = True

    def width(self, config: Any) -> int:
        """C, the width of a block's output."""
        return int(config.hidden_size)

    def heads(self, config: Any) -> int:
        """A."""
        return int(config.num_attention_heads)

    def patch_size(self, config: Any) -> int:
        """Side of a patch in pixels."""
        return int(config.patch_size)

    def unit(self, config: Any) -> int:
        """Number of pixels of which the frame's side must be a multiple."""
        return self.patch_size(config)

    def num_prefix_tokens(self, config: Any) -> int:
        """Number of CLS and register tokens before the patches."""
        return int(self.has_cls) + getattr(config, "num_register_tokens", 0)

    def projections(self, block: torch.nn.Module) -> list[torch.nn.Module]:
        """Modules of a block whose concatenated outputs begin with queries and keys."""
        parts = dict(block.named_modules())
        ends = ("q_proj", "k_proj") if any(name.endswith("q_proj") for name in parts) else ("qkv",)
        return [next(parts[name] for name in parts if name.endswith(end)) for end in ends]

    def run(self, model: PreTrainedModel, frames: Tensor, shapes: Sequence[Shape]) -> Tensor:  # noqa: ARG002
        """Normalised frames (B, 3, R, R) -> the model's last hidden state, in the family's order."""
        return model(pixel_values=frames, **self.settings).last_hidden_state

    def arranged(self, states: Tensor, config: Any, shapes: Sequence[Shape], grid: Shape) -> Tensor:  # noqa: ARG002
        """Output of `run` or of a block -> (B, prefix + N, E), row-major; zero for patches that were not processed."""
        return states


@dataclass(frozen=True, slots=True)
class Tiles(Family):
    """InternVL: the frame is split into tiles of the checkpoint's image size; tiles of padding only are skipped."""

    has_cls: bool = False

    def patch_size(self, config: Any) -> int:
        return int(config.patch_size[0])

    def unit(self, config: Any) -> int:
        return int(config.image_size[0])

    def run(self, model: PreTrainedModel, frames: Tensor, shapes: Sequence[Shape]) -> Tensor:
        side = self.unit(model.config)
        tiles = rearrange(frames, "b c (i y) (j x) -> b i j c y x", y=side, x=side)
        is_used = self._used_tiles(model.config, shapes, (tiles.shape[1], tiles.shape[2])).to(frames.device)
        return model(pixel_values=tiles[is_used]).last_hidden_state

    def arranged(self, states: Tensor, config: Any, shapes: Sequence[Shape], grid: Shape) -> Tensor:
        side = self.unit(config) // self.patch_size(config)
        is_used = self._used_tiles(config, shapes, (grid[0] // side, grid[1] // side)).to(states.device)
        # Each tile has its own CLS, which is dropped.
        patches = states[:, 1:]
        placed = patches.new_zeros(*is_used.shape, *patches.shape[1:])
        placed[is_used] = patches
        return rearrange(placed, "b i j (y x) e -> b (i y j x) e", y=side)

    def _used_tiles(self, config: Any, shapes: Sequence[Shape], tiles: Shape) -> Tensor:
        """(B, rows of tiles, columns of tiles) bool, True where a tile contains part of its image."""
        side = self.unit(config) // self.patch_size(config)
        is_used = torch.zeros(len(shapes), *tiles, dtype=torch.bool)
        for image, (rows, columns) in enumerate(shapes):
            is_used[image, : -(-rows // side), : -(-columns // side)] = True
        return is_used


@dataclass(frozen=True, slots=True)
class NaFlex(Family):
    """SigLIP 2 of native resolution: each image is a sequence of its own patches, padded."""

    has_cls: bool = False

    def run(self, model: PreTrainedModel, frames: Tensor, shapes: Sequence[Shape]) -> Tensor:
        side = self.patch_size(model.config)
        patches = rearrange(frames, "b c (h y) (w x) -> b h w (y x c)", y=side, x=side)
        packed = [patches[image, :rows, :columns].flatten(0, 1) for image, (rows, columns) in enumerate(shapes)]
        is_valid = [torch.ones(len(each), dtype=torch.bool, device=frames.device) for each in packed]
        return model(
            pixel_values=pad_sequence(packed, batch_first=True),
            pixel_attention_mask=pad_sequence(is_valid, batch_first=True),
            spatial_shapes=torch.tensor(shapes, device=frames.device),
        ).last_hidden_state

    def arranged(self, states: Tensor, config: Any, shapes: Sequence[Shape], grid: Shape) -> Tensor:  # noqa: ARG002
        placed = states.new_zeros(len(shapes), *grid, states.shape[-1])
        for image, (rows, columns) in enumerate(shapes):
            placed[image, :rows, :columns] = states[image, : rows * columns].unflatten(0, (rows, columns))
        return placed.flatten(1, 2)


@dataclass(frozen=True, slots=True)
class Qwen(Family):
    """The vision tower of Qwen2-VL and Qwen2.5-VL without its merger, which is a projector.

    All images form one sequence, in which the patches that the merger would join are adjacent; Qwen2.5-VL also groups
    them by attention windows.
    """

    has_cls: bool = False
    blocks: str = "blocks"
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = CLIP
    unused: tuple[str, ...] = OF_LLM
    renamed: Mapping[str, str] = field(default_factory=lambda: {r"^(model\.)?visual\.": ""})

    def width(self, config: Any) -> int:
        return int(getattr(config, "embed_dim", config.hidden_size))

    def heads(self, config: Any) -> int:
        return int(config.num_heads)

    def unit(self, config: Any) -> int:
        return self.patch_size(config) * int(config.spatial_merge_size)

    def run(self, model: PreTrainedModel, frames: Tensor, shapes: Sequence[Shape]) -> Tensor:
        config, side = model.config, self.patch_size(model.config)
        patches = repeat(frames, "b c (h y) (w x) -> (b h w) (c t y x)", y=side, x=side, t=config.temporal_patch_size)
        grid = (frames.shape[-2] // side, frames.shape[-1] // side)
        order = self._merge_order(config, shapes, grid).to(frames.device)
        sizes = torch.tensor(self._sizes(config, shapes), device=frames.device)
        return model(patches[order], grid_thw=sizes).last_hidden_state

    def arranged(self, states: Tensor, config: Any, shapes: Sequence[Shape], grid: Shape) -> Tensor:
        order = self._merge_order(config, shapes, grid)
        if hasattr(config, "window_size"):
            sizes = torch.tensor(self._sizes(config, shapes))
            windows, _ = get_vision_window_index(
                sizes, config.spatial_merge_size, config.window_size, self.patch_size(config)
            )
            order = order.unflatten(0, (-1, config.spatial_merge_size**2))[windows].flatten()
        placed = states.new_zeros(len(shapes) * grid[0] * grid[1], states.shape[-1])
        placed[order.to(states.device)] = states
        return placed.unflatten(0, (len(shapes), -1))

    def _merge_order(self, config: Any, shapes: Sequence[Shape], grid: Shape) -> Tensor:
        """Index of each patch of the sequence among the B * N patches of the frames."""
        side = config.spatial_merge_size
        positions = torch.arange(len(shapes) * grid[0] * grid[1]).view(len(shapes), *grid)
        return torch.cat(
            [
                rearrange(positions[image, :rows, :columns], "(h y) (w x) -> (h w y x)", y=side, x=side)
                for image, (rows, columns) in enumerate(self._rounded_up(config, shapes))
            ]
        )

    def _sizes(self, config: Any, shapes: Sequence[Shape]) -> list[tuple[int, int, int]]:
        """Number of time steps, rows and columns of each image."""
        return [(1, *shape) for shape in self._rounded_up(config, shapes)]

    def _rounded_up(self, config: Any, shapes: Sequence[Shape]) -> list[Shape]:
        """Shapes rounded up to multiples of the merge size; the frame's padding fills the difference."""
        side = config.spatial_merge_size
        return [(-(-rows // side) * side, -(-columns // side) * side) for rows, columns in shapes]


_INTERPOLATED = {"interpolate_pos_encoding": True}
_CLIP = Family(CLIPVisionModel, normalisation=CLIP, unused=OF_CLIP, settings=_INTERPOLATED)
_SIGLIP = Family(SiglipVisionModel, normalisation=HALF, unused=OF_CLIP, settings=_INTERPOLATED, has_cls=False)
_NAFLEX = NaFlex(Siglip2VisionModel, normalisation=HALF, unused=OF_CLIP)
_INTERNVL = Tiles(
    InternVLVisionModel, blocks="encoder.layer", unused=OF_LLM, renamed={r"^(model\.)?vision_tower\.": ""}
)
_QWEN2 = Qwen(Qwen2VisionTransformerPretrainedModel)
_QWEN2_5 = Qwen(Qwen2_5_VisionTransformerPretrainedModel)
_MASK_TOKEN = (r"embeddings\.mask_token",)

FAMILIES: Mapping[str, Family] = {
    "dinov2": Family(Dinov2Model, blocks="encoder.layer", unused=_MASK_TOKEN),
    "dinov2_with_registers": Family(Dinov2WithRegistersModel, blocks="encoder.layer", unused=_MASK_TOKEN),
    "dinov3_vit": Family(DINOv3ViTModel, blocks="model.layer", unused=_MASK_TOKEN),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _NAFLEX,
    "siglip2_vision_model": _NAFLEX,
    "internvl": _INTERNVL,
    "internvl_vision": _INTERNVL,
    "qwen2_vl": _QWEN2,
    "qwen2_vl_vision": _QWEN2,
    "qwen2_5_vl": _QWEN2_5,
    "qwen2_5_vl_vision": _QWEN2_5,
}
