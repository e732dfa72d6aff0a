"""What the pretrained weights of a study ask of a machine, known before anything is fetched; and fetching them."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import huggingface_hub

from harness.errors import WeightsError
from harness.model.vision.encoder import ARCHITECTURES, RANDOM
from harness.model.weights.known import CHECKPOINTS, PACKAGED, SHIPPED
from harness.model.weights.resolution import HUB_ID, check_name, resolve
from harness.study.study import CellSpec
from harness.system.cache_folder import cache_dir
from harness.system.device import default_device
from harness.system.environment import accelerator, memory_gib
from harness.system.files import find
from harness.system.precision import resolve_precision

BYTES = {"float32": 4.0, "bfloat16": 2.0, "4bit": 0.5}
"""A number of the LLM's base in memory, by precision or quantization; all else is held in float32."""
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Of a checkpoint on the hub, one of which is there where it has been fetched."""


@dataclass(frozen=True, slots=True)
class Published:
    """What is known of weights without having them.

    Args:
        parameters: of the part that is used: of CLIP and of Qwen2-VL, the vision tower.
        download_bytes: of the files that are fetched.
    """

    parameters: int
    download_bytes: int


PUBLISHED = {
    "dinov2-small": Published(22_056_192, 90_210_194),
    "smollm2-135m": Published(134_515_008, 92_871_040),
    "clip-scenes": Published(1_942_656, 0),
    "mllm-scenes": Published(678_624, 0),
    "sam-scenes": Published(1_910_084, 0),
    "smollm2-scenes": Published(1_594_274, 0),
    "sam-vit-b": Published(93_735_472, 375_042_383),
    "sam-vit-l": Published(312_342_832, 1_249_524_607),
    "sam-vit-h": Published(641_090_608, 2_564_550_879),
    "facebook/dinov2-large": Published(304_368_640, 1_217_474_560),
    "openai/clip-vit-large-patch14-336": Published(303_507_456, 1_711_776_772),
    "lmsys/vicuna-7b-v1.5": Published(6_738_415_616, 13_476_831_232),
    "Qwen/Qwen2.5-7B-Instruct": Published(7_615_616_512, 15_231_233_024),
    "Qwen/Qwen2-VL-7B-Instruct": Published(631_183_360, 16_582_750_208),
}
"""Counts are those of the architectures, bytes those of the numbers as published, without headers."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One pretrained part.

    Args:
        is_here: whether nothing has to be fetched.
        published: None for weights that are not among `PUBLISHED`.
    """

    name: str
    is_here: bool
    published: Published | None

    def __str__(self) -> str:
        if self.is_here:
            return f"{self.name} (here)"
        size = "of unknown size" if self.published is None else f"{self.published.download_bytes / 1e9:.1f} GB"
        return f"{self.name} ({size} to fetch)"


def requirements_of(specs: Iterable[CellSpec]) -> list[Requirement]:
    """The pretrained parts that these cells hold, each once.

    Raises:
        WeightsError: a name can stand for no weights.
    """
    parts = dict.fromkeys(part for spec in specs for part in _parts(spec))
    for part in parts:
        _check(part)
    names = dict.fromkeys(part.name for part in parts)
    return [Requirement(name, _is_here(name), PUBLISHED.get(name)) for name in names]


def fetch(specs: Iterable[CellSpec]) -> None:
    """Every pretrained part of these cells is here afterwards.

    Raises:
        WeightsError: one cannot be had.
    """
    for need in requirements_of(specs):
        resolve(need.name)


class _Part(NamedTuple):
    """Weights that a cell names.

    Attributes:
        kind: of what they are for.
    """

    setting: str
    name: str
    kind: str


def _parts(spec: CellSpec) -> list[_Part]:
    """The pretrained parts that a cell names, those built from scratch left out."""
    named: list[tuple[str, str | None, str]] = [
        ("vision_encoder.name", spec.vision_encoder.name, "encoder"),
        ("llm.name", spec.llm.name, "llm"),
        ("mask_decoder.name", spec.mask_decoder.name, "mask_decoder"),
        ("superpixels.model", (spec.superpixels or {}).get("model"), "mask_decoder"),
        ("init_from.name", spec.init_from.name if spec.init_from else None, "checkpoint"),
        ("projector.weights", spec.projector.get("weights"), "projector"),
    ]
    untrained = {("llm", "tiny"), ("mask_decoder", "scratch"), *(("encoder", RANDOM + name) for name in ARCHITECTURES)}
    return [
        _Part(setting, name, kind)
        for setting, name, kind in named
        if name is not None and (kind, name) not in untrained
    ]


def _check(part: _Part) -> None:
    """Refuses a name that can stand for no weights of this part."""
    known = PACKAGED.get(part.name) or SHIPPED.get(part.name)
    kind = known.kind if known else "mask_decoder" if part.name in CHECKPOINTS else part.kind
    if kind != part.kind:
        place = {"encoder": "vision_encoder"}.get(kind, kind)
        raise WeightsError(f"{part.setting}: found {part.name!r}, which is for {place}.name; name other weights")
    try:
        check_name(part.name)
    except WeightsError as error:
        raise WeightsError(f"{part.setting}: {error}") from None


def _is_here(name: str) -> bool:
    if name in SHIPPED or find(name) is not None:
        return True
    if name in PACKAGED:
        return (cache_dir() / "weights" / name / Path(PACKAGED[name].member).name).exists()
    if name in CHECKPOINTS:
        own = cache_dir() / "weights" / name / Path(CHECKPOINTS[name].member).name
        return own.exists() or _is_cached(CHECKPOINTS[name].repository, None, CHECKPOINTS[name].member)
    hub_id = HUB_ID.fullmatch(name)
    return hub_id is not None and any(
        _is_cached(hub_id["repository"], hub_id["revision"], file) for file in WEIGHT_FILES
    )


def _is_cached(repository: str, revision: str | None, file: str) -> bool:
    found = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
    return isinstance(found, str | os.PathLike)


def verdict(specs: Iterable[CellSpec]) -> str:
    """What is fetched, what memory the weights of the largest cell take, and whether this machine has as much."""
    specs = list({id(spec): spec for spec in specs}.values())  # the seeds of a point share theirs
    requirements = {need.name: need for need in requirements_of(specs)}
    if not requirements:
        return "no pretrained weights"
    parts = ", ".join(map(str, requirements.values()))
    required = max(
        _memory_gib(spec, [requirements[name] for name in dict.fromkeys(part.name for part in _parts(spec))])
        for spec in specs
    )
    unknown = [need.name for need in requirements.values() if need.published is None]
    beside = f" beside {', '.join(unknown)}, whose size is unknown" if unknown else ""
    where, has = _memory()
    if has is None:
        conclusion = "how much this machine has is unknown"
    elif any(spec.llm.quantization for spec in specs) and default_device().type != "cuda":
        conclusion = f"llm.quantization needs a CUDA device, and {where} is what there is: this machine cannot run it"
    elif required > has:
        conclusion = f"{where} has {has:.1f} GiB: this machine cannot run it"
    else:
        conclusion = f"{where} has {has:.1f} GiB, of which training takes more than the weights"
    return f"weights: {parts}; a cell's take {required:.1f} GiB{beside}; {conclusion}"


def _memory_gib(spec: CellSpec, requirements: Iterable[Requirement]) -> float:
    llm_bytes = BYTES[spec.llm.quantization or resolve_precision(spec.training.precision, default_device())]
    return (
        sum(
            (llm_bytes if need.name == spec.llm.name else BYTES["float32"]) * need.published.parameters
            for need in requirements
            if need.published
        )
        / 2**30
    )


def _memory() -> tuple[str, float | None]:
    """Where cells run, and how much it holds."""
    device = accelerator()
    return (device["device"], device["device_memory_gib"]) if "cuda" in device else ("the CPU", memory_gib())
