"""What `python -m harness.data check` finds out about a dataset on disk."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.data.example import Example, ImageFile
from harness.data.formats.referrals import Counts, Masks, Ref, RefFile, RefsConfig, examples, left_out, with_overlap
from harness.errors import DataError


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what it was.
        is_right: whether it is as published; None for a part that is not here and need not be.
        text: what was found, and where it is wrong, what to do.
    """

    subject: str
    is_right: bool | None
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
        # Read once for both; either meaning of overlap will do, since nothing is scored here.
        instances = config.masks.read(config.masks.instances)
        masks = replace(config.masks, ground_truth="union", read=lambda _: instances)
        yield check_images(subject, examples(everything, masks), source)
        yield _check_overlap(subject, everything, masks)
        yield from _check_left_out(subject, everything, masks)
    except DataError as error:
        yield Finding(subject, False, str(error))


def _check_counts(subject: str, found: Counts, published: Counts | None) -> Finding:
    if published is None:
        return Finding(subject, True, f"{found}; no published number to hold this against")
    if found.matches(published):
        return Finding(subject, True, f"{found}, as published")
    return Finding(subject, False, f"{found}; published are {published}; take the official file")


def _check_overlap(subject: str, refs: Sequence[Ref], masks: Masks) -> Finding:
    found, named = with_overlap(refs, masks), {key for ref in refs for key in ref.annotations}
    if not found:
        return Finding(subject, True, f"none of the {len(named)} annotations meant has polygons that overlap")
    return Finding(
        subject,
        True,
        f"{len(found)} of the {len(named)} annotations meant have polygons that overlap, the first {found[0]}; "
        "evaluators differ on what that is, so studies must say data.ground_truth: union or lisa_sum",
    )


def _check_left_out(subject: str, refs: Sequence[Ref], masks: Masks) -> Iterator[Finding]:
    """Annotations that `load` leaves out; nothing is said where there are none."""
    found = left_out(refs, masks)
    if found:
        verb = "annotation has" if len(found) == 1 else "annotations have"
        yield Finding(
            subject,
            True,
            f"{len(found)} {verb} no readable mask, the first {found[0]}; no sentence refers to "
            f"{'it, so it is' if len(found) == 1 else 'them, so they are'} left out of the objects",
        )


def check_images(subject: str, found: Sequence[Example], source: str) -> Finding:
    """Whether the file of every image is there, and of the size that its annotations are for.

    Only their heads are read: all of COCO's pixels would take minutes.
    """
    pictures = [one.picture for one in found if isinstance(one.picture, ImageFile)]
    missing = check_files(subject, {picture.path for picture in pictures}, source)
    if not missing.is_right:
        return missing
    other = [(one, file) for one in pictures if (file := one.actual()) != one]
    if not other:
        return missing
    one, file = other[0]
    return Finding(
        subject,
        False,
        f"{len(other)} of {len(pictures)} images have another size than their annotations, the first {one.path}: "
        f"{file.width} x {file.height}, not {one.width} x {one.height}; {source}",
    )


def check_files(subject: str, paths: Collection[Path], source: str) -> Finding:
    """Whether these image files are there; none is opened."""
    missing = sorted(path for path in paths if not os.path.exists(path))  # noqa: PTH110 - a name too long is none
    if not missing:
        return Finding(subject, True, f"all {len(paths)} image files are there")
    return Finding(
        subject, False, f"{len(missing)} of {len(paths)} image files are missing, the first {missing[0]}; {source}"
    )
