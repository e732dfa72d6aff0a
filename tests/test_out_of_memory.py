"""A step that exceeds the memory of the GPU is repeated once with smaller micro-batches, and with the same result."""

import logging
import weakref
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from harness.model.segmenter import Query
from harness.study.training_config import TrainingConfig
from harness.training.trainer import CurvePoint, Trainer
from tests.tiny import FixedBatches, tiny_segmenter

CONFIG = TrainingConfig(
    steps=4, budgets=(1.0,), alignment_steps=2, batch_images=4, expressions_per_image=1, learning_rate=1e-3,
    location_loss=1.0, precision="float32",
)  # fmt: skip


def build(
    config: TrainingConfig = CONFIG, failing_calls: tuple[int, ...] = (), training_checkpoint: Path | None = None
) -> Trainer:
    """A trainer whose segmenter raises OutOfMemoryError in these forward passes, counted from 0."""
    torch.manual_seed(0)
    segmenter = tiny_segmenter()
    calls = iter(range(1000))

    def fail(*_: object) -> None:
        if next(calls) in failing_calls:
            raise torch.OutOfMemoryError("CUDA out of memory")

    segmenter.register_forward_pre_hook(fail)
    batches, generator = FixedBatches(segmenter.llm), torch.Generator().manual_seed(0)
    return Trainer(segmenter, batches, config, generator, lambda *_: None, training_checkpoint)


def run(trainer: Trainer, num_images: int = 5) -> list[CurvePoint]:
    first, second = trainer.batches.examples  # type: ignore[attr-defined]
    return trainer.run([first, second, first, second, first][:num_images])


def assert_same_curve(found: list[CurvePoint], expected: list[CurvePoint]) -> None:
    assert [point.step for point in found] == [point.step for point in expected]
    for point, other in zip(found, expected, strict=True):
        for name in ("loss", "answer", "bce", "dice", "location"):
            assert getattr(point, name) == pytest.approx(getattr(other, name), rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize(("micro_batch_images", "failing_call", "halved"), [(None, 0, 2), (None, 3, 2), (2, 5, 1)])
def test_the_curve_equals_that_of_a_training_without_the_error(micro_batch_images, failing_call, halved, caplog):
    """In the first step, in the second stage, and in the second micro-batch of a step, after gradients were added."""
    config = CONFIG.model_copy(update={"micro_batch_images": micro_batch_images})
    undisturbed, trainer = build(config), build(config, (failing_call,))
    expected = run(undisturbed)
    with caplog.at_level(logging.WARNING, "harness"):
        found = run(trainer)
    assert_same_curve(found, expected)
    assert torch.equal(trainer.generator.get_state(), undisturbed.generator.get_state())
    for (name, value), other in zip(
        trainer.segmenter.named_parameters(), undisturbed.segmenter.parameters(), strict=True
    ):
        assert_close(value, other, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert undisturbed.micro_batch_images == (micro_batch_images or CONFIG.batch_images)
    assert trainer.micro_batch_images == halved
    assert f"micro-batches have {halved} images instead of {2 * halved} from now on" in caplog.text


@pytest.mark.parametrize("failing_calls", [(0, 1), (0, 6)])
def test_a_second_error_is_raised(failing_calls):
    """In the repeated step, and in a later one."""
    trainer = build(failing_calls=failing_calls)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        run(trainer)
    assert trainer.micro_batch_images == 2


def test_the_tensors_of_the_failed_step_are_freed_before_it_is_repeated():
    trainer, inputs, alive = build(failing_calls=(0,)), list[weakref.ref](), []

    def keep(_: object, arguments: tuple[object, object, Query]) -> None:
        alive.append([ref() is not None for ref in inputs])
        inputs.append(weakref.ref(arguments[2].ids))

    trainer.segmenter.register_forward_pre_hook(keep, prepend=True)
    run(trainer)
    assert alive[:2] == [[], [False]]


def test_an_error_with_one_image_is_raised():
    trainer = build(CONFIG.model_copy(update={"micro_batch_images": 1}), failing_calls=(0,))
    with pytest.raises(torch.OutOfMemoryError):
        run(trainer)


def test_fewer_images_than_a_micro_batch_are_halved():
    trainer = build(CONFIG.model_copy(update={"batch_images": 16}), failing_calls=(0,))
    run(trainer, num_images=2)
    assert trainer.micro_batch_images == 1


def test_a_resumed_training_keeps_the_smaller_micro_batches(tmp_path):
    path = tmp_path / "cell.training.pt"
    run(build(failing_calls=(0,), training_checkpoint=path))
    resumed = build(training_checkpoint=path)
    run(resumed)
    assert resumed.micro_batch_images == 2
    assert resumed.has_halved_micro_batch
