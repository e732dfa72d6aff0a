"""Builds the untrained components of one cell: data, caches, projector, LLM, mask decoder."""

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
from harness.model.config import LINEAR, VisionConfig
from harness.model.linear.bag_of_words import BagOfWords
from harness.model.linear.frozen_tokens import FrozenTokens
from harness.model.linear.masks import RegionMasks, TokenPointMasks
from harness.model.linear.reader import LinearReader
from harness.model.llm.language_model import build_llm
from harness.model.mask_decoder.decoder import MaskDecoder, PatchEmbedding, SamEmbedding
from harness.model.mask_decoder.from_scratch import build_mask_decoder
from harness.model.mask_decoder.point_prompted import PointPromptedMaskDecoder
from harness.model.segmenter import Segmenter
from harness.model.vision.encoder import VisionEncoder, load_vision_encoder
from harness.model.weights.resolution import WeightsRecord, resolve
from harness.model.weights.strict_loading import read_tensors
from harness.study.study import CellSpec
from harness.system.device import default_device
from harness.system.precision import resolve_precision
from harness.system.time_left import counted
from projectors import Dims, IncompatibleError

DECODER_PE_STRIDE = 4
"""Pixels of the frame per cell of the decoder's positional encoding in a projector's input."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """The components of one cell.

    Args:
        weights: source of each pretrained component.
    """

    segmenter: Segmenter
    batches: BatchMaker
    weights: tuple[WeightsRecord, ...]


@lru_cache(maxsize=1)
def vision_encoder(config: VisionConfig) -> VisionEncoder:
    """Load the frozen vision encoder once for all cells that share it; the global random state is not changed."""
    with torch.random.fork_rng(devices=[]):
        return load_vision_encoder(config).to(default_device())


@lru_cache(maxsize=4)
def _examples(settings: str, split: str) -> Sequence[Example]:
    name = json.loads(settings)["name"]
    source = data.get(name)
    found = source.load(source.Config.model_validate_json(settings), split)
    if not found:
        raise DataError(f"{name} has no images in split {split!r}; check its files, or use another split")
    return found


def load_examples(spec: CellSpec, split: str) -> Sequence[Example]:
    """Load a split of the cell's data, once for all cells that share it.

    Raises:
        DataError: a file is missing or malformed, or the split is empty.
    """
    return _examples(json.dumps(spec.data, sort_keys=True), split)


def build_vocabulary(examples: Sequence[Example]) -> list[str]:
    """Every word of the examples' queries and answers, sorted."""
    texts = [
        text
        for example in examples
        for one in example.queries
        for text in ((one.text, one.answer) if isinstance(one, Question) else (one.text,))
    ]
    return sorted({word for text in texts for word in text.split()})


def assemble(spec: CellSpec, words: Iterable[str], device: torch.device) -> Assembly:
    """Build the components of a cell on a device.

    Args:
        words: vocabulary of an LLM from scratch.

    Raises:
        IncompatibleError: the backbone does not satisfy the projector's requirements.
        WeightsError: pretrained weights are not found or do not load.
    """
    encoder = vision_encoder(spec.vision_encoder)
    is_half = resolve_precision(spec.training.precision, device) == "bfloat16"
    base = torch.bfloat16 if is_half else torch.float32
    llm = BagOfWords(spec.llm, words) if spec.llm.name == LINEAR else build_llm(spec.llm, words, base)
    mask_decoder, image_embedding, sam = _mask_decoder(spec, encoder)
    superpixels, max_superpixels = _superpixels(spec)
    dims = Dims(
        vision=encoder.width,
        language=encoder.width if isinstance(llm, BagOfWords) else llm.width,
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
            f"{spec.projector['name']} requires a CLS token, and {spec.vision_encoder.name!r} has none; "
            "use an encoder with one, such as CLIP or DINOv2"
        )
    if isinstance(llm, BagOfWords):
        tokens = FrozenTokens(projector, spec.projector["name"])
        masks = _token_masks(mask_decoder, encoder.grid)
        segmenter: Segmenter = LinearReader(tokens, llm, masks).to(device)
    else:
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
        mask_decoder.location_grid,
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
    """The mask decoder, its image embedding module, and the cache of SAM's embeddings if it is a SAM's."""
    config = spec.mask_decoder
    if config.name == "scratch":
        mask_decoder = build_mask_decoder(config, encoder.grid, spec.vision_encoder.frame)
        return mask_decoder, PatchEmbedding(encoder.width, mask_decoder, encoder.grid), None
    model = frozen_sam(config.name)
    # Copies, because the same SAM proposes mask candidates and must not be trained.
    prompt_encoder, decoder = deepcopy(model.sam.prompt_encoder), deepcopy(model.sam.mask_decoder)
    if config.prompt == "points":
        return PointPromptedMaskDecoder(prompt_encoder, decoder), SamEmbedding(), SamCache(model)
    return MaskDecoder(prompt_encoder, decoder.requires_grad_(True)), SamEmbedding(), SamCache(model)


def _token_masks(mask_decoder: MaskDecoder, grid: tuple[int, int]) -> RegionMasks | TokenPointMasks:
    """How the linear reader draws the tokens that it selects: with a frozen SAM, or else as their regions."""
    if isinstance(mask_decoder, PointPromptedMaskDecoder):
        return TokenPointMasks(mask_decoder, grid)
    return RegionMasks(grid)


def _projector(spec: CellSpec, dims: Dims) -> tuple[projectors.Projector, tuple[WeightsRecord, ...]]:
    """The projector, and the record of its authors' weights if it starts from them."""
    kind = projectors.get(spec.projector["name"])
    config = kind.Config(**{key: value for key, value in spec.projector.items() if key != "name"})
    projector = kind(config, dims)
    if config.weights is None:
        return projector, ()
    record = resolve(config.weights)
    if record.folder is None or record.file is None:
        raise WeightsError(
            f"projector.weights={config.weights!r} is not a file; use the authors' checkpoint file, such as "
            "mm_projector.bin"
        )
    projector.load_official(read_tensors(record.folder / record.file, record.name))
    return projector, (record,)


def _superpixels(spec: CellSpec) -> tuple[SuperpixelCache | None, int]:
    """The cache of superpixels, and the largest number of them per image."""
    if spec.superpixels is None:
        return None, 0
    name = spec.superpixels["name"]
    settings = {key: value for key, value in spec.superpixels.items() if key != "name"}
    config = sources.get(name).Config(**settings)
    return SuperpixelCache(name, config, spec.vision_encoder.frame), config.max_superpixels


def prepare(
    batches: BatchMaker, examples: Sequence[Example], log: Callable[[str], None], *, with_mask_inputs: bool = True
) -> None:
    """Fill the caches for these images, so that training and scoring only load from them.

    Args:
        log: called with progress messages.
        with_mask_inputs: whether the mask decoder's input is required.
    """

    def fill(cache: VisionCache | SamCache | SuperpixelCache, content: str) -> None:
        cache.ensure(
            examples,
            on_progress=counted(content, log),
            on_wait=lambda: log(f"{content}: waiting for another worker"),
        )

    fill(batches.vision, "patches")
    if batches.sam is not None and with_mask_inputs:
        fill(batches.sam, "SAM embeddings")
    if batches.superpixels is not None:
        fill(batches.superpixels, "superpixels")
