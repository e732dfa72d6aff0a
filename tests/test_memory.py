"""Memory that is freed stays with the process, so that the system does not clear its pages for every tensor again."""

import platform
import subprocess
import sys

import pytest

from harness.system import memory

ROUNDS = 20
COUNT_FAULTS = f"""
import resource
import torch
from harness.system.memory import keep_freed_memory

{{call}}
faults = []
for _ in range({ROUNDS}):
    torch.ones(48 * 2**18)  # 48 MiB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[{ROUNDS // 2}])
"""


def new_page_faults(call: str) -> int:
    """Pages that the system mapped in the last rounds of a new process; in the first ones its memory may grow."""
    code = COUNT_FAULTS.format(call=call)
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets options of glibc")
def test_tensors_use_memory_that_was_freed_before():
    # A page has 4 KiB or, where the system chooses huge ones, 2 MiB.
    assert new_page_faults("") >= (ROUNDS // 2 - 1) * 24
    assert new_page_faults("keep_freed_memory()") < 24


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: pytest.fail("called the C library"))
    memory.keep_freed_memory()
