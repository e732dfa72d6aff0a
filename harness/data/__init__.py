"""Datasets: files or a generator in, images with expressions, questions and masks (`Example`) out.

The files of the folder `datasets` are the datasets, by name; `formats` reads their files, `scenes` draws the embedded
benchmark. It imports only `system` and `errors`; no models.

A dataset is a module with `Config` (a pydantic model with its name and its `splits`) and `load(config, split)`, which
returns a sequence of `Example`; one that is published also has `check(root)`, which yields `Finding`s, and one whose
examples need the image files has `image_ids(config, split)`, which does not. A `Config` that knows them without reading
anything also has the `families` of what is asked and the `scored_domains`.
"""

import pkgutil
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import get_args

from harness.data import datasets
from harness.errors import DataError, suggest


@cache
def names() -> list[str]:
    """All dataset names, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(datasets.__path__))


def get(name: str) -> ModuleType:
    """The dataset's module.

    Raises:
        DataError: no dataset of that name.
    """
    if name not in names():
        readers = [each for each in names() if name in _datasets_in(get(each))]
        hint = f"name {' or '.join(readers)}, whose `dataset` may be {name}" if readers else suggest(name, names())
        raise DataError(f"no dataset {name!r}; {hint}")
    return import_module(f"{datasets.__name__}.{name}")


def _datasets_in(module: ModuleType) -> tuple[str, ...]:
    """Those that one format holds, where it holds several."""
    setting = module.Config.model_fields.get("dataset")
    return get_args(setting.annotation) if setting else ()
