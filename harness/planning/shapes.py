"""Sizes of a cell's components, without loading weights: from the study, known weights, or a local config.json."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub

from harness.model.config import LLMConfig, MaskDecoderConfig, VisionConfig
from harness.model.vision.built_in import RANDOM
from harness.model.weights.resolution import HUB_ID
from harness.planning.published import META_SAM, PUBLISHED, EncoderShape, LLMShape, SamShape
from harness.system.files import find

TINY_VOCABULARY = 500
"""Words of `tiny`, which has those of the data: 100 to 300 in scenes."""

Shape = TypeVar("Shape", EncoderShape, LLMShape, SamShape)


class UnknownShapeError(LookupError):
    """The sizes of these weights are not known on this machine; the argument is their name."""


def encoder_shape(config: VisionConfig) -> EncoderShape:
    """Sizes of the vision encoder, up to the block that is used.

    Raises:
        UnknownShapeError: its config.json is not on this machine, or lacks a size.
    """
    name = config.name.removeprefix(RANDOM)
    shape = _published(name, EncoderShape)
    if shape is None:
        found = _config(name, "vision_config")
        width, blocks = (
            found.get("embed_dim", found.get("hidden_size")),
            found.get("depth", found.get("num_hidden_layers")),
        )
        patch = found.get("patch_size")
        if not (isinstance(width, int) and isinstance(blocks, int) and isinstance(patch, int)):
            raise UnknownShapeError(name)
        shape = EncoderShape(width, patch, blocks)
    return replace(shape, blocks=min(config.layer or shape.blocks, shape.blocks))


def llm_shape(config: LLMConfig) -> LLMShape:
    """Sizes of the LLM, with the layers that are used.

    Raises:
        UnknownShapeError: its config.json is not on this machine, or lacks a size.
    """
    if config.name == "tiny":
        assert config.width is not None
        assert config.layers is not None
        return LLMShape(
            config.width, 3 * config.width, config.layers, config.width, config.width, TINY_VOCABULARY, is_tied=True
        )
    shape = _published(config.name, LLMShape) or _llm_shape_of(config.name, _config(config.name, "text_config"))
    return replace(shape, layers=min(config.layers or shape.layers, shape.layers))


def _llm_shape_of(name: str, found: dict[str, Any]) -> LLMShape:
    try:
        heads = found["num_attention_heads"]
        head_width = found.get("head_dim") or found["hidden_size"] // heads
        return LLMShape(
            found["hidden_size"],
            found["intermediate_size"],
            found["num_hidden_layers"],
            heads * head_width,
            found.get("num_key_value_heads", heads) * head_width,
            found["vocab_size"],
            is_tied=found.get("tie_word_embeddings", False),
        )
    except (KeyError, TypeError, ZeroDivisionError):
        raise UnknownShapeError(name) from None


def sam_shape(name: str) -> SamShape:
    """Sizes of a SAM by name; those of Meta's for a file."""
    return _published(name, SamShape) or META_SAM


@dataclass(frozen=True, slots=True)
class MaskDecoderShape:
    """Sizes of a mask decoder.

    Args:
        width: P.
        side: g, cells along a side of its image embedding.
        cell_width, pixel_width: channels of the image upscaled to 2g and to 4g.
        is_shared: whether the expressions of an image share its upscaled image.
    """

    width: int
    side: int
    cell_width: int
    pixel_width: int
    is_shared: bool


def mask_decoder_shape(config: MaskDecoderConfig, grid: int) -> MaskDecoderShape:
    """Sizes of the mask decoder on `grid` patches along a side of the frame."""
    if config.name != "scratch":
        sam = sam_shape(config.name)
        return MaskDecoderShape(sam.width, sam.side, sam.width // 4, sam.width // 8, is_shared=False)
    width, pixel = config.width or 256, config.pixel_width
    return MaskDecoderShape(width, grid, pixel or width // 4, pixel or width // 8, is_shared=not config.image_update)


def _published(name: str, kind: type[Shape]) -> Shape | None:
    shape = PUBLISHED[name].shape if name in PUBLISHED else None
    return shape if isinstance(shape, kind) else None


def _config(name: str, part: str) -> dict[str, Any]:
    """The part of the local config.json of these weights, or all of it if it has no such part.

    Raises:
        UnknownShapeError: the weights have no local config.json, or it does not hold a JSON mapping.
    """
    path = _config_path(name)
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else None
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UnknownShapeError(name)
    inner = found.get(part)
    return inner if isinstance(inner, dict) else found


def _config_path(name: str) -> Path | None:
    folder, hub_id = find(name), HUB_ID.fullmatch(name)
    if folder is not None:
        return folder / "config.json"
    if hub_id is None:
        return None
    found = huggingface_hub.try_to_load_from_cache(hub_id["repository"], "config.json", revision=hub_id["revision"])
    return Path(found) if isinstance(found, str) else None
