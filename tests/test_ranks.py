"""Two processes train as one: the same losses and parameters, whatever part of a step each of them computes."""

from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import start_processes
from torch.testing import assert_close

from harness.data.example import Example, Expression, Question
from harness.study.training_config import TrainingConfig
from harness.training import trainer as training
from harness.training.ranks import Ranks, connected
from harness.training.trainer import Trainer
from tests.tiny import FixedBatches, tiny_segmenter

pytestmark = pytest.mark.slow

NUM = 2
CONFIG = TrainingConfig(
    steps=4, alignment_steps=2, batch_images=5, expressions_per_image=2, learning_rate=1e-3, warmup_steps=2,
    location_loss=1.0, precision="float32",
)  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "muon": {"optimizer": "muon"},
    "adamw in micro-batches": {"micro_batch_images": 1},
    "muon in micro-batches": {"optimizer": "muon", "micro_batch_images": 2},
    "one image, so that a process has none": {"batch_images": 1, "weight_decay": 0.1},
    "two images, of which one has only a question": {"batch_images": 2, "optimizer": "muon"},
}


def examples_of(case: str, first: Example, second: Example) -> list[Example]:
    """Five images, of which one has only an absent object; or one image with expressions and one with a question."""
    if "question" in case:
        asked = Question("what square", "attribute", answer="red", references=("red",), scoring="accuracy")
        return [first, replace(second, expressions=(), questions=(asked,))]
    return [first, second, replace(first, expressions=(Expression("the red square", "absent", ()),)), second, first]


def build(
    ranks: Ranks, changed: dict[str, Any], fails: bool = False, checkpoint: Path | None = None, stops_after: int = 1000
) -> Trainer:
    """A trainer of a tiny segmenter.

    Args:
        changed: settings that differ from `CONFIG`.
        fails: whether the fourth forward pass of this process exceeds its memory.
        stops_after: the step at which training is interrupted.
    """
    torch.manual_seed(0)
    segmenter = tiny_segmenter()
    if checkpoint is not None:
        segmenter.prompt[1] = torch.nn.Dropout(0.5)
    calls = iter(range(1000))

    def fail(*_: object) -> None:
        if next(calls) == 3 and fails:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def stop(point: dict[str, float], _: int) -> None:
        if point["step"] == stops_after:
            raise KeyboardInterrupt

    segmenter.register_forward_pre_hook(fail)
    generator = torch.Generator().manual_seed(0)
    config = CONFIG.model_copy(update=changed)
    return Trainer(segmenter, FixedBatches(segmenter.llm), config, generator, stop, checkpoint, ranks)


def trained(trainer: Trainer, case: str = "") -> dict[str, Any]:
    curve = trainer.run(examples_of(case, *trainer.batches.examples))  # type: ignore[attr-defined]
    return {
        "curve": torch.tensor([[value for value in astuple(point) if value is not None] for point in curve]),
        "parameters": {name: value.detach() for name, value in trainer.segmenter.named_parameters()},
        "micro_batch_images": trainer.micro_batch_images,
    }


def interrupted(ranks: Ranks, path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(build(ranks, {}, checkpoint=path, stops_after=4))


def run_cases(index: int, folder: Path) -> None:
    """All cases in one of the processes."""
    torch.set_num_threads(1)
    training.SAVE_EVERY_SECONDS = 0.0
    with connected(index, NUM, folder / "store") as ranks:
        found = {case: trained(build(ranks, changed), case) for case, changed in CASES.items()}
        found["out of memory"] = trained(build(ranks, {}, fails=index == 1))
        found["uninterrupted"] = trained(build(ranks, {}, checkpoint=folder / "other.pt"))
        interrupted(ranks, folder / "training.pt")
        found["resumed"] = trained(build(ranks, {}, checkpoint=folder / "training.pt"))
        found["gathered"] = ranks.gather(index + 0.5, torch.device("cpu"))
        found["drawn"] = []
        for step in range(3):
            ranks.seed(7, step)
            found["drawn"].append(float(torch.rand(())))
        torch.save(found, folder / f"{index}.pt")


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("ranks")
    start_processes(run_cases, (folder,), nprocs=NUM, start_method="spawn")
    return [torch.load(folder / f"{index}.pt") for index in range(NUM)]


def assert_equal_training(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert_close(found["curve"], expected["curve"], atol=tolerance, rtol=tolerance)
    assert found["parameters"].keys() == expected["parameters"].keys()
    for name, value in expected["parameters"].items():
        if tolerance and name.endswith("k_proj.bias"):
            continue  # a softmax ignores it: its gradient is 0 but for rounding, and Adam divides it by its size
        difference = (found["parameters"][name] - value).abs().max()
        assert difference <= tolerance, f"{name}: {difference}"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", CASES)
def test_losses_and_parameters_are_those_of_one_process(together, case):
    alone = trained(build(Ranks(), CASES[case]), case)
    assert len(alone["curve"]) == 6
    assert alone["curve"][0, 1] - alone["curve"][-1, 1] > 0.1, "the training changes the parameters"
    assert_equal_training(together[0][case], alone, 1e-5)


@pytest.mark.parametrize("case", [*CASES, "out of memory", "uninterrupted"])
def test_all_processes_have_the_same_parameters(together, case):
    assert_equal_training(together[1][case], together[0][case], 0.0)


def test_one_process_that_exceeds_its_memory_repeats_its_part_alone(together):
    assert [found["out of memory"]["micro_batch_images"] for found in together] == [3, 1]
    assert_equal_training(together[0]["out of memory"], together[0]["adamw"], 1e-5)


def test_a_resumed_training_equals_an_uninterrupted_one_with_dropout(together):
    for found in together:
        assert_equal_training(found["resumed"], found["uninterrupted"], 0.0)


def test_dropout_differs_between_processes_and_steps(together):
    assert len({drawn for found in together for drawn in found["drawn"]}) == 2 * 3


def test_values_are_gathered_in_the_order_of_the_processes(together):
    assert [found["gathered"] for found in together] == [[0.5, 1.5], [0.5, 1.5]]
