"""Download size and memory of a study, before anything is fetched; and fetching its pretrained weights."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import huggingface_hub

from harness.errors import WeightsError
from harness.model.config import LINEAR
from harness.model.vision.built_in import BUILT_IN, RANDOM
from harness.model.weights.known import CHECKPOINTS, PACKAGED, SHIPPED
from harness.model.weights.resolution import HUB_ID, check_name, resolve
from harness.planning.cards import step_report, this_machine
from harness.planning.published import PUBLISHED, Published
from harness.study.study import CellSpec
from harness.system.cache_folder import cache_dir
from harness.system.device import default_device
from harness.system.environment import accelerator, memory_gib
from harness.system.files import find
from harness.system.precision import resolve_precision

BYTES = {"float32": 4.0, "bfloat16": 2.0, "4bit": 0.5}
"""Bytes per parameter of the base LLM, by precision or quantization; everything else is stored in float32."""
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Files of a checkpoint on the hub; at least one of them is in the cache if the checkpoint was fetched."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """Pretrained weights that a study requires.

    Args:
        is_cached: whether nothing has to be fetched.
        published: None for weights that are not among `PUBLISHED`.
    """

    name: str
    is_cached: bool
    published: Published | None

    def __str__(self) -> str:
        if self.is_cached:
            return f"{self.name} (cached)"
        size = "unknown size" if self.published is None else f"{self.published.download_bytes / 1e9:.1f} GB"
        return f"{self.name} ({size} to fetch)"


def requirements_of(specs: Iterable[CellSpec]) -> list[Requirement]:
    """The pretrained weights that these cells require, each once.

    Raises:
        WeightsError: a name refers to no weights.
    """
    parts = dict.fromkeys(part for spec in specs for part in _parts(spec))
    for part in parts:
        _check(part)
    names = dict.fromkeys(part.name for part in parts)
    return [Requirement(name, _is_cached(name), PUBLISHED.get(name)) for name in names]


def fetch(specs: Iterable[CellSpec]) -> None:
    """Fetches all pretrained weights of these cells.

    Raises:
        WeightsError: weights cannot be fetched.
    """
    for requirement in requirements_of(specs):
        resolve(requirement.name)


class _Part(NamedTuple):
    """Weights that a cell refers to.

    Attributes:
        kind: of the component that they are for.
    """

    setting: str
    name: str
    kind: str


def _parts(spec: CellSpec) -> list[_Part]:
    """The pretrained weights that a cell refers to; components built from scratch are left out."""
    named: list[tuple[str, str | None, str]] = [
        ("vision_encoder.name", spec.vision_encoder.name, "encoder"),
        ("llm.name", spec.llm.name, "llm"),
        ("mask_decoder.name", spec.mask_decoder.name, "mask_decoder"),
        ("superpixels.model", (spec.superpixels or {}).get("model"), "mask_decoder"),
        ("init_from.name", spec.init_from.name if spec.init_from else None, "checkpoint"),
        ("projector.weights", spec.projector.get("weights"), "projector"),
    ]
    untrained = {
        ("llm", "tiny"),
        ("llm", LINEAR),
        ("mask_decoder", "scratch"),
        *(("encoder", RANDOM + name) for name in BUILT_IN),
    }
    return [
        _Part(setting, name, kind)
        for setting, name, kind in named
        if name is not None and (kind, name) not in untrained
    ]


def _check(part: _Part) -> None:
    """Raises a WeightsError if the name cannot refer to weights of this component."""
    known = PACKAGED.get(part.name) or SHIPPED.get(part.name)
    kind = known.kind if known else "mask_decoder" if part.name in CHECKPOINTS else part.kind
    if kind != part.kind:
        section = {"encoder": "vision_encoder"}.get(kind, kind)
        raise WeightsError(f"{part.setting}: found {part.name!r}, which is for {section}.name; name other weights")
    try:
        check_name(part.name)
    except WeightsError as error:
        raise WeightsError(f"{part.setting}: {error}") from None


def _is_cached(name: str) -> bool:
    if name in SHIPPED or find(name) is not None:
        return True
    if name in PACKAGED:
        return (cache_dir() / "weights" / name / Path(PACKAGED[name].member).name).exists()
    if name in CHECKPOINTS:
        checkpoint, folder = CHECKPOINTS[name], cache_dir() / "weights" / name
        files = [Path(checkpoint.member).name, *([checkpoint.npm.tarball] if checkpoint.npm else [])]
        is_in_cache = any((folder / file).exists() for file in files)
        return is_in_cache or _is_in_hub_cache(checkpoint.repository, None, checkpoint.member)
    hub_id = HUB_ID.fullmatch(name)
    return hub_id is not None and any(
        _is_in_hub_cache(hub_id["repository"], hub_id["revision"], file) for file in WEIGHT_FILES
    )


def _is_in_hub_cache(repository: str, revision: str | None, file: str) -> bool:
    found = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
    return isinstance(found, str | os.PathLike)


def verdict(specs: Iterable[CellSpec]) -> str:
    """Lines on what is fetched, the memory of the largest cell's weights and of its training step, and the devices."""
    specs = list({id(spec): spec for spec in specs}.values())  # the seeds of a point share one
    where, has = _memory()
    machine = None if has is None else this_machine(f"{where} ({has:.1f} GiB)", has)
    trained = [spec for spec in specs if spec.llm.name != LINEAR]  # the others take no training steps
    weights = _weights_verdict(specs, where, has)
    return f"{weights}\n{step_report(trained, machine)}" if trained else weights


def _weights_verdict(specs: Sequence[CellSpec], where: str, has: float | None) -> str:
    """A sentence on the pretrained weights."""
    requirements = {requirement.name: requirement for requirement in requirements_of(specs)}
    if not requirements:
        return "no pretrained weights are required"
    parts = ", ".join(map(str, requirements.values()))
    required = max(
        _memory_gib(spec, [requirements[name] for name in dict.fromkeys(part.name for part in _parts(spec))])
        for spec in specs
    )
    unknown = [requirement.name for requirement in requirements.values() if requirement.published is None]
    rest = f", without {', '.join(unknown)} (size unknown)" if unknown else ""
    if has is None:
        conclusion = "the memory of this machine is unknown"
    elif any(spec.llm.quantization for spec in specs) and default_device().type != "cuda":
        conclusion = f"llm.quantization requires a CUDA device, found {where}: this machine cannot run the study"
    elif required > has:
        conclusion = f"{where} has {has:.1f} GiB: this machine cannot run the study"
    else:
        conclusion = f"{where} has {has:.1f} GiB; training requires more memory than the weights"
    return f"weights: {parts}; they take up to {required:.1f} GiB per cell{rest}; {conclusion}"


def _memory_gib(spec: CellSpec, requirements: Iterable[Requirement]) -> float:
    llm_bytes = BYTES[spec.llm.quantization or resolve_precision(spec.training.precision, default_device())]
    return (
        sum(
            (llm_bytes if requirement.name == spec.llm.name else BYTES["float32"]) * requirement.published.parameters
            for requirement in requirements
            if requirement.published
        )
        / 2**30
    )


def _memory() -> tuple[str, float | None]:
    """The device on which cells run, and its memory in GiB."""
    device = accelerator()
    return (device["device"], device["device_memory_gib"]) if "cuda" in device else ("the CPU", memory_gib())
