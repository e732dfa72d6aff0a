"""The location accuracy of finished cells equals a loop over expressions, and the command prints every trained cell."""

import numpy as np
import pytest
import torch

from benchmarks.location_accuracy import located, main
from harness.data.frame import Frame
from harness.execution.stages import Stages
from tests.small_study import quiet


def test_hits_equal_a_loop_over_expressions(cells, folder) -> None:
    stages = Stages(cells["pooling"], folder, quiet())
    stages.train()
    assembly, examples = stages.assembly, list(stages.testing)
    others = [*examples[1:], examples[0]]
    batches, grid = assembly.batches, assembly.segmenter.mask_decoder.location_grid
    for sources in (examples, others):
        found = located(assembly, examples, sources, "float32")
        expected = []
        for example, source in zip(examples, sources, strict=True):
            features = batches.features([example])
            query = batches.query([example.expressions])
            with torch.no_grad():
                tokens = assembly.segmenter.projector(batches.features([source]))
                logits = assembly.segmenter.answer(tokens, features.patches, None, query).location_logits
            for expression, logit in zip(example.expressions, logits, strict=True):
                if expression.targets:
                    mask = Frame.of(example.size, batches.vision.frame).place_mask(example.mask(expression))
                    cell = mask.shape[0] // grid[0]
                    shares = mask.reshape(grid[0], cell, grid[1], cell).mean((1, 3))
                    counted = shares >= min(0.5, shares.max())
                    best = np.unravel_index(int(logit.argmax()), grid)
                    expected.append((expression.family, float(counted[best]), counted.mean()))
        assert found["family"].tolist() == [family for family, _, _ in expected]
        assert found["is_hit"].tolist() == [hit for _, hit, _ in expected]
        assert found["random"].tolist() == pytest.approx([random for _, _, random in expected])


def test_a_folder_without_a_run_is_one_sentence(tmp_path, capsys) -> None:
    assert main([str(tmp_path)]) == 2
    assert "is no folder of a run" in capsys.readouterr().err


def test_the_command_prints_cells_and_means(tmp_path, capsys, monkeypatch) -> None:
    rows = [
        {"arm": arm, "seed": seed, "location accuracy": 0.5 + seed / 10, "tokens of another image": 0.1}
        for arm in ("pooling", "svp")
        for seed in (0, 1)
    ]
    monkeypatch.setattr("benchmarks.location_accuracy.measured", lambda *_: iter(rows))
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| pooling") == 2 + 1
    assert "0.550" in printed, "the mean of two seeds"
