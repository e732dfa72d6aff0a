"""The frozen vision encoder: frames in, patches out."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from harness.errors import WeightsError
from harness.model.config import VisionConfig
from harness.model.vision import dinov2_onnx
from harness.model.vision.built_in import BUILT_IN, RANDOM
from harness.model.vision.families import FAMILIES, Family
from harness.model.weights import known
from harness.model.weights.resolution import WeightsRecord, as_folder, resolve
from harness.model.weights.strict_loading import load_strictly, readable
from projectors import VisualFeatures

_ARCHITECTURES = dict(zip(BUILT_IN, (dinov2_onnx.small,), strict=True))
RANDOM_SEED = 0


class VisionEncoder(nn.Module):
    """A frozen vision encoder whose output is its last hidden state without CLS and register tokens.

    With `layer`, the blocks after it are dropped. The output of that block passes through the model's final layer norm
    where the family has one (DINO, SigLIP), as in DINOv2's `get_intermediate_layers`; CLIP has none, as in LLaVA.

    Args:
        model: a vision encoder of transformers.
        family: how the model takes its input and orders its output.
        frame: side R of the square frame, in pixels.
        record: name, source and hash of the weights.
        layer: the block whose output is used, counted from 1; None for the last.
        normalisation: mean and standard deviation per channel; None for the family's.

    Raises:
        WeightsError: the frame is not a multiple of the patch size (or tile size), or there is no such block.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        frame: int,
        record: WeightsRecord,
        layer: int | None = None,
        normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ) -> None:
        super().__init__()
        unit = family.unit(model.config)
        if frame % unit:
            lower = max(frame // unit, 1) * unit
            raise WeightsError(
                f"vision_encoder.frame={frame} is not a multiple of {unit} px, as {record.name!r} requires; "
                f"use {lower} or {lower + unit}"
            )
        parent = model.get_submodule(family.blocks.rpartition(".")[0])
        blocks = model.get_submodule(family.blocks)
        assert isinstance(blocks, nn.ModuleList)
        if layer is not None and layer > len(blocks):
            raise WeightsError(
                f"vision_encoder.layer={layer}, but {record.name!r} has {len(blocks)} blocks; use 1 to {len(blocks)}"
            )
        self.layer = layer or len(blocks)
        setattr(parent, family.blocks.rpartition(".")[2], blocks[: self.layer])
        self.model = model.requires_grad_(False).eval()
        self.family = family
        self.weights = record
        self.patch_size = family.patch_size(model.config)
        self.grid = (frame // self.patch_size, frame // self.patch_size)
        self.frame_size = (frame, frame)
        self.num_prefix_tokens = family.num_prefix_tokens(model.config)
        mean, std = normalisation or family.normalisation
        self.register_buffer("mean", rearrange(torch.tensor(mean), "c -> c 1 1"), persistent=False)
        self.register_buffer("std", rearrange(torch.tensor(std), "c -> c 1 1"), persistent=False)
        self.preprocessing_id = f"mean {tuple(mean)} std {tuple(std)}"

    @property
    def width(self) -> int:
        """C, the width of a patch."""
        return self.family.width(self.model.config)

    @property
    def has_cls(self) -> bool:
        """Whether the encoder has a CLS token, and so `cls_query` and `cls_key`."""
        return self.family.has_cls

    @property
    def model_id(self) -> str:
        """Name of the weights."""
        return self.weights.name

    def train(self, mode: bool = True) -> "VisionEncoder":  # noqa: ARG002 - a frozen encoder has one mode
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, 3, R, R) in 0..1 -> patches (B, N, C)."""
        return self.encode(frames).patches

    def encode(
        self,
        frames: Tensor,
        sizes: Sequence[tuple[int, int]] | None = None,
        *,
        has_attention: bool = False,
        layers: Sequence[int] = (),
    ) -> VisualFeatures:
        """Frames (B, 3, R, R) in 0..1 -> patches and their mask, and optional features from the same forward pass.

        Args:
            sizes: height and width in pixels of the image in each frame, from its upper left corner; None if images
                fill their frames. Encoders of native resolution process only that part of the frame.
            has_attention: return the keys of the last block, and the query and key of CLS if there is one, before any
                rotary embedding.
            layers: return the outputs of these blocks, counted from 1, before any final layer norm.
        """
        shapes = [self._shape(size) for size in sizes or [self.frame_size] * len(frames)]
        blocks = self.model.get_submodule(self.family.blocks)
        assert isinstance(blocks, nn.ModuleList)
        hooked = [*(blocks[layer - 1] for layer in layers)]
        hooked += self.family.projections(blocks[-1]) if has_attention else []
        outputs: dict[nn.Module, Tensor] = {}
        hooks = [module.register_forward_hook(partial(_record_output, outputs)) for module in hooked]
        try:
            last = self.family.run(self.model, (frames - self.mean) / self.std, shapes)
        finally:
            for hook in hooks:
                hook.remove()
        arranged = [
            self.family.arranged(states, self.model.config, shapes, self.grid)
            for states in (last, *(outputs[module] for module in hooked))
        ]
        prefix, earlier = self.num_prefix_tokens, arranged[1 : 1 + len(layers)]
        query, key = self._attention(torch.cat(arranged[1 + len(layers) :], dim=-1)) if has_attention else (None, None)
        return VisualFeatures(
            patches=arranged[0][:, prefix:],
            patch_mask=self._patch_mask(shapes).to(frames.device),
            keys=None if key is None else key[:, :, prefix:],
            cls_query=query[:, :, 0] if query is not None and self.has_cls else None,
            cls_key=key[:, :, 0] if key is not None and self.has_cls else None,
            layers=torch.stack([states[:, prefix:] for states in earlier], dim=1) if layers else None,
        )

    def _attention(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Joint projection of the last block (B, n, >= 2C) -> queries and keys (B, A, n, C / A)."""
        query, key = projected[..., : 2 * self.width].chunk(2, dim=-1)
        heads = self.family.heads(self.model.config)
        return (
            rearrange(query, "b n (a k) -> b a n k", a=heads),
            rearrange(key, "b n (a k) -> b a n k", a=heads),
        )

    def _shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches that hold at least one pixel of an image of this height and width."""
        return -(-size[0] // self.patch_size), -(-size[1] // self.patch_size)

    def _patch_mask(self, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """(B, N) bool, True where a patch holds at least one pixel of its image."""
        rows, columns = torch.tensor(shapes).unsqueeze(-1).unbind(1)
        is_row, is_column = torch.arange(self.grid[0]) < rows, torch.arange(self.grid[1]) < columns
        return rearrange(is_row[:, :, None] & is_column[:, None], "b h w -> b (h w)")


def _record_output(
    outputs: dict[nn.Module, Tensor], module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]
) -> None:
    """A forward hook that stores a module's output; the first element of a tuple."""
    outputs[module] = output if isinstance(output, Tensor) else output[0]


def names() -> list[str]:
    """Vision encoders known by name, which require no path and no hub id."""
    return [*known.names("encoder"), *(RANDOM + name for name in BUILT_IN)]


def load_vision_encoder(config: VisionConfig) -> VisionEncoder:
    """Load a vision encoder by name, on the CPU in float32.

    Raises:
        WeightsError: the weights are not found or do not load strictly, the family is not supported, the frame is not a
            multiple of the patch size, or there is no such block.
    """
    if config.name.startswith(RANDOM):
        return _random(config)
    record = resolve(config.name)
    if record.file is not None and not record.file.endswith(".onnx"):
        raise WeightsError(f"{record.name!r} is not a vision encoder; use {', '.join(names())} or a folder")
    folder = as_folder(record, dinov2_onnx.VERSION, dinov2_onnx.convert)
    family = _family_of(folder, record.name)
    model = load_strictly(family.model, folder, record.name, family.unused, key_mapping=dict(family.renamed) or None)
    with readable(record.name):
        normalisation = _normalisation(folder, family)
    return VisionEncoder(model, family, config.frame, record, config.layer, normalisation)


def _family_of(folder: Path, name: str) -> Family:
    with readable(name):
        kind = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).model_type
    if kind not in FAMILIES:
        raise WeightsError(
            f"{name!r} has model_type {kind!r}, which is not a supported vision encoder; use one of "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]


def _normalisation(folder: Path, family: Family) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation from the checkpoint's preprocessing config, the family's by default.

    Raises:
        ValueError: they are not three numbers each, or a standard deviation is not positive.
    """
    settings: dict[str, Any] = {}
    # transformers 5 writes the image processor's settings into processor_config.json.
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).exists():
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            settings |= content.get("image_processor", content)
    mean, std = (
        tuple(float(value) for value in settings.get(key) or default)
        for key, default in zip(("image_mean", "image_std"), family.normalisation, strict=True)
    )
    if not len(mean) == len(std) == 3 or min(std) <= 0:
        raise ValueError(
            f"image_mean is {mean} and image_std is {std}; each must hold three numbers, and image_std positive ones"
        )
    return mean, std


def _random(config: VisionConfig) -> VisionEncoder:
    """A packaged encoder's architecture with seeded random weights; the global random state is not changed."""
    base = config.name.removeprefix(RANDOM)
    if base not in BUILT_IN:
        raise WeightsError(
            f"no random encoder {config.name!r}; use one of {', '.join(RANDOM + name for name in BUILT_IN)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = AutoModel.from_config(_ARCHITECTURES[base](), dtype=torch.float32)
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode() + value.numpy().tobytes())
    record = WeightsRecord(config.name, "random", f"seed {RANDOM_SEED}", digest.hexdigest())
    return VisionEncoder(model, FAMILIES[model.config.model_type], config.frame, record, config.layer)
