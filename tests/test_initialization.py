"""A cell may begin with the LLM and the mask decoder of another, and a SAM may stay as it came."""

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
from harness.study.study import Cell
from harness.study.study import load as load_study
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


def _with(cell: Cell, **sections) -> Cell:
    return replace(cell, id="0" * 12, spec=cell.spec.model_copy(update=sections))


def _section(cell: Cell, section: str, **settings):
    return {section: getattr(cell.spec, section).model_copy(update=settings)}


def test_llm_and_mask_decoder_begin_as_they_ended_and_the_projector_does_not(cells, checkpoint):
    spec = _with(cells["pooling"], init_from=InitFromConfig(name=str(checkpoint))).spec
    torch.manual_seed(7)
    initialization = Initialization(spec, CPU)
    assembly = assemble(spec, initialization.vocabulary_for(build_vocabulary(load_examples(spec, "train"))), CPU)
    initialization.load_into(assembly)
    saved, begun = load_file(checkpoint), assembly.segmenter.state_dict()
    kept = {name for name in saved if torch.equal(saved[name], begun[name])}
    assert {name for name in saved if not name.startswith("projector.")} <= kept
    assert any(name.startswith("mask_decoder.") for name in kept)
    assert any(name.startswith("llm.") for name in kept)
    assert "projector.project.0.weight" in saved.keys() - kept


def test_a_cell_says_what_it_began_with_and_is_read_back_without_it(cells, checkpoint, folder):
    cell = _with(cells["sspe"], init_from=InitFromConfig(name=str(checkpoint)))
    row = run_cell(cell, folder, quiet())
    assert row["status"] == "done", row["reason"]
    assert {weight["name"] for weight in json.loads(row["weights"])} >= {str(checkpoint)}
    checkpoint.unlink()
    assert load(folder.checkpoint(cell.id), CPU).spec == cell.spec


def test_a_projector_begins_with_tokens_as_large_as_those_that_were_read(cells, checkpoint):
    spec = _with(cells["decoder_pe"], init_from=InitFromConfig(name=str(checkpoint))).spec
    initialization, training = Initialization(spec, CPU), load_examples(spec, "train")
    assembly = assemble(spec, initialization.vocabulary_for(build_vocabulary(training)), CPU)
    initialization.load_into(assembly)
    prepare(assembly.batches, training, quiet().note)
    segmenter, features = assembly.segmenter.eval(), assembly.batches.features(training)
    read = load_file(checkpoint)["visual_rms"]
    assert read > 0
    assert segmenter.visual_gain == 1
    with torch.no_grad():
        segmenter.projector.project[-1].weight *= 5
    assert segmenter.tokens_rms(features) > 1.5 * read
    query = assembly.batches.query([example.queries for example in training])
    before, _ = segmenter.run_llm(segmenter.projector(features), query)
    segmenter.match_token_scale(features)
    assert segmenter.tokens_rms(features) == pytest.approx(float(read), rel=1e-5)
    after, _ = segmenter.run_llm(segmenter.projector(features), query)
    assert not torch.equal(before, after)  # bit for bit, were the gain not read


def test_another_llm_is_refused(cells, checkpoint):
    cell = _with(
        cells["pooling"], init_from=InitFromConfig(name=str(checkpoint)), **_section(cells["pooling"], "llm", layers=2)
    )
    with pytest.raises(WeightsError, match=r"with llm.layers 1, and this cell has 2; give the cell the same, or set"):
        Initialization(cell.spec, CPU)


def test_only_a_mask_decoder_from_scratch_needs_the_same_patches(cells, on_sam, checkpoint, folder):
    finer = _section(cells["pooling"], "vision_encoder", layer=1)
    cell = _with(cells["pooling"], init_from=InitFromConfig(name=str(checkpoint)), **finer)
    with pytest.raises(WeightsError, match=r"with vision_encoder\.layer None, and this cell has 1"):
        Initialization(cell.spec, CPU)
    assert run_cell(on_sam, folder, quiet())["status"] == "done"
    begun = InitFromConfig(name=str(folder.checkpoint(on_sam.id)))
    assert run_cell(_with(on_sam, init_from=begun, **finer), folder, quiet())["status"] == "done"


def test_words_that_were_never_read_are_told(cells, checkpoint):
    spec = _with(cells["pooling"], init_from=InitFromConfig(name=str(checkpoint))).spec
    with pytest.raises(WeightsError, match="lacks 'astronaut', used by the training data; name a checkpoint"):
        Initialization(spec, CPU).vocabulary_for(["the", "astronaut"])


def test_what_is_no_cell_is_refused(cells, checkpoint, folder):
    for name, told in ((str(checkpoint.parent / "none.safetensors"), "no weights"), ("sam-scenes", "is no checkpoint")):
        row = run_cell(_with(cells["pooling"], init_from=InitFromConfig(name=name)), folder, quiet())
        assert row["status"] == "failed"
        assert told in row["reason"]


def test_a_sam_that_is_pointed_at_stays_as_it_came_and_nothing_is_drawn_in_training(on_sam, folder):
    pointed = {
        **_section(on_sam, "mask_decoder", prompt="points"),
        **_section(on_sam, "training", location_loss=0.5),
    }
    cell = _with(on_sam, **pointed)
    rows = {each.id: run_cell(each, folder, quiet()) for each in (on_sam, cell)}
    assert {row["status"] for row in rows.values()} == {"done"}
    assert rows[cell.id]["trainable_parameters"] < rows[on_sam.id]["trainable_parameters"]
    assert not any(name.startswith("mask_decoder.") for name in load_file(folder.checkpoint(cell.id)))
    for point in json.loads(rows[cell.id]["curve"]):
        assert point["bce"] == point["dice"] == 0 < point["location"]
        assert point["loss"] == pytest.approx(point["answer"] + 0.5 * point["location"], rel=1e-5)
    came = frozen_sam("sam-scenes").sam.mask_decoder.state_dict()
    read = load(folder.checkpoint(cell.id), CPU).assembly.segmenter.mask_decoder.sam_decoder.state_dict()
    learnt = load_file(folder.checkpoint(on_sam.id))
    assert all(torch.equal(came[name], value) for name, value in read.items())
    assert not all(torch.equal(came[name], learnt[f"mask_decoder.sam_decoder.{name}"]) for name in came)


@pytest.mark.usefixtures("cells")
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("base.mask_decoder.prompt=points", "a mask decoder from scratch knows no answer; name a SAM"),
        ("base.mask_decoder={name: sam-scenes, prompt: points}", "give training.location_loss a weight, as 1.0"),
        ("base.init_from.nmae=x", "nmae"),
    ],
)
def test_settings_without_effect_are_told(tmp_path, given, told):
    with pytest.raises(StudyError, match=told):
        load_study(tmp_path / "study.yaml", [given])


@pytest.mark.usefixtures("cells")
def test_a_start_is_named_or_left_out(tmp_path):
    named = load_study(tmp_path / "study.yaml", ["base.init_from=some/cell.safetensors"])
    assert {cell.spec.init_from for cell in named.cells()} == {InitFromConfig(name="some/cell.safetensors")}
    left_out = load_study(tmp_path / "study.yaml", ["base.init_from=null"])
    assert {cell.spec.init_from for cell in left_out.cells()} == {None}


STARTS = [name for name, shipped in SHIPPED.items() if shipped.kind == "checkpoint"]
every_start = pytest.mark.parametrize("name", STARTS)


@every_start
def test_the_shipped_start_is_that_of_its_model_card(name: str):
    record, path = resolve(name), SHIPPED[name].path
    assert f"sha256 `{record.sha256}`" in (path.parent / "README.md").read_text()
    assert (record.source, record.sha256) == ("package svp-harness", sha256_of(path))


def test_every_study_that_begins_with_a_shipped_start_fits_it():
    begun = [
        cell.spec
        for path in sorted((ROOT / "studies").glob("*.yaml"))
        for cell in load_study(path).cells()[:1]
        if cell.spec.init_from is not None
    ]
    assert sum(spec.init_from.name == "mllm-scenes" for spec in begun) > 5
    assert {spec.init_from.name for spec in begun} == set(STARTS)
    for spec in begun:
        words = build_vocabulary(load_examples(spec, "train")[:40])
        assert set(words) <= set(Initialization(spec, CPU).vocabulary_for(words))


@pytest.mark.slow
@every_start
def test_the_shipped_start_scores_as_its_model_card_says(name: str):
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
