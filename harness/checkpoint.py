"""A trained cell as one safetensors file: what it learnt or drew, and in the metadata what else builds it again.

Pretrained parts are not in it: they are resolved by name as when the cell was trained, and must be the same by hash.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.assembly import Assembly, assemble
from harness.backbone.segmenter import Segmenter
from harness.backbone.strict import refuse_misfits
from harness.backbone.weights import WeightsRecord
from harness.errors import WeightsError
from harness.study import Cell, CellSpec

VERSION = "2"
"""1 left out what is drawn at random and never learns, as the frequencies of a mask head's positions."""


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


def load(path: Path, device: torch.device) -> Trained:
    """Build a cell again and give it what it learnt, strictly.

    Raises:
        WeightsError: no such file, no checkpoint of a cell, one of other pretrained weights than those found now, or of
            tensors that do not fit the cell as this version builds it.
    """
    try:
        with safe_open(path, "pt", str(device)) as file:
            metadata = file.metadata() or {}
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as the checkpoint of a cell: {error}") from None
    if "version" not in metadata:
        raise WeightsError(f"{path} is no checkpoint of a cell; name a file of runs/<study>/cells/*.safetensors")
    if metadata["version"] != VERSION:
        raise WeightsError(
            f"{path} is a checkpoint of version {metadata['version']}, and {VERSION} is read; run its cell again, in "
            "another folder (--out)"
        )
    spec = CellSpec.model_validate_json(metadata["spec"])
    assembly = assemble(spec, json.loads(metadata["words"]), device)
    _refuse_others(path, json.loads(metadata["weights"]), assembly.weights)
    own = _own(assembly.segmenter)
    refuse_misfits(
        str(path),
        "the cell",
        missing=own.keys() - saved.keys(),
        unexpected=saved.keys() - own.keys(),
        reshaped={name for name in own.keys() & saved.keys() if own[name].shape != saved[name].shape},
    )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(saved[name])
    return Trained(metadata["arm"], int(metadata["seed"]), spec, assembly)


def _own(segmenter: Segmenter) -> dict[str, Tensor]:
    """Parameters and buffers, by name: what learns, and what else does not come with a pretrained LLM."""
    held = segmenter.state_dict().keys()
    named = {**dict(segmenter.named_parameters()), **dict(segmenter.named_buffers())}  # what is tied, once
    return {
        name: value
        for name, value in named.items()
        if name in held and (value.requires_grad or not name.startswith("llm.model."))
    }


def _refuse_others(path: Path, trained_on: list[dict[str, str]], found: tuple[WeightsRecord, ...]) -> None:
    """Raises where a pretrained part is another than the one that the cell was trained on."""
    now = {record.name: record.sha256 for record in found}
    for record in trained_on:
        if now.get(record["name"]) != record["sha256"]:
            raise WeightsError(
                f"{path} was trained on {record['name']!r} of sha256 {record['sha256'][:12]}, but what is found under "
                f"that name has {str(now.get(record['name']))[:12]}; restore the weights it was trained on"
            )
