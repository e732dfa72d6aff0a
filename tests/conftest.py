"""Cells that are small enough to train in a test; one thread per test worker."""

import os

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from harness.assembly import assembly
from harness.results.run_folder import RunFolder
from harness.study.study import Study
from harness.system.shares import shares

if "PYTEST_XDIST_WORKER" in os.environ:
    # There is one worker per core; more threads would compete for the cores.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start

STUDY = """
question: Does a cell run?
base:
  data: {{name: scenes, train_images: 6, validation_images: 1, test_images: 3, expressions_per_image: 4}}
  vision_encoder: {{name: {encoder}, frame: 56}}
  llm: {{name: tiny, width: 32, layers: 1, heads: 2, visual_attention: bidirectional, template: "{{expression}} ."}}
  mask_decoder: {{name: scratch, width: 32, depth: 1, mlp_width: 32, heads: 4, image_update: false}}
  superpixels: {{name: grid, count: 6}}
  training: {{steps: 3, alignment_steps: 1, batch_images: 2, expressions_per_image: 3, warmup_steps: 1}}
  evaluation: {{latency_repeats: 1, gallery_images: 2}}
arms:
  pooling: {{projector: {{name: pooling, tokens: 4}}}}
  finer: {{projector: {{name: pooling, tokens: 36}}}}
  sspe: {{projector: {{name: svp, aggregation: ssa, position: {{name: sspe, width: 16, resolution: 4}}}}}}
  decoder_pe: {{projector: {{name: svp, position: decoder_pe}}}}
  sam: {{projector: {{name: svp, position: decoder_pe}}, superpixels: {{name: sam}}, mask_decoder: sam-scenes}}
seeds: [0]
objectives: {{giou: maximize}}
baseline: pooling
"""


@pytest.fixture(autouse=True)
def _own_mlflow_store(monkeypatch):
    """Tests send no runs to the user's MLflow server."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def set_threads():
    """`torch.set_num_threads`; the number of threads is restored afterwards."""
    usual = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(usual)


@pytest.fixture
def one_thread(set_threads):
    """With several threads the order of summation of a gradient varies, so results are not bit-identical."""
    set_threads(1)


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """The study's cells by arm, with an encoder of two layers in transformers' format."""
    monkeypatch.setenv("SVP_HARNESS_CACHE", str(tmp_path / "cache"))
    assembly.vision_encoder.cache_clear()
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "encoder")
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(encoder=tmp_path / "encoder"))
    yield {cell.arm: cell for cell in Study.from_yaml(path).cells()}
    assembly.vision_encoder.cache_clear()


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture(autouse=True)
def _cells_run_in_this_process(monkeypatch):
    """A run in a test has one worker unless the test asks for more."""
    choose = shares
    monkeypatch.setattr("harness.execution.session.shares", lambda workers, *rest: choose(workers or 1, *rest))
