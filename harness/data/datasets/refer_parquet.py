"""RefCOCO, RefCOCO+ and RefCOCOg in the parquet mirrors jxu124/refcoco, refcocoplus and refcocog of the hub.

A row is a ref. The loader uses `split`, `image_id`, `ann_id` and `sentences` (each with `sent`), as in the pickles, and
two JSON texts of COCO: `raw_anns`, the annotation with its whole segmentation, and `raw_image_info`, the image's
original size and file name. The images are COCO's. A mirror lists only objects that a sentence refers to. Unless
`instances` names COCO's file, the oracle superpixels are therefore easier than with the pickles, and
`giou_random_object` is not measured.

Source: columns, huggingface/cookbook@55784b1, fine_tuning_vlm_object_detection_grounding; file names and
conversion to the pickles, adobe-research/obj-and-mat-selection@004caf2, tools/convert_refcoco_parquet.py.
Not verified, because the mirrors could not be downloaded: that rows have the order of the pickles, and that their
annotations equal REFER's exactly. `check` counts sentences, refs and images.

Two other kinds of mirror are refused. lmms-lab/RefCOCO, RefCOCOplus and RefCOCOg store a mask as one flat list of
numbers, which does not separate the parts of an object (the features of the RefCOCOg card; r1407p/SAM4MLLM@497f6a4
renders it as one polygon). They have no training split either, and their val joins that of unc or umd with Google's:
8811 = 3811 + 5000 refs of RefCOCO (evalscope's page on it, 1.6.0), 7573 = 2573 + 5000 of RefCOCOg.
jxu124/refcoco-benchmark, with one row per image, is for scoring only, as far as public code shows.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from harness.data.datasets.refer import PUBLISHED, SPLITS, Dataset, SplitBy
from harness.data.example import Example
from harness.data.formats.checking import Finding, check_refs
from harness.data.formats.coco_file import InstanceFile
from harness.data.formats.referrals import Masks, Ref, RefFile, RefsConfig, examples, parse
from harness.errors import DataError, suggest

MIRRORS: Mapping[Dataset, tuple[str, SplitBy]] = {
    "refcoco": ("refcoco", "unc"),
    "refcoco+": ("refcocoplus", "unc"),
    "refcocog": ("refcocog", "umd"),
}
"""Folder and partition of each dataset."""
FILE_NAMES = {"train": "train", "val": "validation", "testA": "test", "testB": "testB", "test": "test"}
"""Prefix of the file names of a split."""
REF_COLUMNS = ("split", "image_id", "ann_id", "sentences")
JSON_FIELDS: Mapping[str, tuple[str, ...]] = {
    "raw_anns": ("id", "image_id", "segmentation"),
    "raw_image_info": ("id", "file_name", "height", "width"),
}
"""Required fields of the JSON texts, by column."""
REFUSED: Mapping[str, tuple[str, ...]] = {
    "an lmms-lab mirror, whose masks are flat lists of numbers that do not separate an object's parts": (
        "question_id",
        "segmentation",
    ),
    "jxu124/refcoco-benchmark, which is for scoring only": ("ref_list", "image_info"),
}
"""Columns that identify a mirror that is refused, by its description."""
SOURCE = (
    "annotations: `hf download jxu124/MIRROR --repo-type dataset --local-dir ROOT/MIRROR` for the mirrors refcoco, "
    "refcocoplus and refcocog; images: train2014 of https://cocodataset.org/#download"
)


class Config(RefsConfig):
    """Which of the three datasets; RefCOCO and RefCOCO+ have the partition by unc, RefCOCOg that by umd."""

    name: Literal["refer_parquet"] = "refer_parquet"
    root: Path = Field(description="folder that contains the mirrors refcoco, refcocoplus and refcocog")
    dataset: Dataset = Field(description="name of the dataset")
    instances: Path | None = Field(
        default=None,
        description="COCO's or REFER's instance file, used in place of raw_anns; it also lists objects that no "
        "sentence refers to; absolute or relative to root",
    )

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; training uses the first."""
        return SPLITS[self.dataset, MIRRORS[self.dataset][1]]

    @property
    def refs(self) -> Path:
        """Path of the folder of parquet files."""
        return self.root / MIRRORS[self.dataset][0] / "data"

    @property
    def masks(self) -> Masks:
        """The source of masks and images of all splits."""
        return self.masks_of(self.splits)

    def masks_of(self, splits: Sequence[str]) -> Masks:
        """The source of masks and images of some splits; only their files are opened."""
        if self.instances is not None:
            return Masks(self.root / self.instances, self.root / self.images, self.ground_truth)
        return Masks(
            self.refs,
            self.root / self.images,
            self.ground_truth,
            lambda _: _instances(self, splits),
            lists_all_objects=False,
        )

    def read_refs(self) -> RefFile:
        """The refs of all splits, from the parquet files."""
        return _read(self, self.splits)


def load(config: Config, split: str) -> Sequence[Example]:
    """The examples of a split, by ascending image id.

    Raises:
        DataError: a file is missing, malformed or of another mirror, or the split does not exist.
    """
    if split not in config.splits:
        raise DataError(f"{config.dataset} has no split {split!r} in {config.refs}; {suggest(split, config.splits)}")
    return examples(_read(config, [split]).split(split), config.masks_of([split]))


def check(root: Path) -> Iterator[Finding]:
    """Compares every dataset under `root` with the published counts; a missing dataset is no error if others exist."""
    is_any_here = any(Config(root=root, dataset=dataset).refs.exists() for dataset in MIRRORS)
    for dataset, (mirror, split_by) in MIRRORS.items():
        subject, config = f"{dataset} ({split_by})", Config(root=root, dataset=dataset)
        if not config.refs.exists():
            yield Finding(
                subject, None if is_any_here else False, f"jxu124/{mirror}: {config.refs} is missing; {SOURCE}"
            )
            continue
        published = PUBLISHED.get((dataset, split_by), {})
        yield from check_refs(subject, config, published, SOURCE)


def _read(config: Config, splits: Sequence[str]) -> RefFile:
    found: dict[str, tuple[Ref, ...]] = {}
    for split in splits:
        for path in _files(config, split):
            part = parse(_rows(path, REF_COLUMNS), path).splits
            if set(part) - {split}:
                raise DataError(
                    f"{path} contains refs of {', '.join(sorted(part))}; only {split} is allowed; use jxu124's file"
                )
            found[split] = found.get(split, ()) + part.get(split, ())
    return RefFile(config.refs, found)


def _instances(config: Config, splits: Sequence[str]) -> InstanceFile:
    images, annotations = dict[Any, Any](), dict[Any, Any]()
    for path in (path for split in splits for path in _files(config, split)):
        for number, row in enumerate(_rows(path, tuple(JSON_FIELDS))):
            # Every ref repeats its image and its annotation.
            for column, found in (("raw_image_info", images), ("raw_anns", annotations)):
                entry = _parsed(path, number, column, row)
                found[str(entry["id"])] = entry
    return InstanceFile(config.refs, {"images": list(images.values()), "annotations": list(annotations.values())})


def _files(config: Config, split: str) -> list[Path]:
    pattern = f"{FILE_NAMES[split]}-*.parquet"
    found = sorted(config.refs.glob(pattern))
    if not found:
        # Other mirrors have other file names; their columns identify them.
        for other in sorted(config.refs.glob("*.parquet"))[:1]:
            _rows(other, ())
        raise DataError(f"{config.refs} has no file {pattern} for the split {split} of {config.dataset}; {SOURCE}")
    return found


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names, columns)
            return file.read(columns=list(columns)).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first_line = str(error).partition("\n")[0]
        raise DataError(f"{path} is a truncated or invalid parquet file ({first_line}); download it again") from None


def _check_columns(path: Path, found: Sequence[str], wanted: Sequence[str]) -> None:
    for mirror, columns in REFUSED.items():
        if set(columns) <= set(found):
            raise DataError(f"{path} belongs to {mirror}; use jxu124's mirror of this dataset")
    missing = [column for column in wanted if column not in found]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; its columns are {', '.join(found)}; use jxu124's file")


def _parsed(path: Path, number: int, column: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        entry = json.loads(row[column])
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: {column} of row {number} is invalid JSON ({error}); download the file again"
        ) from None
    missing = [name for name in JSON_FIELDS[column] if not isinstance(entry, dict) or name not in entry]
    if missing:
        raise DataError(f"{path}: {column} of row {number} lacks {', '.join(missing)}; use jxu124's file")
    return entry
