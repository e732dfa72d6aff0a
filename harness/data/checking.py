"""What `python -m harness.data check` finds out about a dataset on disk."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.data.example import Example, ImageFile
from harness.data.referrals import Counts, RefFile, RefsConfig, examples
from harness.errors import DataError


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what it was.
        is_right: whether it is as published.
        text: what was found, and where it is wrong, what to do.
    """

    subject: str
    is_right: bool
    text: str


def check_refs(
    subject: str,
    config: RefsConfig,
    read: Callable[[], RefFile],
    published: Mapping[str, Counts],
    source: str,
) -> Iterator[Finding]:
    """Files, counts of every split, masks and images of a dataset of refs.

    Args:
        read: reads the sentences.
        published: by split, as far as there are published numbers.
        source: where the files officially come from.
    """
    missing = [str(path) for path in (config.refs, config.masks.instances) if not path.exists()]
    if missing:
        yield Finding(subject, False, f"{' and '.join(missing)} missing; {source}")
        return
    try:
        refs = read()
        for split in config.splits:
            yield _check_counts(f"{subject} {split}", refs.counts(split), published.get(split))
        everything = [ref for split in config.splits for ref in refs.split(split)]
        yield check_images(subject, examples(everything, config.masks), source)
    except DataError as error:
        yield Finding(subject, False, str(error))


def _check_counts(subject: str, found: Counts, published: Counts | None) -> Finding:
    if published is None:
        return Finding(subject, True, f"{found}; no published number to hold this against")
    if found.matches(published):
        return Finding(subject, True, f"{found}, as published")
    return Finding(subject, False, f"{found}; published are {published}; take the official file")


def check_images(subject: str, found: Sequence[Example], source: str) -> Finding:
    """Whether the file of every image is there; none is opened, as that takes long for COCO."""
    return check_files(subject, {one.picture.path for one in found if isinstance(one.picture, ImageFile)}, source)


def check_files(subject: str, paths: Collection[Path], source: str) -> Finding:
    """Whether these image files are there; none is opened."""
    missing = sorted(path for path in paths if not path.exists())
    if not missing:
        return Finding(subject, True, f"all {len(paths)} image files are there")
    return Finding(
        subject, False, f"{len(missing)} of {len(paths)} image files are missing, the first {missing[0]}; {source}"
    )
