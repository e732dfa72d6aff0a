"""The parquet mirrors of RefCOCO, RefCOCO+ and RefCOCOg load like the official pickles, or raise a clear error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from harness.data.__main__ import main
from harness.data.datasets import refer, refer_parquet
from harness.data.example import Example
from harness.errors import DataError
from tests import datasets

SPLITS = {"refcoco": ["train", "val", "testA", "testB"], "refcocog": ["train", "val", "test", "test"]}
SPLITS["refcoco+"] = SPLITS["refcoco"]
SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
FOLDERS = {"refcoco": "refcoco", "refcoco+": "refcocoplus", "refcocog": "refcocog"}
FILES = {"train": "train", "val": "validation", "testA": "test", "testB": "testB", "test": "test"}
MADE = datasets.made()
OVERLAP = [[0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 6, 2, 6, 6, 2, 6]]
TRAIN = Path("refcoco/data/train-00000-of-00001-94431d5f4bd5b93f.parquet")
FIRST = datasets.refs(MADE, SPLITS["refcoco"], as_lists=False)[0]["ann_id"]


def rows(content: list[dict[str, Any]], instances: dict[str, Any]) -> list[dict[str, Any]]:
    """Refs as in jxu124's mirrors, including unused columns."""
    images = {one["id"]: one for one in instances["images"]}
    annotations = {one["id"]: one for one in instances["annotations"]}
    found = []
    for ref in content:
        image, annotation = images[ref["image_id"]], annotations[ref["ann_id"]]
        texts = [one["sent"] for one in ref["sentences"]]
        sentences = [
            {"raw": text.upper(), "sent": text, "sent_id": i, "tokens": text.split()} for i, text in enumerate(texts)
        ]
        path = f"coco/train2014/{image['file_name']}"
        found.append(
            {name: ref[name] for name in ("sent_ids", "file_name", "ann_id", "ref_id", "image_id", "split")}
            | {"sentences": sentences, "category_id": 1, "captions": texts}
            | {"raw_anns": json.dumps(annotation), "raw_image_info": json.dumps(image)}
            | {"raw_sentences": json.dumps(sentences), "image_path": path, "bbox": [0.0, 0.0, 1.0, 1.0]}
            | {"global_image_id": f"coco.{image['id']}", "anns_id": f"refcoco.{ref['ann_id']}"}
        )
    return found


def write_mirror(root: Path, dataset: str = "refcoco", change: Callable[[dict[str, Any]], None] | None = None) -> None:
    """The pickle and the mirror of one dataset; `change` edits the instances before either is written."""
    content = datasets.refs(MADE, SPLITS[dataset], as_lists=False)
    datasets.write_refs(root / dataset, f"refs({SPLIT_BY[dataset]}).p", root, MADE, content)
    path = root / dataset / "instances.json"
    instances = json.loads(path.read_text())
    if change is not None:
        change(instances)
        path.write_text(json.dumps(instances))
    folder = root / FOLDERS[dataset] / "data"
    folder.mkdir(parents=True)
    for split in dict.fromkeys(SPLITS[dataset]):
        part = rows([ref for ref in content if ref["split"] == split], instances)
        write(folder / f"{FILES[split]}-00000-of-00001-94431d5f4bd5b93f.parquet", part)


def write(path: Path, content: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(content), path)


def read(path: Path) -> list[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        return file.read().to_pylist()


def annotation(instances: dict[str, Any], key: int) -> dict[str, Any]:
    return next(one for one in instances["annotations"] if one["id"] == key)


def mirror(root: Path, **settings: object) -> refer_parquet.Config:
    return refer_parquet.Config.model_validate({"root": root, "dataset": "refcoco", **settings})


def pickled(root: Path, **settings: object) -> refer.Config:
    defaults = {"root": root, "dataset": "refcoco", "split_by": "unc"}
    return refer.Config.model_validate({**defaults, **settings})


def expressions(examples: list[Example]) -> list[tuple[Any, ...]]:
    """The content that both forms of a dataset share."""
    return [
        (example.image_id, example.picture, one.text, one.family, example.mask(one).tobytes())
        for example in examples
        for one in example.expressions
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_mirror(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dataset", list(FOLDERS))
def test_a_mirror_has_the_examples_of_the_pickle_in_its_order(tmp_path: Path, dataset: str) -> None:
    write_mirror(tmp_path, dataset)
    config = mirror(tmp_path, dataset=dataset)
    official = pickled(tmp_path, dataset=dataset, split_by=SPLIT_BY[dataset])
    assert config.splits == official.splits
    for split in config.splits:
        found = expressions(refer_parquet.load(config, split))
        assert found == expressions(refer.load(official, split))
        assert found


@pytest.mark.parametrize(("split", "number"), list(zip(SPLITS["refcoco"], range(4), strict=True)))
def test_a_mirror_has_the_masks_and_sentences_that_were_written(root: Path, split: str, number: int) -> None:
    (example,) = refer_parquet.load(mirror(root), split)
    scene = MADE[number]
    singles = [one for one in scene.expressions if len(one.targets) == 1]
    assert np.array_equal(example.image, scene.image)
    texts = [text for one in singles for text in (one.text, f"the caf\xe9's {one.text}")]
    assert [one.text for one in example.expressions] == texts
    for one, scene_one in zip(example.expressions[::2], singles, strict=True):
        assert np.array_equal(example.mask(one), scene.mask(scene_one))


@pytest.mark.parametrize("ground_truth", ["union", "lisa_sum"])
def test_overlapping_polygons_are_combined_as_in_the_pickle(tmp_path: Path, ground_truth: str) -> None:
    write_mirror(tmp_path, change=lambda instances: annotation(instances, FIRST).update(segmentation=OVERLAP))
    found = refer_parquet.load(mirror(tmp_path, ground_truth=ground_truth), "train")
    assert expressions(found) == expressions(refer.load(pickled(tmp_path, ground_truth=ground_truth), "train"))
    assert found[0].mask(found[0].expressions[0]).sum() == {"union": 28, "lisa_sum": 24}[ground_truth]
    with pytest.raises(DataError, match=rf"polygons of annotation {FIRST} overlap .* set data.ground_truth to union"):
        refer_parquet.load(mirror(tmp_path), "train")


def test_a_crowd_that_a_sentence_refers_to_is_its_mask(tmp_path: Path) -> None:
    everything = datasets.runs(np.ones(MADE[0].size, bool))
    write_mirror(
        tmp_path, change=lambda instances: annotation(instances, FIRST).update(segmentation=everything, iscrowd=1)
    )
    (example,) = refer_parquet.load(mirror(tmp_path), "train")
    assert example.mask(example.expressions[0]).all()
    assert expressions([example]) == expressions(refer.load(pickled(tmp_path), "train"))


def test_objects_without_sentences_come_from_an_instance_file(root: Path) -> None:
    (official,) = refer.load(pickled(root), "train")
    (alone,) = refer_parquet.load(mirror(root), "train")
    (together,) = refer_parquet.load(mirror(root, instances="refcoco/instances.json"), "train")
    assert together.objects == official.objects
    assert (official.lists_all_objects, together.lists_all_objects, alone.lists_all_objects) == (True, True, False)
    assert together.expressions == official.expressions
    targets = {one for expression in official.expressions for one in expression.targets}
    assert list(alone.objects) == [official.objects[k - 1] for k in sorted(targets)]


def test_files_of_a_split_are_concatenated(root: Path) -> None:
    whole = expressions(refer_parquet.load(mirror(root), "train"))
    content = read(root / TRAIN)
    (root / TRAIN).unlink()
    for number, part in enumerate([content[:1], content[1:]]):
        write(root / "refcoco" / "data" / f"train-0000{number}-of-00002-94431d5f4bd5b93f.parquet", part)
    assert expressions(refer_parquet.load(mirror(root), "train")) == whole


def test_a_split_requires_only_its_own_files(root: Path) -> None:
    (root / TRAIN).unlink()
    assert refer_parquet.load(mirror(root), "testA")[0].image_id == "coco/103"


def test_unused_columns_may_be_absent(root: Path) -> None:
    wanted = (*refer_parquet.REF_COLUMNS, *refer_parquet.JSON_FIELDS)
    before = expressions(refer_parquet.load(mirror(root), "train"))
    change_rows(root, lambda content: [{name: row[name] for name in wanted} for row in content])
    assert expressions(refer_parquet.load(mirror(root), "train")) == before


def change_rows(root: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    write(root / TRAIN, change(read(root / TRAIN)))


def with_value(column: str, value: object) -> Callable[[Path], None]:
    """Damages a column of the second row."""
    return lambda root: change_rows(root, lambda content: [content[0], content[1] | {column: value}, *content[2:]])


def without(column: str) -> Callable[[Path], None]:
    return lambda root: change_rows(
        root, lambda content: [{k: v for k, v in row.items() if k != column} for row in content]
    )


def truncate(root: Path) -> None:
    path = root / TRAIN
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_folder(root: Path) -> None:
    for path in (root / TRAIN).parent.iterdir():
        path.unlink()


def lmms(name: str) -> Callable[[Path], None]:
    """lmms-lab's mirror in place of jxu124's."""
    row = {"question_id": "1", "question": "", "answer": ["a"], "segmentation": [0.0, 0.0, 4.0, 0.0, 4.0, 4.0]}

    def spoil(root: Path) -> None:
        empty_folder(root)
        write((root / TRAIN).with_name(name), [row])

    return spoil


def benchmark(root: Path) -> None:
    write(root / TRAIN, [{"ref_list": [{"ref_info": {"ref_id": 1}}], "image_info": {"id": 101}}])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            (lambda root: (root / TRAIN).unlink()),
            r"data has no file train-\*.parquet for the split train of refcoco; annot",
        ),
        (empty_folder, r"data has no file train-\*.parquet for the split train of refcoco; annotations: `hf download"),
        (truncate, r"train-.*.parquet is a truncated or invalid parquet file \(.*\); download it again"),
        (
            lambda root: (root / TRAIN).write_text("version https://git-lfs"),
            r"is a truncated or invalid parquet file",
        ),
        (
            without("raw_anns"),
            r"train-.*.parquet lacks raw_anns; its columns are sent_ids, file_name, .*; use jxu124's",
        ),
        (without("split"), r"train-.*.parquet lacks split; its columns are sent_ids, "),
        (with_value("raw_anns", "{'id': 1}"), r"raw_anns of row 1 is invalid JSON \(.*\); download the file again"),
        (with_value("raw_anns", None), r"raw_anns of row 1 is invalid JSON"),
        (with_value("raw_anns", '{"id": 1}'), r"raw_anns of row 1 lacks image_id, segmentation; use jxu124's"),
        (with_value("raw_anns", "[]"), r"raw_anns of row 1 lacks id, image_id, segmentation"),
        (with_value("raw_image_info", '{"id": 101}'), r"raw_image_info of row 1 lacks file_name, height, width"),
        (with_value("ann_id", 77), r"image 101 has no annotation 77, to which a sentence refers"),
        (with_value("split", "val"), r"train-.*.parquet contains refs of train, val; only train is allowed"),
        (
            with_value("sentences", None),
            r"train-.*.parquet: ref 1 is malformed \(TypeError: .*\); it must have image_id",
        ),
        (lmms(TRAIN.name), r"belongs to an lmms-lab mirror, whose masks are flat lists of numbers .*; use jxu124's"),
        (lmms("val-00000-of-00003.parquet"), r"val-00000-of-00003.parquet belongs to an lmms-lab mirror, whose masks"),
        (benchmark, r"belongs to jxu124/refcoco-benchmark, which is for scoring only; use jxu124's mirror"),
    ],
)
def test_a_damaged_mirror_is_one_sentence(root: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    spoil(root)
    with pytest.raises(DataError, match=sentence) as raised:
        refer_parquet.load(mirror(root), "train")
    assert "\n" not in str(raised.value)


def test_a_missing_image_raises_an_error_at_access(root: Path) -> None:
    (example,) = refer_parquet.load(mirror(root), "train")
    example.picture.path.unlink()
    with pytest.raises(DataError, match=r"COCO_train2014_000000000101.png is missing; correct the path"):
        _ = example.image


def test_an_unknown_split_is_refused_with_the_known_ones(root: Path) -> None:
    with pytest.raises(DataError, match=r"refcoco has no split 'test' in .*data; did you mean testB or testA"):
        refer_parquet.load(mirror(root), "test")


def test_only_the_three_datasets_are_mirrored(root: Path) -> None:
    with pytest.raises(ValidationError, match="Input should be 'refcoco', 'refcoco\\+' or 'refcocog'"):
        mirror(root, dataset="refclef")
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        mirror(root, split_by="unc")


def test_check_compares_a_mirror_with_the_published_counts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "refer_parquet", "--root", str(root)]) == 2
    output = capsys.readouterr().out
    assert "!! refcoco (unc) testA: " in output
    assert "published are 5657 sentences, 1975 refs, 750 images" in output
    assert "ok refcoco (unc): all 4 image files exist" in output
    assert f"-- refcoco+ (unc): jxu124/refcocoplus: {root / 'refcocoplus/data'} is missing; annotations: `hf" in output


def test_check_passes_if_a_mirror_is_as_published(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = refer_parquet._read(mirror(root), SPLITS["refcoco"])
    published = {split: found.counts(split) for split in SPLITS["refcoco"]}
    monkeypatch.setattr(refer_parquet, "PUBLISHED", {("refcoco", "unc"): published})
    monkeypatch.setattr(refer_parquet, "MIRRORS", {"refcoco": ("refcoco", "unc")})
    assert main(["check", "refer_parquet", "--root", str(root)]) == 0
    assert "as published" in capsys.readouterr().out
    (root / TRAIN).unlink()
    assert main(["check", "refer_parquet", "--root", str(root)]) == 2
    assert "data has no file train-*.parquet" in capsys.readouterr().out
