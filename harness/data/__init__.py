"""Datasets: files or a generator in, images with expressions, questions and masks (`Example`) out.

The modules of the folder `datasets` are the datasets, by name; `formats` loads their files, `scenes` renders the
embedded benchmark, `coco_rules` makes expressions from COCO's labels, and `copy_paste` makes training images. Other
packages name their datasets in the entry-point group `svp_harness.datasets`. The package imports only `system`,
`errors` and `projectors.registry`; no models.

A dataset is a module with a `Config` (a pydantic model with the fields or properties `name` and `splits`) and a
function `load(config, split)`, which returns a sequence of `Example`. Optional are:

- `check(root)`, which yields a `Finding` for each published fact that it verifies;
- `image_ids(config, split)`, which returns the ids of a split without opening an image file;
- the properties `families` and `scored_domains` of `Config`, if they are known before any file is loaded.
"""

from types import ModuleType
from typing import get_args

from harness.errors import DataError
from projectors.registry import Registry


def _dataset(module: ModuleType) -> ModuleType | None:
    return module if hasattr(module, "Config") and hasattr(module, "load") else None


def _hint(name: str) -> str | None:
    """The datasets that load the dataset of that name under a setting `dataset`."""
    loaders = [each for each in names() if name in _settings_of_dataset(get(each))]
    return f"name {' or '.join(loaders)}, whose `dataset` may be {name}" if loaders else None


def _settings_of_dataset(module: ModuleType) -> tuple[str, ...]:
    """The allowed values of the setting `dataset` of a module; empty if it has no such setting."""
    setting = module.Config.model_fields.get("dataset")
    return get_args(setting.annotation) if setting else ()


DATASETS: Registry[ModuleType] = Registry(
    kind="dataset",
    package="harness.data.datasets",
    group="svp_harness.datasets",
    find=_dataset,
    requirement="it must have `Config` and `load`",
    error=DataError,
    hint=_hint,
)
names, get = DATASETS.names, DATASETS.get
