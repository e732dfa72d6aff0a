"""Damaged datasets raise an error of one sentence; nothing is silently dropped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.data.__main__ import main
from harness.data.datasets import coco_captions, coco_instances, gqa, mix, reasonseg, refer, refer_parquet, vqav2
from harness.data.example import ImageFile
from harness.data.formats.coco_file import InstanceFile
from harness.data.formats.reading import read_json
from harness.data.formats.referrals import parse
from harness.errors import DataError
from tests import datasets

MADE = datasets.made()
REF = {"image_id": 1, "ann_id": 2, "split": "train", "sentences": [{"sent": "a ball"}]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sentences": []}, "it has no sentences"),
        ({"sentences": [{"sent": None}]}, "found None instead of a string"),
        ({"sentences": [{"sent": 5}]}, "found 5 instead of a string"),
        ({"sentences": [{"sent": b"\xff"}]}, "instead of a string"),
        ({"sentences": [{"sent": "a \ud83d"}]}, "contains half of a surrogate pair"),
        ({"split": None}, "found None instead of a string"),
        ({"image_id": float("inf")}, "OverflowError"),
    ],
)
def test_a_malformed_ref_is_one_sentence(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(
        DataError, match=rf"refs.p: ref 0 is malformed \(.*{reason}.*\); it must have image_id"
    ) as raised:
        parse([{**REF, **change}], Path("refs.p"))
    assert "\n" not in str(raised.value)


def test_a_duplicate_annotation_of_a_ref_is_one_object() -> None:
    (ref,) = parse([{**REF, "ann_id": [5, 2, 5, -1]}], Path("refs.p")).split("train")
    assert ref.annotations == (2, 5)


def test_a_file_without_refs_is_refused() -> None:
    with pytest.raises(DataError, match=r"no split 'train'; it has no refs at all"):
        parse([], Path("refs.p")).split("train")


@pytest.mark.parametrize("name", ["vqav2", "gqa", "coco_captions"])
def test_a_root_that_is_a_file_is_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "root"
    path.touch()
    assert main(["check", name, "--root", str(path)]) == 2
    assert "cannot be read (Not a directory); it must be a JSON file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "truncated or invalid JSON"),
        (b"1" * 5000, "truncated or invalid JSON"),
        (b"caf\xe9", "truncated or invalid JSON"),
    ],
    ids=["deep", "long number", "latin-1"],
)
def test_invalid_json_is_one_sentence(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_json(path)


def test_json_may_begin_with_a_byte_order_mark_but_not_be_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        read_json(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text": []}, r"text is \[\]"),
        ({"text": "what is it"}, "text is 'what is it'"),
        ({"text": [None]}, "found None instead of a string"),
        ({"is_sentence": "false"}, "is_sentence 'false'"),
        ({"shapes": [{"label": "target", "points": []}]}, r"points are \[\]; they must be pairs of numbers"),
        ({"shapes": [{"label": "target", "points": [[1e300, 2], [3, 4], [5, 6]]}]}, "must be pairs of numbers"),
        ({"shapes": [{"label": "target", "points": 5}]}, "must be pairs of numbers"),
    ],
)
def test_a_malformed_annotation_of_reasonseg_is_one_sentence(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    content = {"shapes": [], "text": ["what moves"], "is_sentence": True, **change}
    datasets.write_reasonseg(tmp_path, "1", MADE[0].image, content)
    with pytest.raises(DataError, match=rf"is no annotation of ReasonSeg \(.*{reason}") as raised:
        reasonseg.load(reasonseg.Config(root=tmp_path), "test")
    assert "\n" not in str(raised.value)


def instances(folder: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> coco_instances.Config:
    return coco_instances.Config.model_validate(datasets.write_instances(folder, MADE[:3], change))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda part: part["images"].pop(0), "belongs to image 101, which the file does not list; add the image"),
        (
            lambda part: part["images"].append({**part["images"][0], "height": 1}),
            "two different entries have the id 101",
        ),
        (
            lambda part: part["annotations"].append({**part["annotations"][0], "area": 2}),
            "two different entries have the id 101001",
        ),
        (lambda part: part["annotations"][0].update(expression=""), "expression is ''; it must be a string"),
        (lambda part: part["annotations"][0].update(expression=[" "]), "it must be a string"),
        (lambda part: part["annotations"][0].update(expression="\ud83d"), "contains half of a surrogate pair"),
        (lambda part: part["annotations"][0].update(id=float("inf")), "is no COCO instance file"),
        (lambda part: part["annotations"][0].update(segmentation={}), "KeyError: 'size'; its segmentation must be"),
        (lambda part: part["images"][0].update(file_name=5), "found 5 instead of a string"),
        (lambda part: part["images"][0].update(height=0), "found 224 x 0 pixels; at least 1 and at most 268435456"),
        (lambda part: part["images"][0].update(width=-3), "found -3 x 224 pixels"),
        (lambda part: part["images"][0].update(height=10**9), "found 224 x 1000000000 pixels"),
    ],
)
def test_a_malformed_instance_file_is_refused(
    change: Callable[[dict[str, Any]], None], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=sentence):
        coco_instances.load(instances(tmp_path, change), "train")


def test_training_images_are_not_scored(tmp_path: Path) -> None:
    config = instances(tmp_path)
    assert len(coco_instances.load(config, "train")) == 2
    same = config.model_copy(update={"annotations": {"train": tmp_path / "train.json", "val": tmp_path / "train.json"}})
    with pytest.raises(DataError, match=r"share 2 images, the first coco/101; remove them from one"):
        coco_instances.load(same, "train")


def test_a_missing_instance_file_names_the_setting(tmp_path: Path) -> None:
    config = coco_instances.Config(annotations={"train": tmp_path / "none.json"}, images=tmp_path)
    with pytest.raises(DataError, match=r"none.json is missing; data.annotations must contain paths"):
        coco_instances.load(config, "train")


def test_an_unlisted_image_is_named(tmp_path: Path) -> None:
    instances(tmp_path)
    with pytest.raises(DataError, match=r"lists no image 7; use the instance file of the same release"):
        InstanceFile(tmp_path / "train.json").image(7, Path())


@pytest.mark.parametrize("name", ["split", "raw_anns"])
def test_a_parquet_string_that_is_no_utf_8_is_one_sentence(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "refcoco" / "data"
    folder.mkdir(parents=True)
    row = {
        **REF,
        "raw_anns": json.dumps({"id": 2, "image_id": 1, "segmentation": []}),
        "raw_image_info": json.dumps({"id": 1, "file_name": "1.jpg", "height": 8, "width": 8}),
    }
    table = pa.Table.from_pylist([row])
    damaged = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(
        table.set_column(table.schema.get_field_index(name), name, damaged), folder / "train-00000-of-00001.parquet"
    )
    with pytest.raises(DataError, match="truncated or invalid parquet file"):
        refer_parquet.load(refer_parquet.Config(root=tmp_path, dataset="refcoco"), "train")


def test_an_answer_that_is_no_string_is_one_sentence(tmp_path: Path) -> None:
    entry = {"imageId": "1", "question": "what?", "answer": None, "types": {"structural": "query"}}
    (tmp_path / "train_balanced_questions.json").write_text(json.dumps({"7": entry}))
    with pytest.raises(DataError, match=r"question 7 is malformed \(TypeError: found None instead of a string\)"):
        gqa.load(gqa.Config(root=tmp_path), "train")


def test_a_caption_that_cannot_be_stored_is_one_sentence(tmp_path: Path) -> None:
    content = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "a \ud83d"}]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2014.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"is no caption file of COCO: .*contains half of a surrogate pair"):
        coco_captions.load(coco_captions.Config(root=tmp_path), "val")


def test_a_mix_does_not_require_the_files_of_excluded_images(tmp_path: Path) -> None:
    """Training on captions does not require COCO's many validation images."""
    datasets.write_refer(tmp_path, MADE, ["train", "val", "testA", "testB"])
    for split, ids in {"train": (101, 102), "val": (103,)}.items():
        content = {
            "images": [{"id": key, "file_name": f"COCO_{split}2014_{key:012d}.png"} for key in ids],
            "annotations": [{"image_id": key, "caption": "shapes"} for key in ids],
        }
        path = tmp_path / "annotations" / f"captions_{split}2014.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    (tmp_path / "train2014").symlink_to(tmp_path / datasets.IMAGES)
    part = {"name": "refer", "root": str(tmp_path), "dataset": "refcoco", "split_by": "unc"}
    config = mix.Config.model_validate({"train": [{"name": "coco_captions", "root": str(tmp_path)}], "score": part})
    assert [one.image_id for one in mix.load(config, "train")] == ["coco/101"]
    for module, name in ((vqav2, "vqav2"), (gqa, "gqa"), (coco_captions, "coco_captions")):
        assert hasattr(module, "image_ids"), name


def test_a_grey_image_of_sixteen_bits_is_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "x.png")
    found = ImageFile(tmp_path / "x.png", 8, 8).read()
    assert np.array_equal(found[..., 0], values >> 8)


def test_an_image_with_an_impossible_name_counts_as_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets.write_refer(tmp_path, MADE, ["train", "val", "testA", "testB"])
    path = tmp_path / "refcoco" / "instances.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "x" * 300
    path.write_text(json.dumps(content))
    assert main(["check", "refer", "--root", str(tmp_path)]) == 2
    assert "1 of 4 image files are missing" in capsys.readouterr().out
    (example, *_) = refer.load(refer.Config(root=tmp_path, dataset="refcoco", split_by="unc"), "train")
    with pytest.raises(DataError, match="cannot be read as an image"):
        _ = example.image
