"""DiVT: clusters similar patches, with a variable number of clusters; the token of each attends to its patches.

Source: A More Word-like Image Tokenization for MLLMs, https://arxiv.org/abs/2605.17954; snuviplab/DiVT@5ebbb16,
llava/model/multimodal_projector/builder.py.
Licence: Apache-2.0.
Differs from the release: padding is excluded; a patch has similarity 1 to itself even if its vector is zero;
similarities are in full precision under autocast, because rounding could change the clusters; positions are learned for
the grid of the vision encoder instead of 24x24.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from einops import rearrange, repeat
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.errors import IncompatibleError
from projectors.layers import KeyValueNorm, mlp
from projectors.registry import register

_EPS = 1e-6


@register
class DiVT(Projector):
    """Few tokens for uniform images, many for varied ones; a cluster need not be connected."""

    official_names: ClassVar = {
        "positional_embedding": "positions",
        "q_proj_1.": "query.",
        "k_proj_1.": "key.",
        "v_proj_1.": "value.",
        "ln_q_1.": "query_norm.",
        "ln_k_1.": "norms.",
        "clip_attn.": "attention.",
        "mlp.": "project.",
    }
    official_prefix = "model.mm_projector."

    class Config(ProjectorConfig):
        threshold: float = Field(
            default=0.65,
            ge=-1,
            lt=1,
            description="cosine similarity above which a patch joins a centre; higher values give more tokens",
        )
        heads: int = Field(default=8, ge=1, description="attention heads")

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        width = dims.vision
        if width % config.heads:
            allowed = [heads for heads in range(1, width + 1) if not width % heads]
            raise IncompatibleError(
                f"heads={config.heads} does not divide the vision encoder's width of {width}; "
                f"use {', '.join(map(str, allowed))}"
            )
        self.threshold, self.heads = config.threshold, config.heads
        self.positions = nn.Parameter(torch.randn(dims.num_patches, width) * width**-0.5)
        self.query = nn.Linear(width, width, bias=False)
        self.key = mlp(width, width, depth=2)
        self.value = mlp(width, width, depth=2)
        self.query_norm = nn.LayerNorm(width, eps=_EPS)
        self.norms = KeyValueNorm(width, _EPS)
        self.attention = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.project = mlp(width, dims.language, depth=2)
        self.apply(_initialise)

    @property
    def max_tokens(self) -> int:
        """N: an image without similar patches has one cluster per patch."""
        return self.dims.num_patches

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D), in the order of the clusters' centres."""
        patches, patch_mask = features.patches, features.patch_mask
        centres, mask, members = self._cluster(patches, patch_mask)
        queries = self.query_norm(self.query(patches.take_along_dim(centres[..., None], dim=1)))
        keys, values = self.norms(self.key(patches), self.value(patches + self.positions))
        # Padding tokens attend to all patches, because a softmax over no keys is NaN.
        readable = members | ~mask[..., None]
        hidden = repeat(~readable, "b t n -> (b heads) t n", heads=self.heads)
        attended, _ = self.attention(queries, keys, values, attn_mask=hidden, need_weights=False)
        return VisualTokens(self.project(attended) * mask[..., None], mask, members.float())

    def load_official(self, state_dict: Mapping[str, Tensor]) -> None:
        """As in `Projector`; joins the release's separate norms of keys and values."""
        super().load_official(KeyValueNorm.join(state_dict, "ln_k_1.", "ln_v_1."))

    @torch.no_grad()
    def _cluster(self, patches: Tensor, patch_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Select centres and assign every patch to its most similar centre.

        Returns:
            centres: (B, T) patch indices, row-major; T is the largest number of clusters, and padding is arbitrary.
            mask: (B, T) bool, False for padding.
            members: (B, T, N) bool, each valid patch in one cluster.
        """
        with torch.autocast(patches.device.type, enabled=False):
            directions = F.normalize(patches, dim=-1)
            similarity = directions @ directions.mT
        similarity.diagonal(dim1=1, dim2=2).fill_(1)
        are_both_valid = patch_mask[:, :, None] & patch_mask[:, None]
        is_centre = _centres((similarity > self.threshold) & are_both_valid, patch_mask)
        counts = is_centre.sum(dim=-1)
        num_clusters = int(counts.max())
        centres = is_centre.byte().argsort(dim=-1, descending=True, stable=True)[:, :num_clusters]
        mask = torch.arange(num_clusters, device=counts.device) < counts[:, None]
        to_centres = similarity.take_along_dim(centres[..., None], dim=1).masked_fill(~mask[..., None], -torch.inf)
        nearest = F.one_hot(to_centres.argmax(dim=1), num_clusters).bool()
        return centres, mask, rearrange(nearest, "b n t -> b t n") & patch_mask[:, None]


def _centres(is_similar: Tensor, patch_mask: Tensor) -> Tensor:
    """Greedy selection of centres: repeatedly the unassigned patch with most neighbours, which assigns its neighbours.

    An unassigned patch that ranks before all its unassigned neighbours will be selected in any case, so all of these
    are selected at once. The result equals that of one at a time, in far fewer rounds.

    Args:
        is_similar: (B, N, N) bool; False for padding.
        patch_mask: (B, N) bool.

    Returns:
        (B, N) bool. Of patches with equally many neighbours, the first ranks first.
    """
    rank = is_similar.sum(dim=-1).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    precedes = is_similar & (rank[:, :, None] < rank[:, None])
    is_free, is_centre = patch_mask, torch.zeros_like(patch_mask)
    while is_free.any():
        chosen = is_free & ~(precedes & is_free[..., None]).any(dim=1)
        taken = (precedes & chosen[..., None]).any(dim=1)
        is_free, is_centre = is_free & ~chosen & ~taken, is_centre | chosen
    return is_centre


def _initialise(module: nn.Module) -> None:
    """As in the release: also of the attention's output, a linear layer, though not of what enters it."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
