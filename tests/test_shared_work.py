"""Processes that fill one cache compute every output once, and none waits for a process that has ended."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from harness.cache import shared_work
from harness.cache.shared_work import compute_missing

NUM_ITEMS, BATCH_SIZE = 40, 4
ITEMS = range(NUM_ITEMS)
SPAWN = get_context("spawn")
FRAME = 56


def output(folder: Path, item: int) -> Path:
    """The file of one item."""
    return folder / "outputs" / f"{item}.bin"


def fill(folder: Path, name: str, stuck_at: int | None = None) -> None:
    """Fill the cache of all items; a line of `NAME.log` records each computation.

    Args:
        stuck_at: item at which the process waits until the file `go` exists.
    """

    def compute(batch: Sequence[int]) -> Iterator[bytes]:
        for item in batch:
            if item == stuck_at:
                (folder / "stuck").touch()
                wait_for((folder / "go").exists)
            with (folder / f"{name}.log").open("a") as log:
                log.write(f"{item}\n")
            time.sleep(0.005)
            yield str(item).encode()

    compute_missing(((output(folder, item), item) for item in ITEMS), compute, BATCH_SIZE, lambda *_: None)


def wait_for(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Sleep until the condition holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def start(*arguments: object, target: Callable[..., None] = fill) -> BaseProcess:
    process = SPAWN.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def join(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def computed(folder: Path, name: str) -> list[int]:
    """The items that the process of this name has computed, in order."""
    path = folder / f"{name}.log"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def locks(folder: Path) -> list[Path]:
    return list(folder.rglob("*.lock"))


def assert_complete(folder: Path) -> None:
    """Every output has its content, and no other file is left."""
    assert {path.name: path.read_text() for path in (folder / "outputs").iterdir()} == {
        f"{item}.bin": str(item) for item in ITEMS
    }


@pytest.mark.parametrize("num_processes", [2, 4])
def test_every_item_is_computed_by_one_process(tmp_path, num_processes):
    names = [f"worker{number}" for number in range(num_processes)]
    # The first process holds a batch until the others have finished the rest, so that they do run at the same time.
    processes = [start(tmp_path, names[0], 2)]
    wait_for((tmp_path / "stuck").exists)
    processes += [start(tmp_path, name) for name in names[1:]]
    wait_for(lambda: sum(len(computed(tmp_path, name)) for name in names) == NUM_ITEMS - 2)
    (tmp_path / "go").touch()
    join(processes)
    assert Counter(item for name in names for item in computed(tmp_path, name)) == Counter(ITEMS)
    assert computed(tmp_path, names[0]) == [0, 1, 2, 3]
    assert_complete(tmp_path)


def test_processes_without_a_delay_compute_every_item_once(tmp_path):
    names = [f"worker{number}" for number in range(4)]
    join([start(tmp_path, name) for name in names])
    assert Counter(item for name in names for item in computed(tmp_path, name)) == Counter(ITEMS)
    assert_complete(tmp_path)


def test_the_items_of_a_killed_process_are_computed_by_another_one(tmp_path):
    killed = start(tmp_path, "killed", 2)
    wait_for((tmp_path / "stuck").exists)
    others = [start(tmp_path, name) for name in ("second", "third")]
    wait_for(lambda: len(computed(tmp_path, "second") + computed(tmp_path, "third")) == NUM_ITEMS - BATCH_SIZE)
    held = {f".{item}.bin.lock" for item in range(BATCH_SIZE)}
    wait_for(lambda: {path.name for path in locks(tmp_path)} == held)
    killed.kill()
    join(others)
    assert computed(tmp_path, "killed") == [0, 1]
    assert Counter(computed(tmp_path, "second") + computed(tmp_path, "third")) == Counter(range(2, NUM_ITEMS))
    # Outputs 0 and 1 were written before the process ended; nobody locks them again, so their lock files remain.
    for item in (0, 1):
        (tmp_path / "outputs" / f".{item}.bin.lock").unlink()
    assert_complete(tmp_path)


def test_a_waiting_process_computes_nothing_and_returns_when_the_holder_finishes(tmp_path):
    holder = start(tmp_path, "holder", 38)
    wait_for((tmp_path / "stuck").exists)
    progress: list[tuple[int, int]] = []
    waits: list[int] = []

    def on_wait() -> None:
        waits.append(len(progress))
        (tmp_path / "go").touch()

    outputs = [(output(tmp_path, item), item) for item in ITEMS]
    compute_missing(outputs, refuse, BATCH_SIZE, lambda *done: progress.append(done), on_wait)
    assert waits
    assert progress[-1] == (2, 2)  # 36 and 37 were written before the holder was stopped
    join([holder])
    assert computed(tmp_path, "holder") == list(ITEMS)


def refuse(batch: Sequence[int]) -> Iterator[bytes]:
    raise AssertionError(f"computed {batch}")


def test_progress_counts_each_missing_file_once(tmp_path):
    output(tmp_path, 0).parent.mkdir()
    output(tmp_path, 0).write_bytes(b"0")
    progress: list[tuple[int, int]] = []
    batches: list[list[int]] = []

    def compute(batch: Sequence[int]) -> list[bytes]:
        batches.append([*batch])
        assert len(locks(tmp_path)) == len(batch)
        return [b"content"] * len(batch)

    outputs = [(output(tmp_path, item), item) for item in (0, 1, 2, 1, 3, 4, 5)]
    compute_missing(outputs, compute, 2, lambda *done: progress.append(done))
    assert batches == [[1, 2], [3, 4], [5]]
    assert progress == [(2, 5), (4, 5), (5, 5)]
    assert locks(tmp_path) == []
    assert output(tmp_path, 0).read_bytes() == b"0"


def test_an_output_written_just_before_its_lock_is_free_is_not_computed(tmp_path, monkeypatch):
    lock = shared_work._try_lock

    def lock_after_another_process(path: Path) -> FileLock | None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"other")
        return lock(path)

    monkeypatch.setattr(shared_work, "_try_lock", lock_after_another_process)
    compute_missing([(output(tmp_path, 0), 0)], refuse, BATCH_SIZE, lambda *_: None)
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["0.bin"]


def test_a_complete_cache_is_only_read(tmp_path):
    fill(tmp_path, "first")
    before = (tmp_path / "outputs").stat().st_mtime_ns
    fill(tmp_path, "again")
    assert (tmp_path / "outputs").stat().st_mtime_ns == before
    assert computed(tmp_path, "again") == []


def test_a_failed_computation_leaves_no_lock(tmp_path):
    outputs = [(output(tmp_path, item), item) for item in ITEMS]
    with pytest.raises(AssertionError, match=r"computed \[0, 1, 2, 3\]") as error:
        compute_missing(outputs, refuse, BATCH_SIZE, lambda *_: None)
    assert locks(tmp_path) == []
    fill(tmp_path, "second")
    assert error.tb is not None, "the traceback, and so every local variable of the failed call, is alive"
    assert computed(tmp_path, "second") == list(ITEMS)


def vision_examples() -> list:
    from harness.data.example import Example

    images = np.random.default_rng(0).integers(0, 256, (24, FRAME, FRAME, 3), np.uint8)
    return [Example(f"noise-{number}", image, (), ()) for number, image in enumerate(images)]


def fill_vision(encoder: Path, cache: Path, start_file: Path | None = None) -> None:
    """Fill a cache with patches, attention and a layer of the images, with batches of five patches.

    Args:
        start_file: written when the models are loaded; encoding begins when there are two of them.
    """
    import torch

    from harness.cache.encodings import VisionCache
    from harness.model.config import VisionConfig
    from harness.model.vision.encoder import load_vision_encoder
    from harness.system.cache_folder import VARIABLE

    os.environ[VARIABLE] = str(cache)
    torch.set_num_threads(1)
    model = load_vision_encoder(VisionConfig(name=str(encoder), frame=FRAME))
    vision = VisionCache(model, FRAME, has_attention=True, layers=(1,))
    for part in (vision.patches, vision.attention, vision.layers):
        part.batch_images = 5
        encode = part.encode
        part.encode = lambda batch, encode=encode: log_batch(cache, batch, encode)
    if start_file is not None:
        start_file.touch()
        wait_for(lambda: len(list(start_file.parent.glob("*.ready"))) == 2)
    vision.ensure(vision_examples(), lambda *_: None)


def log_batch(cache: Path, batch: Sequence, encode: Callable) -> object:
    """Encode a batch slowly enough that the other process takes part."""
    with (cache / f"{os.getpid()}.log").open("a") as log:
        log.write("".join(f"{example.image_id}\n" for example in batch))
    time.sleep(0.1)
    return encode(batch)


def test_two_processes_write_the_encodings_of_one_process(tmp_path, monkeypatch):
    import torch
    from transformers import Dinov2Config, Dinov2Model

    from harness.system.cache_folder import VARIABLE

    torch.manual_seed(0)
    tiny = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=FRAME)
    Dinov2Model(tiny).save_pretrained(tmp_path / "encoder")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "one"))
    threads = torch.get_num_threads()
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    processes = [
        start(tmp_path / "encoder", tmp_path / "two", tmp_path / f"{number}.ready", target=fill_vision)
        for number in (0, 1)
    ]
    fill_vision(tmp_path / "encoder", tmp_path / "one")
    torch.set_num_threads(threads)
    join(processes)
    one, two = (
        {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*.npy")}
        for cache in (tmp_path / "one", tmp_path / "two")
    )
    assert len(one) == 3 * 24
    assert one == two
    logs = [path.read_text().split() for path in (tmp_path / "two").glob("*.log")]
    assert len(logs) == 2, "both processes encoded images"
    assert Counter(name for log in logs for name in log) == {f"noise-{number}": 3 for number in range(24)}


@pytest.mark.parametrize("kind", ["superpixels", "candidates", "embeddings"])
def test_a_cache_waits_for_an_image_that_another_worker_computes(tmp_path, monkeypatch, kind):
    from harness import superpixels
    from harness.cache.encodings import SamCache
    from harness.cache.mask_candidates import CandidateCache
    from harness.cache.superpixel_labels import SuperpixelCache
    from harness.superpixels.candidates import PoolSettings
    from tests.sams import random_sam

    monkeypatch.setenv("SVP_HARNESS_CACHE", str(tmp_path))
    examples = vision_examples()[:3]
    embeddings = SamCache(random_sam())
    cache = {
        "superpixels": lambda: SuperpixelCache("grid", superpixels.get("grid").Config(), FRAME),
        "candidates": lambda: CandidateCache(embeddings, PoolSettings(2, 0.0, 0.0)),
        "embeddings": lambda: embeddings,
    }[kind]()
    path = cache._path(examples[1])
    lock = FileLock(path.with_name(f".{path.name}.lock"), blocking=False)
    lock.acquire()
    events: list[object] = []

    def on_wait() -> None:
        events.append(len(list(cache.folder.glob(f"[!.]*{path.suffix}"))))
        lock.release()

    cache.ensure(examples, lambda *done: events.append(done), on_wait)
    assert 2 + (kind == "candidates") in events  # the other two images; `identity.json` is a JSON file as well
    assert events[-1] == (3, 3)
    assert path.exists()
