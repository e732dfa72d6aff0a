"""The frozen vision encoder: frames in, patches out."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from harness.backbone import dinov2_onnx, weights
from harness.backbone.config import VisionConfig
from harness.backbone.strict import load_strictly
from harness.backbone.weights import WeightsRecord, resolve
from harness.cache import cache_dir
from harness.errors import WeightsError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
UNUSED = {
    "dinov2": {"embeddings.mask_token"},
    "dinov2_with_registers": {"embeddings.mask_token"},
}
"""Families that are understood (`model_type`), with what may be absent, because only pre-training uses it."""
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
        cls_query: (B, A, C / A), of the same block; None unless asked for.
        layers: (B, K, N, C), as they leave the blocks asked for; None unless asked for.
    """

    patches: Tensor
    keys: Tensor | None = None
    cls_query: Tensor | None = None
    layers: Tensor | None = None


class VisionEncoder(nn.Module):
    """Patches of a frozen encoder, its last LayerNorm applied, without CLS and register tokens.

    Patches of an earlier block take the same LayerNorm, as in DINOv2's `get_intermediate_layers`; the blocks behind it
    are dropped.

    Args:
        model: a ViT of transformers whose sequence is [CLS], registers, patches.
        frame: side R of the square frame, in pixels.
        record: which weights it has.
        layer: the block whose patches are taken, from 1; None for the last.
        mean, std: per channel, what the frame is normalised with.

    Raises:
        WeightsError: the frame does not divide into patches, or the model has no such block.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        frame: int,
        record: WeightsRecord,
        layer: int | None = None,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        patch_size = model.config.patch_size
        if frame % patch_size:
            lower = max(frame // patch_size, 1) * patch_size
            raise WeightsError(
                f"vision_encoder.frame={frame} is no multiple of the {patch_size} px patch of {record.name!r}; "
                f"use {lower} or {lower + patch_size}"
            )
        encoder: Any = model.encoder
        blocks: nn.ModuleList = encoder.layer
        if layer is not None and layer > len(blocks):
            raise WeightsError(
                f"vision_encoder.layer={layer}, but {record.name!r} has {len(blocks)} blocks; use 1 to {len(blocks)}"
            )
        encoder.layer = blocks[:layer]
        self.layer = len(encoder.layer)
        self.model = model.requires_grad_(False).eval()
        self.weights = record
        self.patch_size = patch_size
        self.grid = (frame // patch_size, frame // patch_size)
        self.num_prefix_tokens = 1 + getattr(model.config, "num_register_tokens", 0)
        self.register_buffer("mean", rearrange(torch.tensor(mean), "c -> c 1 1"), persistent=False)
        self.register_buffer("std", rearrange(torch.tensor(std), "c -> c 1 1"), persistent=False)
        self.preprocessing_id = f"mean {tuple(mean)} std {tuple(std)}"

    @property
    def width(self) -> int:
        """C, the width of a patch."""
        return self.model.config.hidden_size

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

    def encode(self, frames: Tensor, *, has_attention: bool = False, layers: Sequence[int] = ()) -> Encoding:
        """Frames (B, 3, R, R) in 0..1 -> patches, and in the same run what else is asked for.

        Args:
            has_attention: also the keys and the query of CLS in the last block.
            layers: also the patches as they leave these blocks, counted from 1, without the last LayerNorm.
        """
        asked: list[Tensor] = []
        projections = self._projections() if has_attention else ()
        hooks = [layer.register_forward_hook(lambda _m, _i, output: asked.append(output)) for layer in projections]
        try:
            output = self.model(pixel_values=(frames - self.mean) / self.std, output_hidden_states=bool(layers))
        finally:
            for hook in hooks:
                hook.remove()
        prefix, heads = self.num_prefix_tokens, self.model.config.num_attention_heads
        query, keys = (
            (rearrange(values, "b n (a k) -> b a n k", a=heads) for values in asked) if asked else (None, None)
        )
        return Encoding(
            patches=output.last_hidden_state[:, prefix:],
            keys=None if keys is None else keys[:, :, prefix:],
            cls_query=None if query is None else query[:, :, 0],
            layers=torch.stack([output.hidden_states[k][:, prefix:] for k in layers], dim=1) if layers else None,
        )

    def _projections(self) -> tuple[nn.Module, nn.Module]:
        """The query and the key projection of the last block."""
        parts = dict(self.model.encoder.layer[-1].named_modules())
        query, key = (next(parts[name] for name in parts if name.endswith(end)) for end in ("q_proj", "k_proj"))
        return query, key


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
    folder = _as_folder(record)
    model = _load_known(folder, record.name)
    mean, std = _normalisation(folder)
    return VisionEncoder(model, config.frame, record, config.layer, mean, std)


def _as_folder(record: WeightsRecord) -> Path:
    """A folder as transformers reads it; an ONNX file is converted once and kept under the hash of its content."""
    assert record.folder is not None
    if record.file is None:
        return record.folder
    if not record.file.endswith(".onnx"):
        raise WeightsError(f"{record.name!r} is no vision encoder; name one of {', '.join(names())} or a folder")
    converted = cache_dir() / "converted" / f"{record.sha256[:16]}-{dinov2_onnx.VERSION}"
    if not converted.exists():
        dinov2_onnx.convert(record.folder / record.file, converted)
    return converted


def _load_known(folder: Path, name: str) -> PreTrainedModel:
    family = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    if family not in UNUSED:
        raise WeightsError(f"{name!r} is of the family {family!r}; known vision encoders: {', '.join(UNUSED)}")
    return load_strictly(AutoModel, folder, name, optional=UNUSED[family])


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the checkpoint's own preprocessing; DINOv2's, which are ImageNet's, by default."""
    path = folder / "preprocessor_config.json"
    given = json.loads(path.read_text()) if path.exists() else {}
    return tuple(given.get("image_mean", IMAGENET_MEAN)), tuple(given.get("image_std", IMAGENET_STD))


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
    return VisionEncoder(model, config.frame, record, config.layer)
