"""Puts the parts of one cell together, untrained: data, caches, projector, LLM, mask decoder."""

import json
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache, partial

import torch

import projectors
from harness import data
from harness import superpixels as sources
from harness.assembly.batches import BatchMaker
from harness.cache.encodings import SamCache, VisionCache, frozen_sam
from harness.cache.superpixel_labels import SuperpixelCache
from harness.data.example import Example, Question
from harness.errors import DataError, WeightsError
from harness.model.config import VisionConfig
from harness.model.llm.language_model import build_llm
from harness.model.mask_decoder.decoder import MaskDecoder, PatchEmbedding, SamEmbedding, build_mask_decoder
from harness.model.mask_decoder.point_prompted import PointPromptedMaskDecoder
from harness.model.segmenter import Segmenter
from harness.model.vision.encoder import VisionEncoder, load_vision_encoder
from harness.model.weights.resolution import WeightsRecord, resolve
from harness.model.weights.strict_loading import read_tensors
from harness.study.study import CellSpec
from harness.system.device import default_device
from harness.system.precision import resolve_precision
from projectors import Dims, IncompatibleError

DECODER_PE_STRIDE = 4
"""Pixels of the frame to a cell of the decoder's positional encoding, as projectors see it."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts of one cell.

    Args:
        weights: where each pretrained part comes from.
    """

    segmenter: Segmenter
    batches: BatchMaker
    weights: tuple[WeightsRecord, ...]


@lru_cache(maxsize=1)
def vision_encoder(config: VisionConfig) -> VisionEncoder:
    """The frozen encoder, loaded once for all cells that share it; what begins at random does not depend on when."""
    with torch.random.fork_rng(devices=[]):
        return load_vision_encoder(config).to(default_device())


@lru_cache(maxsize=4)
def _examples(settings: str, split: str) -> Sequence[Example]:
    name = json.loads(settings)["name"]
    source = data.get(name)
    found = source.load(source.Config.model_validate_json(settings), split)
    if not found:
        raise DataError(f"{name} holds no images under {split!r}; take its whole files, or name another split")
    return found


def load_examples(spec: CellSpec, split: str) -> Sequence[Example]:
    """A split of the cell's data, loaded once for all cells that share it.

    Raises:
        DataError: a file is missing or not what its format promises, or the split holds nothing.
    """
    return _examples(json.dumps(spec.data, sort_keys=True), split)


def build_vocabulary(examples: Sequence[Example]) -> list[str]:
    """Every word of what these examples ask, and of its answers, sorted."""
    texts = [
        text
        for example in examples
        for one in example.queries
        for text in ((one.text, one.answer) if isinstance(one, Question) else (one.text,))
    ]
    return sorted({word for text in texts for word in text.split()})


def assemble(spec: CellSpec, words: Iterable[str], device: torch.device) -> Assembly:
    """Everything a cell trains, on its device.

    Args:
        words: of the training expressions, from which an LLM from scratch takes its vocabulary.

    Raises:
        IncompatibleError: the projector cannot work on this backbone.
        WeightsError: a pretrained part cannot be had.
    """
    encoder = vision_encoder(spec.vision_encoder)
    is_half = resolve_precision(spec.training.precision, device) == "bfloat16"
    llm = build_llm(spec.llm, words, torch.bfloat16 if is_half else torch.float32)
    mask_decoder, image_embedding, sam = _mask_decoder(spec, encoder)
    superpixels, max_superpixels = _superpixels(spec)
    dims = Dims(
        vision=encoder.width,
        language=llm.width,
        grid=encoder.grid,
        frame=spec.vision_encoder.frame,
        decoder=mask_decoder.width,
        max_superpixels=max_superpixels,
        vision_blocks=encoder.layer,
    )
    projector, official = _projector(spec, dims)
    of_cls = projector.required_inputs & {"cls_query", "cls_key"}
    if of_cls and not encoder.has_cls:
        raise IncompatibleError(
            f"{spec.projector['name']} needs what CLS looks at, and {spec.vision_encoder.name!r} has no CLS token; "
            "use an encoder that has one, as CLIP or DINOv2"
        )
    segmenter = Segmenter(projector, llm, image_embedding, mask_decoder).to(device)
    decoder_pe = None
    if "decoder_pe" in projector.required_inputs:
        decoder_pe = partial(mask_decoder.positional_encoding, spec.vision_encoder.frame // DECODER_PE_STRIDE)
    batches = BatchMaker(
        llm,
        VisionCache(
            encoder,
            spec.vision_encoder.frame,
            has_attention="keys" in projector.required_inputs or bool(of_cls),
            layers=projector.needs_layers,
        ),
        superpixels if "superpixels" in projector.required_inputs else None,
        decoder_pe,
        encoder.grid,
        device,
        sam,
    )
    weights = [encoder.weights] if llm.weights is None else [encoder.weights, llm.weights]
    weights += [] if sam is None else [sam.model.record]
    weights += superpixels.weights if superpixels is not None else ()
    weights += official
    return Assembly(segmenter, batches, tuple(dict.fromkeys(weights)))


def _mask_decoder(
    spec: CellSpec, encoder: VisionEncoder
) -> tuple[MaskDecoder, PatchEmbedding | SamEmbedding, SamCache | None]:
    """The mask decoder, what its image embedding is made by, and SAM's embeddings where they are a SAM's."""
    config = spec.mask_decoder
    if config.name == "scratch":
        head = build_mask_decoder(config, encoder.grid, spec.vision_encoder.frame)
        return head, PatchEmbedding(encoder.width, head, encoder.grid), None
    model = frozen_sam(config.name)
    # A decoder that learns is another than the one that proposes superpixels.
    prompt_encoder, decoder = deepcopy(model.sam.prompt_encoder), deepcopy(model.sam.mask_decoder)
    if config.prompt == "points":
        return PointPromptedMaskDecoder(prompt_encoder, decoder), SamEmbedding(), SamCache(model)
    return MaskDecoder(prompt_encoder, decoder.requires_grad_(True)), SamEmbedding(), SamCache(model)


def _projector(spec: CellSpec, dims: Dims) -> tuple[projectors.Projector, tuple[WeightsRecord, ...]]:
    """The projector, and which of its authors' weights it begins with, if any."""
    kind = projectors.get(spec.projector["name"])
    config = kind.Config(**{key: value for key, value in spec.projector.items() if key != "name"})
    projector = kind(config, dims)
    if config.weights is None:
        return projector, ()
    record = resolve(config.weights)
    if record.folder is None or record.file is None:
        raise WeightsError(
            f"projector.weights={config.weights!r} is no file; name the authors' own, as mm_projector.bin"
        )
    projector.load_official(read_tensors(record.folder / record.file, record.name))
    return projector, (record,)


def _superpixels(spec: CellSpec) -> tuple[SuperpixelCache | None, int]:
    """The source's cache and the most superpixels that it makes of an image."""
    if spec.superpixels is None:
        return None, 0
    name = spec.superpixels["name"]
    settings = {key: value for key, value in spec.superpixels.items() if key != "name"}
    config = sources.get(name).Config(**settings)
    return SuperpixelCache(name, config, spec.vision_encoder.frame), config.max_superpixels


def prepare(
    batches: BatchMaker, examples: Sequence[Example], log: Callable[[str], None], *, with_mask_inputs: bool = True
) -> None:
    """Fills the caches for these images, so that training and scoring only read.

    Args:
        say: told what is computed, and how much of it.
        with_view: whether masks are drawn of them.
    """
    batches.vision.ensure(examples, lambda done, total: log(f"patches {done}/{total}"))
    if batches.sam is not None and with_mask_inputs:
        batches.sam.ensure(examples, lambda done, total: log(f"SAM embeddings {done}/{total}"))
    if batches.superpixels is not None:
        batches.superpixels.ensure(examples, lambda done, total: log(f"superpixels {done}/{total}"))
