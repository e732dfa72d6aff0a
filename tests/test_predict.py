"""A trained cell is saved, loaded unchanged, and used on any image."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from harness import predict
from harness.assembly import assembly
from harness.assembly.assembly import load_examples
from harness.assembly.checkpoint import load
from harness.errors import WeightsError
from harness.evaluation.evaluator import Evaluator
from harness.execution.cell import run_cell
from harness.model.config import LLMConfig
from tests import checkpoints
from tests.small_study import quiet

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(cells, folder):
    """A cell trained for three steps."""
    return _trained(cells["pooling"], folder)


def _trained(cell, folder):
    row = run_cell(cell, folder, quiet())
    assert row["status"] == "done", row["reason"]
    return folder.checkpoint(cell.id)


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()[:200]).save(path)
    return path


@pytest.mark.parametrize("arm", ["pooling", "decoder_pe"])
def test_a_loaded_cell_has_the_same_scores(cells, folder, arm):
    checkpoint = _trained(cells[arm], folder)
    torch.manual_seed(12345)  # random tensors must come from the file
    trained = load(checkpoint, CPU)
    assert (trained.arm, trained.seed, trained.spec) == (arm, 0, cells[arm].spec)
    testing = load_examples(trained.spec, "test")
    parts, precision = trained.assembly, trained.spec.training.precision
    samples, _ = Evaluator(parts.segmenter, parts.batches, 16, precision).score(testing)
    before = pd.read_parquet(folder.cell_samples(cells[arm].id))
    mask_columns = ["iou_teacher_forced", "intersection_teacher_forced", "predicted_area_teacher_forced"]
    assert 0 < before["predicted_area_teacher_forced"].mean() < 0.9 * (before["height"] * before["width"]).mean()
    pd.testing.assert_frame_equal(samples[[*mask_columns, "iou"]], before[[*mask_columns, "iou"]])


@pytest.mark.parametrize("trained_in", ["float32", "bfloat16", "auto"])
@pytest.mark.parametrize("read_in", ["float32", "bfloat16"])
def test_a_cell_is_loaded_in_any_precision(cells, folder, tmp_path, trained_in, read_in):
    """The base of a pretrained LLM is held in the precision that the cell runs in, whatever it was trained in."""
    checkpoints.write_llm("llama", tmp_path / "llama")
    cell = cells["pooling"]
    llm = LLMConfig(name=str(tmp_path / "llama"), lora={"rank": 2, "targets": ["q_proj"]})
    training = cell.spec.training.model_copy(update={"precision": trained_in})
    spec = cell.spec.model_copy(update={"llm": llm, "training": training})
    trained = load(_trained(replace(cell, spec=spec), folder), CPU, read_in)
    assert trained.spec.training.precision == read_in
    assert trained.assembly.segmenter.llm.model.get_output_embeddings().weight.dtype == getattr(torch, read_in)
    evaluator = Evaluator(trained.assembly.segmenter, trained.assembly.batches, 16, read_in)
    samples, _ = evaluator.score(load_examples(trained.spec, "test"))
    assert samples["iou"].between(0, 1).all()


def test_a_loaded_cell_has_equal_tensors(checkpoint):
    torch.manual_seed(12345)
    one, other = (load(checkpoint, CPU).assembly.segmenter.state_dict() for _ in range(2))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_checkpoint_of_another_version_is_refused(checkpoint, tmp_path):
    with safe_open(checkpoint, "pt") as file:
        metadata = {**file.metadata(), "version": "1"}
    save_file(load_file(checkpoint), tmp_path / "old.safetensors", metadata)
    with pytest.raises(WeightsError, match="is a checkpoint of version 1, but only 4 is supported; run its cell again"):
        load(tmp_path / "old.safetensors", CPU)


def test_a_checkpoint_that_does_not_fit_is_refused(checkpoint, tmp_path):
    save_file(load_file(checkpoint), tmp_path / "bare.safetensors")
    with pytest.raises(WeightsError, match="is not the checkpoint of a cell"):
        load(tmp_path / "bare.safetensors", CPU)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot be read"):
        load(checkpoint, CPU)


@pytest.mark.parametrize(
    "change",
    [
        {"spec": None},
        {"spec": "{"},
        {"spec": "{}"},
        {"words": "null"},
        {"words": "[1]"},
        {"weights": "[1]"},
        {"seed": "x"},
        {"arm": None},
    ],
)
def test_an_invalid_checkpoint_is_one_message(checkpoint, tmp_path, change):
    with safe_open(checkpoint, "pt") as file:
        metadata = {**file.metadata(), **change}
    path = tmp_path / "other.safetensors"
    save_file(load_file(checkpoint), path, {key: value for key, value in metadata.items() if value is not None})
    with pytest.raises(WeightsError, match="has invalid metadata; run its cell again"):
        load(path, CPU)


def test_other_pretrained_weights_are_refused(checkpoint, tmp_path):
    path = tmp_path / "encoder" / "model.safetensors"
    state = load_file(path)
    state["layernorm.weight"] += 1
    save_file(state, path, {"format": "pt"})
    assembly.vision_encoder.cache_clear()
    with pytest.raises(WeightsError, match="restore the weights"):
        load(checkpoint, CPU)


def test_a_photograph_gets_a_mask_and_an_overlay(checkpoint, photograph, tmp_path, capsys):
    out = tmp_path / "out"
    command = [str(checkpoint), "--image", str(photograph), "--out", str(out)]
    assert predict.main([*command, "--expression", "the red circle"]) == 0
    mask, overlay = (np.asarray(Image.open(out / f"astronaut.{kind}.png")) for kind in ("mask", "overlay"))
    assert mask.shape == (200, 512)
    assert set(np.unique(mask)) <= {0, 255}
    assert overlay.shape == (200, 512, 3)
    assert "a mask on a photograph says nothing" in capsys.readouterr().out


def test_an_overlay_keeps_the_colours_inside_the_mask_only():
    image = skimage.data.astronaut()
    mask = np.zeros(image.shape[:2], bool)
    mask[100:200, 50:150] = True
    shown = predict.overlay(image, mask)
    assert np.array_equal(shown[mask], image[mask])
    assert (np.ptp(shown[~mask].astype(int), axis=-1) == 0).all()
    assert shown[~mask].mean() > 153
    assert (shown[99, 50:150] < 30).all(), "an outline"


def test_an_unknown_word_is_reported_with_the_known_words(checkpoint, photograph, capsys):
    assert predict.main([str(checkpoint), "--image", str(photograph), "--expression", "the astronaut"]) == 2
    assert "does not contain 'astronaut'; known words: " in capsys.readouterr().err


def test_an_expression_without_a_word_is_refused(checkpoint, photograph, capsys):
    assert predict.main([str(checkpoint), "--image", str(photograph), "--expression", "  "]) == 2
    assert "an expression contains no word; describe what to segment" in capsys.readouterr().err


def test_a_file_that_is_not_an_image_is_refused(checkpoint, tmp_path, capsys):
    (tmp_path / "no.png").write_text("nothing")
    assert predict.main([str(checkpoint), "--image", str(tmp_path / "no.png"), "--expression", "the red circle"]) == 2
    assert "cannot be read as an image" in capsys.readouterr().err
