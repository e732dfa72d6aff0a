"""No study is accepted that cannot be meant: rates without end, claims about nothing, files that hold no weights."""

import pytest

from harness import run
from harness.errors import StudyError, shorten
from harness.results.labels import point_label, short_names
from harness.study.study import load
from tests.small_study import PRESET, STUDY, TPE, write_study

CURRICULUM = "steps: 10, curriculum: {steps: 5, families: [%s]}"
SAMPLED = STUDY[: STUDY.index("search:")] + TPE.replace("[sspe, bbox_mlp]", "[sspe]") + STUDY[STUDY.index("seeds:") :]


def claim(text: str, study: str = STUDY) -> str:
    return f"{study}claims: [{{claim: c, {text}}}]\n"


def refused(folder, study: str, preset: str = PRESET) -> str:
    with pytest.raises(StudyError) as caught:
        load(write_study(folder, study, preset))
    return str(caught.value)


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e400"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("steps: 10", "steps: 10, learning_rate: {}"),
        ("steps: 10", "steps: 10, weight_decay: {}"),
        ("steps: 10", "steps: 10, clip_norm: {}"),
        ("steps: 10", "steps: 10, location_loss: {}"),
        ("name: tiny, width: 32, layers: 1, heads: 2", "name: smollm2-135m, lora: {{dropout: {}}}"),
    ],
)
def test_a_rate_of_the_preset_is_finite(old, new, value, tmp_path):
    assert old in PRESET
    assert "presets/small.yaml:" in refused(tmp_path, STUDY, PRESET.replace(old, new.format(value)))


@pytest.mark.parametrize("value", [".inf", ".nan"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: grid, count: 9", "name: felzenszwalb, scale: {}"),
        ("name: grid, count: 9", "name: slic, compactness: {}"),
        ("name: pooling, tokens: 4", "name: divt, threshold: {}"),
        ("baseline: pooling", "baseline: pooling\nmargin: {}"),
        ("blocks: [1, 3]", "blocks: [1, {}]"),
        ("baseline: pooling", "baseline: pooling\nclaims: [{{claim: c, no_worse: sspe, than: pooling, within: {}}}]"),
    ],
)
def test_a_number_of_the_study_is_finite(old, new, value, tmp_path):
    assert old in STUDY
    assert "small.yaml:" in refused(tmp_path, STUDY.replace(old, new.format(value)))


@pytest.mark.parametrize(
    "rate", ["learning_rate: 1e308", "weight_decay: 1e308", "clip_norm: 1e308", "location_loss: 1e308"]
)
def test_a_rate_is_of_a_size_that_trains(rate, tmp_path):
    found = refused(tmp_path, STUDY, PRESET.replace("steps: 10", f"steps: 10, {rate}"))
    assert "found 1e+308; should be less than or equal to" in found


@pytest.mark.parametrize("end", ["low: .nan", "low: -.inf", "high: .inf", "high: .nan"])
def test_an_end_of_a_range_is_finite(end, tmp_path):
    key = end.partition(":")[0]
    old = {"low": "low: 1e-4", "high": "high: 1e-2"}[key]
    assert f"space.training.learning_rate.{key}: found" in refused(tmp_path, SAMPLED.replace(old, end))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no_worse: sspe, than: pooling, within: 1e308", "giou ranges from 0 to 1, so a margin must be less than that"),
        ("no_worse: sspe, than: pooling, within: 1", "giou ranges from 0 to 1"),
        ("no_worse: sspe, than: pooling, metric: cider, within: 10", "cider ranges from 0 to 10"),
        ("better: sspe, than: sspe", "compares 'sspe' with itself; name another arm in than"),
        ("no_worse: sspe, than: sspe", "compares 'sspe' with itself"),
        ("better: sspe, than: pooling, family: relations", "scenes has no family 'relations'; did you mean relation?"),
        ("better: sspe, than: pooling, family: counting", "scenes has no family 'counting'"),
        ("better: sspe, than: pooling, domain: canvas", "scenes has no domain 'canvas'; known: studio"),
        ("better: sspe, than: pooling, at: {projector.position.block: 3}", "the search does not vary 'projector.posit"),
        ("better: sspe, than: pooling, at: {projector.position.blocks: 2}", "found 2; the search tries 1, 3"),
        ("better: sspe, than: pooling, at: {projector.position.blocks: true}", "found True; the search tries 1, 3"),
        ("better: bbox_mlp, than: pooling, at: {projector.position.blocks: 3}", "the search varies neither arm of the"),
    ],
)
def test_a_claim_is_about_what_there_is(text, expected, tmp_path):
    assert expected in refused(tmp_path, claim(text))


def test_a_claim_names_points_inside_a_range(tmp_path):
    inside = "better: sspe, than: pooling, at: {training.steps: 20}"
    assert load(write_study(tmp_path, claim(inside, SAMPLED))).settings.claims
    assert "found 40; the search tries 10 to 30" in refused(tmp_path, claim(inside.replace("20", "40"), SAMPLED))


def test_a_claim_may_be_about_a_family_that_only_the_data_knows(tmp_path):
    preset = PRESET.replace("{name: scenes, train_images: 4, test_images: 2}", "{name: gqa, root: data}")
    preset += "  evaluation: {split: testdev}\n"
    text = claim("better: sspe, than: pooling, family: query")
    assert load(write_study(tmp_path, text, preset)).settings.claims


@pytest.mark.parametrize(
    ("data", "family", "others"),
    [
        ("{name: scenes}", "relations", "relation"),
        ("{name: scenes, asks: [captions]}", "relation", "caption"),
        ("{name: refer, root: r, dataset: refcoco, split_by: unc}", "left", "known: multi, no_target, single"),
        ("{name: reasonseg, root: r}", "relation", "known: long, short"),
    ],
)
def test_a_curriculum_begins_with_families_of_the_data(data, family, others, tmp_path):
    preset = PRESET.replace("{name: scenes, train_images: 4, test_images: 2}", data)
    preset = preset.replace("steps: 10", CURRICULUM % family)
    preset += "  evaluation: {split: testA}\n" if "refer" in data else ""
    found = refused(tmp_path, STUDY, preset)
    assert f"training.curriculum.families: {data[7:].partition(',')[0].strip('}')} has no family {family!r}" in found
    assert others in found


def test_a_searched_arm_is_no_baseline(tmp_path):
    for given in ("sspe", "[pooling, sspe]"):
        found = refused(tmp_path, STUDY.replace("baseline: pooling", f"baseline: {given}"))
        assert "arm 'sspe' is searched, and a baseline is one point; name an arm that is not searched" in found


def test_one_path_of_a_search_lies_outside_every_other(tmp_path):
    found = refused(tmp_path, STUDY.replace("space: {", "space: {projector.position: [sspe], "))
    assert "lies inside projector.position, which the search sets too" in found


def test_a_step_fits_into_its_range(tmp_path):
    assert "a step of 30 leaves only low" in refused(tmp_path, SAMPLED.replace("step: 10", "step: 30"))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("vision_encoder.name={file}", "vision_encoder.name: no weights '{short}': the file has no known suffix"),
        ("llm={{name: '{file}', lora: {{}}}}", "llm.name: no weights"),
        ("mask_decoder.name={file}", "mask_decoder.name: no weights"),
        ("base.init_from={file}", "init_from.name: no weights"),
        ("arms.pooling.projector.weights={file}", "projector.weights: no weights"),
        ("superpixels={{name: sam, model: '{file}'}}", "superpixels.model: no weights"),
        ("vision_encoder.name={folder}", "'{folder}' is a folder without weights"),
        ("vision_encoder.name=''", "no weights ''"),
        ("vision_encoder.name=" + "x" * 300, "no weights 'xxx"),
        ("vision_encoder.name=a/" + "x" * 300, "no weights 'a/xxx"),
        ("vision_encoder.name=~nobody/x", "no weights '~nobody/x'"),
        ("vision_encoder.name=random-clip", "no weights 'random-clip'"),
        ("vision_encoder.name=tiny", "no weights 'tiny'"),
        ("vision_encoder.name=smollm2-135m", "found 'smollm2-135m', which is for llm.name"),
        ("mask_decoder.name=dinov2-small", "found 'dinov2-small', which is for vision_encoder.name"),
    ],
)
def test_a_name_that_stands_for_no_weights_of_the_part_is_told_by_the_plan(setting, expected, tmp_path, capsys):
    path, file = write_study(tmp_path), tmp_path / "presets" / "small.yaml"
    places = {"file": file, "short": shorten(str(file)), "folder": file.parent}
    assert run.main([str(path), "--plan", "--out", str(tmp_path / "none"), "--set", setting.format(**places)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"{path}: ")
    assert expected.format(**places) in printed


def test_settings_are_named_by_their_shortest_ending_that_no_other_has():
    paths = ["projector.position.width", "projector.aggregation.width", "training.steps", "llm.position.width"]
    assert short_names(paths) == {
        "projector.position.width": "projector.position.width",
        "projector.aggregation.width": "aggregation.width",
        "training.steps": "steps",
        "llm.position.width": "llm.position.width",
    }
    assert point_label({"projector.position.width": 128, "projector.aggregation.width": 64, "llm.layers": 2}) == (
        "position.width=128, aggregation.width=64, layers=2"
    )


def test_two_settings_with_one_ending_are_told_apart_by_the_plan(tmp_path, capsys):
    text = STUDY.replace("projector.position.queries: [1, 2]", "training.steps: [5], training.curriculum.steps: [3]")
    preset = PRESET.replace("steps: 10", CURRICULUM % "attribute")
    assert run.main([str(write_study(tmp_path, text, preset)), "--plan", "--out", str(tmp_path / "none")]) == 0
    assert "training.steps=5, curriculum.steps=3" in capsys.readouterr().out
