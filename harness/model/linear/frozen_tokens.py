"""Visual tokens before the trained projection of their projector, with the positions of their regions."""

from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor, nn

from projectors import IncompatibleError, Projector, VisualFeatures, VisualTokens

NUM_POSITIONS = 8
"""Numbers per token that describe the location and size of its region."""


@dataclass(frozen=True, slots=True)
class FrozenVisualTokens(VisualTokens):
    """Visual tokens of a fixed function of the patches.

    Args:
        superpixels: (B, R, R) int64 labels, if token t represents superpixel t; None if only patches are known.
    """

    superpixels: Tensor | None = None


class FrozenTokens(Projector):
    """A projector without its projection: tokens of C numbers, followed by the position of their region.

    Layer norms before the projection keep their initial weights, which change nothing.

    Args:
        projector: its attribute `project` must be its last part, and the only one with random weights.

    Raises:
        IncompatibleError: other parts have random weights before training, or the projection has published weights.
    """

    def __init__(self, projector: Projector, name: str) -> None:
        super().__init__(projector.config, projector.dims)
        if projector.config.weights is not None:
            raise IncompatibleError(
                f"llm 'linear' uses tokens before their projection, so {name}.weights has no effect"
            )
        project = getattr(projector, "project", None)
        layers = project.modules() if isinstance(project, nn.Module) else ()
        first = next((layer for layer in layers if isinstance(layer, nn.Linear)), None)
        random = [
            part
            for part, module in projector.named_children()
            if part != "project" and not isinstance(module, nn.LayerNorm) and any(True for _ in module.parameters())
        ]
        random += [part for part, _ in projector.named_parameters(recurse=False)]
        if first is None or random:
            parts = f"also trains {', '.join(random)}" if random else "has no layer `project`"
            raise IncompatibleError(
                f"llm 'linear' requires tokens that are a fixed function of the patches up to their projection, and "
                f"{name} {parts}; use a projector without these parts, or another llm"
            )
        self.token_width: int = first.in_features
        projector.project = nn.Identity()
        self.projector = projector.requires_grad_(False)
        self.name = name
        self.required_inputs = projector.required_inputs
        self.needs_layers = projector.needs_layers

    @property
    def width(self) -> int:
        """Numbers per token."""
        return self.token_width + NUM_POSITIONS

    @property
    def max_tokens(self) -> int:
        """As of the projector."""
        return self.projector.max_tokens

    def forward(self, features: VisualFeatures) -> FrozenVisualTokens:
        """patches (B, N, C) -> embeds (B, T, `width`), in float32.

        Raises:
            IncompatibleError: the tokens have no regions.
        """
        with torch.autocast(features.patches.device.type, enabled=False):
            tokens = self.projector(features)
            if tokens.regions is None:
                raise IncompatibleError(
                    f"llm 'linear' requires tokens with regions, and those of {self.name} have none"
                )
            regions, mask = tokens.regions.float(), tokens.mask
            positions = positions_of(regions, features.patch_mask, self.dims.grid)
            embeds = torch.cat([tokens.embeds.float(), positions], dim=-1) * mask[..., None]
        labels = features.superpixels
        is_superpixel = labels is not None and int(labels.max()) + 1 == regions.shape[1]
        return FrozenVisualTokens(embeds, mask, regions, labels if is_superpixel else None)


def positions_of(regions: Tensor, patch_mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Location and size of each region, in shares of the image without its padding.

    Args:
        regions: (B, T, N), as of `VisualTokens`.
        patch_mask: (B, N) bool, False in the padding.
        grid: (H, W).

    Returns:
        (B, T, 8): mean x and y, their squares and product, the standard deviations of x and y, and the square root of
        the area; 0 for empty regions.
    """
    height, width = grid
    rows, columns = (
        repeat(torch.arange(size, device=regions.device), pattern, h=height, w=width).float() + 0.5
        for size, pattern in ((height, "h -> (h w)"), (width, "w -> (h w)"))
    )
    counts = patch_mask.unflatten(1, grid)
    num_rows, num_columns = (counts.any(dim).sum(1).clamp(min=1)[:, None] for dim in (2, 1))
    x, y = columns / num_columns, rows / num_rows
    area = regions.sum(-1)
    shares = regions / area.clamp(min=1e-6)[..., None]
    moments = torch.stack([x, y, x**2, y**2, x * y], dim=-1)
    mean_x, mean_y, mean_xx, mean_yy, _ = (shares @ moments).unbind(-1)
    spread_x, spread_y = (
        (mean - square**2).clamp(min=0).sqrt() for mean, square in ((mean_xx, mean_x), (mean_yy, mean_y))
    )
    size = (area / patch_mask.sum(1).clamp(min=1)[:, None]).sqrt()
    found = [mean_x, mean_y, mean_x**2, mean_y**2, mean_x * mean_y, spread_x, spread_y, size]
    return torch.stack(found, dim=-1) * (area > 0)[..., None]
