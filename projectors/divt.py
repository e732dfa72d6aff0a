"""DiVT: cluster patches that look alike, however many clusters that makes, and let each read its own patches.

Source: A More Word-like Image Tokenization for MLLMs, https://arxiv.org/abs/2605.17954; snuviplab/DiVT@5ebbb16,
llava/model/multimodal_projector/builder.py.
Licence: Apache-2.0.
Differs from the release: padding takes no part; a patch is as similar to itself as can be, also where its vector is
zero; similarities stay in full precision under autocast, as a rounded one could change the clusters; positions are
learned for the grid of the vision encoder, where it is 24x24.
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
    """Few tokens where an image is plain, many where it is varied; a token may lie in several places at once."""

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
            description="cosine above which a patch joins a centre; the higher, the more tokens",
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
        """N: an image whose patches have nothing in common keeps them all."""
        return self.dims.num_patches

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D), in the order of the clusters' centres."""
        patches, patch_mask = features.patches, features.patch_mask
        centres, mask, members = self._cluster(patches, patch_mask)
        queries = self.query_norm(self.query(patches.take_along_dim(centres[..., None], dim=1)))
        keys, values = self.norms(self.key(patches), self.value(patches + self.positions))
        # What is no token must read something: a softmax over nothing is not a number.
        readable = members | ~mask[..., None]
        hidden = repeat(~readable, "b t n -> (b heads) t n", heads=self.heads)
        attended, _ = self.attention(queries, keys, values, attn_mask=hidden, need_weights=False)
        return VisualTokens(self.project(attended) * mask[..., None], mask, members.float())

    def load_official(self, state_dict: Mapping[str, Tensor]) -> None:
        """As for every projector; the release has a norm of its own for keys and for values."""
        super().load_official(KeyValueNorm.join(state_dict, "ln_k_1.", "ln_v_1."))

    @torch.no_grad()
    def _cluster(self, patches: Tensor, patch_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which patches are centres, and which are nearest to each of them.

        Returns:
            centres: (B, T), row-major; T that of the image with most clusters, any patch where an image has fewer.
            mask: (B, T) bool, True where there is a cluster.
            members: (B, T, N) bool, each real patch in one cluster.
        """
        with torch.autocast(patches.device.type, enabled=False):
            directions = F.normalize(patches, dim=-1)
            similarity = directions @ directions.mT
        similarity.diagonal(dim1=1, dim2=2).fill_(1)
        are_both_real = patch_mask[:, :, None] & patch_mask[:, None]
        is_centre = _centres((similarity > self.threshold) & are_both_real, patch_mask)
        counts = is_centre.sum(dim=-1)
        num_clusters = int(counts.max())
        centres = is_centre.byte().argsort(dim=-1, descending=True, stable=True)[:, :num_clusters]
        mask = torch.arange(num_clusters, device=counts.device) < counts[:, None]
        to_centres = similarity.take_along_dim(centres[..., None], dim=1).masked_fill(~mask[..., None], -torch.inf)
        nearest = F.one_hot(to_centres.argmax(dim=1), num_clusters).bool()
        return centres, mask, rearrange(nearest, "b n t -> b t n") & patch_mask[:, None]


def _centres(is_similar: Tensor, patch_mask: Tensor) -> Tensor:
    """Greedy choice of centres: of the patches not yet taken, that with most neighbours, which takes those it has.

    A patch that no free neighbour precedes is chosen whatever happens elsewhere, so all such are chosen at once; the
    outcome is that of one after another, in far fewer rounds.

    Args:
        is_similar: (B, N, N) bool; never true of padding.
        patch_mask: (B, N) bool.

    Returns:
        (B, N) bool. Of patches with as many neighbours the first precedes.
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
