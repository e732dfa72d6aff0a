"""Saves and loads a trained cell as one safetensors file, with its specification in the metadata.

Frozen pretrained weights are not saved. They are resolved by name when the cell is loaded, and their hash must match.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.assembly.assembly import Assembly, assemble
from harness.errors import WeightsError
from harness.model.segmenter import Segmenter
from harness.model.weights.resolution import WeightsRecord, resolve
from harness.model.weights.strict_loading import check_state_dict
from harness.study.study import Cell, CellSpec

VERSION = "4"
"""Version of the file format; a checkpoint of another version is refused."""
MEMORY_SETTINGS = {"gradient_checkpointing"}
"""Settings of the backbone that change the memory of training and not its result."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A loaded cell.

    Args:
        arm, seed: as in the cell's row of results.
    """

    arm: str
    seed: int
    spec: CellSpec
    assembly: Assembly


def save(path: Path, cell: Cell, assembly: Assembly, words: list[str]) -> None:
    """Save a trained cell.

    Args:
        words: vocabulary of an LLM from scratch.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in _own_tensors(assembly.segmenter).items()}
    metadata = {
        "version": VERSION,
        "arm": cell.arm,
        "seed": str(cell.seed),
        "spec": cell.spec.model_dump_json(),
        "words": json.dumps(words),
        "weights": json.dumps([record.as_row() for record in assembly.weights]),
    }
    save_file(tensors, path, metadata)


def load(path: Path, device: torch.device, precision: str | None = None) -> Trained:
    """Load a trained cell, strictly.

    Args:
        precision: replaces `training.precision`, which determines the dtype of the LLM's frozen weights; None for the
            precision of training. `Trained.spec` holds the result.

    Raises:
        WeightsError: the file is missing or not a cell's checkpoint of this version, its tensors do not match the cell,
            or pretrained weights differ from those of training.
    """
    saved = _Saved.load(path, device)
    try:
        spec = CellSpec.model_validate(saved.spec)
        if precision is not None:
            training = spec.training.model_copy(update={"precision": precision})
            spec = spec.model_copy(update={"training": training})
        assembly = assemble(spec, saved.words, device)
    except ValidationError as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path} holds a cell with settings that this version does not support: {reason}") from None
    _check_pretrained(str(path), saved.weights, assembly.weights)
    _copy_tensors(_own_tensors(assembly.segmenter), saved.tensors, str(path), "the cell")
    return Trained(saved.arm, saved.seed, spec, assembly)


def reload(path: Path, assembly: Assembly) -> None:
    """Copy the tensors of another checkpoint of the same cell into an assembly.

    Raises:
        WeightsError: the file is missing or not a checkpoint of this cell.
    """
    saved = _Saved.load(path, next(assembly.segmenter.parameters()).device)
    _copy_tensors(_own_tensors(assembly.segmenter), saved.tensors, str(path), "the cell")


class Initialization:
    """The LLM and the mask decoder of a trained cell, from which other cells are initialized.

    Args:
        spec: specification of the cell to initialize, with `init_from`; its backbone must be that of the checkpoint.

    Raises:
        WeightsError: the checkpoint is not found, is not that of a cell, or was trained on another backbone.
    """

    def __init__(self, spec: CellSpec, device: torch.device) -> None:
        assert spec.init_from is not None
        self._spec = spec
        self.record = resolve(spec.init_from.name)
        if self.record.folder is None or self.record.file is None:
            raise WeightsError(
                f"init_from: {self.record.name!r} is not a file; use the checkpoint of a cell, *.safetensors"
            )
        self._saved = _Saved.load(self.record.folder / self.record.file, device)
        for component in _backbone(spec):
            config = getattr(spec, component)
            trained = dict(type(config).model_validate(self._saved.spec[component]))
            for setting, value in config:
                if value != trained[setting] and setting not in MEMORY_SETTINGS:
                    raise WeightsError(
                        f"init_from: {self.record.name!r} was trained with {component}.{setting}={trained[setting]}, "
                        f"but this cell has {value}; use the same value, or set init_from: null"
                    )

    def vocabulary_for(self, words: Iterable[str]) -> list[str]:
        """The vocabulary of the checkpoint.

        Raises:
            WeightsError: an LLM from scratch lacks one of these words.
        """
        missing = sorted(set(words) - set(self._saved.words))
        if self._saved.spec["llm"]["name"] == "tiny" and missing:
            raise WeightsError(
                f"init_from: the vocabulary of {self.record.name!r} lacks {', '.join(map(repr, missing[:8]))}, used by "
                "the training data; name a checkpoint that was trained on these words, or set init_from: null"
            )
        return self._saved.words

    def load_into(self, assembly: Assembly) -> None:
        """Copy all tensors but the projector's into a cell.

        Raises:
            WeightsError: the checkpoint was trained on other pretrained weights, or its tensors do not match the cell.
        """
        names = {getattr(self._spec, component).name for component in _backbone(self._spec)}
        backbone = [record for record in self._saved.weights if record["name"] in names]
        _check_pretrained(self.record.name, backbone, assembly.weights)
        own = _without_projector(_own_tensors(assembly.segmenter))
        saved = _without_projector(self._saved.tensors)
        _copy_tensors(own, saved, self.record.name, "the LLM and mask decoder of the cell")


@dataclass(frozen=True, slots=True)
class _Saved:
    """Content of a checkpoint file; `spec` is not validated."""

    arm: str
    seed: int
    spec: dict[str, Any]
    words: list[str]
    weights: list[dict[str, str]]
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "_Saved":
        """Raise WeightsError if the file is not a cell's checkpoint of this version."""
        try:
            with safe_open(path, "pt", str(device)) as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path} cannot be read as the checkpoint of a cell: {error}") from None
        if "version" not in metadata:
            raise WeightsError(f"{path} is not the checkpoint of a cell; use a file runs/<study>/cells/*.safetensors")
        if metadata["version"] != VERSION:
            raise WeightsError(
                f"{path} is a checkpoint of version {metadata['version']}, but only {VERSION} is supported; run its "
                "cell again, in another folder (--out)"
            )
        try:
            spec, words, weights = (json.loads(metadata[key]) for key in ("spec", "words", "weights"))
            identity = metadata["arm"], int(metadata["seed"])
            are_names = all(isinstance(word, str) for word in words) and all(
                isinstance(weight["name"], str) and "sha256" in weight for weight in weights
            )
            is_valid = are_names and isinstance(spec["projector"]["name"], str) and isinstance(spec["llm"]["name"], str)
        except (KeyError, TypeError, ValueError):
            is_valid = False
        if not is_valid:
            raise WeightsError(f"{path} has invalid metadata; run its cell again, in another folder (--out)")
        return cls(*identity, spec, words, weights, tensors)


def _own_tensors(segmenter: Segmenter) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, without the frozen ones of a pretrained LLM or a frozen SAM."""
    persistent = segmenter.state_dict().keys()
    named = {**dict(segmenter.named_parameters()), **dict(segmenter.named_buffers())}  # tied parameters appear once
    pretrained = ("llm.model.",) if segmenter.mask_decoder.learns else ("llm.model.", "mask_decoder.")
    return {
        name: value
        for name, value in named.items()
        if name in persistent and (value.requires_grad or not name.startswith(pretrained))
    }


def _backbone(spec: CellSpec) -> list[str]:
    """Components whose settings must equal the checkpoint's; only a mask decoder from scratch depends on patches."""
    return ["llm", "mask_decoder", *(["vision_encoder"] if spec.mask_decoder.name == "scratch" else [])]


def _without_projector(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not name.startswith(("projector.", "visual_gain"))}


def _copy_tensors(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], name: str, kind: str) -> None:
    """Copy saved tensors in place; raise WeightsError for missing, unexpected or reshaped ones."""
    check_state_dict(
        name,
        kind,
        missing=own.keys() - saved.keys(),
        unexpected=saved.keys() - own.keys(),
        reshaped={key for key in own.keys() & saved.keys() if own[key].shape != saved[key].shape},
    )
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(saved[key])


def _check_pretrained(name: str, trained_on: Iterable[Mapping[str, str]], found: tuple[WeightsRecord, ...]) -> None:
    """Raise WeightsError if the hash of a pretrained component differs from that in training."""
    hashes = {record.name: record.sha256 for record in found}
    for record in trained_on:
        if hashes.get(record["name"]) != record["sha256"]:
            raise WeightsError(
                f"{name} was trained on {record['name']!r} with sha256 {record['sha256'][:12]}, but that name "
                f"resolves to {str(hashes.get(record['name']))[:12]}; restore the weights it was trained on"
            )
