"""A full disk is recognised, whatever library met it, and leaves the file that was there."""

import errno
import os

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.chaos import small_disk
from harness.system.files import is_disk_full, replace_file

CONTENT = {"weights": torch.zeros(20_000_000)}
WRITERS = {
    "torch": lambda path: torch.save(CONTENT, path),
    "safetensors": lambda path: save_file(CONTENT, path),
    "bytes": lambda path: path.write_bytes(bytes(80_000_000)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_does_not_fit_is_a_full_disk_and_the_earlier_one_is_kept(writer):
    with small_disk() as place:
        if not os.path.ismount(place):
            pytest.skip("this user may not mount a small disk")
        path = place / "cell.file"
        path.write_text("earlier")
        with pytest.raises(OSError, match="No space left") as caught:
            replace_file(path, WRITERS[writer])
        assert is_disk_full(caught.value)
        assert [each.name for each in place.iterdir()] == ["cell.file"]
        assert path.read_text() == "earlier"


def test_another_error_is_kept(tmp_path):
    def fail(_: object) -> None:
        raise RuntimeError("another")

    with pytest.raises(RuntimeError, match="another"):
        replace_file(tmp_path / "cell.file", fail)
    assert not is_disk_full(OSError(errno.EACCES, "denied"))
