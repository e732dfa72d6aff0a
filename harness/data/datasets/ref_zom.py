"""Ref-ZOM: expressions about zero, one or many objects, in the official pickle.

Source: https://arxiv.org/abs/2308.13853; https://github.com/toggle1995/RIS-DMMI.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from harness.data.example import Example
from harness.data.formats.checking import Finding, check_refs
from harness.data.formats.pickled import read_plain_pickle
from harness.data.formats.referrals import RefFile, RefsConfig, examples, parse

SOURCE = (
    "annotations: Ref-ZOM(final).p, renamed to refs(final).p, and instances.json, linked from "
    "https://github.com/toggle1995/RIS-DMMI; images: train2014 and val2014 of https://cocodataset.org/#download, "
    "together in one folder"
)


class Config(RefsConfig):
    """Where Ref-ZOM lies; its images are of both of COCO's splits."""

    name: Literal["ref_zom"] = "ref_zom"
    images: Path = Field(
        default=Path("images/mscoco/images/trainval2014"), description="COCO's images; a relative path begins at root"
    )

    @property
    def splits(self) -> tuple[str, ...]:
        """The first is trained on."""
        return ("train", "test")

    @property
    def refs(self) -> Path:
        """The pickle of sentences."""
        return self.root / "ref-zom" / "refs(final).p"


def load(config: Config, split: str) -> Sequence[Example]:
    """The examples of a split, by ascending image id; families are single, multi and no_target.

    Raises:
        DataError: a file is missing or not what its format promises, or there is no such split.
    """
    return examples(_read(config).split(split), config.masks)


def check(root: Path) -> Iterator[Finding]:
    """What lies under `root`; no counts of sentences are published."""
    config = Config(root=root)
    yield from check_refs("ref_zom", config, lambda: _read(config), {}, SOURCE)


def _read(config: Config) -> RefFile:
    return parse(read_plain_pickle(config.refs), config.refs)
