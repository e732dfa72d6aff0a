"""Checks of a dataset on disk, for `python -m harness.data check`."""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.data.example import Example, ImageFile
from harness.data.formats.referrals import Counts, Masks, Ref, RefsConfig, examples, left_out, with_overlap
from harness.errors import DataError


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        subject: the part of a dataset that was checked.
        is_right: whether it is as published; None for an optional part that is missing.
        text: what was found and, if it is wrong, what to do.
    """

    subject: str
    is_right: bool | None
    text: str


def check_refs(
    subject: str,
    config: RefsConfig,
    published: Mapping[str, Counts],
    source: str,
) -> Iterator[Finding]:
    """Checks files, counts of every split, masks and images of a dataset of refs.

    Args:
        published: counts by split, where there are published ones.
        source: where to download the official files.
    """
    missing = [str(path) for path in (config.refs, config.masks.instances) if not path.exists()]
    if missing:
        yield Finding(subject, False, f"{' and '.join(missing)} missing; {source}")
        return
    try:
        refs = config.read_refs()
        for split in config.splits:
            yield _check_counts(f"{subject} {split}", refs.counts(split), published.get(split))
        everything = [ref for split in config.splits for ref in refs.split(split)]
        # The file is loaded once for both. Nothing is scored here, so either rule for overlaps will do.
        instances = config.masks.read(config.masks.instances)
        masks = replace(config.masks, ground_truth="union", read=lambda _: instances)
        yield check_images(subject, examples(everything, masks), source)
        yield _check_overlap(subject, everything, masks)
        yield from _check_left_out(subject, everything, masks)
    except DataError as error:
        yield Finding(subject, False, str(error))


def _check_counts(subject: str, found: Counts, published: Counts | None) -> Finding:
    if published is None:
        return Finding(subject, True, f"{found}; there is no published number to compare with")
    if found.matches(published):
        return Finding(subject, True, f"{found}, as published")
    return Finding(subject, False, f"{found}; published are {published}; use the official file")


def _check_overlap(subject: str, refs: Sequence[Ref], masks: Masks) -> Finding:
    found, named = with_overlap(refs, masks), {key for ref in refs for key in ref.annotations}
    if not found:
        return Finding(subject, True, f"none of the {len(named)} target annotations has overlapping polygons")
    return Finding(
        subject,
        True,
        f"{len(found)} of the {len(named)} target annotations have overlapping polygons, the first {found[0]}; "
        "evaluators treat these differently, so a study must set data.ground_truth to union or lisa_sum",
    )


def _check_left_out(subject: str, refs: Sequence[Ref], masks: Masks) -> Iterator[Finding]:
    """Reports the annotations that `load` excludes, if there are any."""
    found = left_out(refs, masks)
    if found:
        verb = "annotation has" if len(found) == 1 else "annotations have"
        yield Finding(
            subject,
            True,
            f"{len(found)} {verb} no valid mask, the first {found[0]}; no sentence refers to "
            f"{'it, so it is' if len(found) == 1 else 'them, so they are'} excluded from the objects",
        )


def check_examples(subject: str, found: Sequence[Example]) -> Iterator[Finding]:
    """Counts of the images and of the queries of each family of a split, and a check of its image files."""
    families = Counter(query.family for example in found for query in example.queries)
    counts = ", ".join(f"{count} {family}" for family, count in families.most_common())
    yield Finding(
        subject, True, f"{len(found)} images, {families.total()} expressions and questions{counts and f': {counts}'}"
    )
    files = [example for example in found if type(example.picture) is ImageFile]
    if files:
        yield check_images(subject, files, "correct the folder of images in the settings, or download them")


def check_images(subject: str, found: Sequence[Example], source: str) -> Finding:
    """Checks that the file of every image exists and has the size given in its annotations.

    Only headers are read: decoding all of COCO would take minutes.
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
        f"{len(other)} of {len(pictures)} images differ in size from their annotations, the first {one.path}: "
        f"{file.width} x {file.height}, not {one.width} x {one.height}; {source}",
    )


def check_files(subject: str, paths: Collection[Path], source: str) -> Finding:
    """Checks that these image files exist, without opening them."""
    missing = sorted(path for path in paths if not os.path.exists(path))  # noqa: PTH110 - Path.exists raises if a name is too long
    if not missing:
        return Finding(subject, True, f"all {len(paths)} image files exist")
    return Finding(
        subject, False, f"{len(missing)} of {len(paths)} image files are missing, the first {missing[0]}; {source}"
    )
