"""FLOPs and the timed pipeline: equal counts in every precision, and no file access in timed runs."""

import builtins
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.assembly import assembly
from harness.assembly.batches import BatchMaker
from harness.data.example import ImageFile
from harness.evaluation.cost import count_flops
from harness.evaluation.latency import time_in_turns
from harness.evaluation.pipeline import Pipeline
from harness.model.config import MaskDecoderConfig
from harness.results.metrics import PIPELINE_STAGES
from harness.system.precision import autocast
from tests import datasets

CPU = torch.device("cpu")
MASK_DECODERS = {
    "scratch": {},
    "scratch whose image attends to prompts": {"image_update": True},
    "SAM prompted by states": {"name": "sam-scenes"},
    "SAM prompted by points": {"name": "sam-scenes", "prompt": "points"},
}


def _assembled(cell, **settings):
    """The parts of a cell, and the first scored image."""
    spec = cell.spec.model_copy(update=settings)
    words = assembly.build_vocabulary(assembly.load_examples(spec, "train"))
    return assembly.assemble(spec, words, CPU), assembly.load_examples(spec, "test")[0]


@pytest.mark.parametrize("name", MASK_DECODERS)
def test_flops_do_not_depend_on_the_precision(cells, name):
    decoder = MASK_DECODERS[name]
    plain = cells["pooling"].spec.mask_decoder.model_dump()
    head = MaskDecoderConfig(**(decoder if "name" in decoder else plain | decoder))
    parts, example = _assembled(cells["pooling"], mask_decoder=head)
    pipeline = Pipeline(parts.segmenter, parts.batches, example)
    in_float32, in_bfloat16 = (count_flops(pipeline, precision) for precision in ("float32", "bfloat16"))
    assert in_float32 == in_bfloat16
    assert list(in_float32) == list(PIPELINE_STAGES)
    assert min(in_float32[stage] for stage in ("vision", "projector", "llm", "mask")) > 0
    assert (in_float32["sam"] > 0) == ("name" in decoder)


def test_flops_are_counted_inside_inference_mode_too(cells):
    parts, example = _assembled(cells["sam"])
    pipeline = Pipeline(parts.segmenter, parts.batches, example)
    outside = count_flops(pipeline, "bfloat16")
    with torch.inference_mode():
        assert count_flops(pipeline, "bfloat16") == outside


def test_counting_keeps_trainable_parameters_trainable(cells):
    parts, example = _assembled(cells["sspe"])
    before = {name: one.requires_grad for name, one in parts.segmenter.named_parameters()}
    count_flops(Pipeline(parts.segmenter, parts.batches, example), "float32")
    assert {name: one.requires_grad for name, one in parts.segmenter.named_parameters()} == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_single_model_is_measured_by_stage(cells, precision):
    parts, example = _assembled(cells["sspe"])
    pipeline = Pipeline(parts.segmenter, parts.batches, example)
    (latency,) = time_in_turns([[pipeline]], 2, [precision], max_factor=1)
    assert list(latency.stage_ms) == list(count_flops(pipeline, precision)) == list(PIPELINE_STAGES)
    assert 0 < max(latency.stage_ms.values()) < latency.median_ms
    assert latency.num_runs == 2


def _refuse(*arguments, **_):
    raise AssertionError(f"a file is opened: {arguments}")


@pytest.mark.parametrize("superpixels", [{}, {"granularity": "adaptive", "count": 45, "detail": 0.0}])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_on_an_image_file_opens_no_file_and_segments_as_the_cache_does(
    cells, tmp_path, monkeypatch, superpixels, precision
):
    (example,) = datasets.made(1)
    Image.fromarray(example.image[:150]).save(tmp_path / "wide.png")
    file = replace(example, picture=ImageFile.of(tmp_path / "wide.png"), objects=())
    parts, _ = _assembled(cells["sam"], superpixels={"name": "sam", **superpixels})
    used = []

    def build_features(self, encoded, labels):
        used.append(labels)
        return original(self, encoded, labels)

    original = BatchMaker.build_features
    monkeypatch.setattr(BatchMaker, "build_features", build_features)
    pipeline = Pipeline(parts.segmenter, parts.batches, file)
    with monkeypatch.context() as patch, torch.inference_mode(), autocast(precision, CPU):
        for owner, name in ((builtins, "open"), (io, "open"), (np, "load"), (Image, "open")):
            patch.setattr(owner, name, _refuse)
        for name in ("open", "read_bytes", "exists"):
            patch.setattr(Path, name, _refuse)
        pipeline.run(lambda _: None)
    parts.batches.superpixels.ensure([file], lambda *_: None)
    kept = parts.batches.superpixels.load([file])
    assert kept.max() > 1
    assert torch.equal(used[0], kept)


def test_a_computed_embedding_equals_the_cached_one(cells):
    parts, example = _assembled(cells["sam"])
    cache = parts.batches.sam
    cache.ensure([example], lambda *_: None)
    with torch.inference_mode():
        assert torch.equal(cache.compute(example), cache.load([example]))


def test_one_sam_embedding_serves_mask_decoder_and_superpixels(cells, monkeypatch):
    parts, example = _assembled(cells["sam"])
    model, calls = parts.batches.sam.model, []
    embed = type(model).embed
    monkeypatch.setattr(type(model), "embed", lambda *inputs: calls.append(1) or embed(*inputs))
    Pipeline(parts.segmenter, parts.batches, example).run(lambda _: None)
    assert len(calls) == 1
