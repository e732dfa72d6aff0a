"""A trained cell as one safetensors file: what it learnt or drew, and in the metadata what else builds it again.

Pretrained parts are not in it: they are resolved by name as when the cell was trained, and must be the same by hash.
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
"""Format of the file. A checkpoint of another version is refused."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A cell that was read back, on its device.

    Args:
        arm, seed: of the cell, as in its row.
    """

    arm: str
    seed: int
    spec: CellSpec
    assembly: Assembly


def save(path: Path, cell: Cell, assembly: Assembly, words: list[str]) -> None:
    """Write what makes a cell and is in no pretrained file.

    Args:
        words: what an LLM from scratch took its vocabulary from.
    """
    own = {name: value.detach().cpu().contiguous() for name, value in _own(assembly.segmenter).items()}
    metadata = {
        "version": VERSION,
        "arm": cell.arm,
        "seed": str(cell.seed),
        "spec": cell.spec.model_dump_json(),
        "words": json.dumps(words),
        "weights": json.dumps([record.as_row() for record in assembly.weights]),
    }
    save_file(own, path, metadata)


def load(path: Path, device: torch.device, precision: str | None = None) -> Trained:
    """Build a cell again and give it what it learnt, strictly.

    Args:
        path: of the checkpoint.
        device: where the cell is to run.
        precision: that the cell will run in, as `training.precision`; it decides the dtype of the LLM's base. None for
            the precision of its training. `Trained.spec` holds it.

    Raises:
        WeightsError: no such file, no checkpoint of a cell, one of other pretrained weights than those found now, or of
            tensors that do not fit the cell as this version builds it.
    """
    saved = _Saved.read(path, device)
    try:
        spec = CellSpec.model_validate(saved.spec)
        if precision is not None:
            training = spec.training.model_copy(update={"precision": precision})
            spec = spec.model_copy(update={"training": training})
        assembly = assemble(spec, saved.words, device)
    except ValidationError as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path} holds a cell with settings that this version does not know: {reason}") from None
    _refuse_others(str(path), saved.weights, assembly.weights)
    _give(_own(assembly.segmenter), saved.tensors, str(path), "the cell")
    return Trained(saved.arm, saved.seed, spec, assembly)


class Initialization:
    """The LLM and the mask decoder of a trained cell, from which other cells are initialized.

    Args:
        spec: of the cell that begins; says which start, by name or file, and must have the backbone that it has.

    Raises:
        WeightsError: the start cannot be had, is no checkpoint of a cell, or was trained on another backbone.
    """

    def __init__(self, spec: CellSpec, device: torch.device) -> None:
        assert spec.init_from is not None
        self._spec = spec
        self.record = resolve(spec.init_from.name)
        if self.record.folder is None or self.record.file is None:
            raise WeightsError(
                f"init_from: {self.record.name!r} is no file; name the checkpoint of a cell, *.safetensors"
            )
        self._saved = _Saved.read(self.record.folder / self.record.file, device)
        for section in _backbone(spec):
            own = getattr(spec, section)
            trained = dict(type(own).model_validate(self._saved.spec[section]))
            for setting, value in own:
                if value != trained[setting]:
                    raise WeightsError(
                        f"init_from: {self.record.name!r} was trained with {section}.{setting} {trained[setting]}, and "
                        f"this cell has {value}; give the cell the same, or set init_from: null"
                    )

    def vocabulary_for(self, words: Iterable[str]) -> list[str]:
        """The vocabulary of the start, if it has all of these words.

        Raises:
            WeightsError: an LLM from scratch never read one of them.
        """
        unread = sorted(set(words) - set(self._saved.words))
        if self._saved.spec["llm"]["name"] == "tiny" and unread:
            raise WeightsError(
                f"init_from: the vocabulary of {self.record.name!r} lacks {', '.join(map(repr, unread[:8]))}, used by "
                "the training data; name a checkpoint that was trained on these words, or set init_from: null"
            )
        return self._saved.words

    def load_into(self, assembly: Assembly) -> None:
        """Everything but the projector, in place.

        Raises:
            WeightsError: it was trained on other pretrained weights, or its tensors do not fit this version's.
        """
        names = {getattr(self._spec, section).name for section in _backbone(self._spec)}
        backbone = [record for record in self._saved.weights if record["name"] in names]
        _refuse_others(self.record.name, backbone, assembly.weights)
        own, saved = (_without_projector(tensors) for tensors in (_own(assembly.segmenter), self._saved.tensors))
        _give(own, saved, self.record.name, "LLM and mask decoder of the cell")


@dataclass(frozen=True, slots=True)
class _Saved:
    """What a checkpoint's file holds; `spec` as it was written, perhaps by another version."""

    arm: str
    seed: int
    spec: dict[str, Any]
    words: list[str]
    weights: list[dict[str, str]]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path, device: torch.device) -> "_Saved":
        """Raises WeightsError where it is no checkpoint of a cell of this version."""
        try:
            with safe_open(path, "pt", str(device)) as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path} cannot be read as the checkpoint of a cell: {error}") from None
        if "version" not in metadata:
            raise WeightsError(f"{path} is no checkpoint of a cell; name a file of runs/<study>/cells/*.safetensors")
        if metadata["version"] != VERSION:
            raise WeightsError(
                f"{path} is a checkpoint of version {metadata['version']}, and {VERSION} is read; run its cell again, "
                "in another folder (--out)"
            )
        try:
            spec, words, weights = (json.loads(metadata[key]) for key in ("spec", "words", "weights"))
            about = metadata["arm"], int(metadata["seed"])
            are_names = all(isinstance(word, str) for word in words) and all(
                isinstance(weight["name"], str) and "sha256" in weight for weight in weights
            )
            is_whole = are_names and isinstance(spec["projector"]["name"], str) and isinstance(spec["llm"]["name"], str)
        except (KeyError, TypeError, ValueError):
            is_whole = False
        if not is_whole:
            raise WeightsError(
                f"{path} does not say whole what cell it is of; run the cell again, in another folder (--out)"
            )
        return cls(*about, spec, words, weights, tensors)


def _own(segmenter: Segmenter) -> dict[str, Tensor]:
    """Parameters and buffers, by name: what learns, and what else comes with no pretrained LLM and no frozen SAM."""
    held = segmenter.state_dict().keys()
    named = {**dict(segmenter.named_parameters()), **dict(segmenter.named_buffers())}  # what is tied, once
    pretrained = ("llm.model.",) if segmenter.mask_decoder.learns else ("llm.model.", "mask_decoder.")
    return {
        name: value
        for name, value in named.items()
        if name in held and (value.requires_grad or not name.startswith(pretrained))
    }


def _backbone(spec: CellSpec) -> list[str]:
    """The sections in which a cell must be as the one it begins with; only a head from scratch looks at patches."""
    return ["llm", "mask_decoder", *(["vision_encoder"] if spec.mask_decoder.name == "scratch" else [])]


def _without_projector(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not name.startswith(("projector.", "visual_gain"))}


def _give(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], name: str, kind: str) -> None:
    """Copies what was saved, of which nothing may be missing, left over, or of another shape."""
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


def _refuse_others(name: str, trained_on: Iterable[Mapping[str, str]], found: tuple[WeightsRecord, ...]) -> None:
    """Raises where a pretrained part is another than the one that the cell was trained on."""
    now = {record.name: record.sha256 for record in found}
    for record in trained_on:
        if now.get(record["name"]) != record["sha256"]:
            raise WeightsError(
                f"{name} was trained on {record['name']!r} of sha256 {record['sha256'][:12]}, but what is found under "
                f"that name has {str(now.get(record['name']))[:12]}; restore the weights it was trained on"
            )
