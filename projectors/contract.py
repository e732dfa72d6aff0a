"""What a visual projector is given, what it returns, and what it must declare.

Shape letters used in the whole project:
    B  images in a batch          N  patches of an image, N = H * W, row-major
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


class ProjectorError(Exception):
    """A mistake in how a projector is named, registered or configured."""


class IncompatibleError(ProjectorError):
    """A configuration that this backbone cannot satisfy; the cell is recorded as skipped, with this reason."""


@dataclass(frozen=True, slots=True)
class Dims:
    """What the backbone dictates to a projector; nothing here can be varied by a study.

    Args:
        vision: C, width of a patch.
        language: D, width of a visual token.
        grid: (H, W), patches of the padded frame.
        frame: R, side of the frame in pixels; superpixel label maps have this resolution.
        decoder: P, width of the mask decoder's dense positional encoding.
        max_superpixels: S at most, over all images of the data; 0 where the study has no superpixels.
        vision_blocks: blocks of the vision encoder that the patches went through.
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
"""CLIP-L or DINOv2-L at 336 px before an LLM of width 4096, with 40 superpixels: every projector's defaults fit it."""


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
    """What the LLM reads in place of the image; the number of tokens may differ from image to image.

    Args:
        embeds: (B, T, D); rows where `mask` is False are padding and hold zeros.
        mask: (B, T) bool, True where a token is real.
        regions: (B, T, N), the share of each patch that a token stands for, in 0..1; None when the projector
            does not know (learned queries see everything).
    """

    embeds: Tensor
    mask: Tensor
    regions: Tensor | None = None

    @classmethod
    def dense(cls, embeds: Tensor, regions: Tensor | None = None) -> "VisualTokens":
        """Tokens of which every one is real: embeds (B, T, D)."""
        return cls(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device), regions)


class PartConfig(BaseModel):
    """What a study may vary about a part of a projector; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ProjectorConfig(PartConfig):
    """What a study may vary about a projector."""

    weights: str | None = Field(
        default=None, description="file of the authors' weights to begin with, as they published it; none for random"
    )


class Projector(nn.Module, ABC):
    """Turns the patches of an image into the visual tokens that the LLM reads.

    A subclass lives in a file of its own, is decorated with `@register`, and takes `(config, dims)`.
    """

    Config: ClassVar[type[ProjectorConfig]]
    required_inputs: frozenset[str] = frozenset()
    """Optional fields of VisualFeatures that must be filled: any of "superpixels", "decoder_pe", "keys", "cls_query",
    "cls_key". Ask the instance, not the class: what is needed may depend on names and switches of the configuration,
    but not on its numbers."""
    needs_layers: tuple[int, ...] = ()
    """Blocks of the vision encoder, counted from 1, whose patches `VisualFeatures.layers` must hold, in this order."""
    official_names: ClassVar[Mapping[str, str]] = {}
    """How a parameter's name begins in the authors' release -> how it begins here; empty where none were published."""
    official_prefix: ClassVar[str] = ""
    """What stands before these names in a whole checkpoint of the authors."""
    official_modules: ClassVar[tuple[str, ...]] = ("",)
    """How the projector's names begin after `official_prefix` in a whole checkpoint, where other modules share it."""
    unpublished: ClassVar[tuple[str, ...]] = ()
    """How the names of parameters begin that the release does not have; they keep their values where none are given."""

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
        """One batch of images to visual tokens; images of a batch never influence one another."""

    def load_official(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights as the authors published them, strictly, named as in their module or in a whole checkpoint.

        Weights of other modules in a whole checkpoint are ignored: names that do not begin with `official_prefix`
        followed by one of `official_modules`.

        Raises:
            ProjectorError: no weights were published, or names or shapes are not those of this configuration.
        """
        if not self.official_names:
            raise ProjectorError(f"{type(self).__name__} has no official weights; train it")
        ours = self._published(state_dict)
        renamed = {self._own_name(name): state_dict[name] for name in ours}
        if len(renamed) < len(ours):
            raise ProjectorError(
                f"these are no official weights of {type(self).__name__}: two of {', '.join(sorted(ours))} stand for "
                "one parameter; give the weights of one model"
            )
        kept = {name: value for name, value in self.state_dict().items() if name.startswith(self.unpublished)}
        try:
            self.load_state_dict(kept | renamed)
        except RuntimeError as error:
            raise ProjectorError(
                f"these are no official weights of {type(self).__name__} as configured: {error}"
            ) from None

    def _published(self, names: Iterable[str]) -> list[str]:
        """The names that are the projector's; all of them where none has the prefix of a whole checkpoint."""
        under = [name for name in names if name.startswith(self.official_prefix)]
        if not under:
            return list(names)
        return [name for name in under if name.removeprefix(self.official_prefix).startswith(self.official_modules)]

    def _own_name(self, name: str) -> str:
        """The name here of a parameter of the release; a name that the release does not have stays as it is."""
        bare = name.removeprefix(self.official_prefix)
        begins = max((start for start in self.official_names if bare.startswith(start)), key=len, default="")
        return self.official_names.get(begins, "") + bare.removeprefix(begins)

    def late_modules(self) -> tuple[nn.Module, ...]:
        """Parts that stay as initialised in the first training stage and learn in the second, with the LoRA."""
        return ()
