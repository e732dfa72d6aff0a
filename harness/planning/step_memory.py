"""Estimates the peak memory of a training step: weights, gradients, optimizer state, inputs and activations.

The peak is at the start of the backward pass of a step after the first, with both parameter groups learning.
Assumptions:

- LLM: a Llama-like decoder with sdpa attention. `_layer_bytes` counts the tensors that autograd keeps in a layer: for a
  frozen LLM in float32, 6 D + 3 M + Q floats per token (D the width, M that of the MLP, Q the length of the sequence,
  for the attention mask). LoRA on q and v adds 4 D on a CPU; with gradient checkpointing D remains. `tiny` keeps
  2 D + 4 A + 4 M (A the width of the attention), in its last layer D + 2 A (`harness.model.llm.selected_states`).
- Length of a sequence: one prefix token, the largest number of visual tokens, and for every expression the words of the
  template and `QUERY_WORDS`. The expressions of an image share its visual tokens (`harness.model.llm.packing`).
- Mask decoder, if it learns: the two image features of each block and the upscaled image, per expression, or per image
  if expressions share it. Projector: its input, and three tensors of its output's size; projectors with transformer
  layers keep more, and Muon's update of large matrices takes more.
- Vision encoder and SAM: weights in float32; no activations, because their outputs are cached.
- bfloat16: trainable parameters are float32 with a bfloat16 copy; norms keep float32.
- Gradients of activations take no memory of their own, because the activations of a layer are freed meanwhile.
- Not counted: CUDA's context and libraries, fragmentation, and the stages in which the frozen models fill the caches.

Estimate over measured peak on a CPU in float32 (presets embedded and small, random encoder): mlp 0.98 and 1.09, pooling
1.02 and 1.18, SVP 0.88 and 1.17, qformer 0.82 (embedded); without the models, from 0.65 (qformer) to 1.26. Not compared
with CUDA or the paper's scale.

Sources: Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198, section 4 (activations of a layer); Rajbhandari et
al. 2020, https://arxiv.org/abs/1910.02054, section 3.1 (parameters, gradients, optimizer state).
"""

import json
import math
import re
from dataclasses import dataclass, fields

from harness import superpixels
from harness.model.config import LLMConfig
from harness.planning.parameter_counts import (
    Count,
    linear_sizes,
    lora_parameters,
    mask_decoder_parameters,
    projector_size,
)
from harness.planning.published import PUBLISHED
from harness.planning.shapes import MaskDecoderShape, encoder_shape, llm_shape, mask_decoder_shape
from harness.study.cell_spec import CellSpec
from harness.study.training_config import TrainingConfig
from projectors import Dims

QUERY_WORDS = 5
"""Words of an expression, or of a question with its answer."""
TOKENS_PER_WORD = 2
"""Of a pretrained tokenizer; the vocabulary of `tiny` has words."""
FLOAT = 4
"""Bytes of a float32."""
LOGIT_COPIES = 4
"""Tensors of the size of the logits: logits, their log-softmax, and the gradients of both."""
MASK_COPIES = 8
"""Tensors of the size of the predicted masks in the mask losses, and the gradient."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Estimated memory at the peak of a training step, in bytes.

    Args:
        weights: of all models, frozen and trainable.
        gradients: of the trainable parameters.
        optimizer: moments of the trainable parameters.
        inputs: batches of the whole step.
        activations: kept for the backward pass of one micro-batch.
        recomputed: activations of one layer of the LLM with gradient checkpointing, else 0.
    """

    weights: float
    gradients: float
    optimizer: float
    inputs: float
    activations: float
    recomputed: float

    @property
    def total(self) -> float:
        """The peak."""
        return sum(getattr(self, field.name) for field in fields(self))


def images_per_device(training: TrainingConfig) -> int:
    """Images of a step whose inputs are on one device."""
    return math.ceil(training.batch_images / training.devices)


def step_memory(spec: CellSpec, precision: str, device_type: str) -> StepMemory:
    """Estimate the memory of a training step on a device.

    Args:
        precision: float32 or bfloat16.
        device_type: cuda or cpu.

    Raises:
        UnknownShapeError: the sizes of its vision encoder or LLM are not known on this machine.
        IncompatibleError: the backbone does not satisfy the projector's requirements, so the cell will be skipped.
    """
    return _Estimate(spec, precision, device_type).memory()


class _Estimate:
    """The terms of `StepMemory` for one cell."""

    def __init__(self, spec: CellSpec, precision: str, device_type: str) -> None:
        self.spec = spec
        self.training = spec.training
        self.width = 2 if precision == "bfloat16" else FLOAT  # bytes of an activation
        self.dropout_width = 1 if device_type == "cuda" else FLOAT  # bytes of an element of a dropout mask
        self.encoder, self.llm = encoder_shape(spec.vision_encoder), llm_shape(spec.llm)
        self.grid = spec.vision_encoder.frame // self.encoder.patch
        self.decoder = mask_decoder_shape(spec.mask_decoder, self.grid)
        self.projector = projector_size(json.dumps(spec.projector, sort_keys=True), self._dims())
        self.images = images_per_device(self.training)
        self.micro_batch = min(self.training.micro_batch_images or self.images, self.images)

    def memory(self) -> StepMemory:
        """The estimate."""
        trainable = self._trainable()
        copies = self.width if self.width < FLOAT else 0
        is_muon = self.training.optimizer == "muon"
        llm, recomputed = self._llm_activations()
        return StepMemory(
            weights=self._frozen_bytes() + (FLOAT + copies) * trainable.total,
            gradients=FLOAT * trainable.total,
            optimizer=FLOAT * ((1 if is_muon else 2) * trainable.matrices + 2 * trainable.others),
            inputs=self.images * self._input_bytes(),
            activations=llm + self.micro_batch * (self._projector_bytes() + self._mask_bytes()),
            recomputed=recomputed,
        )

    def _dims(self) -> Dims:
        count = 0
        if self.spec.superpixels is not None:
            settings = {key: value for key, value in self.spec.superpixels.items() if key != "name"}
            count = superpixels.get(self.spec.superpixels["name"]).Config(**settings).max_superpixels
        return Dims(
            vision=self.encoder.width,
            language=self.llm.width,
            grid=(self.grid, self.grid),
            frame=self.spec.vision_encoder.frame,
            decoder=self.decoder.width,
            max_superpixels=count,
            vision_blocks=self.encoder.blocks,
        )

    @property
    def learns_masks(self) -> bool:
        """Whether the mask decoder is trained, so that training decodes masks."""
        return self.spec.mask_decoder.prompt != "points"

    @property
    def is_llm_trained(self) -> bool:
        """Whether all parameters of the LLM are trained."""
        return self.spec.llm.name == "tiny"

    @property
    def sequence_length(self) -> int:
        """Q, tokens of the packed sequence of an image."""
        return 1 + self.projector.max_tokens + self.training.expressions_per_image * query_tokens(self.spec.llm)

    def _trainable(self) -> Count:
        prompt = Count(self.llm.width**2 + self.llm.width * self.decoder.width, self.llm.width + self.decoder.width)
        answers = Count(0, 2 * self.llm.width)
        count = self.projector.parameters + prompt + answers
        if self.spec.llm.lora is not None:
            count += Count(lora_parameters(self.llm, self.spec.llm.lora), 0)
        if self.is_llm_trained:
            count += Count(self.llm.linear_parameters, self.llm.other_parameters)
        return (
            count + mask_decoder_parameters(self.spec.mask_decoder, self.encoder.width) if self.learns_masks else count
        )

    def _frozen_bytes(self) -> float:
        encoder = FLOAT * 12 * self.encoder.blocks * self.encoder.width**2
        sams = {self.spec.mask_decoder.name, (self.spec.superpixels or {}).get("model")} & PUBLISHED.keys()
        total = encoder + FLOAT * sum(PUBLISHED[str(name)].parameters for name in sams)
        if self.is_llm_trained:
            return total
        linear = 0.5 if self.spec.llm.quantization == "4bit" else self.width
        return total + linear * self.llm.linear_parameters + self.width * self.llm.other_parameters

    def _input_bytes(self) -> float:
        """Bytes of an image's inputs: features, label maps, and if masks are decoded, targets and decoder's input."""
        pixels = self.spec.vision_encoder.frame**2
        features = FLOAT * self.grid**2 * self.encoder.width * self.projector.num_inputs
        labels = 8 * pixels if self.projector.uses_superpixels else 0
        if not self.learns_masks:
            return features + labels
        masks = FLOAT * pixels * (self.training.expressions_per_image + 1)
        is_scratch = self.spec.mask_decoder.name == "scratch"
        mask_inputs = 3 * pixels if is_scratch else self.decoder.width * self.decoder.side**2
        return features + masks + labels + FLOAT * mask_inputs

    def _llm_activations(self) -> tuple[float, float]:
        """Bytes of the LLM's activations with those of its logits, and those of a recomputed layer."""
        if self.is_llm_trained:
            return self._tiny_activations(), 0.0
        tokens, llm = self.micro_batch * self.sequence_length, self.llm
        layer = tokens * self._layer_bytes()
        outside = tokens * 2 * FLOAT * llm.width  # the input, and the input of the last norm
        rows = self.micro_batch * self.training.expressions_per_image
        logits = LOGIT_COPIES * FLOAT * rows * llm.vocabulary
        if not self.spec.llm.gradient_checkpointing:
            return llm.layers * layer + outside + logits, 0.0
        return llm.layers * tokens * FLOAT * llm.width + outside + logits, layer

    def _layer_bytes(self) -> float:
        """Bytes that a decoder layer of a pretrained LLM keeps per token.

        The inputs of both norms; queries, keys (repeated to all heads), values, the attention's output and its mask; of
        the MLP the gate, its activation and the other factor. Frozen linear layers do not keep their input.
        """
        llm = self.llm
        kept = 2 * llm.width * FLOAT
        kept += self.width * (4 * llm.attention_width + 3 * llm.mlp_width + self.sequence_length)
        lora = self.spec.llm.lora
        if lora is not None:
            inputs = sum(size for size, _ in linear_sizes(llm, lora))
            kept += inputs * (self.width + (self.dropout_width if lora.dropout else 0))
        return kept

    def _tiny_activations(self) -> float:
        """Bytes of the activations of `tiny` with those of its logits.

        A layer keeps the outputs of both norms; queries, keys, values and the attention's output; of the MLP the gate,
        its activation, the other factor and their product. The last layer computes queries and what follows them for
        one token per expression, or two if [SEG] has a state of its own. Of the projections' weights, joined and
        multiplied by the gains of the norms, two copies are kept. The attention mask is one for all layers.
        """
        llm, rows = self.llm, self.micro_batch * self.training.expressions_per_image
        tokens, chosen = self.micro_batch * self.sequence_length, rows * (1 + (self.spec.llm.seg_state == "own"))
        always = llm.width + 2 * llm.attention_width
        queried = always + 4 * llm.mlp_width
        layers = llm.layers * tokens * always + ((llm.layers - 1) * tokens + chosen) * queried
        shared = tokens * (llm.width + self.sequence_length) + 2 * llm.linear_parameters
        return self.width * (layers + shared) + LOGIT_COPIES * FLOAT * chosen * llm.vocabulary

    def _projector_bytes(self) -> float:
        """Bytes of the projector's activations per image."""
        inputs = self.grid**2 * self.encoder.width * self.projector.num_inputs
        return self.width * (inputs + 3 * self.projector.max_tokens * self.llm.width)

    def _mask_bytes(self) -> float:
        """Bytes of the mask decoder's activations per image."""
        if not self.learns_masks:
            return 0.0
        cells, count = self.decoder.side**2, self.training.expressions_per_image
        losses = FLOAT * MASK_COPIES * 16 * cells * count
        details = cells * (16 * self.decoder.pixel_width + 8 * self.decoder.cell_width)
        stem = details if self.spec.mask_decoder.name == "scratch" else 0
        images = 1 if self.decoder.is_shared else count
        return losses + (FLOAT + self.width) / 2 * (stem + images * _decoder_floats(self.decoder))


def _decoder_floats(decoder: MaskDecoderShape) -> int:
    """Numbers that the mask decoder keeps for an image.

    Input and output of the image's norm in each of two blocks; of the upscaled cells the input and output of the norm,
    and the activation's output; of the pixels the activation's input and output.
    """
    features = (1 if decoder.is_shared else 4) * decoder.width
    return decoder.side**2 * (features + 3 * 4 * decoder.cell_width + 2 * 16 * decoder.pixel_width)


def query_tokens(config: LLMConfig) -> int:
    """Tokens of a formatted prompt: words and punctuation of the template, and those of `QUERY_WORDS`."""
    words = re.findall(r"\w+|[^\w\s]", config.template.replace("{expression}", ""))
    tokens = QUERY_WORDS * (1 if config.name == "tiny" else TOKENS_PER_WORD)
    return len(words) + tokens + (config.seg_state == "own")
