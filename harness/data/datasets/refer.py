"""RefCOCO, RefCOCO+ and RefCOCOg in the official pickles of REFER.

Source: https://github.com/lichengunc/refer; RefCOCO and RefCOCO+, https://arxiv.org/abs/1608.00272; RefCOCOg,
https://arxiv.org/abs/1511.02283. Counts of refs and images are those of tensorflow/datasets@188c885, of sentences those
of the lists in MiniGPT-4@d94738a.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from harness.data.example import Example
from harness.data.formats.checking import Finding, check_refs
from harness.data.formats.referrals import Counts, RefsConfig, examples

Dataset = Literal["refcoco", "refcoco+", "refcocog"]
SplitBy = Literal["unc", "umd", "google"]
SPLITS: Mapping[tuple[Dataset, SplitBy], tuple[str, ...]] = {
    ("refcoco", "unc"): ("train", "val", "testA", "testB"),
    ("refcoco", "google"): ("train", "val", "test"),
    ("refcoco+", "unc"): ("train", "val", "testA", "testB"),
    ("refcocog", "umd"): ("train", "val", "test"),
    ("refcocog", "google"): ("train", "val"),
}
"""Splits of a dataset, by the authors of the partition."""
PUBLISHED: Mapping[tuple[Dataset, SplitBy], Mapping[str, Counts]] = {
    ("refcoco", "unc"): {
        "train": Counts(None, 42404, 16994),
        "val": Counts(10834, 3811, 1500),
        "testA": Counts(5657, 1975, 750),
        "testB": Counts(5095, 1810, 750),
    },
    ("refcoco", "google"): {
        "train": Counts(None, 40000, 19213),
        "val": Counts(None, 5000, 4559),
        "test": Counts(None, 5000, 4527),
    },
    ("refcoco+", "unc"): {
        "train": Counts(None, 42278, 16992),
        "val": Counts(10758, 3805, 1500),
        "testA": Counts(5726, 1975, 750),
        "testB": Counts(4889, 1798, 750),
    },
    ("refcocog", "umd"): {
        "train": Counts(None, 42226, 21899),
        "val": Counts(4896, 2573, 1300),
        "test": Counts(9602, 5023, 2600),
    },
    ("refcocog", "google"): {"train": Counts(None, 44822, 24698), "val": Counts(None, 5000, 4650)},
}
SOURCE = (
    "annotations: refcoco.zip, refcoco+.zip and refcocog.zip, listed in https://github.com/lichengunc/refer (the host "
    "is offline; web.archive.org has https://bvisionweb1.cs.unc.edu/licheng/referit/data/); images: train2014 of "
    "https://cocodataset.org/#download"
)


class Config(RefsConfig):
    """Which of the three datasets, in which partition."""

    name: Literal["refer"] = "refer"
    dataset: Dataset = Field(description="name of the dataset")
    split_by: SplitBy = Field(
        description="authors of the split: unc or google for refcoco, unc for refcoco+, umd or google for refcocog"
    )

    @model_validator(mode="after")
    def _check_partition(self) -> "Config":
        if (self.dataset, self.split_by) not in SPLITS:
            allowed = ", ".join(by for dataset, by in SPLITS if dataset == self.dataset)
            raise ValueError(f"{self.dataset} has no partition by {self.split_by}; use {allowed}")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; training uses the first."""
        return SPLITS[self.dataset, self.split_by]

    @property
    def refs(self) -> Path:
        """Path of the pickle of refs."""
        return self.root / self.dataset / f"refs({self.split_by}).p"


def load(config: Config, split: str) -> Sequence[Example]:
    """The examples of a split, by ascending image id.

    Raises:
        DataError: a file is missing or malformed, or the split does not exist.
    """
    return examples(config.read_refs().split(split), config.masks)


def check(root: Path) -> Iterator[Finding]:
    """Compares every dataset under `root` with the published counts; a missing dataset is no error if others exist."""
    configs = [Config(root=root, dataset=dataset, split_by=split_by) for dataset, split_by in SPLITS]
    is_any_here = any(config.refs.exists() for config in configs)
    for config in configs:
        subject, published = (
            f"{config.dataset} ({config.split_by})",
            PUBLISHED.get((config.dataset, config.split_by), {}),
        )
        if is_any_here and not config.refs.exists():
            yield Finding(subject, None, f"not found: {config.refs} is missing; {SOURCE}")
        else:
            yield from check_refs(subject, config, published, SOURCE)
