"""SSPE: a small transformer that encodes location and shape of a superpixel from its binary mask.

Source: SVP, https://arxiv.org/abs/2509.13676 (learnable queries cross-attend to the superpixel's mask; 3 blocks,
4 queries per superpixel; trained in the second stage).
Differs from the paper, or is not in our sources: mask resolution, width and heads; a cell of the mask holds the share
of its pixels inside the superpixel, so that a superpixel smaller than a cell is not lost; a block is cross-attention
and an MLP, without self-attention between the queries, which are combined only when they are concatenated and
projected to one vector; a final layer norm (`position_norm`); `keys: decoder_pe` is ours.
Initialisation is ours: SSPE is frozen in the first stage, so its initial embeddings must already differ between
regions. Queries start small, and every head starts by attending to cells inside the mask. With unit-scale queries,
embeddings of different superpixels differ by only 2% of their norm, too little for the LLM to use.
"""

from typing import Literal

import torch
from einops import einsum, rearrange, repeat
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from projectors.contract import Dims
from projectors.layers import HeadedConfig
from projectors.svp.regions import PositionEncoder, Regions, position_norm

_INITIAL_GAIN = 4.0


class SSPE(PositionEncoder):
    """Semantic superpixel positional embedding."""

    is_late = True

    class Config(HeadedConfig):
        name: Literal["sspe"] = "sspe"
        blocks: int = Field(default=3, ge=1, le=12, description="attention blocks")
        queries: int = Field(default=4, ge=1, le=64, description="learnable queries per superpixel")
        heads: int = Field(default=4, ge=1, description="attention heads")
        width: int = Field(
            default=128, ge=8, multiple_of=4, description="of queries, keys and values, all heads together"
        )
        resolution: int = Field(default=16, ge=2, le=128, description="side of the downsampled mask, in cells")
        keys: Literal["grid", "decoder_pe"] = Field(
            default="grid",
            description="position of a cell: Fourier features, or the mask decoder's positional encoding",
        )

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.resolution = config.resolution
        if config.keys == "decoder_pe":
            self.required_inputs = frozenset({"decoder_pe"})
            self.cells: nn.Module = _DecoderCells(dims.decoder, config.width, config.resolution)
        else:
            self.cells = _GridCells(config.width, config.resolution)
        self.queries = nn.Parameter(0.02 * torch.randn(config.queries, config.width))
        self.inside = nn.Parameter(torch.randn(config.width))
        self.blocks = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.blocks))
        for block in self.blocks:
            assert isinstance(block, _Block)
            block.attend_inside(self.inside)
        self.norm = nn.LayerNorm(config.width)
        self.merge = nn.Sequential(nn.Linear(config.queries * config.width, dims.vision), position_norm(dims.vision))

    def forward(self, regions: Regions) -> Tensor:
        """(B, S, C); zero for empty regions."""
        areas = regions.areas((self.resolution, self.resolution))
        exists = areas.any(dim=-1)
        cells = self.cells(regions.decoder_pe)
        masks = areas[exists].to(cells.dtype)
        states = self.queries[None]
        for block in self.blocks:
            states = block(states, cells, self.inside, masks)
        vectors = self.merge(rearrange(self.norm(states), "m q w -> m (q w)"))
        embeddings = vectors.new_zeros(*exists.shape, vectors.shape[-1])
        embeddings[exists] = vectors
        return embeddings


class _Block(nn.Module):
    """Cross-attention of the queries to the cells of a mask, then an MLP; both residual, pre-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        # A key bias would cancel in the softmax.
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    @torch.no_grad()
    def attend_inside(self, inside: Tensor) -> None:
        """Set the query bias so that a cell inside the mask has e^4 times the weight of one outside, in each head."""
        key = rearrange(self.key(inside), "(h d) -> h d", h=self.heads)
        direction = key / key.square().sum(dim=-1, keepdim=True)
        self.query.bias.copy_(rearrange(_INITIAL_GAIN * key.shape[-1] ** 0.5 * direction, "h d -> (h d)"))

    def forward(self, states: Tensor, cells: Tensor, inside: Tensor, masks: Tensor) -> Tensor:
        """states (M, Q, W) or, equal for all masks, (1, Q, W); cells (n, W), inside (W), masks (M, n) -> (M, Q, W)."""
        states = states + self.output(self._attend(self.attention_norm(states), cells, inside, masks))
        return states + self.mlp(states)

    def _attend(self, states: Tensor, cells: Tensor, inside: Tensor, masks: Tensor) -> Tensor:
        """Attention with the key and value W (cell + mask * inside) of every cell, for M masks over the same cells.

        Both are affine in the mask's value, so only the cells and `inside` are projected, once for all masks: the
        logits are q.K_cell + mask * q.K_inside, and values are split in the same way.
        """
        num_queries = states.shape[1]
        query = rearrange(self.query(states), "m q (h d) -> h (m q) d", h=self.heads)
        memory = torch.cat([cells, inside[None]])
        key = rearrange(self.key(memory), "n (h d) -> h d n", h=self.heads) * query.shape[-1] ** -0.5
        value = rearrange(self.value(memory), "n (h d) -> h n d", h=self.heads)
        # `inside` apart from the cells, because a slice of the logits would have a gradient of their size.
        parts = (query @ key[..., :-1], query @ key[..., -1:])
        logits, of_inside = (rearrange(part, "h (m q) n -> h m q n", q=num_queries) for part in parts)
        weights = F.softmax(torch.addcmul(logits, of_inside, masks[:, None]), dim=-1)
        # Faster than a product of a matrix and a vector for each mask.
        covered = (weights * masks[:, None]).sum(dim=-1)
        weights = rearrange(weights, "h m q n -> h (m q) n")
        attended = weights @ value[:, :-1] + rearrange(covered, "h m q -> h (m q) 1") * value[:, -1:]
        return rearrange(attended, "h (m q) d -> m q (h d)", q=num_queries)


class _GridCells(nn.Module):
    """Fixed Fourier features of the cells' centres, at frequencies from half a turn per frame to the grid's finest."""

    features: Tensor

    def __init__(self, width: int, resolution: int) -> None:
        super().__init__()
        centres = (torch.arange(resolution) + 0.5) / resolution
        # After transformers' from_pretrained, torch.linspace may ignore `with torch.device(...)`.
        exponents = torch.linspace(0, 1, width // 4, device=centres.device)
        frequencies = torch.pi * resolution**exponents
        angles = einsum(centres, frequencies, "r, f -> r f")
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        rows = repeat(waves, "h f -> (h w) f", w=resolution)
        columns = repeat(waves, "w f -> (h w) f", h=resolution)
        self.register_buffer("features", torch.cat([rows, columns], dim=-1), persistent=False)

    def forward(self, decoder_pe: Tensor | None) -> Tensor:  # noqa: ARG002
        """(n, W), independent of the decoder's encoding."""
        return self.features


class _DecoderCells(nn.Module):
    """The mask decoder's dense positional encoding, averaged over each cell and projected."""

    def __init__(self, decoder_width: int, width: int, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.project = nn.Linear(decoder_width, width)

    def forward(self, decoder_pe: Tensor | None) -> Tensor:
        """(P, h, w) -> (n, W)."""
        assert decoder_pe is not None, "decoder_pe is a required input"
        pooled = F.adaptive_avg_pool2d(decoder_pe, self.resolution)
        return self.project(rearrange(pooled, "p h w -> (h w) p"))
