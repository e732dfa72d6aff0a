"""Pixels, masks and splits of the embedded benchmark."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from harness import data
from harness.data.example import Example, Expression
from harness.data.scenes import DOMAINS, SPLITS, Config, load, scene_graph
from harness.data.scenes.scene import SIDE
from harness.data.scenes.stable_rng import StableRng
from harness.errors import DataError

PINNED = {
    "studio": "00d4a13f32da7cad",
    "canvas": "f07765fbf5839341",
    "sketch": "2069c5d82283d101",
    "night": "3ef2f9a7c76bed8f",
}


def fingerprint(examples: list[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.image.tobytes() + example.id_map().astype(np.uint8).tobytes())
        for expression in example.expressions:
            digest.update(f"{expression.text}|{expression.family}|{expression.targets}\n".encode())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("domain", DOMAINS)
def test_version_one_has_the_same_pixels_masks_and_words_everywhere(domain: str) -> None:
    """A change of these hashes requires another version of the benchmark, because results are not comparable."""
    examples = [load(Config(domains=(domain,)), split)[i] for split in SPLITS for i in (0, 1, 77)]
    assert fingerprint(examples) == PINNED[domain]


def test_raw_words_are_those_of_pcg64() -> None:
    """numpy guarantees this stream for the bit generator and the seed sequence."""
    rng = StableRng((1, 2, 3))
    assert [rng.between(0, 999) for _ in range(4)] == [616, 483, 571, 86]


def test_noise_is_symmetric_and_bounded() -> None:
    noise = StableRng((5,)).noise((200, 300), 14)
    assert noise.min() == -14
    assert noise.max() == 14
    assert abs(noise.mean()) < 0.15  # 5 standard errors: 8.4 / sqrt(60000) * 5 = 0.17


def test_order_of_access_does_not_matter() -> None:
    forwards, backwards = load(Config(), "test"), load(Config(), "test")
    first = [forwards[i] for i in range(4)]
    second = [backwards[i] for i in reversed(range(4))][::-1]
    assert fingerprint(first) == fingerprint(second)
    assert forwards[2] is forwards[2]


def test_a_split_is_a_sequence() -> None:
    examples = load(Config(validation_images=3), "validation")
    assert len(examples) == len(list(examples)) == 3
    assert examples[-1] is examples[2]
    assert [one.image_id for one in examples[1:]] == [examples[1].image_id, examples[2].image_id]
    with pytest.raises(IndexError):
        examples[3]


def test_no_scene_is_in_two_splits_or_under_two_seeds() -> None:
    masks, identities = [], []
    for seed in (0, 1):
        config = Config(seed=seed, train_images=40, validation_images=40, test_images=40)
        for split in SPLITS:
            examples = list(load(config, split))
            masks += [hashlib.sha256(example.id_map().tobytes()).digest() for example in examples]
            identities += [example.image_id for example in examples]
    assert len(set(masks)) == len(masks) == len(set(identities)) == 240


def test_number_of_images_does_not_change_the_first_ones() -> None:
    few, many = load(Config(train_images=3), "train"), load(Config(train_images=30), "train")
    assert fingerprint(list(few)) == fingerprint(list(many[:3]))


def test_domains_show_the_same_scenes_in_different_pixels() -> None:
    examples = [load(Config(domains=(domain,)), "test")[4] for domain in DOMAINS]
    assert len({example.id_map().tobytes() for example in examples}) == 1
    assert len({example.expressions for example in examples}) == 1
    assert len({example.image.tobytes() for example in examples}) == len(DOMAINS)
    assert len({example.image_id for example in examples}) == len(DOMAINS)


def test_several_domains_alternate() -> None:
    examples = load(Config(domains=("night", "sketch")), "test")
    night, sketch = load(Config(domains=("night",)), "test"), load(Config(domains=("sketch",)), "test")
    assert np.array_equal(examples[2].image, night[2].image)
    assert np.array_equal(examples[3].image, sketch[3].image)


def test_every_object_stays_recognisable() -> None:
    for index in range(120):
        scene = scene_graph(Config(), "train", index)
        counts = np.bincount(scene.ids.ravel(), minlength=len(scene.objects) + 1)
        assert 3 <= len(scene.objects) <= 9
        assert len(counts) == len(scene.objects) + 1
        for one in scene.objects:
            assert counts[one.id] == one.visible <= one.area <= SIDE * SIDE / 3
            assert one.visible >= 0.4 * one.area - 1
            assert one.visible >= min(60, 0.9 * one.area - 1)


def test_sizes_overlap_and_elongation_vary() -> None:
    facts = [fact for example in load(Config(train_images=150), "train") for fact in example.attributes]
    areas = np.array([fact.area for fact in facts])
    assert areas.min() < 14 * 14 / 2
    assert areas.max() > SIDE * SIDE / 6
    assert 30**2 / 2 < np.median(areas) < 70**2 / 2
    assert np.mean([fact.occlusion > 0.02 for fact in facts]) > 0.12
    assert np.mean([fact.elongation >= 3 for fact in facts]) > 0.08


def test_an_object_differs_from_its_background() -> None:
    """Rendering and mask agree: inside the mask the picture differs from the empty background."""
    examples = load(Config(domains=("sketch",), test_images=20), "test")
    for example in examples:
        object_pixels = example.image[example.id_map() > 0].astype(int)
        outside = example.image[example.id_map() == 0].astype(int)
        assert np.ptp(object_pixels, axis=1).mean() > np.ptp(outside, axis=1).mean() + 20


def test_a_mask_is_the_union_of_its_targets() -> None:
    example = load(Config(), "test")[0]
    both = Expression("all objects", "group", (1, 2))
    assert np.array_equal(example.mask(both), np.isin(example.id_map(), (1, 2)))
    assert not example.mask(Expression("the ring", "absent", ())).any()
    assert example.mask(both).dtype == bool


def test_an_unknown_split_or_dataset_is_refused_with_near_matches() -> None:
    with pytest.raises(DataError, match=r"no split 'tets'; did you mean test\?"):
        load(Config(), "tets")
    with pytest.raises(DataError, match=r"no dataset 'scnes'; did you mean scenes\?"):
        data.get("scnes")


def test_registry_finds_scenes() -> None:
    assert "scenes" in data.names()
    assert "example" not in data.names()
    assert data.get("scenes").Config().name == "scenes"


@pytest.mark.parametrize(
    "settings",
    [
        {"domain": "studio"},
        {"domains": ()},
        {"domains": ("studio", "studio")},
        {"domains": ("stdio",)},
        {"seed": -1},
        {"version": 2},
        {"expressions_per_image": 0},
    ],
)
def test_settings_that_cannot_take_effect_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Config(**settings)


def test_contact_sheet_is_rendered(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    command = [sys.executable, "-m", "harness.data.scenes", "--sheet", str(path), "--domain", "night", "--count", "5"]
    subprocess.run(command, check=True)
    with Image.open(path) as sheet:
        assert sheet.width > 4 * SIDE
        assert len(sheet.getcolors(maxcolors=2**24) or ()) > 1000


def test_the_test_split_may_show_other_domains_than_the_training() -> None:
    config = Config(domains=("studio",), test_domains=("night", "sketch"), train_images=2, test_images=3)
    assert [example.domain for example in load(config, "train")] == ["studio", "studio"]
    assert [example.domain for example in load(config, "test")] == ["night", "sketch", "night"]
    [studio, *_] = load(config.model_copy(update={"test_domains": None}), "test")
    assert np.array_equal(studio.id_map(), load(config, "test")[0].id_map())
