"""Losses against values computed by hand, schedules, the two stages, resuming, and that a segmenter learns."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.testing import assert_close

from harness.assembly.batches import Batch, MaskTargets
from harness.data.example import Expression
from harness.errors import DataError, HarnessError
from harness.model.segmenter import Answer, Query, Segmenter
from harness.study.training_config import CurriculumConfig, TrainingConfig, decay_start
from harness.training import trainer as training
from harness.training.losses import dice_loss, location_loss, losses
from harness.training.sampler import EpochSampler, of_families
from harness.training.schedules import WarmupStableDecay
from harness.training.trainer import CurvePoint, Trainer
from projectors import VisualTokens
from tests.tiny import FixedBatches, tiny_segmenter


def test_dice_by_hand():
    """Two pixels with probability 0.5, one of them in the target: 2 * 0.5 / (1 + 1) = 0.5."""
    prediction, target = torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[1.0, 0.0]]])
    assert_close(dice_loss(prediction, target), torch.tensor([0.5]), atol=1e-3, rtol=0)
    assert_close(dice_loss(target, target), torch.tensor([0.0]), atol=1e-6, rtol=0)
    assert dice_loss(1 - target, target).item() > 0.99


def _batch(logits: torch.Tensor, targets: torch.Tensor, valid_mask: torch.Tensor) -> tuple[Answer, Batch]:
    count = len(logits)
    ids = torch.ones(1, count, 1, dtype=torch.long)
    tokens = VisualTokens.dense(torch.zeros(1, 1, 1))
    answer = Answer(logits, torch.zeros(count, 2, 2), torch.zeros(count, 4), tokens)
    batch = Batch(
        features=None,
        mask_inputs=None,
        query=Query(ids, ids.bool(), torch.zeros(1, count, dtype=torch.long), torch.ones(1, count, dtype=torch.bool)),
        image=torch.zeros(count, dtype=torch.long),
        answers=torch.full((count,), 2),
        location_targets=targets,
        masks=MaskTargets(targets, valid_mask),
    )
    return answer, batch


def test_losses_by_hand_with_lisas_weights():
    logits, targets = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    parts = losses(*_batch(logits, targets, torch.ones(1, 2, 2)))
    assert_close(parts.answer, torch.tensor(math.log(4)))
    assert_close(parts.bce, torch.tensor(math.log(2)))
    assert_close(parts.dice, torch.tensor(1 - 2 * 0.5 / 3), atol=1e-3, rtol=0)
    assert_close(parts.total(0.0), parts.answer + 2 * parts.bce + 0.5 * parts.dice)
    assert_close(parts.location, torch.tensor(math.log(4)))
    assert_close(parts.total(0.3), parts.total(0.0) + 0.3 * parts.location)


def test_location_loss_equals_a_loop_and_excludes_empty_targets():
    generator = torch.Generator().manual_seed(0)
    location_logits, targets = torch.randn(3, 4, 4, generator=generator), torch.zeros(3, 8, 8)
    targets[0, :2, :3] = 1
    targets[2, 5, 5] = 1
    shares = targets.reshape(3, 4, 2, 4, 2).mean((2, 4))
    naive = []
    for logits, part in zip(location_logits, shares, strict=True):
        if part.sum():
            naive.append(-float(torch.log((logits.exp() / logits.exp().sum() * part).sum())))
    assert_close(location_loss(location_logits, shares), torch.tensor(naive).mean(), atol=1e-4, rtol=0)
    assert float(location_loss(location_logits[1:2], shares[1:2])) == 0.0


def test_mask_losses_ignore_the_padding_of_the_frame():
    """Logits outside the image change neither loss."""
    valid_mask = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    targets = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    zero, large = torch.zeros(1, 2, 2), torch.tensor([[[0.0, 0.0], [9.0, -9.0]]])
    first, second = losses(*_batch(zero, targets, valid_mask)), losses(*_batch(large, targets, valid_mask))
    assert_close(first.bce, second.bce)
    assert_close(first.dice, second.dice)


def _rates(build: Callable[[Optimizer], LRScheduler], steps: int) -> list[float]:
    """The learning rate of each step, and that after the last."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build(optimizer)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_the_rate_rises_stays_constant_and_falls_to_zero():
    rates = _rates(WarmupStableDecay(warmup=9, end=1000, decay=0.5).of, 1000)
    found = [rates[step] for step in (0, 9, 300, 500, 750, 999, 1000)]
    assert found == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.5, 0.002, 0.0])


@pytest.mark.parametrize("end", [1, 2, 3, 7, 100])
def test_the_rate_falls_for_at_least_one_step_and_to_zero(end):
    rates = _rates(WarmupStableDecay(warmup=0, end=end, decay=0.2).of, end)
    assert rates[decay_start(end)] == 1.0
    assert rates[-1] == 0.0
    assert rates == sorted(rates, reverse=True)


def _train(config: TrainingConfig) -> tuple[list[CurvePoint], list[dict[str, torch.Tensor]]]:
    """The curve, and the segmenter's state before training and after each logged step."""
    torch.manual_seed(0)
    segmenter = tiny_segmenter()
    states = []

    def keep(*_: object) -> None:
        states.append({name: value.clone() for name, value in segmenter.state_dict().items()})

    keep()
    batches = FixedBatches(segmenter.llm)
    trainer = Trainer(segmenter, batches, config, torch.Generator().manual_seed(0), keep)
    return trainer.run(batches.examples), states


def test_a_segmenter_overfits_two_images():
    config = TrainingConfig(steps=80, batch_images=2, expressions_per_image=2, learning_rate=3e-3, warmup_steps=5)
    curve, _ = _train(config)
    assert curve[-1].loss < 0.35 * curve[0].loss


def test_training_is_deterministic():
    config = TrainingConfig(steps=5, batch_images=2, expressions_per_image=2, learning_rate=1e-3, warmup_steps=2)
    assert _train(config)[0] == _train(config)[0]


@pytest.mark.parametrize("interrupted_at", [1, 2, 3, 5])
def test_a_resumed_training_equals_an_uninterrupted_one(interrupted_at, tmp_path, monkeypatch):
    """In the first stage, between the two, and in the second; with dropout, which uses torch's global generator."""
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0.0)
    curriculum = CurriculumConfig(steps=2, families=("attribute",))
    config = TrainingConfig(
        steps=4, alignment_steps=2, batch_images=1, expressions_per_image=1, curriculum=curriculum, optimizer="muon"
    )

    def trained(
        training_checkpoint: Path | None, seed: int, interrupted_at: int | None = None
    ) -> tuple[list[CurvePoint], Segmenter]:
        torch.manual_seed(0)
        segmenter = tiny_segmenter()
        segmenter.prompt[1] = torch.nn.Dropout(0.5)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in segmenter.parameters():
                parameter.add_(seed * parameter.requires_grad)
        steps = 0

        def on_step(*_: object) -> None:
            nonlocal steps
            steps += 1
            if steps - 1 == interrupted_at:
                raise KeyboardInterrupt

        batches = FixedBatches(segmenter.llm)
        trainer = Trainer(segmenter, batches, config, torch.Generator().manual_seed(seed), on_step, training_checkpoint)
        return trainer.run(batches.examples), segmenter

    curve, expected = trained(None, seed=0)
    training_checkpoint = tmp_path / "cell.training.pt"
    with pytest.raises(KeyboardInterrupt):
        trained(training_checkpoint, seed=0, interrupted_at=interrupted_at)
    resumed, found = trained(training_checkpoint, seed=1)
    assert resumed == curve
    for (name, value), other in zip(expected.named_parameters(), found.parameters(), strict=True):
        assert torch.equal(value, other), name


def _budgets(budgets, steps, place=None, seed=0, interrupted_at=None):
    """Curve, final parameters, and the parameters at each earlier budget; with dropout."""
    torch.manual_seed(0)
    segmenter = tiny_segmenter()
    segmenter.prompt[1] = torch.nn.Dropout(0.5)
    torch.manual_seed(seed)
    found, seen = {}, []

    def keep(steps):
        found[steps] = [parameter.detach().clone() for parameter in segmenter.parameters()]

    def on_step(point, total):
        seen.append((point["done"], total))
        if point["done"] == interrupted_at:
            raise KeyboardInterrupt

    batches = FixedBatches(segmenter.llm)
    config = TrainingConfig(
        steps=steps, budgets=budgets, batch_images=1, expressions_per_image=1, optimizer="muon", warmup_steps=2
    )
    generator = torch.Generator().manual_seed(seed)
    trainer = Trainer(segmenter, batches, config, generator, on_step, place, on_budget=keep)
    curve = trainer.run(batches.examples)
    keep(steps)
    return curve, found, seen


def test_the_model_of_a_budget_is_that_of_a_training_of_its_length():
    """Bitwise, and the branches leave no trace in the last one."""
    curve, found, seen = _budgets((0.25, 0.5, 1.0), 20)
    assert list(found) == [5, 10, 20]
    for steps, parameters in found.items():
        alone, reference, _ = _budgets((1.0,), steps)
        assert all(torch.equal(*pair) for pair in zip(parameters, reference[steps], strict=True)), steps
    assert curve == alone, "the last reference has the same length"
    assert [point.step for point in curve] == list(range(1, 21))
    assert seen == [(step, 23) for step in range(1, 24)], "20 steps, and decays of 1 and 2"


@pytest.mark.parametrize("interrupted_at", [4, 5, 6, 10, 11, 12, 13, 23])
def test_a_training_resumed_in_a_branch_equals_an_uninterrupted_one(interrupted_at, tmp_path, monkeypatch):
    """The first branch has step 5, the second the steps 10 and 11 of 23."""
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0.0)
    curve, expected, _ = _budgets((0.25, 0.5, 1.0), 20)
    place = tmp_path / "cell.training.pt"
    with pytest.raises(KeyboardInterrupt):
        _budgets((0.25, 0.5, 1.0), 20, place, interrupted_at=interrupted_at)
    resumed, found, _ = _budgets((0.25, 0.5, 1.0), 20, place, seed=1)
    assert resumed == curve
    for steps, parameters in found.items():
        assert all(torch.equal(*pair) for pair in zip(parameters, expected[steps], strict=True)), steps


def test_validation_is_part_of_the_curve_and_changes_nothing_else():
    values = iter(range(100))

    def trained(validate):
        torch.manual_seed(0)
        segmenter = tiny_segmenter()
        batches, config = FixedBatches(segmenter.llm), TrainingConfig(steps=7, batch_images=2)
        generator = torch.Generator().manual_seed(0)
        trainer = Trainer(segmenter, batches, config, generator, lambda *_: None, validate=validate)
        return trainer.run(batches.examples)

    plain, measured = trained(None), trained(lambda: {"validation_loss": float(next(values))})
    with_value = [point.step for point in measured if point.validation_loss is not None]
    assert len(with_value) == 2
    assert [replace(point, validation_loss=None) for point in measured] == plain


def test_a_training_checkpoint_of_another_layout_is_refused(tmp_path):
    path = tmp_path / "cell.training.pt"
    torch.save({"step": 1}, path)
    segmenter = tiny_segmenter()
    batches, config = FixedBatches(segmenter.llm), TrainingConfig(steps=1)
    trainer = Trainer(segmenter, batches, config, torch.Generator(), lambda *_: None, path)
    with pytest.raises(HarnessError, match=r"cell\.training\.pt: training checkpoint of layout version 1, but only"):
        trainer.run(batches.examples)


def test_the_llm_learns_in_the_second_stage_only():
    config = TrainingConfig(steps=1, alignment_steps=2, batch_images=2, expressions_per_image=2, learning_rate=1e-3)
    curve, (before, _, aligned, trained) = _train(config)
    assert curve[-1].step == 3

    def changed(part: str, first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
        names = [name for name in first if name.startswith(part)]
        assert names
        return any(not torch.equal(first[name], second[name]) for name in names)

    early = ("projector.", "llm.answers", "mask_decoder.sam_decoder.", "image_embedding.", "prompt.")
    assert all(changed(part, before, aligned) for part in early)
    assert not changed("llm.model.", before, aligned)
    assert changed("llm.model.", aligned, trained)


def test_a_curriculum_trains_on_its_families_first():
    class RecordedBatches(FixedBatches):
        def make(self, examples, chosen, *, with_mask_inputs=True):
            families.append({one.family for queries in chosen for one in queries})
            return super().make(examples, chosen, with_mask_inputs=with_mask_inputs)

    families: list[set[str]] = []
    segmenter = tiny_segmenter()
    batches = RecordedBatches(segmenter.llm)
    examples = [
        replace(one, expressions=(one.expressions[0], replace(one.expressions[1], family="texture")))
        for one in batches.examples
    ]
    curriculum = CurriculumConfig(steps=2, families=("attribute",))
    config = TrainingConfig(steps=3, budgets=(1.0,), batch_images=2, curriculum=curriculum, learning_rate=1e-3)
    Trainer(segmenter, batches, config, torch.Generator().manual_seed(0), lambda *_: None).run(examples)
    assert families == [{"attribute"}, {"attribute"}, {"attribute", "texture"}]


def test_a_curriculum_of_an_absent_family_is_refused():
    examples = FixedBatches(tiny_segmenter().llm).examples
    with pytest.raises(
        DataError, match=r"no expression or question of the training split is of family 'colour'; known: "
    ):
        of_families(examples, ["colour"])


@pytest.mark.parametrize("micro_batch_images", [1, 2, 3])
def test_gradients_of_micro_batches_add_up_to_those_of_the_step(micro_batch_images):
    """Also where a micro-batch has fewer expressions, or none with a target."""
    gradients = []
    for size in (None, micro_batch_images):
        torch.manual_seed(0)
        segmenter = tiny_segmenter()
        batches = FixedBatches(segmenter.llm)
        first, second = batches.examples
        absent = replace(first, expressions=(Expression("the red square", "absent", ()),))
        examples = [first, second, absent, second, first]
        config = TrainingConfig(
            steps=1, batch_images=5, location_loss=1.0, micro_batch_images=size, precision="float32"
        )
        trainer = Trainer(segmenter, batches, config, torch.Generator().manual_seed(0), lambda *_: None)
        trainer.samplers = [EpochSampler(examples, 5, trainer.generator)] * 2
        terms = trainer.backward(0)
        found = {name: p.grad for name, p in segmenter.named_parameters() if p.grad is not None}
        gradients.append((found, terms))
    (expected, whole), (found, parts) = gradients
    assert any(value.abs().max() > 0.1 for value in expected.values())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    for name, value in whole.items():
        assert_close(parts[name], value, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
