"""Results on a GPU equal those on the CPU; skipped without a GPU."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.assembly.assembly import load_examples, prepare
from harness.assembly.checkpoint import load
from harness.cache.encodings import frozen_sam
from harness.data.frame import to_tensor
from harness.execution.cell import run_cell
from harness.model.mask_decoder.sam import load_sam
from harness.pretraining.sam_scenes import scene
from harness.results.run_folder import RunFolder
from projectors import VisualFeatures
from tests.mobile_sams import random_checkpoint
from tests.projector_cases import build, features, required
from tests.references import CASES, IDS
from tests.small_study import quiet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a CUDA device with the CPU")

CUDA = torch.device("cuda")


def _to_cuda(batch: VisualFeatures) -> VisualFeatures:
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return replace(batch, **{name: value.to(CUDA) for name, value in values.items() if value is not None})


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_a_projector_has_the_same_tokens_and_gradients(name, settings):
    on_cpu, on_cuda = build(name, settings), build(name, settings).to(CUDA)
    batch = required(features(), on_cpu)
    expected, found = on_cpu(batch), on_cuda(_to_cuda(batch))
    assert torch.equal(found.mask.cpu(), expected.mask)
    torch.testing.assert_close(found.embeds.cpu(), expected.embeds)
    expected.embeds.square().sum().backward()
    found.embeds.square().sum().backward()
    for one, other in zip(on_cuda.parameters(), on_cpu.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad.cpu(), other.grad, rtol=1e-4, atol=1e-6)


def test_sams_embedding_in_bfloat16_is_close_to_float32():
    """Compiled and in bfloat16, as in studies."""
    frames = to_tensor([scene("test", 0, index).image for index in range(4)])
    with torch.inference_mode():
        expected = load_sam("sam-scenes").embed(frames)
        found = frozen_sam("sam-scenes").embed(frames.to(CUDA)).cpu()
    assert (found - expected).norm() / expected.norm() < 0.03


def test_mobile_sams_embedding_is_that_of_the_cpu(tmp_path):
    """Compiled and in float32, as in studies; convolutions on a GPU may use TF32."""
    path = random_checkpoint(tmp_path)
    frames = torch.rand(2, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = load_sam(path).embed(frames)
        found = frozen_sam(path).embed(frames.to(CUDA)).cpu()
    assert (found - expected).norm() / expected.norm() < 0.01


@pytest.mark.parametrize("arm", ["pooling", "sspe", "decoder_pe", "sam"])
def test_a_cell_trains_and_its_row_records_the_device(cells, folder, arm):
    row = run_cell(cells[arm], folder, quiet())
    assert row["status"] == "done", row["reason"]
    assert json.loads(row["environment"])["device"] == torch.cuda.get_device_name(0)
    assert row["latency_ms"] > 0
    assert 0 < row["peak_memory_mib"] < 2**20


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="requires two GPUs")
def test_a_cell_on_two_gpus_has_the_losses_of_one(cells, tmp_path):
    """In float32, by NCCL."""
    curves = []
    for devices in (1, 2):
        training = cells["sspe"].spec.training.model_copy(update={"precision": "float32", "devices": devices})
        spec = cells["sspe"].spec.model_copy(update={"training": training})
        row = run_cell(replace(cells["sspe"], spec=spec), RunFolder(tmp_path / str(devices)), quiet())
        assert row["status"] == "done", row["reason"]
        curves.append([point["loss"] for point in json.loads(row["curve"])])
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4)


def test_a_trained_cell_predicts_the_same_masks(cells, folder, monkeypatch):
    """In float32."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    cell = cells["decoder_pe"]
    training = cell.spec.training.model_copy(update={"precision": "float32"})
    cell = replace(cell, spec=cell.spec.model_copy(update={"training": training}))
    row = run_cell(cell, folder, quiet())
    assert row["status"] == "done", row["reason"]
    logits = []
    for device in (torch.device("cpu"), CUDA):
        trained = load(folder.cells / f"{row['cell']}.safetensors", device)
        examples = load_examples(trained.spec, "test")
        batches, segmenter = trained.assembly.batches, trained.assembly.segmenter.eval()
        prepare(batches, examples, quiet().note)
        batch = batches.make(examples, [example.queries for example in examples])
        with torch.inference_mode():
            logits.append(segmenter(batch.features, batch.mask_inputs, batch.query).mask_logits.float().cpu().numpy())
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-3, atol=1e-3)
