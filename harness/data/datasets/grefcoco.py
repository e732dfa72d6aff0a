"""gRefCOCO: expressions about several objects, one, or none, in the official JSON.

Where an expression names crowds (`iscrowd`) among its annotations, they are no part of its target, as in G_REFER's
`getMaskByRef`.

Source: https://arxiv.org/abs/2306.00968; https://github.com/henghuiding/gRefCOCO (grefer.py at 41a8f00).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from harness.data.example import Example
from harness.data.formats.checking import Finding, check_refs
from harness.data.formats.reading import read_json
from harness.data.formats.referrals import Counts, Masks, RefFile, RefsConfig, examples, parse

PUBLISHED = {"val": Counts(None, None, 1500), "testA": Counts(None, None, 750), "testB": Counts(None, None, 750)}
SOURCE = (
    "annotations: grefs(unc).json and instances.json, linked from https://github.com/henghuiding/gRefCOCO; images: "
    "train2014 of https://cocodataset.org/#download"
)


class Config(RefsConfig):
    """Where gRefCOCO lies; its images are those of RefCOCO."""

    name: Literal["grefcoco"] = "grefcoco"

    @property
    def splits(self) -> tuple[str, ...]:
        """The first is trained on."""
        return ("train", "val", "testA", "testB")

    @property
    def refs(self) -> Path:
        """The sentences."""
        return self.root / "grefcoco" / "grefs(unc).json"

    @property
    def masks(self) -> Masks:
        """What the refs are about; crowds are no targets."""
        return replace(super().masks, can_refer_to_crowds=False)


def load(config: Config, split: str) -> Sequence[Example]:
    """The examples of a split, by ascending image id; families are single, multi and no_target.

    Raises:
        DataError: a file is missing or not what its format promises, or there is no such split.
    """
    return examples(_read(config).split(split), config.masks)


def check(root: Path) -> Iterator[Finding]:
    """What lies under `root`."""
    config = Config(root=root)
    yield from check_refs("grefcoco", config, lambda: _read(config), PUBLISHED, SOURCE)


def _read(config: Config) -> RefFile:
    return parse(read_json(config.refs), config.refs)
