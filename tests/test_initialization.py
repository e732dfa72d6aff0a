"""Cells that are initialized from the LLM and mask decoder of another, and frozen SAMs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.assembly.assembly import assemble, build_vocabulary, load_examples, prepare
from harness.assembly.checkpoint import Initialization, load
from harness.cache.encodings import frozen_sam
from harness.errors import StudyError, WeightsError
from harness.evaluation.evaluator import Evaluator
from harness.execution.cell import run_cell
from harness.model.config import InitFromConfig, MaskDecoderConfig
from harness.model.weights.checksums import sha256_of
from harness.model.weights.known import SHIPPED
from harness.model.weights.resolution import resolve
from harness.results.run_folder import RunFolder
from harness.study.study import Cell, Study
from tests.small_study import quiet

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkpoint(cells: dict[str, Cell], folder: RunFolder):
    """The pooling cell, trained for three steps."""
    row = run_cell(cells["pooling"], folder, quiet())
    assert row["status"] == "done", row["reason"]
    return folder.checkpoint(cells["pooling"].id)


@pytest.fixture
def on_sam(cells: dict[str, Cell]) -> Cell:
    """The pooling cell with a mask decoder that is a SAM's and learns."""
    mask_decoder = MaskDecoderConfig(name="sam-scenes")
    return replace(
        cells["pooling"], id="1" * 12, spec=cells["pooling"].spec.model_copy(update={"mask_decoder": mask_decoder})
    )


def _with(cell: Cell, **components) -> Cell:
    return replace(cell, id="0" * 12, spec=cell.spec.model_copy(update=components))


def _changed(cell: Cell, component: str, **settings):
    return {component: getattr(cell.spec, component).model_copy(update=settings)}


def test_llm_and_mask_decoder_are_initialized_from_the_checkpoint_and_the_projector_is_not(cells, checkpoint):
    spec = _with(cells["pooling"], init_from=InitFromConfig(name=str(checkpoint))).spec
    torch.manual_seed(7)
    initialization = Initialization(spec, CPU)
    assembly = assemble(spec, initialization.vocabulary_for(build_vocabulary(load_examples(spec, "train"))), CPU)
    initialization.load_into(assembly)
    saved, initial = load_file(checkpoint), assembly.segmenter.state_dict()
    kept = {name for name in saved if torch.equal(saved[name], initial[name])}
    assert {name for name in saved if not name.startswith("projector.")} <= kept
    assert any(name.startswith("mask_decoder.") for name in kept)
    assert any(name.startswith("llm.") for name in kept)
    assert "projector.project.0.weight" in saved.keys() - kept


def test_a_row_records_the_initial_checkpoint_and_the_cell_loads_without_it(cells, checkpoint, folder):
    cell = _with(cells["sspe"], init_from=InitFromConfig(name=str(checkpoint)))
    row = run_cell(cell, folder, quiet())
    assert row["status"] == "done", row["reason"]
    assert {weight["name"] for weight in json.loads(row["weights"])} >= {str(checkpoint)}
    checkpoint.unlink()
    assert load(folder.checkpoint(cell.id), CPU).spec == cell.spec


def test_visual_tokens_are_rescaled_to_the_rms_that_the_llm_was_trained_on(cells, checkpoint):
    spec = _with(cells["decoder_pe"], init_from=InitFromConfig(name=str(checkpoint))).spec
    initialization, training = Initialization(spec, CPU), load_examples(spec, "train")
    assembly = assemble(spec, initialization.vocabulary_for(build_vocabulary(training)), CPU)
    initialization.load_into(assembly)
    prepare(assembly.batches, training, quiet().note)
    segmenter, features = assembly.segmenter.eval(), assembly.batches.features(training)
    trained_rms = load_file(checkpoint)["visual_rms"]
    assert trained_rms > 0
    assert segmenter.visual_gain == 1
    with torch.no_grad():
        segmenter.projector.project[-1].weight *= 5
    assert segmenter.tokens_rms(features) > 1.5 * trained_rms
    query = assembly.batches.query([example.queries for example in training])
    before, _ = segmenter.run_llm(segmenter.projector(features), query)
    segmenter.match_token_scale(features)
    assert segmenter.tokens_rms(features) == pytest.approx(float(trained_rms), rel=1e-5)
    after, _ = segmenter.run_llm(segmenter.projector(features), query)
    assert not torch.equal(before, after)


def test_another_llm_is_refused(cells, checkpoint):
    cell = _with(
        cells["pooling"], init_from=InitFromConfig(name=str(checkpoint)), **_changed(cells["pooling"], "llm", layers=2)
    )
    with pytest.raises(WeightsError, match=r"with llm.layers=1, but this cell has 2; use the same value, or set"):
        Initialization(cell.spec, CPU)


def test_a_checkpoint_that_was_trained_without_gradient_checkpointing_is_accepted_with_it():
    arms = {"pooling": {"projector": {"name": "pooling", "tokens": 4}}}
    settings = {"question": "Does it load?", "extends": "presets/small.yaml", "baseline": "pooling", "arms": arms}
    study = Study.from_dict(settings, ["base.llm.gradient_checkpointing=true"])
    (cell,) = study.cells()
    assert cell.spec.llm.gradient_checkpointing
    assert Initialization(cell.spec, CPU).record.name == "smollm2-scenes"


def test_only_a_mask_decoder_from_scratch_requires_the_same_patches(cells, on_sam, checkpoint, folder):
    other_block = _changed(cells["pooling"], "vision_encoder", layer=1)
    cell = _with(cells["pooling"], init_from=InitFromConfig(name=str(checkpoint)), **other_block)
    with pytest.raises(WeightsError, match=r"with vision_encoder\.layer=None, but this cell has 1"):
        Initialization(cell.spec, CPU)
    assert run_cell(on_sam, folder, quiet())["status"] == "done"
    init_from = InitFromConfig(name=str(folder.checkpoint(on_sam.id)))
    assert run_cell(_with(on_sam, init_from=init_from, **other_block), folder, quiet())["status"] == "done"


def test_words_outside_the_vocabulary_are_refused(cells, checkpoint):
    spec = _with(cells["pooling"], init_from=InitFromConfig(name=str(checkpoint))).spec
    with pytest.raises(WeightsError, match="lacks 'astronaut', used by the training data; name a checkpoint"):
        Initialization(spec, CPU).vocabulary_for(["the", "astronaut"])


def test_a_file_that_is_not_a_cell_is_refused(cells, checkpoint, folder):
    missing = str(checkpoint.parent / "none.safetensors")
    for name, message in ((missing, "no weights"), ("sam-scenes", "is not the checkpoint")):
        row = run_cell(_with(cells["pooling"], init_from=InitFromConfig(name=name)), folder, quiet())
        assert row["status"] == "failed"
        assert message in row["reason"]


def test_a_sam_prompted_with_points_stays_frozen_and_training_decodes_no_masks(on_sam, folder):
    pointed = {
        **_changed(on_sam, "mask_decoder", prompt="points"),
        **_changed(on_sam, "training", location_loss=0.5),
    }
    cell = _with(on_sam, **pointed)
    rows = {each.id: run_cell(each, folder, quiet()) for each in (on_sam, cell)}
    assert {row["status"] for row in rows.values()} == {"done"}
    assert rows[cell.id]["trainable_parameters"] < rows[on_sam.id]["trainable_parameters"]
    assert not any(name.startswith("mask_decoder.") for name in load_file(folder.checkpoint(cell.id)))
    for point in json.loads(rows[cell.id]["curve"]):
        assert point["bce"] == point["dice"] == 0 < point["location"]
        assert point["loss"] == pytest.approx(point["answer"] + 0.5 * point["location"], rel=1e-5)
    pretrained = frozen_sam("sam-scenes").sam.mask_decoder.state_dict()
    loaded = load(folder.checkpoint(cell.id), CPU).assembly.segmenter.mask_decoder.sam_decoder.state_dict()
    trained = load_file(folder.checkpoint(on_sam.id))
    assert all(torch.equal(pretrained[name], value) for name, value in loaded.items())
    assert not all(torch.equal(pretrained[name], trained[f"mask_decoder.sam_decoder.{name}"]) for name in pretrained)


@pytest.mark.usefixtures("cells")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "base.mask_decoder.prompt=points",
            "requires a pretrained SAM, and the mask decoder is trained from scratch; name a SAM",
        ),
        ("base.mask_decoder={name: sam-scenes, prompt: points}", "set training.location_loss to a positive weight"),
        ("base.init_from.nmae=x", "nmae"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path, override, message):
    with pytest.raises(StudyError, match=message):
        Study.from_yaml(tmp_path / "study.yaml", [override])


@pytest.mark.usefixtures("cells")
def test_init_from_is_a_name_or_null(tmp_path):
    named = Study.from_yaml(tmp_path / "study.yaml", ["base.init_from=some/cell.safetensors"])
    assert {cell.spec.init_from for cell in named.cells()} == {InitFromConfig(name="some/cell.safetensors")}
    left_out = Study.from_yaml(tmp_path / "study.yaml", ["base.init_from=null"])
    assert {cell.spec.init_from for cell in left_out.cells()} == {None}


CHECKPOINTS = [name for name, shipped in SHIPPED.items() if shipped.kind == "checkpoint"]
every_checkpoint = pytest.mark.parametrize("name", CHECKPOINTS)


@every_checkpoint
def test_the_shipped_checkpoint_is_that_of_its_model_card(name: str):
    record, path = resolve(name), SHIPPED[name].path
    assert f"sha256 `{record.sha256}`" in (path.parent / "README.md").read_text()
    assert (record.source, record.sha256) == ("package svp-harness", sha256_of(path))


def test_every_study_matches_the_shipped_checkpoint_it_is_initialized_from():
    specs = []
    for path in sorted((ROOT / "studies").glob("*.yaml")):
        by_checkpoint = {cell.spec.init_from: cell.spec for cell in Study.from_yaml(path).cells()}
        specs += [spec for spec in by_checkpoint.values() if spec.init_from is not None]
    assert sum(spec.init_from.name == "mllm-scenes" for spec in specs) > 5
    assert {spec.init_from.name for spec in specs} == set(CHECKPOINTS)
    for spec in specs:
        words = build_vocabulary(load_examples(spec, "train")[:40])
        assert set(words) <= set(Initialization(spec, CPU).vocabulary_for(words))


@pytest.mark.slow
@every_checkpoint
def test_the_shipped_checkpoint_scores_as_in_its_model_card(name: str):
    path = SHIPPED[name].path
    trained = load(path, CPU, "float32")
    examples = load_examples(trained.spec, "test")[:24]
    prepare(trained.assembly.batches, examples, quiet().note)
    precision = trained.spec.training.precision
    evaluator = Evaluator(trained.assembly.segmenter, trained.assembly.batches, 12, precision)
    samples, _ = evaluator.score(examples)
    recorded = json.loads((path.parent / "scores.json").read_text())
    # 24 of the card's images: three standard errors of a mean over images.
    spread = samples.groupby("image_id")["iou"].mean().std() / len(examples) ** 0.5
    assert samples["iou"].mean() == pytest.approx(recorded["giou"], abs=3 * spread)
    # Far nearer to the card's own control than to its score.
    assert evaluator.controls(examples)["giou_shuffled"] < (recorded["giou"] + 2 * recorded["giou_shuffled"]) / 3
