"""Hardware, package versions, commit and command of a result; part of every row and report."""

import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from harness.system.uris import redact

PACKAGES = (
    *("torch", "transformers", "peft", "numpy", "scipy", "pandas", "scikit-image", "segment-anything"),
    *("optuna", "mlflow", "pydantic", "svp-harness"),
)
"""Packages whose version can change a result."""

_ROOT = Path(__file__).resolve().parent.parent.parent


@cache
def describe_environment() -> dict[str, Any]:
    """Hardware, versions and commit as one flat mapping of plain values."""
    return {
        "git_commit": git_commit(),
        "git_dirty": git_dirty(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": memory_gib(),
        **accelerator(),
        "python": platform.python_version(),
        **{package: found for package in PACKAGES if (found := _version(package)) is not None},
    }


def command() -> str:
    """The command line of this process, without the interpreter's folder and without credentials."""
    interpreter, *arguments = sys.orig_argv
    return shlex.join([Path(interpreter).name, *map(redact, arguments)])


def git_commit() -> str | None:
    """The commit of this checkout; None outside a checkout."""
    return _git("rev-parse", "HEAD") if _is_checkout() else None


def git_dirty() -> bool | None:
    """Whether tracked files differ from the commit; None outside a checkout."""
    return bool(_git("status", "--porcelain", "--untracked-files=no")) if _is_checkout() else None


def _is_checkout() -> bool:
    """Whether this file is in a checkout of this repository, rather than installed inside another repository."""
    top = _git("rev-parse", "--show-toplevel")
    return top is not None and Path(top).resolve() == _ROOT


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def cpu_model() -> str:
    """The model name of the processor, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> float | None:
    """Main memory of the machine; None if the system does not report it."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def free_memory_gib() -> float | None:
    """Free main memory; None if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return memory_gib()
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable:")), memory_gib())


def visible_gpus() -> list[str]:
    """CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


def accelerator() -> dict[str, Any]:
    """The device on which cells run."""
    if not torch.cuda.is_available():
        return {"device": "cpu"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "device_memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
