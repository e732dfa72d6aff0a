"""The frozen vision encoder: frames in, patches out."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
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
from harness.model.vision.families import FAMILIES, Family
from harness.model.weights import resolution as weights
from harness.model.weights.resolution import WeightsRecord, as_folder, resolve
from harness.model.weights.strict_loading import load_strictly, readable

ARCHITECTURES = {"dinov2-small": dinov2_onnx.small}
RANDOM = "random-"
"""Before a packaged name: the same architecture with random weights, an arm of its own and never a fallback."""
RANDOM_SEED = 0


@dataclass(frozen=True, slots=True)
class Encoding:
    """What a vision encoder makes of B frames; the fields are those of `projectors.VisualFeatures`.

    Args:
        patches: (B, N, C).
        keys: (B, A, N, C / A), of the last block that runs; None unless asked for.
        cls_query, cls_key: (B, A, C / A), of the same block; None unless asked for, or where there is no CLS.
        layers: (B, K, N, C), as they leave the blocks asked for; None unless asked for.
    """

    patches: Tensor
    keys: Tensor | None = None
    cls_query: Tensor | None = None
    cls_key: Tensor | None = None
    layers: Tensor | None = None


class VisionEncoder(nn.Module):
    """Patches of a frozen encoder as its last hidden state has them, without CLS and register tokens.

    Patches of an earlier block take what the family does after its last one, DINO's and SigLIP's layer norm, as in
    DINOv2's `get_intermediate_layers`, and nothing in CLIP's, as in LLaVA; the blocks behind it are dropped.

    Args:
        model: an encoder of transformers.
        family: how it reads a frame.
        frame: side R of the square frame, in pixels.
        record: which weights it has.
        layer: the block whose patches are taken, from 1; None for the last.
        normalisation: mean and standard deviation per channel; None for the family's.

    Raises:
        WeightsError: the frame does not divide into what the encoder reads, or it has no such block.
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
                f"vision_encoder.frame={frame} is no multiple of the {unit} px that {record.name!r} reads at a time; "
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
        """Whether `Encoding.cls_query` and `cls_key` can be had."""
        return self.family.has_cls

    @property
    def model_id(self) -> str:
        """The weight's name, which together with its hash names what is computed."""
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
    ) -> Encoding:
        """Frames (B, 3, R, R) in 0..1 -> patches, and in the same run what else is asked for.

        Args:
            sizes: height and width in pixels of the image in each frame, from its upper left corner; None where they
                fill their frames. Encoders of native resolution see no more than that.
            has_attention: also the keys, and the query and key of CLS where there is one, in the last block, before
                any rotation.
            layers: also the patches as they leave these blocks, counted from 1, before whatever follows the last.
        """
        shapes = [self._shape(size) for size in sizes or [self.frame_size] * len(frames)]
        blocks = self.model.get_submodule(self.family.blocks)
        assert isinstance(blocks, nn.ModuleList)
        watched = [*(blocks[layer - 1] for layer in layers)]
        watched += self.family.projections(blocks[-1]) if has_attention else []
        seen: dict[nn.Module, Tensor] = {}
        hooks = [module.register_forward_hook(partial(_note, seen)) for module in watched]
        try:
            last = self.family.run(self.model, (frames - self.mean) / self.std, shapes)
        finally:
            for hook in hooks:
                hook.remove()
        placed = [
            self.family.arranged(states, self.model.config, shapes, self.grid)
            for states in (last, *(seen[module] for module in watched))
        ]
        prefix, earlier = self.num_prefix_tokens, placed[1 : 1 + len(layers)]
        query, key = self._attention(torch.cat(placed[1 + len(layers) :], dim=-1)) if has_attention else (None, None)
        return Encoding(
            patches=placed[0][:, prefix:],
            keys=None if key is None else key[:, :, prefix:],
            cls_query=query[:, :, 0] if query is not None and self.has_cls else None,
            cls_key=key[:, :, 0] if key is not None and self.has_cls else None,
            layers=torch.stack([states[:, prefix:] for states in earlier], dim=1) if layers else None,
        )

    def _attention(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """What the last block projects (B, n, >= 2C) -> queries and keys (B, A, n, C / A)."""
        query, key = projected[..., : 2 * self.width].chunk(2, dim=-1)
        heads = self.family.heads(self.model.config)
        return (
            rearrange(query, "b n (a k) -> b a n k", a=heads),
            rearrange(key, "b n (a k) -> b a n k", a=heads),
        )

    def _shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches that hold a pixel of an image of this height and width."""
        return -(-size[0] // self.patch_size), -(-size[1] // self.patch_size)


def _note(seen: dict[nn.Module, Tensor], module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
    """A hook: what a module gave; of several things the first."""
    seen[module] = output if isinstance(output, Tensor) else output[0]


def names() -> list[str]:
    """Encoders that need no path and no hub."""
    return [*weights.names("encoder"), *(RANDOM + name for name in ARCHITECTURES)]


def load_vision_encoder(config: VisionConfig) -> VisionEncoder:
    """The encoder of this name, on the CPU in float32.

    Raises:
        WeightsError: its weights cannot be had or do not load strictly, its family is not known, the frame does not
            divide into its patches, or it has no such block.
    """
    if config.name.startswith(RANDOM):
        return _random(config)
    record = resolve(config.name)
    if record.file is not None and not record.file.endswith(".onnx"):
        raise WeightsError(f"{record.name!r} is no vision encoder; name one of {', '.join(names())} or a folder")
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
        raise WeightsError(f"{name!r} is of the family {kind!r}; known vision encoders: {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def _normalisation(folder: Path, family: Family) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the checkpoint's own preprocessing, the family's by default.

    Raises:
        ValueError: they are no three numbers each, or a deviation is not positive.
    """
    given: dict[str, Any] = {}
    # Transformers 5 writes what it knows of images into the file of the whole processor.
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).exists():
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            given |= content.get("image_processor", content)
    mean, std = (
        tuple(float(value) for value in given.get(key) or usual)
        for key, usual in zip(("image_mean", "image_std"), family.normalisation, strict=True)
    )
    if not len(mean) == len(std) == 3 or min(std) <= 0:
        raise ValueError(
            f"image_mean {mean} and image_std {std}, and three numbers each are allowed, the last positive"
        )
    return mean, std


def _random(config: VisionConfig) -> VisionEncoder:
    """The architecture of a packaged encoder with seeded random weights; the caller's random state is left alone."""
    base = config.name.removeprefix(RANDOM)
    if base not in ARCHITECTURES:
        raise WeightsError(f"no random encoder {config.name!r}; known: {', '.join(RANDOM + n for n in ARCHITECTURES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = AutoModel.from_config(ARCHITECTURES[base](), dtype=torch.float32)
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode() + value.numpy().tobytes())
    record = WeightsRecord(config.name, "random", f"seed {RANDOM_SEED}", digest.hexdigest())
    return VisionEncoder(model, FAMILIES[model.config.model_type], config.frame, record, config.layer)
