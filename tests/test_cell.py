"""One cell from a study file to its row, with a tiny encoder and all metrics."""

import json
import math
from copy import deepcopy
from dataclasses import replace

import pandas as pd
import pytest
import torch
from PIL import Image

from harness.assembly import assembly
from harness.cache.encodings import frozen_sam
from harness.errors import DataError
from harness.execution.cell import run_cell
from harness.execution.stages import seed_everything
from harness.model.config import LLMConfig, VisionConfig
from harness.results.columns import SAMPLE_COLUMNS
from harness.results.metrics import ANSWER_METRICS, METRICS
from harness.study.study import Study
from tests import checkpoints, datasets
from tests.small_study import quiet


def test_a_sam_provides_superpixels_and_masks(cells, folder):
    """The mask decoder is trained; the SAM that proposes superpixels is not."""
    before = deepcopy(frozen_sam("sam-scenes").sam.state_dict())
    row = run_cell(cells["sam"], folder, quiet())
    assert row["status"] == "done", row["reason"]
    assert min(row["flops_sam"], row["flops_mask"], row["latency_sam_ms"], row["latency_superpixels_ms"]) > 0
    assert [weight["name"] for weight in json.loads(row["weights"])][1:] == ["sam-scenes"]
    after = frozen_sam("sam-scenes").sam.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_sam_mask_decoder_is_initialized_from_that_sam(cells):
    spec = cells["sam"].spec
    words = assembly.build_vocabulary(assembly.load_examples(spec, "train"))
    parts = assembly.assemble(spec, words, torch.device("cpu"))
    head, sam = parts.segmenter.mask_decoder, frozen_sam("sam-scenes").sam
    for name, value in sam.mask_decoder.state_dict().items():
        assert torch.equal(head.sam_decoder.state_dict()[name], value)
    learning = {name for name, value in head.named_parameters() if value.requires_grad}
    assert "sam_decoder.output_hypernetworks_mlps.0.layers.0.weight" in learning
    assert not any(name.startswith("prompt_encoder") for name in learning)
    assert not any(value.requires_grad for value in sam.parameters())


def test_random_initialization_does_not_depend_on_cached_weights(cells):
    spec = cells["sam"].spec
    assembly.vision_encoder.cache_clear()
    frozen_sam.cache_clear()
    first, second = (_initial(spec, seed=3) for _ in range(2))
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []
    assert any(not torch.equal(value, first[name]) for name, value in _initial(spec, seed=4).items())


def _initial(spec, seed):
    seed_everything(seed)
    return dict(assembly.assemble(spec, ["red"], torch.device("cpu")).segmenter.named_parameters())


@pytest.mark.parametrize("arm", ["pooling", "sspe"])
def test_a_cell_trains_and_scores_on_files_in_an_official_format(cells, folder, tmp_path, arm):
    datasets.write_refer(tmp_path / "refer", datasets.made(), ["train", "train", "val", "testA"])
    place = {"root": str(tmp_path / "refer"), "dataset": "refcoco", "split_by": "unc"}
    spec = cells[arm].spec.model_copy(
        update={
            "data": {"name": "refer", "images": datasets.IMAGES, "ground_truth": None, **place},
            "evaluation": cells[arm].spec.evaluation.model_copy(update={"split": "val"}),
        }
    )
    row = run_cell(replace(cells[arm], spec=spec), folder, quiet())
    assert row["status"] == "done", row["reason"]
    assert row["giou_single"] == row["giou"]
    samples = pd.read_parquet(folder.cell_samples(row["cell"]))
    assert set(samples["image_id"]) == {"coco/103"}
    assert set(samples["split"]) == {"val"}


@pytest.mark.usefixtures("cells")
@pytest.mark.parametrize("name", ["coco_instances", "mix"])
def test_a_study_loads_question_files_and_mixes_datasets(folder, tmp_path, name):
    """Settings that hold others make the whole way from the study file; one image is scored, so no other is shown."""
    own = datasets.write_instances(tmp_path / "own", datasets.made(3))
    settings = own if name == "coco_instances" else {"name": "mix", "train": [own, own], "score": own}
    cell, *_ = Study.from_yaml(tmp_path / "study.yaml", [f"base.data={json.dumps(settings)}"]).cells()
    row = run_cell(cell, folder, quiet())
    assert row["status"] == "done", row["reason"]
    assert row["num_images"] == 1
    assert not {"giou_shuffled", "giou_swapped_tokens"} & row.keys()


def test_an_empty_split_stops_the_study(cells, folder, tmp_path):
    datasets.write_reasonseg(tmp_path, "1", datasets.made(1)[0].image, {"text": ["it"], "is_sentence": True})
    (tmp_path / "ReasonSeg" / "test").rename(tmp_path / "ReasonSeg" / "train")
    spec = cells["pooling"].spec.model_copy(update={"data": {"name": "reasonseg", "root": str(tmp_path)}})
    with pytest.raises(DataError, match="reasonseg has no images in split 'train'; check its files"):
        run_cell(replace(cells["pooling"], spec=spec), folder, quiet())


@pytest.mark.parametrize("arm", ["pooling", "sspe", "decoder_pe"])
def test_a_cell_measures_every_column(cells, folder, arm):
    row = run_cell(cells[arm], folder, quiet())
    assert row["status"] == "done", row["reason"]
    families = {f"{metric}_{family}" for metric in ("giou", "fp_rate") for family in ("texture", "group", "ordinal")}
    of_answers = {name for scoring in ANSWER_METRICS for name in (scoring, f"{scoring}_shuffled")}
    absent = {name for name in METRICS if name not in row and name not in families} - of_answers
    assert all("giou_" in name or "fp_rate_" in name for name in absent)
    assert row["tokens"] <= row["max_tokens"]
    assert row["flops"] == sum(row[f"flops_{s}"] for s in ("vision", "sam", "superpixels", "projector", "llm", "mask"))
    assert min(row["flops_vision"], row["flops_projector"], row["flops_llm"], row["flops_mask"]) > 0
    assert row["latency_ms"] > 0
    assert row["trainable_parameters"] > row["projector_parameters"] > 0
    assert row["giou_random_object"] > 0
    assert [point["step"] for point in json.loads(row["curve"])] == [1, 2, 3, 4]
    samples = pd.read_parquet(folder.cell_samples(row["cell"]))
    assert set(samples.columns) == set(SAMPLE_COLUMNS)
    assert len(samples) == row["num_expressions"] == 12
    assert math.isclose(samples["iou"].mean(), row["giou"])


def test_a_cell_of_questions_measures_answers_and_no_masks(cells, folder):
    spec = cells["sspe"].spec
    asking = spec.model_copy(update={"data": {**spec.data, "asks": ["questions", "captions"]}})
    row = run_cell(replace(cells["sspe"], spec=asking), folder, quiet())
    assert row["status"] == "done", row["reason"]
    assert 0 <= row["accuracy"] <= 1
    assert {"accuracy_shuffled", "cider", "cider_shuffled"} <= row.keys()
    assert not {"giou", "ciou", "fp_rate", "giou_shuffled", "giou_swapped_tokens"} & row.keys()
    assert row["flops_llm"] > 0
    assert row["flops_mask"] == 0
    samples = pd.read_parquet(folder.cell_samples(row["cell"]))
    assert set(samples.columns) == set(SAMPLE_COLUMNS)
    assert samples["iou"].isna().all()
    assert math.isclose(samples.loc[samples["scoring"] == "accuracy", "score"].mean(), row["accuracy"])


def test_a_cell_is_the_same_twice(cells, folder):
    first, second = (run_cell(cells["sspe"], folder, quiet()) for _ in range(2))
    for name in (
        "giou",
        "giou_teacher_forced",
        "ciou",
        "tokens",
        "curve",
        "flops",
        "giou_shuffled",
        "giou_swapped_tokens",
    ):
        assert first[name] == second[name], name


def test_a_second_cell_computes_no_patches_again(cells, folder, monkeypatch):
    run_cell(cells["pooling"], folder, quiet())
    monkeypatch.setattr("harness.cache.encodings.PatchCache.encode", None)
    row = run_cell(cells["decoder_pe"], folder, quiet())
    assert row["status"] == "done", row["reason"]


def test_an_incompatible_cell_is_skipped_with_its_reason(cells, folder):
    row = run_cell(cells["finer"], folder, quiet())
    assert row["status"] == "skipped"
    assert "36" in row["reason"]
    assert folder.finished().keys() == {cells["finer"].id}


def test_a_broken_cell_is_a_failed_row_and_runs_again(cells, folder, tmp_path):
    for path in (tmp_path / "encoder").iterdir():
        path.unlink()
    row = run_cell(cells["pooling"], folder, quiet())
    assert row["status"] == "failed"
    assert "encoder" in row["reason"]
    assert not folder.finished()


def test_a_damaged_dataset_ends_the_run_and_fails_no_cell(cells, folder, monkeypatch):
    def damaged(*_):
        raise DataError("refs(unc).p is a truncated or invalid pickle; fetch it again")

    monkeypatch.setattr("harness.execution.stages.load_examples", damaged)
    with pytest.raises(DataError, match="truncated or invalid pickle"):
        run_cell(cells["pooling"], folder, quiet())
    assert not folder.rows()


def test_the_gallery_keeps_images_and_superpixels(cells, folder):
    run_cell(cells["sspe"], folder, quiet())
    pictures = sorted(path.name for path in folder.gallery.iterdir())
    assert len(pictures) == 4
    sizes = set()
    for name in pictures:
        with Image.open(folder.gallery / name) as picture:
            sizes.add(picture.size)
            if picture.size == (56, 56):
                assert json.loads(picture.info["Superpixels"]) == cells["sspe"].spec.superpixels
    assert sizes == {(224, 224), (56, 56)}


@pytest.mark.parametrize("kind", checkpoints.ENCODERS)
def test_a_cell_trains_and_scores_on_every_family_of_encoders(cells, folder, tmp_path, kind):
    checkpoints.write_encoder(kind, tmp_path / kind)
    _trains(cells["pooling"], folder, vision_encoder={"name": str(tmp_path / kind), "frame": 56})


@pytest.mark.parametrize("kind", checkpoints.LLMS)
def test_a_cell_trains_and_scores_on_every_family_of_llms(cells, folder, tmp_path, kind):
    checkpoints.write_llm(kind, tmp_path / kind)
    targets = ["qkv_proj"] if kind == "phi3" else ["q_proj", "v_proj"]
    _trains(cells["pooling"], folder, llm={"name": str(tmp_path / kind), "lora": {"rank": 2, "targets": targets}})


def test_a_cell_trains_on_a_base_in_half_precision(cells, folder, tmp_path):
    checkpoints.write_llm("llama", tmp_path / "llama")
    lora = {"rank": 2, "targets": ["q_proj"]}
    training = cells["pooling"].spec.training.model_copy(update={"precision": "bfloat16"})
    spec = cells["pooling"].spec.model_copy(update={"training": training})
    _trains(replace(cells["pooling"], spec=spec), folder, llm={"name": str(tmp_path / "llama"), "lora": lora})


def test_a_projector_that_requires_cls_is_skipped_without_cls(cells, folder, tmp_path):
    checkpoints.write_encoder("siglip_vision_model", tmp_path / "siglip")
    encoder = VisionConfig(name=str(tmp_path / "siglip"), frame=56)
    spec = cells["pooling"].spec.model_copy(update={"vision_encoder": encoder, "projector": {"name": "prumerge"}})
    row = run_cell(replace(cells["pooling"], spec=spec), folder, quiet())
    assert row["status"] == "skipped"
    assert "requires a CLS token" in row["reason"]


def test_a_projector_is_initialized_from_published_weights(cells, folder, tmp_path):
    """In half precision and under their names, as LLaVA's mm_projector.bin."""
    shapes = {"0.weight": (32, 24), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,)}
    published = {f"model.mm_projector.{name}": torch.randn(shape).half() for name, shape in shapes.items()}
    torch.save(published, tmp_path / "mm_projector.bin")
    settings = {"name": "mlp", "weights": str(tmp_path / "mm_projector.bin")}
    cell = replace(cells["pooling"], spec=cells["pooling"].spec.model_copy(update={"projector": settings}))
    parts = assembly.assemble(cell.spec, ["red"], torch.device("cpu"))
    assert torch.equal(parts.segmenter.projector.project[0].weight, published["model.mm_projector.0.weight"].float())
    row = run_cell(cell, folder, quiet())
    assert row["status"] == "done", row["reason"]
    assert str(tmp_path / "mm_projector.bin") in [weight["name"] for weight in json.loads(row["weights"])]
    del published["model.mm_projector.2.bias"]
    torch.save(published, tmp_path / "mm_projector.bin")
    row = run_cell(cell, folder, quiet())
    assert row["status"] == "failed"
    assert row["reason"].startswith("not official weights of MLP with this configuration")


def _trains(cell, folder, **changed):
    parts = {"vision_encoder": VisionConfig, "llm": LLMConfig}
    spec = cell.spec.model_copy(update={part: parts[part](**settings) for part, settings in changed.items()})
    row = run_cell(replace(cell, spec=spec), folder, quiet())
    assert row["status"] == "done", row["reason"]
    assert math.isfinite(json.loads(row["curve"])[-1]["loss"])
    assert 0 <= row["giou"] <= 1
