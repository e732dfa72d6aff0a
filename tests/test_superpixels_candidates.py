"""The candidate pool equals the output of SAM's automatic mask generator."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sams import SIDE, random_sam
from segment_anything import SamAutomaticMaskGenerator

from harness.cache.encodings import SamCache
from harness.cache.mask_candidates import CandidateCache
from harness.data.example import Example
from harness.data.frame import Frame
from harness.data.scenes import Config as ScenesConfig
from harness.data.scenes import load
from harness.model.mask_decoder.decoder import MaskDecoder
from harness.model.mask_decoder.sam import load_sam
from harness.superpixels.candidates import Candidates, PoolSettings, propose
from harness.superpixels.filter import suppress_duplicates
from harness.superpixels.granularity import settings as granularity_settings

SAM = random_sam()
IMAGE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


SETTINGS = PoolSettings(points_per_side=6, min_iou=0.7, min_stability=0.85)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SVP_HARNESS_CACHE", str(tmp_path))


def _propose(settings: PoolSettings, image: np.ndarray = IMAGE) -> Candidates:
    embedding = SamCache(SAM).encode([Example("noise", image, (), ())])[0]
    return propose(
        MaskDecoder(SAM.sam.prompt_encoder, SAM.sam.mask_decoder), embedding, Frame.of(image.shape[:2], SIDE), settings
    )


@pytest.mark.parametrize("max_box_iou", [1.0, 0.7])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 64), (100, 60)])
def test_the_masks_are_those_of_the_automatic_mask_generator(height, width, max_box_iou):
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    upstream = SamAutomaticMaskGenerator(
        SAM.sam,
        points_per_side=SETTINGS.points_per_side,
        pred_iou_thresh=SETTINGS.min_iou,
        stability_score_thresh=SETTINGS.min_stability,
        box_nms_thresh=max_box_iou,
    )
    theirs = upstream.generate(image)
    ours = _propose(SETTINGS, image)
    ours = ours.select(suppress_duplicates(ours, max_box_iou=max_box_iou))
    if max_box_iou == 1.0:
        assert 20 < len(theirs) < 3 * SETTINGS.points_per_side**2 - 10
    assert len(ours) == len(theirs)
    for mask, iou, stability, one in zip(ours.masks(), ours.predicted_iou, ours.stability, theirs, strict=True):
        same = one["segmentation"]
        assert (mask & same).sum() / (mask | same).sum() >= 0.99
        assert iou == pytest.approx(one["predicted_iou"], abs=1e-5)
        assert stability == pytest.approx(one["stability_score"], abs=0.01)


def test_the_masks_of_the_trained_sam_are_those_of_the_generator_too():
    sam = load_sam("sam-scenes")
    example = load(ScenesConfig(test_images=1), "test")[0]
    default = granularity_settings("sam-scenes", "default")
    settings = PoolSettings(
        8, default["pred_iou_threshold"], default["stability_threshold"], default["stability_offset"]
    )
    upstream = SamAutomaticMaskGenerator(
        sam.sam,
        points_per_side=8,
        pred_iou_thresh=settings.min_iou,
        stability_score_thresh=settings.min_stability,
        stability_score_offset=settings.stability_offset,
    )
    head = MaskDecoder(sam.sam.prompt_encoder, sam.sam.mask_decoder)
    ours = propose(head, SamCache(sam).encode([example])[0], Frame.of(example.size, sam.frame), settings)
    ours = ours.select(suppress_duplicates(ours))
    theirs = np.stack([one["segmentation"] for one in upstream.generate(example.image)])
    assert len(ours) == len(theirs) >= 3
    masks = ours.masks()
    assert ((masks & theirs).sum((1, 2)) / (masks | theirs).sum((1, 2)) >= 0.99).all()


def test_a_candidate_has_its_point_and_its_level():
    candidates = _propose(PoolSettings(points_per_side=3, min_iou=-100.0, min_stability=0.0))
    assert candidates.levels.tolist() == [0, 1, 2] * 9
    assert candidates.points.tolist() == [[row, column] for row in range(3) for column in range(3) for _ in range(3)]


def test_looser_settings_keep_what_stricter_ones_keep():
    counts = [len(_propose(PoolSettings(6, 0.7, stability))) for stability in (0.8, 0.85, 0.9)]
    assert all(more > fewer for more, fewer in pairwise(counts))
    loose, strict = _propose(PoolSettings(6, 0.7, 0.8)), _propose(SETTINGS)
    assert loose.select(loose.stability >= 0.85).rles == strict.rles


def test_candidates_are_the_same_under_autocast():
    expected = _propose(SETTINGS)
    with torch.autocast("cpu", torch.bfloat16):
        found = _propose(SETTINGS)
    assert found.to_json() == expected.to_json()


@pytest.mark.parametrize("threads", [1, 3])
def test_candidates_do_not_depend_on_the_number_of_threads(threads, set_threads):
    embedding, frame = SamCache(SAM).encode([Example("noise", IMAGE, (), ())])[0], Frame.of((SIDE, SIDE), SIDE)
    head = MaskDecoder(SAM.sam.prompt_encoder, SAM.sam.mask_decoder)
    expected = propose(head, embedding, frame, SETTINGS)
    assert len(expected) > 20
    set_threads(threads)
    assert propose(head, embedding, frame, SETTINGS).to_json() == expected.to_json()
    assert torch.get_num_threads() == threads


def test_json_round_trip():
    written = _propose(SETTINGS)
    loaded = Candidates.from_json(written.to_json())
    assert loaded.rles == written.rles
    for name in ("points", "levels", "predicted_iou", "stability"):
        assert np.array_equal(getattr(loaded, name), getattr(written, name))
    nothing = Candidates.from_json(written.select(np.zeros(len(written), bool)).to_json())
    assert len(nothing) == 0
    assert nothing.points.shape == (0, 2)


def test_boxes_and_areas_are_those_of_the_masks():
    candidates = _propose(SETTINGS)
    masks = candidates.masks()
    assert candidates.areas().tolist() == masks.sum((1, 2)).tolist()
    rows, columns = masks.any(2), masks.any(1)
    assert candidates.boxes()[:, 0].tolist() == columns.argmax(1).tolist()
    assert candidates.boxes()[:, 3].tolist() == (SIDE - 1 - rows[:, ::-1].argmax(1)).tolist()


def test_an_image_is_encoded_and_decoded_once(monkeypatch):
    example = Example("noise", IMAGE[:40], (), ())
    progress: list[tuple[int, int]] = []
    CandidateCache(SamCache(SAM), SETTINGS).ensure([example], lambda *done: progress.append(done))
    monkeypatch.setattr(SamCache, "encode", None)
    again = CandidateCache(SamCache(SAM), SETTINGS)
    monkeypatch.setattr(again, "propose", None)
    again.ensure([example], lambda *done: progress.append(done))
    assert progress == [(1, 1)]
    assert again.load(example).masks().shape[1:] == (40, SIDE)
    assert SamCache(SAM).load([example]).shape == (1, 32, 8, 8)


def test_other_settings_have_another_folder():
    embeddings = SamCache(SAM)
    assert CandidateCache(embeddings, PoolSettings(6, 0.7, 0.8)).folder != CandidateCache(embeddings, SETTINGS).folder
