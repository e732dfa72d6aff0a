"""Sizes and architectures of published weights, so that a plan knows them before anything is fetched."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """Sizes of a vision encoder.

    Args:
        width: C.
        patch: side of a patch in pixels.
        blocks: number of transformer blocks.
    """

    width: int
    patch: int
    blocks: int


@dataclass(frozen=True, slots=True)
class LLMShape:
    """Sizes of a causal LM with gated MLPs, as in Llama.

    Args:
        width: D.
        mlp_width: hidden width of the MLP.
        layers: number of decoder layers.
        attention_width: width of all queries of a token.
        key_width: width of all keys of a token.
        vocabulary: V, rows of the output layer.
        is_tied: whether the output layer is the table of token embeddings.
    """

    width: int
    mlp_width: int
    layers: int
    attention_width: int
    key_width: int
    vocabulary: int
    is_tied: bool

    @property
    def linear_parameters(self) -> int:
        """Parameters of the linear layers of all decoder layers, without biases."""
        attention = 2 * self.width * (self.attention_width + self.key_width)
        return self.layers * (attention + 3 * self.width * self.mlp_width)

    @property
    def other_parameters(self) -> int:
        """Parameters of the token embeddings, the output layer and the norms."""
        tables = self.vocabulary * self.width * (1 if self.is_tied else 2)
        return tables + (2 * self.layers + 1) * self.width


@dataclass(frozen=True, slots=True)
class SamShape:
    """Sizes of a SAM.

    Args:
        width: P, of its mask decoder.
        side: g, cells along a side of its image embedding.
        mlp_width: of its mask decoder.
        heads: of its mask decoder.
    """

    width: int
    side: int
    mlp_width: int
    heads: int


META_SAM = SamShape(256, 64, 2048, 8)


@dataclass(frozen=True, slots=True)
class Published:
    """Sizes of published weights.

    Args:
        parameters: of the part that is used, which is the vision tower for CLIP and Qwen2-VL.
        download_bytes: of the files that are fetched.
        shape: architecture; None for a checkpoint, which has that of the cells initialized from it.
    """

    parameters: int
    download_bytes: int
    shape: EncoderShape | LLMShape | SamShape | None = None


PUBLISHED = {
    "dinov2-small": Published(22_056_192, 90_210_194, EncoderShape(384, 14, 12)),
    "smollm2-135m": Published(134_515_008, 92_871_040, LLMShape(576, 1536, 30, 576, 192, 49_152, is_tied=True)),
    "clip-scenes": Published(1_942_656, 0, EncoderShape(192, 14, 4)),
    "mllm-scenes": Published(678_624, 0),
    "mllm-scenes-mlp": Published(678_624, 0),
    "mllm-scenes-svp": Published(678_624, 0),
    "sam-scenes": Published(1_910_084, 0, SamShape(96, 28, 512, 4)),
    "smollm2-scenes": Published(1_594_274, 0),
    "mobile-sam": Published(9_808_452, 40_728_226, META_SAM),
    "sam-vit-b": Published(93_735_472, 375_042_383, META_SAM),
    "sam-vit-l": Published(312_342_832, 1_249_524_607, META_SAM),
    "sam-vit-h": Published(641_090_608, 2_564_550_879, META_SAM),
    "facebook/dinov2-large": Published(304_368_640, 1_217_474_560, EncoderShape(1024, 14, 24)),
    "openai/clip-vit-large-patch14-336": Published(303_507_456, 1_711_776_772, EncoderShape(1024, 14, 24)),
    "lmsys/vicuna-7b-v1.5": Published(
        6_738_415_616, 13_476_831_232, LLMShape(4096, 11_008, 32, 4096, 4096, 32_000, is_tied=False)
    ),
    "Qwen/Qwen2.5-7B-Instruct": Published(
        7_615_616_512, 15_231_233_024, LLMShape(3584, 18_944, 28, 3584, 512, 152_064, is_tied=False)
    ),
    "Qwen/Qwen2-VL-7B-Instruct": Published(631_183_360, 16_582_750_208, EncoderShape(1280, 14, 32)),
}
"""Counts follow from the architectures; bytes are those of the published tensors, without headers."""
