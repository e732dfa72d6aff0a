"""Datasets that are damaged in ways of their own: one sentence, nothing silently left out, and no traceback."""

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
        ({"sentences": [{"sent": None}]}, "found None, and a text is allowed"),
        ({"sentences": [{"sent": 5}]}, "found 5, and a text is allowed"),
        ({"sentences": [{"sent": b"\xff"}]}, "a text is allowed"),
        ({"sentences": [{"sent": "a \ud83d"}]}, "contains half of a surrogate pair"),
        ({"split": None}, "found None, and a text is allowed"),
        ({"image_id": float("inf")}, "OverflowError"),
    ],
)
def test_a_ref_that_is_none_is_one_sentence(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=rf"refs.p: ref 0 is none \(.*{reason}.*\); it needs image_id") as raised:
        parse([{**REF, **change}], Path("refs.p"))
    assert "\n" not in str(raised.value)


def test_an_annotation_that_a_ref_names_twice_is_one_object() -> None:
    (ref,) = parse([{**REF, "ann_id": [5, 2, 5, -1]}], Path("refs.p")).split("train")
    assert ref.annotations == (2, 5)


def test_a_file_without_refs_says_so() -> None:
    with pytest.raises(DataError, match=r"no split 'train'; it has no refs at all"):
        parse([], Path("refs.p")).split("train")


@pytest.mark.parametrize("name", ["vqav2", "gqa", "coco_captions"])
def test_a_root_that_is_a_file_is_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "root"
    path.touch()
    assert main(["check", name, "--root", str(path)]) == 2
    assert "cannot be read (Not a directory); a JSON file is allowed there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "truncated or invalid JSON"),
        (b"1" * 5000, "truncated or invalid JSON"),
        (b"caf\xe9", "truncated or invalid JSON"),
    ],
    ids=["deep", "long number", "latin-1"],
)
def test_json_that_cannot_be_read_is_one_sentence(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_json(path)


def test_json_may_begin_with_a_byte_order_mark_and_is_no_folder(tmp_path: Path) -> None:
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
        ({"text": [None]}, "found None, and a text is allowed"),
        ({"is_sentence": "false"}, "is_sentence 'false'"),
        ({"shapes": [{"label": "target", "points": []}]}, r"points are \[\], and pairs of numbers are allowed"),
        ({"shapes": [{"label": "target", "points": [[1e300, 2], [3, 4], [5, 6]]}]}, "pairs of numbers are allowed"),
        ({"shapes": [{"label": "target", "points": 5}]}, "pairs of numbers are allowed"),
    ],
)
def test_an_annotation_of_reasonseg_that_is_none_is_one_sentence(
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
        (lambda part: part["images"].pop(0), "is about image 101, which the file does not list; add the image"),
        (lambda part: part["images"].append({**part["images"][0], "height": 1}), "that differ have the id 101"),
        (
            lambda part: part["annotations"].append({**part["annotations"][0], "area": 2}),
            "that differ have the id 101001",
        ),
        (lambda part: part["annotations"][0].update(expression=""), "expression is ''; a text or a list of texts"),
        (lambda part: part["annotations"][0].update(expression=[" "]), "a text or a list of texts"),
        (lambda part: part["annotations"][0].update(expression="\ud83d"), "contains half of a surrogate pair"),
        (lambda part: part["annotations"][0].update(id=float("inf")), "is no COCO instance file"),
        (lambda part: part["annotations"][0].update(segmentation={}), "KeyError: 'size'; its segmentation must be"),
        (lambda part: part["images"][0].update(file_name=5), "found 5, and a text is allowed"),
        (lambda part: part["images"][0].update(height=0), "found 224 x 0 pixels; 1 to 268435456 are allowed"),
        (lambda part: part["images"][0].update(width=-3), "found -3 x 224 pixels"),
        (lambda part: part["images"][0].update(height=10**9), "found 224 x 1000000000 pixels"),
    ],
)
def test_an_instance_file_loses_nothing_silently(
    change: Callable[[dict[str, Any]], None], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=sentence):
        coco_instances.load(instances(tmp_path, change), "train")


def test_what_is_trained_on_is_not_scored(tmp_path: Path) -> None:
    config = instances(tmp_path)
    assert len(coco_instances.load(config, "train")) == 2
    same = config.model_copy(update={"annotations": {"train": tmp_path / "train.json", "val": tmp_path / "train.json"}})
    with pytest.raises(DataError, match=r"share 2 images, the first coco/101; take them out of one"):
        coco_instances.load(same, "train")


def test_instances_that_are_not_there_name_the_setting(tmp_path: Path) -> None:
    config = coco_instances.Config(annotations={"train": tmp_path / "none.json"}, images=tmp_path)
    with pytest.raises(DataError, match=r"none.json is missing; data.annotations must name COCO instance files"):
        coco_instances.load(config, "train")


def test_an_image_that_is_not_listed_is_named(tmp_path: Path) -> None:
    instances(tmp_path)
    with pytest.raises(DataError, match=r"lists no image 7; take the file that belongs to it"):
        InstanceFile(tmp_path / "train.json").image(7, Path())


@pytest.mark.parametrize("name", ["split", "raw_anns"])
def test_a_parquet_text_that_is_no_utf_8_is_one_sentence(name: str, tmp_path: Path) -> None:
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


def test_answers_that_are_no_text_are_one_sentence(tmp_path: Path) -> None:
    entry = {"imageId": "1", "question": "what?", "answer": None, "types": {"structural": "query"}}
    (tmp_path / "train_balanced_questions.json").write_text(json.dumps({"7": entry}))
    with pytest.raises(DataError, match=r"question 7 is none \(TypeError: found None, and a text is allowed\)"):
        gqa.load(gqa.Config(root=tmp_path), "train")


def test_a_caption_that_cannot_be_stored_is_one_sentence(tmp_path: Path) -> None:
    content = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "a \ud83d"}]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2014.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"is no caption file of COCO: .*contains half of a surrogate pair"):
        coco_captions.load(coco_captions.Config(root=tmp_path), "val")


def test_a_mix_needs_no_file_of_an_image_that_it_keeps_out(tmp_path: Path) -> None:
    """COCO's validation images are many, and those who only train on captions need none of them."""
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
    for module, given in ((vqav2, "vqav2"), (gqa, "gqa"), (coco_captions, "coco_captions")):
        assert hasattr(module, "image_ids"), given


def test_a_grey_image_of_sixteen_bits_keeps_its_tones(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "x.png")
    found = ImageFile(tmp_path / "x.png", 8, 8).read()
    assert np.array_equal(found[..., 0], values >> 8)


def test_a_name_that_no_file_can_have_is_a_missing_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
