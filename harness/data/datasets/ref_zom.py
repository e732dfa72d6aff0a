"""Ref-ZOM: expressions about zero, one or many objects, in the official pickle.

Source: https://arxiv.org/abs/2308.13853; https://github.com/toggle1995/RIS-DMMI.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from harness.data.example import Example
from harness.data.formats.checking import Finding, check_refs
from harness.data.formats.referrals import RefsConfig, examples

SOURCE = (
    "annotations: Ref-ZOM(final).p, renamed to refs(final).p, and instances.json, linked from "
    "https://github.com/toggle1995/RIS-DMMI; images: train2014 and val2014 of https://cocodataset.org/#download, "
    "together in one folder"
)


class Config(RefsConfig):
    """Paths of Ref-ZOM; its images come from both of COCO's splits."""

    name: Literal["ref_zom"] = "ref_zom"
    images: Path = Field(
        default=Path("images/mscoco/images/trainval2014"),
        description="folder of COCO's images, absolute or relative to root",
    )

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; training uses the first."""
        return ("train", "test")

    @property
    def refs(self) -> Path:
        """Path of the pickle of refs."""
        return self.root / "ref-zom" / "refs(final).p"


def load(config: Config, split: str) -> Sequence[Example]:
    """The examples of a split, by ascending image id; families are single, multi and no_target.

    Raises:
        DataError: a file is missing or malformed, or the split does not exist.
    """
    return examples(config.read_refs().split(split), config.masks)


def check(root: Path) -> Iterator[Finding]:
    """Checks the files under `root`; no counts are published."""
    yield from check_refs("ref_zom", Config(root=root), {}, SOURCE)
