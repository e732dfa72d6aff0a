"""Datasets in official formats load to exactly the masks and sentences that were written, or raise a clear error."""

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
def test_every_pickle_of_refer_loads_with_its_own_splits(tmp_path: Path, dataset: str, split_by: str) -> None:
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
            for one, expected in zip(example.expressions[::2], single, strict=True):
                assert one.text == expected.text
                assert np.array_equal(example.mask(one), scene.mask(expected))


def test_polygons_of_a_file_are_filled(root: Path) -> None:
    """The object has two parts."""
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


@pytest.mark.parametrize(("dataset", "folder"), [(grefcoco, "grefcoco"), (ref_zom, "ref-zom")])
def test_expressions_with_several_targets_and_with_none(tmp_path: Path, dataset, folder: str) -> None:
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
        datasets.write_refs(tmp_path / folder, "refs(final).p", tmp_path, MADE, refs)
        config = ref_zom.Config(root=tmp_path, images=Path(datasets.IMAGES))
    (example,) = dataset.load(config, "train")
    families = {0: "no_target", 1: "single"}
    for one, scene in zip(example.expressions[::2], MADE[0].expressions, strict=True):
        assert np.array_equal(example.mask(one), MADE[0].mask(scene))
        assert one.family == families.get(len(scene.targets), "multi")
    assert "no_target" in {one.family for one in example.expressions}


def test_polygons_are_filled_as_by_pycocotools() -> None:
    polygon = [[2.0, 2.0, 6.0, 2.0, 6.0, 6.0, 2.0, 6.0]]
    mask, has_overlap = mask_of(polygon, 8, 8, "union")
    assert np.array_equal(coco_mask.decode(mask) > 0, SQUARE)
    assert not has_overlap


def test_pixels_in_two_polygons_are_object_or_background() -> None:
    union, has_overlap = mask_of(OVERLAP, 8, 8, "union")
    lisa, _ = mask_of(OVERLAP, 8, 8, "lisa_sum")
    assert has_overlap
    assert coco_mask.area(union) == 16 + 16 - 4
    assert coco_mask.area(lisa) == 16 + 16 - 2 * 4


def test_overlapping_polygons_require_ground_truth(root: Path) -> None:
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


def test_grefcoco_excludes_crowds_from_targets_and_refer_keeps_them(tmp_path: Path) -> None:
    """As in G_REFER's getMaskByRef and in REFER's getMask."""
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
def test_an_invalid_annotation_without_sentences_is_excluded_and_counted(
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
    assert "ok refcoco (unc): 1 annotation has no valid mask, the first 7; no sentence refers to it" in output
    refs = [{"image_id": 101, "ann_id": 7, "split": "train", "sentences": [{"sent": "odd"}]}]
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    with pytest.raises(DataError, match="annotation 7 has no valid mask"):
        refer.load(refcoco(root), "train")


def test_an_annotation_without_a_segmentation_is_excluded(root: Path) -> None:
    odd = datasets.annotation(7, 101, [])
    del odd["segmentation"]
    edit(root / "refcoco" / "instances.json", lambda content: content["annotations"].insert(0, odd))
    (example,) = refer.load(refcoco(root), "train")
    assert len(example.objects) == len(MADE[0].objects)


@pytest.mark.parametrize("ground_truth", ["union", "lisa_sum"])
def test_an_annotation_may_have_more_than_255_parts(ground_truth) -> None:
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


def test_a_pickle_that_runs_code_is_refused(root: Path) -> None:
    class Malicious:
        def __reduce__(self):
            return os.system, ("touch " + str(root / "ran"),)

    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([Malicious()]))
    with pytest.raises(DataError, match=r"refs\(unc\).p is a pickle that loads 'posix.system'"):
        refer.load(refcoco(root), "train")
    assert not (root / "ran").exists()


def test_text_of_python_2_is_latin_1(root: Path) -> None:
    path = root / "refcoco" / "refs(unc).p"
    # Written as by Python 2 for {"sent": "caf\xe9"}: byte strings, which Python 3 does not write.
    sentence = b"(dS'sent'\nS'caf\\xe9'\ns"
    path.write_bytes(
        b"(lp0\n(dS'image_id'\nI101\nsS'ann_id'\nI101001\nsS'split'\nS'train'\nsS'sentences'\n(l" + sentence + b"asa."
    )
    (example,) = refer.load(refcoco(root), "train")
    assert [one.text for one in example.expressions] == ["caf\xe9"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda root: _truncate(root / "refcoco" / "refs(unc).p"), r"refs\(unc\).p is a truncated or invalid pickle"),
        (lambda root: _truncate(root / "refcoco" / "instances.json"), r"instances.json is truncated or invalid JSON"),
        (lambda root: (root / "refcoco" / "instances.json").unlink(), r"instances.json is missing"),
        (lambda root: _drop_annotations(root), r"image 101 has no annotation 10100\d, to which a sentence refers"),
        (lambda root: _spoil_polygon(root), r"no valid mask: a polygon of 4 numbers"),
    ],
)
def test_a_damaged_file_is_one_sentence(root: Path, spoil, sentence: str) -> None:
    spoil(root)
    with pytest.raises(DataError, match=sentence) as raised:
        refer.load(refcoco(root), "train")
    assert "\n" not in str(raised.value)


def _truncate(path: Path) -> None:
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
        (lambda path: _truncate(path), "cannot be read as an image"),
        (lambda path: path.write_bytes(b"no image"), "cannot be read as an image"),
    ],
)
def test_a_damaged_image_raises_an_error_at_access(root: Path, spoil, sentence: str) -> None:
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
    with pytest.raises(DataError, match=r"no annotation has an expression in the field 'expression'; set data\.column"):
        coco_instances.load(config.model_copy(update={"column": "expression"}), "train")


def test_reasonseg_renders_small_shapes_over_large_ones_and_separates_ignored_pixels(tmp_path: Path) -> None:
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
    # As in two annotations of the released test split.
    datasets.write_reasonseg(tmp_path, "b", image, {"text": ["left out"], "is_sentence": True})
    assert len(reasonseg.load(reasonseg.Config(root=tmp_path), "test")) == 1
    *_, found = reasonseg.check(tmp_path)
    assert "2 images, 1 sentences, 1 images without `shapes` skipped" in found.text
    datasets.write_reasonseg(tmp_path, "c", image, {"shapes": [], "is_sentence": True})
    with pytest.raises(DataError, match=r"c.json is no annotation of ReasonSeg \(KeyError: 'text'\)"):
        reasonseg.load(reasonseg.Config(root=tmp_path), "test")


def test_an_unknown_split_is_refused_with_the_known_ones(root: Path) -> None:
    with pytest.raises(DataError, match=r"has no split 'test'; did you mean testB or testA"):
        refer.load(refcoco(root), "test")


def test_check_compares_counts_with_the_published_ones(root: Path, capsys) -> None:
    assert main(["check", "refer", "--root", str(root)]) == 2
    output = capsys.readouterr().out
    assert "!! refcoco (unc) testA: " in output
    assert "published are 5657 sentences, 1975 refs, 750 images" in output
    assert "ok refcoco (unc): all 4 image files exist" in output
    assert "ok refcoco (unc): none of the" in output
    assert "refcoco+ (unc)" in output
    assert "missing; annotations: refcoco.zip" in output


def test_check_passes_if_all_is_as_published(root: Path, capsys, monkeypatch) -> None:
    found = refcoco(root).read_refs()
    monkeypatch.setattr(refer, "PUBLISHED", {("refcoco", "unc"): {split: found.counts(split) for split in SPLITS}})
    monkeypatch.setattr(refer, "SPLITS", {("refcoco", "unc"): tuple(SPLITS)})
    assert main(["check", "refer", "--root", str(root)]) == 0
    assert "as published" in capsys.readouterr().out
    (root / datasets.IMAGES / "COCO_train2014_000000000103.png").unlink()
    assert main(["check", "refer", "--root", str(root)]) == 2
    assert "1 of 4 image files are missing, the first" in capsys.readouterr().out


def test_check_continues_after_overlapping_polygons_and_counts_them(root: Path, capsys) -> None:
    key = pickle.loads((root / "refcoco" / "refs(unc).p").read_bytes())[0]["ann_id"]
    path = root / "refcoco" / "instances.json"
    edit(path, lambda content: next(a for a in content["annotations"] if a["id"] == key).update(segmentation=OVERLAP))
    main(["check", "refer", "--root", str(root)])
    output = capsys.readouterr().out
    assert f"target annotations have overlapping polygons, the first {key}; evaluators treat" in output
    assert "ok refcoco (unc): all 4 image files exist" in output


def test_check_compares_the_size_of_images(root: Path, capsys) -> None:
    Image.new("RGB", (10, 20)).save(root / datasets.IMAGES / "COCO_train2014_000000000103.png")
    assert main(["check", "refer", "--root", str(root)]) == 2
    output = capsys.readouterr().out
    assert "!! refcoco (unc): 1 of 4 images differ in size from their annotations, the first" in output
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
def test_a_damaged_pickle_is_one_sentence(tmp_path: Path, content, reason: str) -> None:
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


def test_a_truncated_compressed_encoding_is_refused() -> None:
    whole = coco_mask.encode(np.asfortranarray(SQUARE.astype(np.uint8)))
    assert np.array_equal(coco_mask.decode(mask_of(whole, 8, 8, "union")[0]) > 0, SQUARE)
    truncated = {**whole, "counts": whole["counts"][:3].decode()}
    with pytest.raises(ValueError, match=r"an encoding of .* pixels; the image has 64"):
        mask_of(truncated, 8, 8, "union")


def test_no_polygon_is_an_empty_mask() -> None:
    assert coco_mask.area(mask_of([], 8, 8, "union")[0]) == 0


def test_image_ids_are_cocos_or_paths(tmp_path: Path) -> None:
    """The image ids of an instance file may differ from COCO's."""
    images = datasets.write_images(tmp_path / "images", MADE[:2])
    content = datasets.instances(MADE[:2], images)
    content["images"][1]["file_name"] = "mine/102.png"
    for one in content["annotations"]:
        one["expression"] = "something"
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content).replace('"image_id": 101', '"image_id": 7').replace('"id": 101,', '"id": 7,'))
    config = coco_instances.Config(annotations={"train": path}, images=tmp_path / "images")
    assert [one.image_id for one in coco_instances.load(config, "train")] == ["coco/101", "file/mine/102.png"]


def test_gqa_in_a_mix_with_images_of_coco_is_refused() -> None:
    coco = {"name": "refer", "root": ".", "dataset": "refcoco", "split_by": "unc"}
    with pytest.raises(ValueError, match="gqa and refer may share images of COCO under different ids"):
        mix.Config.model_validate({"train": [{"name": "gqa", "root": "."}], "score": coco})


def test_check_knows_which_datasets_are_published(capsys) -> None:
    assert main(["check", "scenes", "--root", "."]) == 2
    assert "there are no published facts to check 'scenes' against; known: coco_captions, " in capsys.readouterr().err


def test_the_name_refcoco_is_refused_with_the_datasets_that_load_it(capsys) -> None:
    for name in ("refcoco", "refcoco+", "refcocog"):
        assert main(["check", name, "--root", "."]) == 2
        expected = f"no dataset '{name}'; name refer or refer_parquet, whose `dataset` may be {name}"
        assert expected in capsys.readouterr().err


def test_a_mix_excludes_scored_images_from_training(tmp_path: Path) -> None:
    """Training images of RefCOCO are test images of gRefCOCO, and the other way round."""
    examples = datasets.made(6)
    datasets.write_refer(tmp_path, examples, ["train", "train", "val", "testA", "testB", "testB"])
    datasets.write_grefcoco(tmp_path, examples, ["val", "train", "testA", "testB", "train", "train"])
    paths = {"root": str(tmp_path)}
    part = {"name": "refer", "dataset": "refcoco", "split_by": "unc", **paths}
    config = mix.Config.model_validate({"train": [part, {"name": "grefcoco", **paths}], "score": part})
    assert config.splits == ("train", "val", "testA", "testB")
    assert [one.image_id for one in mix.load(config, "train")] == ["coco/102", "coco/102"]
    assert [one.image_id for one in mix.load(config, "val")] == ["coco/103"]


def test_a_mix_names_an_unknown_dataset() -> None:
    with pytest.raises(ValueError, match="no dataset 'refcoko'"):
        mix.Config.model_validate({"train": [{"name": "refcoko"}], "score": {"name": "scenes"}})


def test_a_mix_within_a_mix_is_refused() -> None:
    """The outer mix could not exclude the scored images of the inner one."""
    inner = {"name": "mix", "train": [{"name": "gqa", "root": "."}], "score": {"name": "scenes"}}
    with pytest.raises(ValueError, match="a mix must not contain another mix; list all datasets in one"):
        mix.Config.model_validate({"train": [inner], "score": {"name": "scenes"}})
