"""The token ceiling equals the best of all unions of superpixels, and ambiguity a plain definition."""

from collections.abc import Iterator
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import token_ceiling as benchmark
from harness.data.example import Example, Expression, encode_ids
from harness.data.frame import Frame
from harness.evaluation.metrics import mean_best_overlap
from harness.evaluation.token_ceiling import ceiling_rows, is_ambiguous, restore_labels
from harness.model.mask_decoder.interior_points import interior_points
from harness.superpixels.best_unions import best_superpixels, best_unions, pixels_of

STUDY = """\
question: How fine?
base:
  data: {name: scenes, train_images: 2, test_images: 3, expressions_per_image: 12}
  vision_encoder: {name: dinov2-small}
  llm: {name: tiny, width: 32, layers: 1, heads: 2}
  training: {steps: 10}
  superpixels: {name: grid, count: 4}
  projector: {name: svp, position: none, aggregation: none}
arms:
  coarse: {}
  coarse_with_positions: {projector: {position: bbox_mlp}}
  fine: {superpixels: {count: 400}}
  oracle: {superpixels: {name: oracle, count: 40}}
  pooling: {projector: {name: pooling, tokens: 4}}
seeds: [0]
objectives: {giou: maximize}
baseline: coarse
"""


def _unions(count: int) -> Iterator[tuple[int, ...]]:
    return chain.from_iterable(combinations(range(count), size) for size in range(count + 1))


def _iou(prediction: np.ndarray, target: np.ndarray) -> float:
    union = (prediction | target).sum()
    return float((prediction & target).sum() / union) if union else 1.0


def _scene(seed: int, num_superpixels: int = 6, side: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Random superpixels and a random target that follows some of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_superpixels, (side, side))
    shares = rng.random(num_superpixels)
    return labels, rng.random((side, side)) < shares[labels] * rng.random()


@pytest.mark.parametrize("seed", range(20))
def test_no_union_of_superpixels_is_better(seed: int) -> None:
    labels, target = _scene(seed)
    inside, areas = pixels_of(labels, np.ones(labels.shape, bool), [target])
    chosen = best_unions(inside, areas)[0]
    best = max(_iou(np.isin(labels, union), target) for union in _unions(len(areas)))
    assert _iou(chosen[labels], target) == pytest.approx(best, abs=1e-12)


def test_an_empty_target_selects_no_superpixel() -> None:
    assert not best_unions(np.zeros((1, 3), int), np.array([4, 4, 0])).any()


def test_of_equal_unions_the_one_without_superfluous_superpixels_is_selected() -> None:
    # 4 of the 6 pixels with the first superpixel alone, and 6 of 9 with both.
    assert best_unions(np.array([[4, 2]]), np.array([4, 5])).tolist() == [[True, False]]


def test_ignored_pixels_count_neither_inside_nor_outside() -> None:
    labels, target = _scene(3)
    valid_mask = np.random.default_rng(0).random(labels.shape) < 0.7
    inside, areas = pixels_of(labels, valid_mask, [target])
    for number in range(len(areas)):
        own = (labels == number) & valid_mask
        assert areas[number] == own.sum()
        assert inside[0, number] == (own & target).sum()


def test_ambiguity_equals_its_definition_pair_by_pair() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        labels = rng.integers(0, 4, (6, 6))
        objects = [rng.random((6, 6)) < 0.3 for _ in range(4)]
        best = best_superpixels(*pixels_of(labels, np.ones(labels.shape, bool), objects))
        naive = [max(range(labels.max() + 1), key=lambda s: _iou(labels == s, one)) for one in objects]
        assert best.tolist() == naive
        expected = any(naive[k] == naive[j] for k in (0, 2) for j in (1, 3))
        assert is_ambiguous((1, 3), best) == expected


def test_an_object_without_pixels_is_nobodys_double() -> None:
    best = best_superpixels(np.array([[3, 0], [0, 0]]), np.array([4, 4]))
    assert best.tolist() == [0, -1]
    assert not is_ambiguous((2,), best)
    assert not is_ambiguous((1,), best)


@pytest.mark.parametrize("size", [(32, 32), (20, 64), (90, 31)])
def test_labels_of_the_frame_return_to_the_size_of_the_image(size: tuple[int, int]) -> None:
    frame = Frame.of(size, 32)
    placed = frame.place_labels(np.arange(frame.height * frame.width).reshape(frame.height, frame.width))
    restored = restore_labels(placed, size)
    assert restored.shape == size
    for row in range(size[0]):
        for column in range(size[1]):
            at = int((row + 0.5) * frame.height / size[0]), int((column + 0.5) * frame.width / size[1])
            assert restored[row, column] == placed[at]


def _two_squares() -> Example:
    ids = np.zeros((32, 32), np.uint8)
    ids[4:12, 4:12], ids[4:12, 20:28] = 1, 2
    expressions = (
        Expression("one", "single", (1,)),
        Expression("both", "group", (1, 2)),
        Expression("no", "absent", ()),
    )
    return Example("two", np.zeros((32, 32, 3), np.uint8), encode_ids(ids), expressions)


def test_rows_have_the_pixels_of_the_best_unions() -> None:
    labels = np.repeat(np.repeat(np.arange(4).reshape(2, 2), 16, 0), 16, 1)
    single, both, absent = ceiling_rows(_two_squares(), labels)
    assert (single["iou"], single["predicted_area"], single["is_ambiguous"]) == (64 / 256, 256, False)
    assert (both["iou"], both["intersection"], both["union"]) == (128 / 512, 128, 512)
    assert (absent["iou"], absent["predicted_area"], absent["is_ambiguous"]) == (1.0, 0, None)


def test_objects_that_share_their_superpixel_are_ambiguous() -> None:
    single, both, _ = ceiling_rows(_two_squares(), np.zeros((32, 32), int))
    assert single["is_ambiguous"]
    assert not both["is_ambiguous"]  # no other object is in it


def test_one_superpixel_per_object_reaches_everything() -> None:
    example = _two_squares()
    labels = example.id_map().astype(int)
    rows = list(ceiling_rows(example, labels))
    assert [row["iou"] for row in rows] == [1.0, 1.0, 1.0]
    assert mean_best_overlap(labels, example.id_map()) == 1.0


def test_an_interior_point_is_the_farthest_pixel_from_the_border_of_its_region() -> None:
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(-1, 5, (5, 5)), np.ones((4, 4), int))
    points = interior_points(labels)
    for number, (column, row) in enumerate(points):
        assert labels[int(row), int(column)] == number
        padded = np.pad(labels, 1, constant_values=-2)
        others = np.argwhere(padded != number) - 1
        distances = {tuple(at): np.hypot(*(others - at).T).min() for at in np.argwhere(labels == number)}
        assert distances[int(row), int(column)] == pytest.approx(max(distances.values()))


def test_a_region_that_does_not_occur_has_no_point() -> None:
    assert np.isnan(interior_points(np.array([[0, 2], [0, 2]]))[1]).all()


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SVP_HARNESS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "fineness.yaml"
    path.write_text(STUDY)
    return path


def test_the_command_writes_one_row_per_source_and_family(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ceiling.csv"
    assert benchmark.main([str(study), "--out", str(out)]) == 0
    table = pd.read_csv(out)
    overall = table[table["family"] == "all"].set_index("source")
    assert overall.index.tolist() == ["coarse", "fine", "oracle"]  # arms with the same superpixels are one source
    assert overall["giou"].is_monotonic_increasing
    assert overall.loc["oracle", ["giou", "fp_rate", "ambiguous"]].tolist() == [1.0, 0.0, 0.0]
    assert (overall["num_images"] == 3).all()
    assert (overall["giou_low"] <= overall["giou"]).all()
    assert set(table["family"]) > {"all", "attribute", "absent"}
    assert table.loc[table["family"] == "absent", "ambiguous"].isna().all()
    printed = capsys.readouterr().out
    assert "ceiling gIoU" in printed
    assert "point ceiling" not in printed


def test_domains_have_rows_of_their_own(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, domains = tmp_path / "ceiling.csv", ["studio", "sketch"]
    settings = ["--set", f"base.data.test_domains=[{', '.join(domains)}]", "--set", "base.data.test_images=4"]
    assert benchmark.main([str(study), "--out", str(out), *settings]) == 0
    table = pd.read_csv(out)
    assert table["domain"].unique().tolist() == ["all", *domains]
    coarse = table[(table["source"] == "coarse") & (table["family"] == "all")].set_index("domain")
    assert coarse.loc[domains, "num_images"].tolist() == [2, 2]
    weights = coarse.loc[domains, "num_expressions"]
    assert coarse.loc["all", "giou"] == pytest.approx((coarse.loc[domains, "giou"] * weights).sum() / weights.sum())
    assert "ceiling gIoU by domain" in capsys.readouterr().out


def test_the_ceiling_is_the_mean_of_its_expressions(study: Path) -> None:
    from harness.assembly.assembly import load_examples
    from harness.study.study import Study

    source = benchmark.sources_of(Study.from_yaml(study))[0]
    examples = list(load_examples(source.spec, "test"))
    rows = benchmark.measure(source, examples, benchmark.LineProgress(benchmark.Console(quiet=True)))
    table = benchmark.tables_of({"coarse": rows}).set_index("family")
    assert table.loc["all", "giou"] == pytest.approx(rows["iou"].mean())
    has_target = rows["is_ambiguous"].notna()
    assert 0 < has_target.mean() < 1
    assert table.loc["all", "target_giou"] == pytest.approx(rows.loc[has_target, "iou"].mean())
    assert table.loc["all", "ambiguous"] == pytest.approx(rows["is_ambiguous"].dropna().astype(float).mean())
    outside = rows["predicted_area"].sum() - rows["intersection"].sum()
    assert table.loc["all", "fp_rate"] == pytest.approx(outside / rows["predicted_area"].sum())


def test_a_study_without_superpixels_is_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, end = STUDY.index("  coarse: {}"), STUDY.index("  pooling:")
    study.write_text(f"{STUDY[:start]}{STUDY[end:]}".replace("baseline: coarse", "baseline: pooling"))
    assert benchmark.main([str(study)]) == 2
    assert "no arm uses superpixels" in capsys.readouterr().err


def test_the_point_ceiling_is_that_of_the_best_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sams import random_sam

    from harness.cache.encodings import SamCache

    monkeypatch.setenv("SVP_HARNESS_CACHE", str(tmp_path))
    sam, example = SamCache(random_sam()), _two_squares()
    sam.ensure([example], lambda *_: None)
    whole = example.id_map().astype(int)
    values = benchmark.best_at_points(example, whole, sam)
    one_by_one = [
        benchmark.best_at_points(example, np.where(whole == number, 0, -1), sam) for number in range(whole.max() + 1)
    ]
    assert values[:2] == pytest.approx([max(column) for column in zip(*one_by_one, strict=True)][:2])
    assert values[2] == 1.0
