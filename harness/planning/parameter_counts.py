"""Numbers of trainable parameters of the components of a cell, without their weights."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

import projectors
from harness.model.config import LoRAConfig, MaskDecoderConfig
from harness.planning.published import LLMShape
from harness.planning.shapes import sam_shape
from harness.system.uninitialized import uninitialized
from projectors import Dims


@dataclass(frozen=True, slots=True)
class Count:
    """Numbers of parameters.

    Args:
        matrices: of linear layers, which Muon trains if it is chosen.
        others: all others.
    """

    matrices: int
    others: int

    @classmethod
    def of(cls, module: nn.Module) -> "Count":
        """The trainable parameters of a module."""
        linear = {id(part.weight) for part in module.modules() if isinstance(part, nn.Linear)}
        trainable = [p for p in module.parameters() if p.requires_grad]
        matrices = sum(p.numel() for p in trainable if id(p) in linear)
        return cls(matrices, sum(p.numel() for p in trainable) - matrices)

    def __add__(self, other: "Count") -> "Count":
        return Count(self.matrices + other.matrices, self.others + other.others)

    @property
    def total(self) -> int:
        """All of them."""
        return self.matrices + self.others


@dataclass(frozen=True, slots=True)
class ProjectorSize:
    """A projector built for a cell.

    Args:
        max_tokens: largest number of visual tokens per image.
        parameters: trainable ones.
        num_inputs: tensors of the patches' size that it takes: the patches, keys, and outputs of earlier blocks.
        uses_superpixels: whether it takes label maps.
    """

    max_tokens: int
    parameters: Count
    num_inputs: int
    uses_superpixels: bool


def lora_parameters(llm: LLMShape, lora: LoRAConfig) -> int:
    """Parameters of a LoRA on all layers."""
    return llm.layers * lora.rank * sum(size + out for size, out in linear_sizes(llm, lora))


def linear_sizes(llm: LLMShape, lora: LoRAConfig) -> list[tuple[int, int]]:
    """Input and output width of the adapted linear layers of a layer; D and D for a name that Llama does not have."""
    width, attention, key, mlp = llm.width, llm.attention_width, llm.key_width, llm.mlp_width
    sizes = {
        "q_proj": (width, attention),
        "k_proj": (width, key),
        "v_proj": (width, key),
        "o_proj": (attention, width),
        "qkv_proj": (width, attention + 2 * key),
        "gate_proj": (width, mlp),
        "up_proj": (width, mlp),
        "gate_up_proj": (width, 2 * mlp),
        "down_proj": (mlp, width),
    }
    return [sizes.get(name, (width, width)) for name in lora.targets]


@lru_cache(maxsize=1024)
def projector_size(settings: str, dims: Dims) -> ProjectorSize:
    """Build the projector without initial weights, from its section as JSON.

    Raises:
        IncompatibleError: the backbone does not satisfy its requirements.
    """
    section: dict[str, Any] = json.loads(settings)
    kind = projectors.get(section.pop("name"))
    with uninitialized():
        projector = kind(kind.Config(**section), dims)
    return ProjectorSize(
        projector.max_tokens,
        Count.of(projector),
        1 + len(projector.needs_layers) + ("keys" in projector.required_inputs),
        "superpixels" in projector.required_inputs,
    )


@lru_cache(maxsize=64)
def mask_decoder_parameters(config: MaskDecoderConfig, vision_width: int) -> Count:
    """Trainable parameters of a mask decoder that learns, with its image embedding module."""
    # segment-anything imports torchvision, which takes seconds that most plans do not need.
    from segment_anything.modeling import MaskDecoder as SamMaskDecoder
    from segment_anything.modeling import PromptEncoder, TwoWayTransformer

    from harness.model.mask_decoder.decoder import MaskDecoder, PatchEmbedding
    from harness.model.mask_decoder.from_scratch import build_mask_decoder

    grid = (2, 2)  # on which the parameters do not depend
    with uninitialized():
        if config.name == "scratch":
            decoder = build_mask_decoder(config, grid, 32)
            return Count.of(decoder) + Count.of(PatchEmbedding(vision_width, decoder, grid))
        sam = sam_shape(config.name)
        prompt_encoder = PromptEncoder(
            embed_dim=sam.width, image_embedding_size=grid, input_image_size=(32, 32), mask_in_chans=16
        )
        transformer = TwoWayTransformer(depth=2, embedding_dim=sam.width, mlp_dim=sam.mlp_width, num_heads=sam.heads)
        decoder = SamMaskDecoder(transformer_dim=sam.width, transformer=transformer, iou_head_hidden_dim=sam.width)
        return Count.of(MaskDecoder(prompt_encoder, decoder))
