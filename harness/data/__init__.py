"""Datasets: images, words and masks. The files of this folder are the datasets, by name.

A dataset is a module with `Config` (a pydantic model with its name and its `splits`) and `load(config, split)`, which
returns a sequence of `Example`; one that is published also has `check(root)`, which yields `Finding`s.
"""

import pkgutil
from importlib import import_module
from types import ModuleType

from harness.errors import DataError, suggest

_MACHINERY = {"asked", "checking", "coco_file", "example", "pickled", "referrals"}


def names() -> list[str]:
    """All dataset names, sorted."""
    found = {module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")}
    return sorted(found - _MACHINERY)


def get(name: str) -> ModuleType:
    """The dataset's module.

    Raises:
        DataError: no dataset of that name.
    """
    if name not in names():
        raise DataError(f"no dataset {name!r}; {suggest(name, names())}")
    return import_module(f"{__name__}.{name}")
