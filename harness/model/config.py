"""Configuration of the shared backbone: one model per component, bounds and units in the fields."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class BackboneConfig(BaseModel):
    """Base of the backbone's configurations: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class VisionConfig(BackboneConfig):
    """The frozen vision encoder."""

    name: str = Field(description="weight name (`--list encoders`), hub id or folder")
    frame: int = Field(default=224, ge=32, le=2048, description="side of the square frame, in pixels")
    layer: int | None = Field(
        default=None, ge=1, le=1000, description="block whose output is used, counted from 1; default: the last"
    )


class LoRAConfig(BackboneConfig):
    """LoRA of a pretrained LLM; the defaults are LISA's."""

    rank: int = Field(default=8, ge=1, description="rank of the update of a matrix")
    alpha: int = Field(default=16, ge=1, description="the update is scaled by alpha / rank")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="probability, on the input of the update")
    targets: tuple[str, ...] = Field(
        default=("q_proj", "v_proj"), min_length=1, description="linear layers that are adapted, by name"
    )


LINEAR = "linear"
"""The LLM of this name is a linear reader, which is fitted instead of trained."""


class LLMConfig(BackboneConfig):
    """The LLM: `tiny`, from scratch; `linear`, a linear model without settings; or a pretrained causal LM with LoRA."""

    name: str = Field(description="tiny, linear, a weight name (`--list llms`), hub id or folder")
    width: int | None = Field(default=None, ge=16, le=2**16, description="hidden size; tiny only")
    layers: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="decoder layers of `tiny`, or number of first layers kept of a pretrained LLM; default: all",
    )
    heads: int | None = Field(default=None, ge=1, description="attention heads; tiny only")
    lora: LoRAConfig | None = Field(default=None, description="pretrained LLMs only")
    quantization: Literal["4bit"] | None = Field(
        default=None, description="of the frozen weights, by bitsandbytes on CUDA; pretrained LLMs only"
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="recompute the activations of each decoder layer in the backward pass: less memory, slower steps; "
        "pretrained LLMs only",
    )
    visual_attention: Literal["causal", "bidirectional"] = Field(
        default="causal", description="attention among the visual tokens of an image"
    )
    seg_state: Literal["predict", "own"] = Field(
        default="predict",
        description="hidden state that prompts the mask decoder: the one that predicts [SEG], as in LISA, or that of "
        "an appended [SEG] token, as in Sa2VA",
    )
    prompt: Literal["plain", "chat"] = Field(
        default="plain", description="use the template as it is, or as a user turn in the tokenizer's chat template"
    )
    template: str = Field(
        default="What is {expression} in this image? Please output segmentation mask.",
        description="prompt for every expression; must contain {expression}",
    )

    @model_validator(mode="after")
    def _settings_take_effect(self) -> "LLMConfig":
        if self.name == LINEAR:
            self._refuse_settings()
            return self
        if "{expression}" not in self.template:
            raise ValueError("template must contain {expression}")
        sizes = {"width": self.width, "heads": self.heads}
        if self.name == "tiny":
            missing = [key for key, value in {**sizes, "layers": self.layers}.items() if value is None]
            if missing:
                raise ValueError(f"the LLM 'tiny' is built from scratch and requires {', '.join(missing)}")
            if self.width and self.heads and self.width % (2 * self.heads):
                raise ValueError(
                    f"width={self.width} is not a multiple of {2 * self.heads}, twice the number of heads; use a "
                    f"multiple of {2 * self.heads}"
                )
            pretrained_only = {"lora": self.lora, "quantization": self.quantization}
            ignored = [key for key, value in pretrained_only.items() if value is not None]
            if self.prompt == "chat":
                ignored.append("prompt: chat")
            if self.gradient_checkpointing:
                ignored.append("gradient_checkpointing: true")
            if ignored:
                raise ValueError(
                    f"{', '.join(ignored)} cannot take effect on the LLM 'tiny', which is trained from scratch; remove "
                    "it or name a pretrained LLM"
                )
        else:
            ignored = [key for key, value in sizes.items() if value is not None]
            if ignored:
                raise ValueError(f"{', '.join(ignored)} cannot take effect on the pretrained LLM {self.name!r}")
        return self

    def _refuse_settings(self) -> None:
        """Raises ValueError if a setting besides the name differs from its default."""
        fields = type(self).model_fields
        changed = [key for key, value in self if key != "name" and value != fields[key].get_default()]
        if changed:
            raise ValueError(f"{', '.join(changed)} cannot take effect on the linear reader; remove it")


class InitFromConfig(BackboneConfig):
    """A trained cell whose LLM and mask decoder other cells are initialized from."""

    name: str = Field(description="`--list checkpoints`, or a cell's checkpoint, runs/<study>/cells/<cell>.safetensors")


class MaskDecoderConfig(BackboneConfig):
    """SAM's prompt encoder and mask decoder.

    `scratch` is trained from random weights on the vision encoder's patches. Any other name is a SAM, whose pretrained
    decoder takes that SAM's frozen image embedding.
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
        description="channels of the upscaled image; scratch only, width / 8 as in SAM, which is narrow if expressions "
        "share the upscaled image (image_update: false)",
    )
    image_update: bool = Field(
        default=True, description="whether the image attends to each prompt, as in SAM; false is far cheaper"
    )
    prompt: Literal["state", "points"] = Field(
        default="state",
        description="state: prompt a trained decoder with an embedding of the [SEG] state, as in LISA; points: prompt "
        "the frozen SAM with points predicted from the [SEG] state",
    )

    @model_validator(mode="after")
    def _settings_take_effect(self) -> "MaskDecoderConfig":
        if self.name == "scratch":
            if self.prompt == "points":
                raise ValueError(
                    "prompt: points requires a pretrained SAM, and the mask decoder is trained from scratch; name a SAM"
                )
            return self
        sizes = ("width", "depth", "mlp_width", "heads", "pixel_width")
        ignored = [key for key in sizes if getattr(self, key) is not None]
        if ignored:
            raise ValueError(f"{', '.join(ignored)} cannot take effect on the pretrained mask decoder {self.name!r}")
        if not self.image_update:
            raise ValueError(
                f"image_update: false removes layers of the pretrained mask decoder {self.name!r}; remove it"
            )
        return self
