"""The quality of superpixels on photographs equals plain definitions, and the command prints a row for each method."""

import re
from itertools import chain, combinations

import numpy as np
import pytest

from benchmarks import superpixel_quality
from benchmarks.superpixel_quality import TOLERANCE, Objects, gain_of_sam, objects_of, quality
from benchmarks.superpixels import main
from harness.data.example import Example, encode
from tests import drawn_coco

SIZE = (24, 30)


def drawn(seed: int) -> tuple[np.ndarray, Objects]:
    """Blocks of superpixels, and two rectangles as objects, which may overlap."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(12).reshape(3, 4).repeat(8, axis=0).repeat(8, axis=1)[:, : SIZE[1]]
    masks = []
    for _ in range(2):
        top, left = rng.integers(0, 12, 2)
        mask = np.zeros(SIZE, bool)
        mask[top : top + rng.integers(4, 12), left : left + rng.integers(4, 18)] = True
        masks.append(mask)
    example = Example("a", np.zeros((*SIZE, 3), np.uint8), tuple(map(encode, masks)), ())
    return labels, objects_of(example)


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


def _edges(ids: np.ndarray) -> list[tuple[int, int]]:
    """Pixels with a neighbour of another id, above, below, left or right."""
    height, width = ids.shape
    found = []
    for y, x in np.ndindex(ids.shape):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        if any(0 <= v < height and 0 <= u < width and ids[v, u] != ids[y, x] for v, u in around):
            found.append((y, x))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_measures_equal_plain_definitions(seed: int) -> None:
    labels, objects = drawn(seed)
    found = quality(labels, objects)
    parts = [labels == one for one in range(12)]
    overlaps = np.array([[_iou(part, mask) for part in parts] for mask in objects.masks])
    assert found["superpixels"] == 12
    assert found["best superpixel"] == pytest.approx(overlaps.max(axis=1))
    best = overlaps.argmax(axis=1)
    assert found["shared"] == [best[0] == best[1]] * 2
    subsets = list(chain.from_iterable(combinations(range(12), size) for size in range(1, 13)))
    for mask, value in zip(objects.masks, found["best union"], strict=True):
        inside, areas = np.array([(part & mask).sum() for part in parts]), np.array([part.sum() for part in parts])
        ious = [inside[[*s]].sum() / (mask.sum() + areas[[*s]].sum() - inside[[*s]].sum()) for s in subsets]
        assert value == pytest.approx(max(ious))
    right = sum(max((part & (objects.ids == k)).sum() for k in range(3)) for part in parts)
    assert found["accuracy"] == pytest.approx(right / labels.size)


@pytest.mark.parametrize("seed", range(5))
def test_boundary_recall_equals_a_plain_loop(seed: int) -> None:
    """Boundaries of objects are inside them, as `find_boundaries` draws them."""
    labels, objects = drawn(seed)
    of_objects = [(y, x) for y, x in _edges(objects.ids) if objects.ids[y, x]]
    of_labels = _edges(labels)
    reach = TOLERANCE * np.hypot(*SIZE)
    near = [min(np.hypot(y - v, x - u) for v, u in of_labels) <= reach for y, x in of_objects]
    assert quality(labels, objects)["boundary recall"] == pytest.approx(np.mean(near))


def test_superpixels_that_follow_the_objects_are_perfect() -> None:
    masks = [np.zeros(SIZE, bool), np.zeros(SIZE, bool)]
    masks[0][2:9, 2:9], masks[1][12:20, 5:25] = True, True
    objects = objects_of(Example("a", np.zeros((*SIZE, 3), np.uint8), tuple(map(encode, masks)), ()))
    found = quality(objects.ids, objects)
    assert found["best superpixel"] == found["best union"] == [1.0, 1.0]
    assert (found["accuracy"], found["boundary recall"], found["shared"]) == (1.0, 1.0, [False, False])


def test_the_gain_of_sam_has_an_interval_over_photographs() -> None:
    """The mean is over objects; photographs with the same gain have an interval of no width."""
    assert gain_of_sam([[0.5, 0.7], [0.9]], [[0.4, 0.6], [0.8]]) == "+0.100 [+0.100, +0.100]"
    assert gain_of_sam([[0.5, 0.7]], [[0.4, 0.5]]) == "+0.150"
    rng = np.random.default_rng(0)
    values = rng.uniform(size=(200, 3))
    printed = gain_of_sam(values, values - rng.normal(0.1, 0.3, (200, 3)))
    gain, low, high = map(float, re.findall(r"[+-][\d.]+", printed))
    error = 0.3 / 600**0.5
    assert abs(gain - 0.1) < 3 * error
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)


def test_the_command_prints_every_method(tmp_path, capsys, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    drawn_coco.write(tmp_path, [drawn_coco.scatter(4, rng) for _ in range(24)])
    monkeypatch.setattr(superpixel_quality, "NAMES", ("default",))
    assert main(["--photos", str(tmp_path / "nowhere")]) == 2
    assert "instances.json is missing" in capsys.readouterr().err
    main(["--photos", str(tmp_path), "--images", "2", "--model", "sam-scenes"])
    printed = capsys.readouterr().out
    assert "superpixels of 2 photographs" in printed
    for method in ("sam, default", "felzenszwalb", "slic", "grid"):
        assert f"| {method}" in printed
