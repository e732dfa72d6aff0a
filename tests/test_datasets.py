"""Datasets in their official formats load to exactly the masks and sentences that were written, or say why not."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from harness.data.__main__ import main
from harness.data.datasets import coco_instances, grefcoco, mix, reasonseg, ref_zom, refer
from harness.data.formats.coco_file import mask_of
from harness.data.formats.pickled import read_plain_pickle
from harness.errors import DataError
from tests import datasets

SPLITS = ["train", "val", "testA", "testB"]
MADE = datasets.made()
SQUARE = np.zeros((8, 8), bool)
SQUARE[2:6, 2:6] = True
OVERLAP = [[0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 6, 2, 6, 6, 2, 6]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    datasets.write_refer(tmp_path, MADE, SPLITS)
    return tmp_path


def refcoco(root: Path, **settings: object) -> refer.Config:
    return refer.Config.model_validate({"root": root, "dataset": "refcoco", "split_by": "unc", **settings})


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("split", "number"), [(split, i) for i, split in enumerate(SPLITS)])
def test_refcoco_has_the_masks_and_sentences_that_were_written(root: Path, split: str, number: int) -> None:
    (example,) = refer.load(refcoco(root), split)
    scene = MADE[number]
    assert example.image_id == f"coco/{101 + number}"
    assert np.array_equal(example.image, scene.image)
    expected = [
        (text, scene.mask(one))
        for one in scene.expressions
        if len(one.targets) == 1
        for text in (one.text, f"the caf\xe9's {one.text}")
    ]
    assert [one.text for one in example.expressions] == [text for text, _ in expected]
    for one, (_, mask) in zip(example.expressions, expected, strict=True):
        assert np.array_equal(example.mask(one), mask)
    assert {one.family for one in example.expressions} == {"single"}


@pytest.mark.parametrize(("dataset", "split_by"), refer.SPLITS)
def test_every_pickle_of_refer_is_read_by_its_own_splits(tmp_path: Path, dataset: str, split_by: str) -> None:
    config = refer.Config.model_validate({"root": tmp_path, "dataset": dataset, "split_by": split_by})
    splits = [config.splits[number % len(config.splits)] for number in range(len(MADE))]
    content = datasets.refs(MADE, splits, as_lists=False)
    datasets.write_refs(tmp_path / dataset, f"refs({split_by}).p", tmp_path, MADE, content)
    for split in config.splits:
        found = refer.load(config, split)
        assert [one.image_id for one in found] == [f"coco/{101 + i}" for i, name in enumerate(splits) if name == split]
        for example in found:
            scene = MADE[int(example.image_id.removeprefix("coco/")) - 101]
            single = [one for one in scene.expressions if len(one.targets) == 1]
            for one, meant in zip(example.expressions[::2], single, strict=True):
                assert one.text == meant.text
                assert np.array_equal(example.mask(one), scene.mask(meant))


def test_polygons_of_a_file_are_filled(root: Path) -> None:
    """Two parts of one object."""
    key = pickle.loads((root / "refcoco" / "refs(unc).p").read_bytes())[0]["ann_id"]
    parts = [[10, 20, 30, 20, 30, 60, 10, 60], [50, 20, 70, 20, 70, 60, 50, 60]]
    edit(
        root / "refcoco" / "instances.json",
        lambda content: next(a for a in content["annotations"] if a["id"] == key).update(segmentation=parts),
    )
    (example,) = refer.load(refcoco(root), "train")
    expected = np.zeros(MADE[0].size, bool)
    expected[20:60, 10:30] = expected[20:60, 50:70] = True
    assert np.array_equal(example.mask(example.expressions[0]), expected)


@pytest.mark.parametrize(("dataset", "place"), [(grefcoco, "grefcoco"), (ref_zom, "ref-zom")])
def test_expressions_about_several_objects_and_none(tmp_path: Path, dataset, place: str) -> None:
    if dataset is grefcoco:
        datasets.write_grefcoco(tmp_path, MADE, SPLITS)
        config = grefcoco.Config(root=tmp_path)
    else:
        refs = datasets.refs(MADE, ["train", "test", "test", "test"], as_lists=True)
        for ref in refs:
            # The release marks a ref without target by its source, whatever its annotations say.
            ref["source"] = "zero" if ref["no_target"] else "one"
            ref["ann_id"] = (
                [101001] if ref["no_target"] and ref["image_id"] == 101 else [i for i in ref["ann_id"] if i > 0]
            )
        datasets.write_refs(tmp_path / place, "refs(final).p", tmp_path, MADE, refs)
        config = ref_zom.Config(root=tmp_path, images=Path(datasets.IMAGES))
    (example,) = dataset.load(config, "train")
    families = {0: "no_target", 1: "single"}
    for one, scene in zip(example.expressions[::2], MADE[0].expressions, strict=True):
        assert np.array_equal(example.mask(one), MADE[0].mask(scene))
        assert one.family == families.get(len(scene.targets), "multi")
    assert "no_target" in {one.family for one in example.expressions}


def test_polygons_are_filled_as_pycocotools_fills_them() -> None:
    polygon = [[2.0, 2.0, 6.0, 2.0, 6.0, 6.0, 2.0, 6.0]]
    mask, has_overlap = mask_of(polygon, 8, 8, "union")
    assert np.array_equal(coco_mask.decode(mask) > 0, SQUARE)
    assert not has_overlap


def test_pixels_of_two_polygons_are_the_objects_or_background() -> None:
    union, has_overlap = mask_of(OVERLAP, 8, 8, "union")
    lisa, _ = mask_of(OVERLAP, 8, 8, "lisa_sum")
    assert has_overlap
    assert coco_mask.area(union) == 16 + 16 - 4
    assert coco_mask.area(lisa) == 16 + 16 - 2 * 4


def test_overlapping_polygons_need_a_word_on_what_they_mean(root: Path) -> None:
    path = root / "refcoco" / "instances.json"
    key = pickle.loads((root / "refcoco" / "refs(unc).p").read_bytes())[0]["ann_id"]
    edit(path, lambda content: next(a for a in content["annotations"] if a["id"] == key).update(segmentation=OVERLAP))
    with pytest.raises(DataError, match=rf"polygons of annotation {key} overlap .* set data.ground_truth to union .*"):
        refer.load(refcoco(root), "train")
    areas = {
        mode: refer.load(refcoco(root, ground_truth=mode), "train")[0].mask(example.expressions[0]).sum()
        for mode in ("union", "lisa_sum")
        for example in refer.load(refcoco(root, ground_truth=mode), "train")
    }
    assert areas == {"union": 28, "lisa_sum": 24}


def test_a_crowd_is_no_object(root: Path) -> None:
    path = root / "refcoco" / "instances.json"
    crowd = datasets.annotation(1, 101, datasets.runs(np.ones(MADE[0].size, bool)), is_crowd=1)
    before = len(refer.load(refcoco(root), "train")[0].objects)
    edit(path, lambda content: content["annotations"].insert(0, crowd))
    (example,) = refer.load(refcoco(root), "train")
    assert len(example.objects) == before == len(MADE[0].objects)
    assert np.array_equal(example.mask(example.expressions[0]), MADE[0].mask(_first_single(0)))


def test_grefcoco_leaves_crowds_out_of_targets_and_refer_keeps_them(tmp_path: Path) -> None:
    """As G_REFER's getMaskByRef and REFER's getMask do."""
    size = MADE[0].size
    top, left = np.zeros(size, bool), np.zeros(size, bool)
    top[:9], left[:, :9] = True, True
    entries = [datasets.annotation(1, 101, datasets.runs(top)), datasets.annotation(2, 101, datasets.runs(left), 1)]
    ref = {"image_id": 101, "split": "train", "sentences": [{"sent": "both"}]}
    for write in (datasets.write_refer, datasets.write_grefcoco):
        write(tmp_path, MADE, SPLITS)
    for name in ("refcoco", "grefcoco"):
        edit(tmp_path / name / "instances.json", lambda content: content.update(annotations=entries))
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([{**ref, "ann_id": 2}], protocol=2))
    (tmp_path / "grefcoco" / "grefs(unc).json").write_text(json.dumps([{**ref, "ann_id": [1, 2]}]))
    (example,) = refer.load(refcoco(tmp_path), "train")
    assert np.array_equal(example.mask(example.expressions[0]), left)
    (example,) = grefcoco.load(grefcoco.Config(root=tmp_path), "train")
    assert np.array_equal(example.mask(example.expressions[0]), top)
    assert (len(example.objects), example.expressions[0].family) == (1, "single")
    (tmp_path / "grefcoco" / "grefs(unc).json").write_text(json.dumps([{**ref, "ann_id": [2]}]))
    with pytest.raises(DataError, match="all annotations of a ref of image 101 are crowds, the first 2"):
        grefcoco.load(grefcoco.Config(root=tmp_path), "train")


ODD = {
    "box": {"segmentation": [[1, 2, 3, 4]]},
    "other size": {"segmentation": {"size": [8, 8], "counts": [64]}},
    "far outside": {"segmentation": [[0, 0, 4, 0, 1e9, 4]]},
    "none": {"segmentation": None},
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD.keys())
def test_an_unreadable_annotation_that_no_sentence_names_is_left_out_and_counted(
    root: Path, change: dict[str, object], capsys
) -> None:
    before = refer.load(refcoco(root), "train")
    path = root / "refcoco" / "instances.json"
    odd = {**datasets.annotation(7, 101, []), **change}
    edit(path, lambda content: content["annotations"].insert(0, odd))
    (after,) = refer.load(refcoco(root), "train")
    assert (after.objects, after.expressions) == (before[0].objects, before[0].expressions)
    main(["check", "refer", "--root", str(root)])
    output = capsys.readouterr().out
    assert "ok refcoco (unc): 1 annotation has no readable mask, the first 7; no sentence refers to it" in output
    refs = [{"image_id": 101, "ann_id": 7, "split": "train", "sentences": [{"sent": "odd"}]}]
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    with pytest.raises(DataError, match="annotation 7 has no mask that can be read"):
        refer.load(refcoco(root), "train")


def test_an_annotation_without_a_segmentation_is_left_out(root: Path) -> None:
    odd = datasets.annotation(7, 101, [])
    del odd["segmentation"]
    edit(root / "refcoco" / "instances.json", lambda content: content["annotations"].insert(0, odd))
    (example,) = refer.load(refcoco(root), "train")
    assert len(example.objects) == len(MADE[0].objects)


@pytest.mark.parametrize("ground_truth", ["union", "lisa_sum"])
def test_an_annotation_may_have_more_parts_than_a_byte_counts(ground_truth) -> None:
    corners = [(x, y) for x in range(0, 100, 5) for y in range(0, 100, 5)][:300]
    squares = [[x, y, x + 3, y, x + 3, y + 3, x, y + 3] for x, y in corners]
    expected = np.zeros((100, 100), bool)
    for x, y in corners:
        expected[y : y + 3, x : x + 3] = True
    mask, has_overlap = mask_of(squares, 100, 100, ground_truth)
    assert np.array_equal(coco_mask.decode(mask) > 0, expected)
    assert not has_overlap
    mask, has_overlap = mask_of([*squares, *squares[:1]], 100, 100, ground_truth)
    assert has_overlap
    assert coco_mask.area(mask) == expected.sum() - (9 if ground_truth == "lisa_sum" else 0)


def _first_single(number: int):
    return next(one for one in MADE[number].expressions if len(one.targets) == 1)


def test_a_pickle_that_would_run_something_is_refused(root: Path) -> None:
    class Malicious:
        def __reduce__(self):
            return os.system, ("touch " + str(root / "ran"),)

    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([Malicious()]))
    with pytest.raises(DataError, match=r"refs\(unc\).p is a pickle that asks for 'posix.system'"):
        refer.load(refcoco(root), "train")
    assert not (root / "ran").exists()


def test_text_of_python_2_is_latin_1(root: Path) -> None:
    path = root / "refcoco" / "refs(unc).p"
    # As Python 2 wrote {"sent": "caf\xe9"}: byte strings, which Python 3 itself no longer writes.
    sentence = b"(dS'sent'\nS'caf\\xe9'\ns"
    path.write_bytes(
        b"(lp0\n(dS'image_id'\nI101\nsS'ann_id'\nI101001\nsS'split'\nS'train'\nsS'sentences'\n(l" + sentence + b"asa."
    )
    (example,) = refer.load(refcoco(root), "train")
    assert [one.text for one in example.expressions] == ["caf\xe9"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda root: _cut(root / "refcoco" / "refs(unc).p"), r"refs\(unc\).p is a truncated or invalid pickle"),
        (lambda root: _cut(root / "refcoco" / "instances.json"), r"instances.json is truncated or invalid JSON"),
        (lambda root: (root / "refcoco" / "instances.json").unlink(), r"instances.json is missing"),
        (lambda root: _drop_annotations(root), r"image 101 has no annotation 10100\d, which a sentence is about"),
        (lambda root: _spoil_polygon(root), r"no mask that can be read: a polygon of 4 numbers"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(root: Path, spoil, sentence: str) -> None:
    spoil(root)
    with pytest.raises(DataError, match=sentence) as raised:
        refer.load(refcoco(root), "train")
    assert "\n" not in str(raised.value)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _drop_annotations(root: Path) -> None:
    edit(root / "refcoco" / "instances.json", lambda content: content.update(annotations=[]))


def _spoil_polygon(root: Path) -> None:
    key = pickle.loads((root / "refcoco" / "refs(unc).p").read_bytes())[0]["ann_id"]
    edit(
        root / "refcoco" / "instances.json",
        lambda content: next(a for a in content["annotations"] if a["id"] == key).update(segmentation=[[1, 2, 3, 4]]),
    )


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: _cut(path), "cannot be read as an image"),
        (lambda path: path.write_bytes(b"no image"), "cannot be read as an image"),
    ],
)
def test_an_image_that_cannot_be_read_is_told_when_it_is_looked_at(root: Path, spoil, sentence: str) -> None:
    (example,) = refer.load(refcoco(root), "train")
    spoil(example.picture.path)
    with pytest.raises(DataError, match=sentence):
        _ = example.image


def test_an_image_of_another_size_than_its_annotations_is_refused(root: Path) -> None:
    path = root / "refcoco" / "instances.json"
    edit(path, lambda content: content.update(annotations=[]) or content["images"][0].update(height=100))
    refs = [{"image_id": 101, "ann_id": [-1], "split": "train", "sentences": [{"sent": "nothing"}]}]
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (example,) = refer.load(refcoco(root), "train")
    with pytest.raises(DataError, match="has 224 x 224 pixels, but its annotations are for 224 x 100"):
        _ = example.image


def test_any_instance_file_with_a_column_of_expressions(tmp_path: Path) -> None:
    images = datasets.write_images(tmp_path / "images", MADE[:1])
    content = datasets.instances(MADE[:1], images)
    content["annotations"][0]["generated_text"] = "one Thing"
    content["annotations"][1]["generated_text"] = ["one  thing", "another"]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    config = coco_instances.Config(annotations={"train": path}, images=tmp_path / "images", column="generated_text")
    (example,) = coco_instances.load(config, "train")
    assert [(one.text, one.targets) for one in example.expressions] == [("one thing", (1, 2)), ("another", (2,))]
    assert example.lists_all_objects
    for one in content["annotations"]:
        one["generated_text"] = "a thing"
    path.write_text(json.dumps(content))
    assert not coco_instances.load(config, "train")[0].lists_all_objects
    with pytest.raises(DataError, match="no annotation has a text under 'expression'; name their field"):
        coco_instances.load(config.model_copy(update={"column": "expression"}), "train")


def test_reasonseg_draws_small_shapes_over_large_ones_and_keeps_what_is_ignored_apart(tmp_path: Path) -> None:
    shapes = [
        {"label": "ignore", "points": [[3, 3], [5, 3], [5, 5], [3, 5]]},
        {"label": "flag", "points": [[0, 0], [9, 0], [9, 9], [0, 9]]},
        {"label": "target", "points": [[1, 1], [8, 1], [8, 8], [1, 8]]},
    ]
    content = {"shapes": shapes, "text": ["Why  not?", "what then"], "is_sentence": True}
    datasets.write_reasonseg(tmp_path, "a", np.zeros((10, 12, 3), np.uint8), content)
    (example,) = reasonseg.load(reasonseg.Config(root=tmp_path), "test")
    ignored = np.zeros((10, 12), bool)
    ignored[3:6, 3:6] = True
    target = np.zeros((10, 12), bool)
    target[1:9, 1:9] = True
    assert [(one.text, one.family) for one in example.expressions] == [("why not?", "long"), ("what then", "long")]
    assert np.array_equal(example.mask(example.expressions[0]), target & ~ignored)
    assert np.array_equal(example.valid_mask(), ~ignored)
    assert not example.lists_all_objects


def test_reasonseg_in_another_encoding_and_without_shapes(tmp_path: Path) -> None:
    image = np.zeros((10, 12, 3), np.uint8)
    content = {"shapes": [], "text": ["the caf\xe9"], "is_sentence": False}
    datasets.write_reasonseg(tmp_path, "a", image, content, encoding="cp1252")
    (example,) = reasonseg.load(reasonseg.Config(root=tmp_path), "test")
    assert [(one.text, one.targets) for one in example.expressions] == [("the caf\xe9", ())]
    # As two of the released test split.
    datasets.write_reasonseg(tmp_path, "b", image, {"text": ["left out"], "is_sentence": True})
    assert len(reasonseg.load(reasonseg.Config(root=tmp_path), "test")) == 1
    *_, found = reasonseg.check(tmp_path)
    assert "2 images, 1 sentences, 1 of the images left out" in found.text
    datasets.write_reasonseg(tmp_path, "c", image, {"shapes": [], "is_sentence": True})
    with pytest.raises(DataError, match=r"c.json is no annotation of ReasonSeg \(KeyError: 'text'\)"):
        reasonseg.load(reasonseg.Config(root=tmp_path), "test")


def test_a_split_that_is_not_there_is_told_with_those_that_are(root: Path) -> None:
    with pytest.raises(DataError, match=r"has no split 'test'; did you mean testB or testA"):
        refer.load(refcoco(root), "test")


def test_check_holds_counts_against_what_is_published(root: Path, capsys) -> None:
    assert main(["check", "refer", "--root", str(root)]) == 2
    output = capsys.readouterr().out
    assert "!! refcoco (unc) testA: " in output
    assert "published are 5657 sentences, 1975 refs, 750 images" in output
    assert "ok refcoco (unc): all 4 image files are there" in output
    assert "ok refcoco (unc): none of the" in output
    assert "refcoco+ (unc)" in output
    assert "missing; annotations: refcoco.zip" in output


def test_check_is_content_where_all_is_as_published(root: Path, capsys, monkeypatch) -> None:
    found = refer._read(refcoco(root))
    monkeypatch.setattr(refer, "PUBLISHED", {("refcoco", "unc"): {split: found.counts(split) for split in SPLITS}})
    monkeypatch.setattr(refer, "SPLITS", {("refcoco", "unc"): tuple(SPLITS)})
    assert main(["check", "refer", "--root", str(root)]) == 0
    assert "as published" in capsys.readouterr().out
    (root / datasets.IMAGES / "COCO_train2014_000000000103.png").unlink()
    assert main(["check", "refer", "--root", str(root)]) == 2
    assert "1 of 4 image files are missing, the first" in capsys.readouterr().out


def test_check_goes_on_behind_polygons_that_overlap_and_counts_them(root: Path, capsys) -> None:
    key = pickle.loads((root / "refcoco" / "refs(unc).p").read_bytes())[0]["ann_id"]
    path = root / "refcoco" / "instances.json"
    edit(path, lambda content: next(a for a in content["annotations"] if a["id"] == key).update(segmentation=OVERLAP))
    main(["check", "refer", "--root", str(root)])
    output = capsys.readouterr().out
    assert f"annotations meant have polygons that overlap, the first {key}; evaluators differ" in output
    assert "ok refcoco (unc): all 4 image files are there" in output


def test_check_reads_the_size_of_images(root: Path, capsys) -> None:
    Image.new("RGB", (10, 20)).save(root / datasets.IMAGES / "COCO_train2014_000000000103.png")
    assert main(["check", "refer", "--root", str(root)]) == 2
    output = capsys.readouterr().out
    assert "!! refcoco (unc): 1 of 4 images have another size than their annotations, the first" in output
    assert "COCO_train2014_000000000103.png: 10 x 20, not 224 x 224" in output


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"I1\n(tR.", "not callable"),
        (b"}(]I1\nu.", "unhashable"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.", "exceeds"),
        (b"Pname\n.", "persistent"),
    ],
)
def test_a_damaged_pickle_is_one_sentence_whatever_its_instructions_raise(tmp_path: Path, content, reason: str) -> None:
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(DataError, match=rf"refs.p is a truncated or invalid pickle \(.*{reason}") as raised:
        read_plain_pickle(tmp_path / "refs.p")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[0, 0, 4, 0, 4, float("nan")]], "a point at y = nan"),
        ([[0, 0, 4, 0, 1e9, 4]], "a point at x = 1e"),
        ([[0, 0, 4, 0, float("inf"), 4]], "a point at x = inf"),
        ({"size": [8, 8], "counts": [70, -6]}, "an encoding of 64 pixels"),
        ({"size": [8, 8], "counts": [32]}, "an encoding of 32 pixels"),
    ],
)
def test_masks_that_would_break_pycocotools_are_refused(segmentation, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        mask_of(segmentation, 8, 8, "union")


def test_a_compressed_encoding_that_is_cut_off_is_refused() -> None:
    whole = coco_mask.encode(np.asfortranarray(SQUARE.astype(np.uint8)))
    assert np.array_equal(coco_mask.decode(mask_of(whole, 8, 8, "union")[0]) > 0, SQUARE)
    cut = {**whole, "counts": whole["counts"][:3].decode()}
    with pytest.raises(ValueError, match=r"an encoding of .* pixels; the image has 64"):
        mask_of(cut, 8, 8, "union")


def test_no_polygon_is_an_empty_mask() -> None:
    assert coco_mask.area(mask_of([], 8, 8, "union")[0]) == 0


def test_images_are_known_by_cocos_number_and_others_by_their_file(tmp_path: Path) -> None:
    """A file of instances may number images as it likes."""
    images = datasets.write_images(tmp_path / "images", MADE[:2])
    content = datasets.instances(MADE[:2], images)
    content["images"][1]["file_name"] = "mine/102.png"
    for one in content["annotations"]:
        one["expression"] = "something"
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content).replace('"image_id": 101', '"image_id": 7').replace('"id": 101,', '"id": 7,'))
    config = coco_instances.Config(annotations={"train": path}, images=tmp_path / "images")
    assert [one.image_id for one in coco_instances.load(config, "train")] == ["coco/101", "file/mine/102.png"]


def test_gqa_beside_cocos_images_is_refused() -> None:
    coco = {"name": "refer", "root": ".", "dataset": "refcoco", "split_by": "unc"}
    with pytest.raises(ValueError, match="gqa and refer may share images of COCO under different numbers"):
        mix.Config.model_validate({"train": [{"name": "gqa", "root": "."}], "score": coco})


def test_check_knows_which_datasets_are_published(capsys) -> None:
    assert main(["check", "scenes", "--root", "."]) == 2
    assert "there is nothing published to hold 'scenes' against; known: coco_captions, " in capsys.readouterr().err


def test_who_asks_for_refcoco_by_its_name_is_told_what_reads_it(capsys) -> None:
    for name in ("refcoco", "refcoco+", "refcocog"):
        assert main(["check", name, "--root", "."]) == 2
        expected = f"no dataset '{name}'; name refer or refer_parquet, whose `dataset` may be {name}"
        assert expected in capsys.readouterr().err


def test_a_mix_trains_on_no_image_that_a_part_keeps_for_scoring(tmp_path: Path) -> None:
    """What RefCOCO trains on, gRefCOCO tests in part, and the other way round."""
    examples = datasets.made(6)
    datasets.write_refer(tmp_path, examples, ["train", "train", "val", "testA", "testB", "testB"])
    datasets.write_grefcoco(tmp_path, examples, ["val", "train", "testA", "testB", "train", "train"])
    place = {"root": str(tmp_path)}
    part = {"name": "refer", "dataset": "refcoco", "split_by": "unc", **place}
    config = mix.Config.model_validate({"train": [part, {"name": "grefcoco", **place}], "score": part})
    assert config.splits == ("train", "val", "testA", "testB")
    assert [one.image_id for one in mix.load(config, "train")] == ["coco/102", "coco/102"]
    assert [one.image_id for one in mix.load(config, "val")] == ["coco/103"]


def test_a_mix_names_the_part_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="no dataset 'refcoko'"):
        mix.Config.model_validate({"train": [{"name": "refcoko"}], "score": {"name": "scenes"}})


def test_a_mix_within_a_mix_is_refused() -> None:
    """The outer one would not know what the inner one keeps for scoring."""
    inner = {"name": "mix", "train": [{"name": "gqa", "root": "."}], "score": {"name": "scenes"}}
    with pytest.raises(ValueError, match="a mix of mixes keeps no image out of training; name their datasets in one"):
        mix.Config.model_validate({"train": [inner], "score": {"name": "scenes"}})
