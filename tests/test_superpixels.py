"""Superpixel sources: they return a partition within `count`; helpers are compared with worked examples."""

import numpy as np
import pytest
import torch
from sams import random_sam

from harness import superpixels
from harness.cache.superpixel_labels import segment
from harness.data.example import Example, encode_ids
from harness.data.scenes import Config as ScenesConfig
from harness.data.scenes import load
from harness.errors import HarnessError
from harness.superpixels.methods.grid import rows_and_columns
from harness.superpixels.partition import compact, fill_uncovered, merge
from projectors.layers import area_fractions

DOMAINS = ("studio", "canvas", "sketch", "night")
SMALL_SAM = random_sam()
EXAMPLES = tuple(load(ScenesConfig(domains=DOMAINS, test_images=4), "test"))

every_source = pytest.mark.parametrize("name", superpixels.names())


@pytest.fixture(autouse=True)
def _small_sam(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small SAM for all sources, whose cache all tests of this file share."""
    monkeypatch.setenv("SVP_HARNESS_CACHE", str(tmp_path_factory.getbasetemp() / "sam"))
    monkeypatch.setattr("harness.cache.superpixel_labels.frozen_sam", lambda _: SMALL_SAM)


def _labels(name: str, example: Example, count: int) -> np.ndarray:
    return segment(name, superpixels.get(name).Config(count=count), example)


@every_source
def test_every_pixel_has_one_of_the_ids_and_every_id_a_pixel(name: str) -> None:
    for example in EXAMPLES:
        labels = _labels(name, example, 24)
        assert labels.shape == example.image.shape[:2]
        assert labels.dtype == np.int16
        assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))


@every_source
@pytest.mark.parametrize("count", [12, 40])
def test_no_image_has_more_superpixels_than_declared(name: str, count: int) -> None:
    source = superpixels.get(name)
    assert source.Config(count=count).max_superpixels == count
    assert max(_labels(name, example, count).max() + 1 for example in EXAMPLES) <= count


@pytest.mark.parametrize("name", ["felzenszwalb", "grid", "slic"])
def test_the_count_is_nearly_reached(name: str) -> None:
    counts = [_labels(name, example, 24).max() + 1 for example in EXAMPLES]
    assert np.mean(counts) >= 0.85 * 24


@every_source
def test_a_source_is_deterministic(name: str) -> None:
    assert np.array_equal(_labels(name, EXAMPLES[0], 24), _labels(name, EXAMPLES[0], 24))


@every_source
def test_an_image_that_is_not_square_is_partitioned(name: str) -> None:
    whole = EXAMPLES[0]
    crop = Example(whole.image_id, whole.image[:, :101], encode_ids(whole.id_map()[:, :101]), ())
    assert _labels(name, crop, 24).shape == (224, 101)


@every_source
def test_an_image_of_one_colour_is_partitioned(name: str) -> None:
    plain = Example("plain", np.full((60, 60, 3), 128, np.uint8), (), ())
    assert _labels(name, plain, 24).max() < 24


def test_felzenszwalb_follows_objects_and_a_grid_does_not() -> None:
    purity = {
        name: np.mean([_purity(_labels(name, one, 24), one.id_map()) for one in EXAMPLES])
        for name in ("felzenszwalb", "grid")
    }
    assert purity["felzenszwalb"] > 0.95 > purity["grid"]


@pytest.mark.parametrize("count", [12, 40])
def test_superpixels_of_the_oracle_are_pure_and_whole(count: int) -> None:
    for example in EXAMPLES:
        labels = _labels("oracle", example, count)
        objects = example.id_map()
        assert _purity(labels, objects) == 1
        for one in np.unique(objects[objects > 0]):
            assert len(np.unique(labels[objects == one])) == 1


def test_the_oracle_merges_the_smallest_parts_of_the_background() -> None:
    objects = np.zeros((5, 9), np.uint8)
    objects[:, 2] = objects[:, 4] = objects[:, 7] = 1
    example = Example("stripes", np.zeros((5, 9, 3), np.uint8), encode_ids(objects), ())
    labels = _labels("oracle", example, 3)
    assert labels.max() + 1 == 3
    assert labels[0, 3] == labels[0, 8] != labels[0, 0]


def test_the_oracle_refuses_more_objects_than_superpixels() -> None:
    with pytest.raises(HarnessError, match=r"superpixels\.count=2"):
        _labels("oracle", EXAMPLES[0], 2)


def test_an_unknown_source_is_refused_with_near_matches() -> None:
    with pytest.raises(HarnessError, match="did you mean slic"):
        superpixels.get("slick")


@pytest.mark.parametrize(
    ("count", "height", "width", "expected"),
    [
        (24, 224, 224, (4, 6)),
        (36, 224, 224, (6, 6)),
        (12, 100, 300, (2, 6)),
        (1, 50, 50, (1, 1)),
        (3, 10, 900, (1, 3)),
        (6, 60, 50, (3, 2)),
    ],
)
def test_a_grid_is_as_large_and_as_square_as_the_count_allows(
    count: int, height: int, width: int, expected: tuple[int, int]
) -> None:
    assert rows_and_columns(count, height, width) == expected


def test_uncovered_regions_become_superpixels() -> None:
    labels = np.array([[-1, 5, -1], [-1, 5, -1], [9, 5, 5]])
    assert fill_uncovered(labels).tolist() == [[2, 0, 3], [2, 0, 3], [1, 0, 0]]


def test_an_uncovered_image_is_one_superpixel() -> None:
    assert fill_uncovered(np.full((3, 4), -1)).tolist() == [[0] * 4] * 3


def test_the_most_similar_neighbours_are_merged_first() -> None:
    labels = np.repeat(np.arange(4), 4).reshape(1, 16).repeat(4, axis=0)
    image = np.repeat(np.array([0, 10, 200, 255], np.uint8), 4)[None, :, None].repeat(4, axis=0).repeat(3, axis=2)
    assert np.array_equal(merge(labels, image, 3), np.repeat([0, 0, 1, 2], 4)[None].repeat(4, axis=0))
    assert np.array_equal(merge(labels, image, 2), np.repeat([0, 0, 1, 1], 4)[None].repeat(4, axis=0))


def test_complex_regions_stay_split_and_plain_ones_are_merged() -> None:
    labels = np.arange(8).repeat(4)[None].repeat(4, axis=0)
    features = np.array([5.0, 5.1, 5.0, 5.1, 1.0, 4.0, 2.0, 6.0])[labels][..., None]
    assert merge(labels, features, 5)[0, ::4].tolist() == [0, 0, 0, 0, 1, 2, 3, 4]
    assert merge(labels, features, 8).max() == 7
    assert merge(labels, features, 8, max_cost=1.0)[0, ::4].tolist() == [0, 0, 0, 0, 1, 2, 3, 4]
    assert merge(labels, features, 8, max_cost=np.inf).max() == 0


def test_regions_of_different_parts_are_not_merged() -> None:
    labels = np.arange(8).repeat(4)[None].repeat(4, axis=0)
    image = np.zeros((4, 32, 1))
    assert merge(labels, image, 1, within=labels // 4)[0, ::4].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_part_in_two_fragments_can_become_one_region_again() -> None:
    labels = np.arange(8).repeat(4)[None].repeat(4, axis=0)
    within = np.isin(labels, [3, 4])
    assert np.array_equal(merge(labels, np.zeros((4, 32, 1)), 2, within=within), within)


def test_regions_that_do_not_touch_are_never_merged_before_their_neighbours() -> None:
    labels = np.array([[0, 1, 2]]).repeat(4, axis=1).repeat(4, axis=0)
    image = np.where(labels == 1, 255, 0).astype(np.uint8)[..., None].repeat(3, axis=2)
    assert merge(labels, image, 2).tolist() != [[0] * 4 + [1] * 4 + [0] * 4] * 4


def test_merging_equals_a_plain_search_over_all_pairs() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(36).reshape(6, 6).repeat(3, axis=0).repeat(3, axis=1)
    image = rng.integers(0, 256, (18, 18, 3), dtype=np.uint8)
    expected = labels.copy()
    while len(np.unique(expected)) > 7:
        first, second = min(_touching(expected), key=lambda pair: _loss(expected, image, *pair))
        expected[expected == second] = first
    _, expected = np.unique(expected, return_inverse=True)
    assert np.array_equal(_canonical(merge(labels, image, 7)), _canonical(expected.reshape(18, 18)))


def test_a_superpixel_smaller_than_a_patch_keeps_its_share() -> None:
    labels = torch.zeros(1, 28, 28, dtype=torch.long)
    labels[0, 15:17, 2:5] = 1
    shares = area_fractions(labels, 2, (2, 2))
    torch.testing.assert_close(shares[0, 1], torch.tensor([0, 0, 6 / 196, 0]))
    torch.testing.assert_close(shares.sum(1), torch.ones(1, 4))


def _purity(labels: np.ndarray, objects: np.ndarray) -> float:
    """Share of pixels that belong to the most frequent object of their superpixel."""
    joint = np.zeros((labels.max() + 1, int(objects.max()) + 1), dtype=int)
    np.add.at(joint, (labels, objects), 1)
    return joint.max(axis=1).sum() / labels.size


def _touching(labels: np.ndarray) -> set[tuple[int, int]]:
    pairs = [*zip(labels[:, :-1].flat, labels[:, 1:].flat, strict=True)]
    pairs += [*zip(labels[:-1].flat, labels[1:].flat, strict=True)]
    return {(min(a, b), max(a, b)) for a, b in pairs if a != b}


def _loss(labels: np.ndarray, image: np.ndarray, first: int, second: int) -> float:
    """Increase of the squared error from the mean colour when the two are merged."""
    one, other = image[labels == first].astype(float), image[labels == second].astype(float)
    both = np.concatenate([one, other])
    return float(
        both.var(axis=0).sum() * len(both) - one.var(axis=0).sum() * len(one) - other.var(axis=0).sum() * len(other)
    )


def _canonical(labels: np.ndarray) -> np.ndarray:
    """Ids in order of first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].reshape(labels.shape)


@pytest.mark.parametrize("shape", [(90, 80), (1, 1), (0, 3)])
@pytest.mark.parametrize(("low", "high"), [(0, 4000), (-5, 4), (7, 8)])
def test_compact_numbers_the_present_ids_in_their_order(shape: tuple[int, int], low: int, high: int) -> None:
    labels = np.random.default_rng(0).integers(low, high, shape).astype(np.int32)

    compacted = compact(labels)

    np.testing.assert_array_equal(compacted, np.unique(labels, return_inverse=True)[1].reshape(shape))
    assert compacted.dtype == np.int16
