"""What a study may vary about the shared backbone: one small model per part, bounds and units in the fields."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class BackboneConfig(BaseModel):
    """Base of the backbone's configurations: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class VisionConfig(BackboneConfig):
    """The frozen vision encoder."""

    name: str = Field(description="weight name (`--list encoders`), hub id or folder")
    frame: int = Field(default=224, ge=32, le=2048, description="side of the square frame, in pixels")
    layer: int | None = Field(
        default=None, ge=1, le=1000, description="block whose patches are taken, counted from 1; left out, the last"
    )


class LoRAConfig(BackboneConfig):
    """Low-rank adapters of a pretrained LLM; the defaults are LISA's."""

    rank: int = Field(default=8, ge=1, description="rank of the update of a matrix")
    alpha: int = Field(default=16, ge=1, description="the update is scaled by alpha / rank")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="probability, on the input of the update")
    targets: tuple[str, ...] = Field(
        default=("q_proj", "v_proj"), min_length=1, description="linear layers that are adapted, by name"
    )


class LLMConfig(BackboneConfig):
    """The LLM: `tiny` is trained from scratch, any other name is a pretrained causal LM with LoRA."""

    name: str = Field(description="tiny, a weight name (`--list llms`), hub id or folder")
    width: int | None = Field(default=None, ge=16, le=2**16, description="hidden size; tiny only")
    layers: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="decoder layers: how many `tiny` is built of, or the first that are kept of a pretrained LLM; left "
        "out, all of them",
    )
    heads: int | None = Field(default=None, ge=1, description="attention heads; tiny only")
    lora: LoRAConfig | None = Field(default=None, description="pretrained LLMs only")
    quantization: Literal["4bit"] | None = Field(
        default=None, description="of the frozen base, by bitsandbytes on CUDA; pretrained LLMs only"
    )
    visual_attention: Literal["causal", "bidirectional"] = Field(
        default="causal", description="attention among the visual tokens of an image"
    )
    seg_state: Literal["predict", "own"] = Field(
        default="predict",
        description="what prompts the mask decoder: the state that predicts [SEG], as in LISA, or that of [SEG] "
        "itself, as in Sa2VA",
    )
    prompt: Literal["plain", "chat"] = Field(
        default="plain", description="the template as it is, or as a user's turn in the tokenizer's chat template"
    )
    template: str = Field(
        default="What is {expression} in this image? Please output segmentation mask.",
        description="the one fixed prompt; must contain {expression}",
    )

    @model_validator(mode="after")
    def _settings_take_effect(self) -> "LLMConfig":
        if "{expression}" not in self.template:
            raise ValueError("template must contain {expression}")
        sizes = {"width": self.width, "heads": self.heads}
        if self.name == "tiny":
            missing = [key for key, value in {**sizes, "layers": self.layers}.items() if value is None]
            if missing:
                raise ValueError(f"the LLM 'tiny' is built from scratch and needs {', '.join(missing)}")
            if self.width and self.heads and self.width % (2 * self.heads):
                raise ValueError(
                    f"{self.heads} heads do not share a width of {self.width} in even parts; use a multiple of "
                    f"{2 * self.heads}"
                )
            given = {"lora": self.lora, "quantization": self.quantization}
            ignored = [key for key, value in given.items() if value is not None]
            if self.prompt == "chat":
                ignored.append("prompt: chat")
            if ignored:
                raise ValueError(
                    f"the LLM 'tiny' is trained whole, on plain words; remove {', '.join(ignored)} or name a "
                    "pretrained LLM"
                )
        else:
            ignored = [key for key, value in sizes.items() if value is not None]
            if ignored:
                raise ValueError(f"{', '.join(ignored)} cannot take effect on the pretrained LLM {self.name!r}")
        return self


class InitFromConfig(BackboneConfig):
    """A trained cell that others begin with: its LLM and its mask decoder, everything but its projector."""

    name: str = Field(
        description="`--list checkpoints`, or the checkpoint of a cell, runs/<study>/cells/<cell>.safetensors"
    )


class MaskDecoderConfig(BackboneConfig):
    """SAM's prompt encoder and mask decoder.

    `scratch` learns from nothing on the vision encoder's patches; any other name is a SAM, whose decoder begins as it
    is and looks at that SAM's own frozen image embedding.
    """

    name: str = Field(
        default="scratch", description="`--list mask_decoders`: scratch, a SAM by name, or its checkpoint"
    )
    width: int | None = Field(
        default=None, ge=32, description="P, of the decoder and of the prompt embedding; scratch only, 256 as in SAM"
    )
    depth: int | None = Field(default=None, ge=1, description="two-way attention blocks; scratch only, 2 as in SAM")
    mlp_width: int | None = Field(default=None, ge=32, description="scratch only, 2048 as in SAM")
    heads: int | None = Field(default=None, ge=1, description="scratch only, 8 as in SAM")
    pixel_width: int | None = Field(
        default=None,
        ge=4,
        description="numbers a pixel is known by; scratch only, width / 8 as in SAM, which is few where expressions "
        "share their pixels (image_update: false)",
    )
    image_update: bool = Field(
        default=True, description="whether the image looks back at each prompt, as in SAM; false is far cheaper"
    )
    prompt: Literal["state", "points"] = Field(
        default="state",
        description="what the decoder is prompted with: an embedding of the [SEG] state, as in LISA, and it is trained "
        "with the rest; or the places that the state points at, and it stays the SAM that it is, answers to places and "
        "learns no words",
    )

    @model_validator(mode="after")
    def _settings_take_effect(self) -> "MaskDecoderConfig":
        if self.name == "scratch":
            if self.prompt == "points":
                raise ValueError(
                    "prompt: points asks a SAM, and a mask decoder from scratch knows no answer; name a SAM"
                )
            return self
        sizes = ("width", "depth", "mlp_width", "heads", "pixel_width")
        ignored = [key for key in sizes if getattr(self, key) is not None]
        if ignored:
            raise ValueError(f"{', '.join(ignored)} cannot take effect on the pretrained mask decoder {self.name!r}")
        if not self.image_update:
            raise ValueError(
                f"image_update: false would cut the pretrained mask decoder {self.name!r} apart; remove it"
            )
        return self
