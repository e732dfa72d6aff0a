"""Families of vision encoders: how each of them reads a frame, and where in it things are.

A family is known by the `model_type` of its checkpoint, of the vision encoder alone or of a whole CLIP or vision LLM.
Most see the padded frame whole. Those of native resolution see of each image its own patches only; InternVL sees as
many rows and columns of tiles as the image reaches. Whatever they see, their patches are put back into the one grid of
the frame.
Differs from the releases of native resolution: an image keeps its shape, but its longer side becomes that of the frame,
so that a study decides what is seen; InternVL stretches the image until it fills its tiles, and adds the whole, small.
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
"""Rows and columns of patches that hold something of an image, in the upper left corner of the grid."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OF_CLIP = (r"(vision_model\.)?embeddings\.position_ids", r"text_model\..*", r"(text|visual)_projection\..*", "logit_.*")
"""What a whole CLIP or SigLIP has beside its vision encoder."""
OF_LLM = (r"(model|lm_head|language_model|multi_modal_projector|mlp1)\..*",)
"""What a vision LLM has beside its vision encoder."""


@dataclass(frozen=True, slots=True)
class Family:
    """A ViT that sees the whole padded frame, as [CLS], registers, patches.

    Args:
        model: the class of transformers.
        blocks: where in the model its blocks are.
        normalisation: mean and standard deviation per channel, where a checkpoint brings none of its own.
        unused: regular expressions of weights that may be missing or left over.
        renamed: regular expressions of beginnings of names in a whole checkpoint -> what stands there in the encoder's.
        settings: handed to the model's forward.
        has_cls: whether there is a CLS token that looks at the patches.
    """

    model: type[PreTrainedModel]
    blocks: str = "encoder.layers"
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    unused: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    has_cls: bool = True

    def width(self, config: Any) -> int:
        """C, the width of a patch as it leaves a block."""
        return int(config.hidden_size)

    def heads(self, config: Any) -> int:
        """A."""
        return int(config.num_attention_heads)

    def patch_size(self, config: Any) -> int:
        """Side of a patch in pixels."""
        return int(config.patch_size)

    def unit(self, config: Any) -> int:
        """What the side of a frame must be a multiple of, in pixels."""
        return self.patch_size(config)

    def num_prefix_tokens(self, config: Any) -> int:
        """CLS and registers, which stand before the patches."""
        return int(self.has_cls) + getattr(config, "num_register_tokens", 0)

    def projections(self, block: torch.nn.Module) -> list[torch.nn.Module]:
        """The layers of a block whose outputs, side by side, begin with queries and keys."""
        parts = dict(block.named_modules())
        ends = ("q_proj", "k_proj") if any(name.endswith("q_proj") for name in parts) else ("qkv",)
        return [next(parts[name] for name in parts if name.endswith(end)) for end in ends]

    def run(self, model: PreTrainedModel, frames: Tensor, shapes: Sequence[Shape]) -> Tensor:  # noqa: ARG002
        """Normalised frames (B, 3, R, R) through the model: its last hidden state, in an order of its own."""
        return model(pixel_values=frames, **self.settings).last_hidden_state

    def arranged(self, states: Tensor, config: Any, shapes: Sequence[Shape], grid: Shape) -> Tensor:  # noqa: ARG002
        """States as `run` or a block gives them -> (B, prefix + N, E), row-major, zero where there is no image."""
        return states


@dataclass(frozen=True, slots=True)
class Tiles(Family):
    """InternVL: the frame is cut into tiles of the checkpoint's image size; those that hold something are seen."""

    has_cls: bool = False

    def patch_size(self, config: Any) -> int:
        return int(config.patch_size[0])

    def unit(self, config: Any) -> int:
        return int(config.image_size[0])

    def run(self, model: PreTrainedModel, frames: Tensor, shapes: Sequence[Shape]) -> Tensor:
        side = self.unit(model.config)
        tiles = rearrange(frames, "b c (i y) (j x) -> b i j c y x", y=side, x=side)
        shown = self._shown(model.config, shapes, (tiles.shape[1], tiles.shape[2])).to(frames.device)
        return model(pixel_values=tiles[shown]).last_hidden_state

    def arranged(self, states: Tensor, config: Any, shapes: Sequence[Shape], grid: Shape) -> Tensor:
        side = self.unit(config) // self.patch_size(config)
        shown = self._shown(config, shapes, (grid[0] // side, grid[1] // side)).to(states.device)
        # A tile's own CLS sees no more than the tile.
        patches = states[:, 1:]
        placed = patches.new_zeros(*shown.shape, *patches.shape[1:])
        placed[shown] = patches
        return rearrange(placed, "b i j (y x) e -> b (i y j x) e", y=side)

    def _shown(self, config: Any, shapes: Sequence[Shape], tiles: Shape) -> Tensor:
        """(B, rows of tiles, columns of tiles) bool, of each tile whether it holds something of its image."""
        side = self.unit(config) // self.patch_size(config)
        shown = torch.zeros(len(shapes), *tiles, dtype=torch.bool)
        for image, (rows, columns) in enumerate(shapes):
            shown[image, : -(-rows // side), : -(-columns // side)] = True
        return shown


@dataclass(frozen=True, slots=True)
class NaFlex(Family):
    """SigLIP 2 of native resolution: an image is the sequence of its own patches."""

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
    """The vision tower of Qwen2-VL and Qwen2.5-VL before its merger, which is a projector of its own.

    All images are one sequence; the patches that the merger would join stand together, in Qwen2.5-VL by windows.
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
        shown = torch.tensor(self._frames_shown(config, shapes), device=frames.device)
        return model(patches[order], grid_thw=shown).last_hidden_state

    def arranged(self, states: Tensor, config: Any, shapes: Sequence[Shape], grid: Shape) -> Tensor:
        order = self._merge_order(config, shapes, grid)
        if hasattr(config, "window_size"):
            shown = torch.tensor(self._frames_shown(config, shapes))
            windows, _ = get_vision_window_index(
                shown, config.spatial_merge_size, config.window_size, self.patch_size(config)
            )
            order = order.unflatten(0, (-1, config.spatial_merge_size**2))[windows].flatten()
        placed = states.new_zeros(len(shapes) * grid[0] * grid[1], states.shape[-1])
        placed[order.to(states.device)] = states
        return placed.unflatten(0, (len(shapes), -1))

    def _merge_order(self, config: Any, shapes: Sequence[Shape], grid: Shape) -> Tensor:
        """Of each place of the sequence, where its patch stands among the B * N of the frames."""
        side = config.spatial_merge_size
        positions = torch.arange(len(shapes) * grid[0] * grid[1]).view(len(shapes), *grid)
        return torch.cat(
            [
                rearrange(positions[image, :rows, :columns], "(h y) (w x) -> (h w y x)", y=side, x=side)
                for image, (rows, columns) in enumerate(self._whole(config, shapes))
            ]
        )

    def _frames_shown(self, config: Any, shapes: Sequence[Shape]) -> list[tuple[int, int, int]]:
        """Of each image how many frames, rows and columns the tower is shown."""
        return [(1, *shape) for shape in self._whole(config, shapes)]

    def _whole(self, config: Any, shapes: Sequence[Shape]) -> list[Shape]:
        """Shapes, rounded up to what the merger joins; the frame's padding fills them."""
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
