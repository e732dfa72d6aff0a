"""The training of sam-scenes: prompts, losses, initial weights, data, and resuming."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from harness.model.mask_decoder.sam import build_sam_scenes
from harness.pretraining import prompts
from harness.pretraining.dense_head import UNIT, _targets
from harness.pretraining.mask_losses import dice_loss, iou, mask_loss, shares
from harness.pretraining.pretrain import pretrain
from harness.pretraining.sam_scenes import Options, Trainer, scene, train, write_model
from harness.training.loop import Interval

TINY = Options(steps=2, images=1, prompts=2, validation_images=0)


@pytest.fixture
def objects() -> np.ndarray:
    found = np.zeros((224, 224), np.uint8)
    found[10:20, 30:60] = 1
    found[100:180, 100:104] = 2
    found[150:160, 102:200] = 3
    return found


def test_every_object_gets_a_prompt_before_any_gets_two(objects: np.ndarray) -> None:
    for seed in range(20):
        sampled = prompts.draw(objects, 4, np.random.default_rng(seed))
        assert {int(objects[mask][0]) for mask in sampled.masks} == {1, 2, 3}


def test_points_lie_on_their_object_and_boxes_around_it(objects: np.ndarray) -> None:
    sampled = prompts.draw(objects, 12, np.random.default_rng(0))
    assert 0 < len(sampled.boxes) < 12
    for mask, ((x, y),) in zip(sampled.masks, sampled.points, strict=True):
        assert mask[y, x]
    for mask, box in zip(sampled.masks[sampled.num_points :], sampled.boxes, strict=True):
        assert np.abs(box - prompts.box_of(mask)).max() <= prompts.MAX_BOX_JITTER
    assert prompts.box_of(objects == 1).tolist() == [30, 10, 59, 19]


def test_a_correction_lies_on_a_missing_or_a_superfluous_pixel(objects: np.ndarray) -> None:
    masks = np.stack([objects == 1, objects == 1])
    first = prompts.middle_points(masks)
    missing, superfluous = np.zeros_like(masks[0]), masks[0].copy()
    missing[10:20, 30:50] = True
    superfluous[200:210, 200:210] = True
    for rng in (None, np.random.default_rng(0)):
        corrected = first.corrected(np.stack([missing, superfluous]), rng)
        assert corrected.labels.tolist() == [[1, 1], [1, 0]]
        assert (corrected.points[:, 1] >= [[50, 10], [200, 200]]).all()
        assert (corrected.points[:, 1] < [[60, 20], [210, 210]]).all()


def test_points_and_boxes_have_the_same_number_of_tokens(objects: np.ndarray) -> None:
    sam = build_sam_scenes()
    sampled = prompts.draw(objects, 6, np.random.default_rng(0))
    assert 0 < sampled.num_points < 6
    assert sampled.embed(sam).shape == (6, 2, 96)
    corrected = sampled.corrected(np.zeros_like(sampled.masks), np.random.default_rng(0))
    tokens = corrected.embed(sam)
    assert tokens.shape == (6, 3, 96)
    first = sampled.num_points
    clicks = torch.from_numpy(corrected.points[:first]).float(), torch.from_numpy(corrected.labels[:first])
    assert_close(tokens[:first], sam.prompt_encoder(points=clicks, boxes=None, masks=None)[0])
    boxes = torch.from_numpy(sampled.boxes).float()
    corners = sam.prompt_encoder(points=None, boxes=boxes, masks=None)[0]
    assert_close(tokens[first:, 1:], corners)


def test_losses_equal_values_computed_by_hand() -> None:
    target = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    guess = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    # (2 * 1 common + 1) / (1 + 2 + 1)
    assert_close(dice_loss(guess, target), torch.tensor(1 - 3 / 4))
    assert_close(dice_loss(target, target), torch.tensor(0.0))
    assert iou(guess > 0, target > 0).item() == 0.5
    assert iou(target < 0, target < 0).item() == 1
    assert_close(shares(torch.eye(4, dtype=torch.bool)[None], 2), torch.tensor([[[0.5, 0.0], [0.0, 0.5]]]))


def test_mask_loss_uses_the_smallest_loss_of_three_masks() -> None:
    targets = torch.zeros(1, 8, 8)
    targets[0, :4] = 1
    right, wrong = 20 * (targets - 0.5), 20 * (0.5 - targets)
    perfect = torch.stack([right] * 4, dim=1)
    one_right = torch.stack([right, wrong, right, wrong], dim=1)
    all_wrong = torch.stack([right, wrong, wrong, wrong], dim=1)
    assert mask_loss(perfect, torch.ones(1, 4), targets) < 1e-3
    scores = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    assert mask_loss(one_right, scores, targets) < mask_loss(all_wrong, torch.tensor([[1.0, 0, 0, 0]]), targets) / 5
    assert mask_loss(perfect, torch.zeros(1, 4), targets) > 0.99


def test_dense_targets_are_distances_to_the_sides_of_the_visible_box(objects: np.ndarray) -> None:
    distances, is_object = _targets(objects[None], 112)
    assert is_object[0].sum() == np.count_nonzero(objects[1::2, 1::2])
    row, column = 6, 20
    assert is_object[0, row, column]
    assert (distances[:, 0, row, column] * UNIT).tolist() == [41 - 30, 13 - 10, 59 - 41, 19 - 13]


@pytest.mark.usefixtures("one_thread")
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    expected, _ = train(TINY, tmp_path / "uninterrupted")
    interrupted, out = Trainer(TINY), tmp_path / "interrupted"
    pretrain(interrupted, interrupted.optimization, 1, out, Interval(steps=1))
    resumed, loop = train(TINY, out)
    assert loop.step == 2
    assert_close(resumed.sam.state_dict(), expected.sam.state_dict(), rtol=0, atol=0)
    finished, _ = train(TINY, out)
    assert_close(finished.sam.state_dict(), expected.sam.state_dict(), rtol=0, atol=0)
    lines = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]


def test_training_starts_from_other_weights_and_from_another_image(tmp_path: Path) -> None:
    first = Trainer(TINY)
    write_model(first.sam, tmp_path / "first.safetensors")
    trainer = Trainer(replace(TINY, begin=str(tmp_path / "first.safetensors"), first_image=2, seed=3))
    halved = {name: value.half().float() for name, value in first.sam.state_dict().items()}
    assert_close(trainer.sam.state_dict(), halved, rtol=0, atol=0)
    same_images = Trainer(replace(TINY, begin=trainer.options.begin, seed=3))
    assert not torch.equal(trainer.compute_losses(0)[1]["dense"], same_images.compute_losses(0)[1]["dense"])


def test_validation_scores_are_measured_at_every_point_of_the_curve(tmp_path: Path) -> None:
    train(Options(steps=2, images=1, prompts=2, validation_images=1), tmp_path, minutes_between=0)
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(0 <= line["box"] <= 1 for line in lines)


def test_steps_change_every_parameter_that_one_round_uses(tmp_path: Path) -> None:
    trainer = Trainer(Options(steps=10, images=1, prompts=4, validation_images=0))
    before = {name: value.clone() for name, value in trainer.sam.named_parameters()}
    # The weights before a zero residual branch have no gradient until the branch has changed.
    pretrain(trainer, trainer.optimization, 3, tmp_path, Interval(steps=3))
    changed = {name for name, value in trainer.sam.named_parameters() if not torch.equal(value, before[name])}
    second_round_only = ("prompt_encoder.mask_downscaling", "prompt_encoder.point_embeddings.0")
    unchanged = {name for name in before.keys() - changed if not name.startswith(second_round_only)}
    assert unchanged == set()


def test_training_scenes_are_of_the_train_split_and_of_all_domains() -> None:
    ids = [scene("train", 0, index).image_id for index in range(4)]
    assert [name.split("/")[1] for name in ids] == ["studio-0", "canvas-0", "sketch-0", "night-0"]
    assert {name.split("/")[2] for name in ids} == {"train"}
