"""gRefCOCO: expressions about several objects, one, or none, in the official JSON.

Crowds (`iscrowd`) among the annotations of an expression are excluded from its target, as in G_REFER's `getMaskByRef`.

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
    """Paths of gRefCOCO; its images are those of RefCOCO."""

    name: Literal["grefcoco"] = "grefcoco"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; training uses the first."""
        return ("train", "val", "testA", "testB")

    @property
    def refs(self) -> Path:
        """Path of the JSON file of refs."""
        return self.root / "grefcoco" / "grefs(unc).json"

    @property
    def masks(self) -> Masks:
        """The source of masks and images, with crowds excluded from targets."""
        return replace(super().masks, can_refer_to_crowds=False)

    def read_refs(self) -> RefFile:
        """The refs of all splits, from the JSON file."""
        return parse(read_json(self.refs), self.refs)


def load(config: Config, split: str) -> Sequence[Example]:
    """The examples of a split, by ascending image id; families are single, multi and no_target.

    Raises:
        DataError: a file is missing or malformed, or the split does not exist.
    """
    return examples(config.read_refs().split(split), config.masks)


def check(root: Path) -> Iterator[Finding]:
    """Compares the files under `root` with the published counts."""
    yield from check_refs("grefcoco", Config(root=root), PUBLISHED, SOURCE)
