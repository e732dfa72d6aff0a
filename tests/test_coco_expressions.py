"""`coco_expressions`: splits, exact masks, errors, counts, and pasted training images."""

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pydantic import ValidationError

from harness.cache.reading import example_key
from harness.data.__main__ import main
from harness.data.coco_rules import FAMILIES
from harness.data.copy_paste import PastedImage
from harness.data.datasets import mix
from harness.data.datasets.coco_expressions import SHARES, SPLITS, Config, image_ids, load, split_of
from harness.data.example import Example
from harness.errors import DataError
from harness.evaluation.gallery import save_gallery
from harness.results.run_folder import RunFolder
from tests import drawn_coco, photos

RNG = np.random.default_rng(0)
IMAGES = [drawn_coco.scatter(6, RNG, ("person", "dog", "kite", "clock")) for _ in range(60)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return drawn_coco.write(tmp_path_factory.mktemp("coco"), IMAGES)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVP_HARNESS_CACHE", str(tmp_path / "cache"))


def config(settings: dict[str, Any], **changes: Any) -> Config:
    return Config.model_validate({**settings, **changes})


def number_of(image_id: str) -> int:
    return int(image_id.removeprefix("coco/")) - 1


def test_every_image_is_in_one_split_that_its_id_determines(settings: dict[str, Any]) -> None:
    found = [image_ids(config(settings), split) for split in SPLITS]
    assert sorted(map(number_of, set().union(*found))) == list(range(len(IMAGES)))
    assert sum(map(len, found)) == len(IMAGES)
    for split, ids in zip(SPLITS, found, strict=True):
        assert {split_of(one) for one in ids} == {split}
        assert {one.image_id for one in load(config(settings), split)} <= ids
    assert (split_of("coco/1"), split_of("coco/2"), split_of("coco/8")) == ("train", "test", "validation")


def test_splits_have_about_their_shares() -> None:
    counts = Counter(split_of(f"coco/{number}") for number in range(10_000))
    for split, share in zip(SPLITS, SHARES, strict=True):
        assert counts[split] / 10_000 == pytest.approx(share / 100, abs=0.01)


def test_masks_are_exactly_those_of_the_file(settings: dict[str, Any]) -> None:
    for split in SPLITS:
        for example in load(config(settings), split):
            drawn = IMAGES[number_of(example.image_id)]
            masks = drawn_coco.masks(drawn)
            assert len(example.objects) == len(masks)
            for one, mask in zip(example.objects, masks, strict=True):
                assert np.array_equal(coco_mask.decode(one) > 0, mask)
            for expression in example.expressions:
                union = np.any([masks[k - 1] for k in expression.targets], axis=0)
                assert np.array_equal(example.mask(expression), np.broadcast_to(union, drawn_coco.SIZE))


def test_expressions_depend_on_the_seed_and_are_at_most_as_many_as_set(settings: dict[str, Any]) -> None:
    one, two, other = (
        [example.expressions for example in load(config(settings, expressions_per_image=3, seed=seed), "test")]
        for seed in (0, 0, 1)
    )
    assert one == two != other
    assert {len(texts) for texts in one} <= {1, 2, 3}
    assert {text.family for texts in one for text in texts} <= set(config(settings).families) == set(FAMILIES)


def test_a_crowd_is_no_object_and_excludes_its_category(tmp_path: Path) -> None:
    images = [[("dog", (40, 40, 80, 80)), ("kite", (100, 40, 140, 80))]] * 12
    found = load(config(drawn_coco.write(tmp_path, images, crowds=[(k, "dog") for k in range(12)])), "train")
    assert found
    for example in found:
        texts = {one.text for one in example.expressions}
        assert "the kite" in texts
        assert "the dog" not in texts
        assert len(example.objects) == 2


def _edit(settings: dict[str, Any], change: Any, folder: Path) -> Config:
    content = json.loads(settings["annotations"].read_text())
    change(content)
    (folder / "edited.json").write_text(json.dumps(content))
    return config(settings, annotations=folder / "edited.json")


def test_an_empty_mask_excludes_its_category(settings: dict[str, Any], tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        kite = next(one["id"] for one in content["categories"] if one["name"] == "kite")
        for one in content["annotations"]:
            if one["category_id"] == kite:
                one["segmentation"] = []

    for example in load(_edit(settings, change, tmp_path), "train"):
        has_kite = any(name == "kite" for name, _ in IMAGES[number_of(example.image_id)])
        assert not has_kite or not [one for one in example.expressions if "kite" in one.text]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.pop("categories"), r"no valid categories \(there are none\); it must have a list `categories`"),
        (lambda c: c["categories"][0].pop("name"), r"no valid categories \(KeyError: 'name'\)"),
        (lambda c: c["categories"][0].update(name="_"), r"no valid categories \(a name is empty\)"),
        (lambda c: c["annotations"][0].update(category_id=99), "annotation 1 has the category_id 99, which the file"),
        (lambda c: c["annotations"][0].update(category_id=[1]), r"annotation 1 has the category_id \[1\], which"),
        (lambda c: [one.update(segmentation=[]) for one in c["annotations"]], "needs segmentations, and about 65%"),
        (lambda c: c.update(images=[], annotations=[]), "no image of the split train has an object with a mask"),
    ],
)
def test_an_unsuitable_file_is_one_sentence(change: Any, sentence: str, settings: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=sentence) as raised:
        load(_edit(settings, change, tmp_path), "train")
    assert "edited.json" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_an_unknown_split_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"no\.json is missing"):
        load(config(settings, annotations="no.json"), "train")
    with pytest.raises(DataError, match="coco_expressions has no split 'val'; known: test, train, validation"):
        load(config(settings), "val")


def test_category_names_are_words(tmp_path: Path) -> None:
    images = [[("dog", (40, 40, 80, 80))]] * 12
    written = drawn_coco.write(tmp_path, images)
    made = _edit(written, lambda c: c["categories"][1].update(name="Guide_Dog"), tmp_path)
    assert all("the guide dog" in {one.text for one in example.expressions} for example in load(made, "train"))


@pytest.fixture(scope="module")
def pasted(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVP_HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        return list(load(config(settings, copy_paste=40), "train"))[-40:]


def test_pasted_images_follow_the_training_images(settings: dict[str, Any]) -> None:
    plain, more = load(config(settings), "train"), load(config(settings, copy_paste=5), "train")
    assert len(more) == len(plain) + 5
    assert [one.image_id for one in more[:-5]] == [one.image_id for one in plain]
    assert [one.image_id for one in more[-5:]] == [f"copy_paste-0/{number:06d}" for number in range(5)]
    for split in ("validation", "test"):
        assert len(load(config(settings, copy_paste=5), split)) == len(load(config(settings), split))


def test_pasted_images_come_from_training_images_only(settings: dict[str, Any], pasted: list[Example]) -> None:
    training = {settings["images"] / f"{number_of(one) + 1:012d}.png" for one in image_ids(config(settings), "train")}
    used = set()
    for example in pasted:
        assert isinstance(example.picture, PastedImage)
        used |= {example.picture.background.path, *(paste.source.path for paste in example.picture.pastes)}
    assert used <= training
    assert len(used) > 10


def test_pasted_images_depend_on_the_seed_only(settings: dict[str, Any], pasted: list[Example]) -> None:
    again, other = (list(load(config(settings, copy_paste=3, seed=seed), "train"))[-3:] for seed in (0, 1))
    for one, two in zip(pasted, again, strict=False):
        assert (one.objects, one.expressions) == (two.objects, two.expressions)
        assert np.array_equal(one.picture.render(), two.picture.render())
    assert [one.objects for one in other] != [one.objects for one in again]
    assert {one.image_id for one in other} == {f"copy_paste-1/{number:06d}" for number in range(3)}


def test_pasted_objects_have_exact_masks_and_cover_those_behind(pasted: list[Example]) -> None:
    """A naive renderer pastes pixel by pixel: objects have the colour of their category, the background is grey."""
    for example in pasted:
        picture = example.picture
        height, width = example.size
        ids = np.zeros((height, width), int)
        for number, paste in enumerate(picture.pastes, start=1):
            stamp = paste.stamp()
            x, y = paste.corner
            for row, column in np.argwhere(stamp):
                ids[y + row, x + column] = number
        assert len(example.objects) == len(picture.pastes)
        for number, mask in enumerate(example.objects, start=1):
            assert np.array_equal(coco_mask.decode(mask) > 0, ids == number)
            assert (ids == number).sum() >= picture.pastes[number - 1].stamp().sum() / 2


def test_pasted_pixels_are_those_of_the_object(pasted: list[Example]) -> None:
    """Rectangles that nothing covers in their image are of one colour."""
    checked = 0
    for example in pasted:
        for number, paste in enumerate(example.picture.pastes, start=1):
            left, top, right, bottom = paste.box
            if coco_mask.area(paste.mask) == (right - left) * (bottom - top):
                colours = np.unique(example.image[coco_mask.decode(example.objects[number - 1]) > 0], axis=0)
                source = np.unique(paste.source.read()[top:bottom, left:right].reshape(-1, 3), axis=0)
                assert np.array_equal(colours, source)
                checked += 1
    assert checked > 20


def test_a_background_is_blurred(pasted: list[Example]) -> None:
    for example in pasted:
        original = example.picture.background.read().astype(int)
        outside = ~np.any([coco_mask.decode(one) > 0 for one in example.objects], axis=0)
        edges = [
            np.abs(np.diff(image.astype(int), axis=1)).max(-1)[outside[:, 1:] & outside[:, :-1]]
            for image in (example.image, original)
        ]
        assert edges[0].max() < max(edges[1].max() / 3, 30)


def test_categories_of_the_background_are_not_absent(pasted: list[Example]) -> None:
    for example in pasted:
        drawn = IMAGES[int(example.picture.background.path.stem) - 1]
        for one in example.expressions:
            assert one.family != "absent" or one.text.removeprefix("the ") not in {name for name, _ in drawn}


def test_a_pasted_object_with_pixels_of_another_makes_its_category_uncertain(tmp_path: Path) -> None:
    """Every clock is worn by a person, whose mask includes it, as that of a person with a tie does in COCO."""
    worn = [("person", (20, 10, 90, 110)), ("clock", (40, 30, 60, 50)), ("kite", (100, 20, 140, 60))]
    settings = drawn_coco.write(tmp_path, [worn] * 30)
    path = tmp_path / "instances.json"
    content = json.loads(path.read_text())
    whole = np.zeros(drawn_coco.SIZE, bool)
    whole[10:110, 20:90] = True
    names = {one["id"]: one["name"] for one in content["categories"]}
    for entry in content["annotations"]:
        if names[entry["category_id"]] == "person":
            entry["segmentation"] = drawn_coco.runs(whole)
    path.write_text(json.dumps(content))
    made = load(Config(**settings, copy_paste=60), "train")[-60:]
    with_person = [one for one in made if any("clock" in paste.within for paste in one.picture.pastes)]
    without = [one for one in made if not any(paste.within for paste in one.picture.pastes)]
    assert len(with_person) > 10
    assert not [text for one in with_person for each in one.expressions if "clock" in (text := each.text)]
    assert [text for one in without for each in one.expressions if "kite" in (text := each.text)]


def test_a_pasted_image_is_rendered_at_its_first_access_and_again_if_the_cache_is_deleted(
    settings: dict[str, Any],
) -> None:
    example = load(config(settings, copy_paste=1), "train")[-1]
    assert not example.picture.path.exists()
    first = example.image
    assert example.picture.path.exists()
    with Image.open(example.picture.path) as stored:
        assert np.array_equal(np.asarray(stored), first)
    key = example_key(example)
    example.picture.path.unlink()
    assert np.array_equal(example.image, first)
    assert example_key(example) == key


def test_a_training_image_with_other_content_gives_another_file(tmp_path: Path) -> None:
    images = [[("dog", (40, 40, 80, 80)), ("kite", (100, 40, 140, 80))]] * 12
    made = config(drawn_coco.write(tmp_path, images), copy_paste=1)
    before = load(made, "train")[-1].picture
    for path in (tmp_path / "images").iterdir():
        Image.new("RGB", (160, 120), "white").save(path, "BMP")
    after = load(made, "train")[-1].picture
    assert before.path != after.path
    assert before.pastes == after.pastes


def test_nothing_to_paste_is_one_sentence(tmp_path: Path) -> None:
    images = [[("dog", (0, 40, 40, 80))]] * 12
    with pytest.raises(DataError, match=r"data\.copy_paste: no training image has an object .*; set copy_paste: 0"):
        load(config(drawn_coco.write(tmp_path, images), copy_paste=1), "train")


def test_a_mix_refuses_pasted_images(settings: dict[str, Any]) -> None:
    part = {key: str(value) for key, value in settings.items()}
    with pytest.raises(ValidationError, match="another dataset reserves for scoring; set copy_paste: 0"):
        mix.Config.model_validate({"train": [{**part, "copy_paste": 3}], "score": part})
    assert mix.Config.model_validate({"train": [part], "score": part}).splits == ("train", "validation", "test")


def _set(settings: dict[str, Any]) -> list[str]:
    return [text for key in ("annotations", "images") for text in ("--set", f"{key}={settings[key]}")]


def test_check_counts_every_family(settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "coco_expressions", *_set(settings), "--set", "copy_paste=2"]) == 0
    output = capsys.readouterr().out
    for split in SPLITS:
        found = load(config(settings, copy_paste=2), split)
        counts = Counter(one.family for example in found for one in example.expressions)
        line = re.search(rf"ok coco_expressions {split}: {len(found)} images, {counts.total()} expressions.*", output)[
            0
        ]
        assert all(f"{count} {family}" in line for family, count in counts.items())
    (settings["images"] / "000000000001.png").rename(settings["images"] / "moved.png")
    assert main(["check", "coco_expressions", *_set(settings)]) == 2
    assert "1 of" in capsys.readouterr().out
    (settings["images"] / "moved.png").rename(settings["images"] / "000000000001.png")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["check", "coco_expressions"], "coco_expressions: annotations: Field required; set it by --set annotations="),
        (["check", "scenes", "--set", "seed"], "--set seed is no setting; write KEY=VALUE"),
        (["check", "scenes", "--set", "sed=1"], "scenes: sed: Extra inputs are not permitted"),
        (["sheet", "scenes", "--out", "x.png", "--set", "asks.0=questions"], "scenes: asks"),
        (["sheet", "scenes", "--out", "x.png", "--split", "val"], "scenes has no split 'val'"),
    ],
)
def test_invalid_settings_of_the_tools_are_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err


def test_a_sheet_has_four_columns_and_outlines(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "new" / "sheet.png"
    assert main(["sheet", "coco_expressions", *_set(settings), "--out", str(path), "--count", "5"]) == 0
    with Image.open(path) as sheet:
        assert sheet.size == (4 * 460 + 12, 2 * 508 + 12)
        assert (np.asarray(sheet.convert("RGB")) == (255, 0, 255)).all(-1).any()


@photos.needs_photos
def test_photographs_give_expressions_of_all_families() -> None:
    folder = photos.folder()
    made = Config(annotations=folder / "instances.json", images=folder / "images")
    counts = Counter(one.family for split in SPLITS for example in load(made, split) for one in example.expressions)
    assert counts.total() >= 1900
    assert {family for family, count in counts.items() if count >= 40} >= set(FAMILIES) - {"relation"}
    assert counts["relation"] >= 10


def test_a_gallery_shows_only_photographs_whose_licence_allows_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    settings = drawn_coco.write(tmp_path, [drawn_coco.scatter(4, rng) for _ in range(40)])
    path = tmp_path / "instances.json"
    content = json.loads(path.read_text())
    content["licenses"] = [
        {"id": 3, "name": "BY-NC-ND", "url": "http://creativecommons.org/licenses/by-nc-nd/2.0/"},
        {"id": 4, "name": "BY", "url": "http://creativecommons.org/licenses/by/2.0/"},
    ]
    for image in content["images"]:
        image |= {"license": 3 + image["id"] % 2, "flickr_url": f"http://flickr/{image['id']}"}
    path.write_text(json.dumps(content))
    examples = load(Config(**settings), "train")
    allowed = [one for one in examples if one.licence is not None and one.licence.name == "BY"]
    assert 2 < len(allowed) < len(examples)
    folder = RunFolder(tmp_path / "run")
    save_gallery(folder, SimpleNamespace(superpixels=None), examples, 2)
    assert sorted(file.stem for file in folder.gallery.iterdir()) == [
        one.image_id.replace("/", "-") for one in allowed[:2]
    ]
    with Image.open(next(iter(sorted(folder.gallery.iterdir())))) as picture:
        number = int(allowed[0].image_id.rpartition("/")[2])
        assert picture.info["Credit"] == (
            f"photograph: http://flickr/{number}, BY, http://creativecommons.org/licenses/by/2.0/"
        )


@pytest.mark.parametrize("empty", ["", None])
def test_a_licence_without_name_and_url_is_a_placeholder(empty: str | None, tmp_path: Path) -> None:
    settings = drawn_coco.write(tmp_path, [drawn_coco.scatter(4, np.random.default_rng(0)) for _ in range(8)])
    path = tmp_path / "instances.json"
    content = json.loads(path.read_text())
    content["licenses"] = [{"id": 0, "name": empty, "url": empty}]
    content["images"] = [{**image, "license": 0} for image in content["images"]]
    path.write_text(json.dumps(content))
    assert {example.licence for example in load(Config(**settings), "train")} == {None}


def test_a_licence_that_the_file_does_not_list_is_an_error(tmp_path: Path) -> None:
    settings = drawn_coco.write(tmp_path, [drawn_coco.scatter(4, np.random.default_rng(0)) for _ in range(8)])
    path = tmp_path / "instances.json"
    content = json.loads(path.read_text())
    content["licenses"] = [{"id": 4, "name": "BY", "url": "u"}]
    content["images"] = [{**image, "license": 9} for image in content["images"]]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="has a licence that the file does not list"):
        load(Config(**settings), "train")


def test_a_file_without_any_expression_is_one_sentence(tmp_path: Path) -> None:
    """One category, and two specks of it in every image: nothing can be named, and nothing is absent."""
    specks = [("kite", (10, 10, 14, 14)), ("kite", (30, 30, 34, 34))]
    settings = drawn_coco.write(tmp_path, [specks] * 12)
    path = tmp_path / "instances.json"
    content = json.loads(path.read_text())
    content["categories"] = [one for one in content["categories"] if one["name"] == "kite"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="the rules make no expression about any of the"):
        load(Config(**settings), "train")


def test_settings_of_the_tools_are_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    lists = ["--set", "domains=[studio, sketch]", "--set", "train_images=2", "--set", "test_images=2"]
    assert main(["check", "scenes", *lists, "--set", "validation_images=1"]) == 0
    assert main(["check", "scenes", "--set", "domains=[studio"]) == 2
    assert "the value is no valid YAML" in capsys.readouterr().err


def test_a_sheet_needs_the_suffix_of_an_image(settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sheet", "coco_expressions", *_set(settings), "--out", "sheet.pdf"]) == 2
    assert "has no suffix of an image" in capsys.readouterr().err
