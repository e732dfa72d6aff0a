"""The contract of visual projectors: their input, their output, and what they must declare.

Shape letters used in the whole project:
    B  images in a batch          N  patches per image, N = H * W, row-major
    H, W  grid in patches         C  width of the vision encoder
    T  visual tokens              D  width of the LLM
    S  superpixels                R  side of the square frame, in pixels
    P  width of the mask decoder
    A  attention heads of the vision encoder
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from projectors.errors import ProjectorError


@dataclass(frozen=True, slots=True)
class Dims:
    """Sizes that the backbone determines; a study cannot vary them independently.

    Args:
        vision: C, width of a patch.
        language: D, width of a visual token.
        grid: (H, W), patches of the padded frame.
        frame: R, side of the frame in pixels; superpixel label maps have this resolution.
        decoder: P, width of the mask decoder's dense positional encoding.
        max_superpixels: upper bound of S over all images; 0 if the study has no superpixels.
        vision_blocks: number of vision encoder blocks before the patches.
    """

    vision: int
    language: int
    grid: tuple[int, int]
    frame: int
    decoder: int
    max_superpixels: int = 0
    vision_blocks: int = 0

    @property
    def num_patches(self) -> int:
        """N = H * W."""
        return self.grid[0] * self.grid[1]


REFERENCE_DIMS = Dims(
    vision=1024, language=4096, grid=(24, 24), frame=336, decoder=256, max_superpixels=40, vision_blocks=24
)
"""CLIP-L or DINOv2-L at 336 px, an LLM of width 4096, and 40 superpixels; valid for every projector's defaults."""


@dataclass(frozen=True, slots=True)
class VisualFeatures:
    """A projector's input for one batch of images.

    The vision encoder sets every field but `superpixels` and `decoder_pe`, which are added before the projector runs.
    An optional field is None unless `Projector.required_inputs` (or `needs_layers`, for `layers`) names it.

    Args:
        patches: (B, N, C), row-major over the grid, without CLS and register tokens.
        patch_mask: (B, N) bool, False where a patch lies wholly in the padding of the frame.
        superpixels: (B, R, R) int64 label map, 0..S-1 per image, -1 in the padding.
        decoder_pe: (P, h, w), the mask decoder's dense positional encoding of the frame.
        keys: (B, A, N, C / A), the patches' attention keys in the vision encoder's last block.
        cls_query, cls_key: (B, A, C / A), attention query and key of CLS in that block.
        layers: (B, K, N, C), outputs of the blocks in `Projector.needs_layers`.
    """

    patches: Tensor
    patch_mask: Tensor
    superpixels: Tensor | None = None
    decoder_pe: Tensor | None = None
    keys: Tensor | None = None
    cls_query: Tensor | None = None
    cls_key: Tensor | None = None
    layers: Tensor | None = None


@dataclass(frozen=True, slots=True)
class VisualTokens:
    """A projector's output; the number of tokens may differ between images.

    Args:
        embeds: (B, T, D); rows where `mask` is False are padding and hold zeros.
        mask: (B, T) bool, False for padding.
        regions: (B, T, N), the share of each patch that a token represents, in 0..1; None if undefined, as for learned
            queries that attend to all patches.
    """

    embeds: Tensor
    mask: Tensor
    regions: Tensor | None = None

    @classmethod
    def dense(cls, embeds: Tensor, regions: Tensor | None = None) -> "VisualTokens":
        """Tokens without padding: embeds (B, T, D)."""
        return cls(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device), regions)


class PartConfig(BaseModel):
    """Base of the settings of a projector's part; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ProjectorConfig(PartConfig):
    """Base of a projector's settings, which a study may vary."""

    weights: str | None = Field(
        default=None, description="file with the authors' published weights to start from; default: random weights"
    )


class Projector(nn.Module, ABC):
    """Base class of projectors, which turn the patches of an image into visual tokens for the LLM.

    A subclass has a file of its own, is decorated with `@register`, and is constructed from `(config, dims)`.
    """

    Config: ClassVar[type[ProjectorConfig]]
    required_inputs: frozenset[str] = frozenset()
    """Required optional fields of `VisualFeatures`: any of "superpixels", "decoder_pe", "keys", "cls_query", "cls_key".
    An instance may override it, depending on names and switches of its configuration but not on numbers."""
    needs_layers: tuple[int, ...] = ()
    """Blocks of the vision encoder, counted from 1, whose outputs `VisualFeatures.layers` must hold, in this order."""
    official_names: ClassVar[Mapping[str, str]] = {}
    """Prefix of parameter names in the authors' release -> prefix here; empty if no weights were published."""
    official_prefix: ClassVar[str] = ""
    """Prefix of these names in a checkpoint of the authors' whole model."""
    official_modules: ClassVar[tuple[str, ...]] = ("",)
    """Prefixes of the projector's names after `official_prefix`, if other modules share `official_prefix`."""
    unpublished: ClassVar[tuple[str, ...]] = ()
    """Prefixes of parameters that the release lacks; they keep their values unless the state dict has them."""

    def __init__(self, config: ProjectorConfig, dims: Dims) -> None:
        super().__init__()
        self.config = config
        self.dims = dims

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Upper bound of T for one image under these `Dims`."""

    @abstractmethod
    def forward(self, features: VisualFeatures) -> VisualTokens:
        """Visual tokens of a batch of images; images must not influence one another."""

    def load_official(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' published weights, strictly, from a state dict of their module or their whole model.

        In a whole model, names that do not begin with `official_prefix` followed by one of `official_modules` are
        ignored.

        Raises:
            ProjectorError: no weights were published, or names or shapes do not match this configuration.
        """
        if not self.official_names:
            raise ProjectorError(f"{type(self).__name__} has no official weights; remove projector.weights")
        ours = self._published(state_dict)
        renamed = {self._own_name(name): state_dict[name] for name in ours}
        if len(renamed) < len(ours):
            raise ProjectorError(
                f"not official weights of {type(self).__name__}: two of {', '.join(sorted(ours))} are names of one "
                "parameter; use the weights of one model"
            )
        kept = {name: value for name, value in self.state_dict().items() if name.startswith(self.unpublished)}
        try:
            self.load_state_dict(kept | renamed)
        except RuntimeError as error:
            raise ProjectorError(
                f"not official weights of {type(self).__name__} with this configuration: {error}"
            ) from None

    def _published(self, names: Iterable[str]) -> list[str]:
        """The names that belong to the projector; all names if none has the prefix of a whole model."""
        under = [name for name in names if name.startswith(self.official_prefix)]
        if not under:
            return list(names)
        return [name for name in under if name.removeprefix(self.official_prefix).startswith(self.official_modules)]

    def _own_name(self, name: str) -> str:
        """Rename a parameter from the release to this module; names outside the release do not change."""
        bare = name.removeprefix(self.official_prefix)
        prefix = max((prefix for prefix in self.official_names if bare.startswith(prefix)), key=len, default="")
        return self.official_names.get(prefix, "") + bare.removeprefix(prefix)

    def late_modules(self) -> tuple[nn.Module, ...]:
        """Modules that are frozen in the first training stage and trained in the second, with the LoRA."""
        return ()
