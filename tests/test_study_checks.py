"""Checks of values: infinite rates, claims about unknown families or points, files without weights."""

import pytest

from harness import run
from harness.errors import StudyError, shorten
from harness.results.labels import point_label, short_names
from harness.study.study import Study
from tests.small_study import PRESET, STUDY, TPE, write_study

CURRICULUM = "steps: 10, curriculum: {steps: 5, families: [%s]}"
SAMPLED = STUDY[: STUDY.index("search:")] + TPE.replace("[sspe, bbox_mlp]", "[sspe]") + STUDY[STUDY.index("seeds:") :]


def claim(text: str, study: str = STUDY) -> str:
    return f"{study}claims: [{{claim: c, {text}}}]\n"


def refused(folder, study: str, preset: str = PRESET) -> str:
    with pytest.raises(StudyError) as caught:
        Study.from_yaml(write_study(folder, study, preset))
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
def test_rates_in_a_preset_must_be_finite(old, new, value, tmp_path):
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
def test_numbers_in_a_study_must_be_finite(old, new, value, tmp_path):
    assert old in STUDY
    assert "small.yaml:" in refused(tmp_path, STUDY.replace(old, new.format(value)))


@pytest.mark.parametrize(
    "rate", ["learning_rate: 1e308", "weight_decay: 1e308", "clip_norm: 1e308", "location_loss: 1e308"]
)
def test_rates_have_an_upper_bound(rate, tmp_path):
    found = refused(tmp_path, STUDY, PRESET.replace("steps: 10", f"steps: 10, {rate}"))
    assert "found 1e+308; should be less than or equal to" in found


@pytest.mark.parametrize("bound", ["low: .nan", "low: -.inf", "high: .inf", "high: .nan"])
def test_bounds_of_a_range_must_be_finite(bound, tmp_path):
    key = bound.partition(":")[0]
    old = {"low": "low: 1e-4", "high": "high: 1e-2"}[key]
    assert f"space.training.learning_rate.{key}: found" in refused(tmp_path, SAMPLED.replace(old, bound))


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
        (
            "better: sspe, than: pooling, at: {projector.position.blocks: 2}",
            "found 2; the search space contains only 1",
        ),
        (
            "better: sspe, than: pooling, at: {projector.position.blocks: true}",
            "found True; the search space contains o",
        ),
        ("better: bbox_mlp, than: pooling, at: {projector.position.blocks: 3}", "the search varies neither arm of the"),
    ],
)
def test_a_claim_about_an_unknown_arm_family_domain_or_point_is_refused(text, expected, tmp_path):
    assert expected in refused(tmp_path, claim(text))


def test_a_claim_names_points_within_a_range(tmp_path):
    within = "better: sspe, than: pooling, at: {training.steps: 20}"
    assert Study.from_yaml(write_study(tmp_path, claim(within, SAMPLED))).settings.claims
    assert "found 40; the search space ranges from 10 to 30" in refused(
        tmp_path, claim(within.replace("20", "40"), SAMPLED)
    )


def test_a_claim_may_name_any_family_if_the_configuration_lists_none(tmp_path):
    preset = PRESET.replace("{name: scenes, train_images: 4, test_images: 2}", "{name: gqa, root: data}")
    preset += "  evaluation: {split: testdev}\n"
    text = claim("better: sspe, than: pooling, family: query")
    assert Study.from_yaml(write_study(tmp_path, text, preset)).settings.claims


@pytest.mark.parametrize(
    ("data", "family", "others"),
    [
        ("{name: scenes}", "relations", "relation"),
        ("{name: scenes, asks: [captions]}", "relation", "caption"),
        ("{name: refer, root: r, dataset: refcoco, split_by: unc}", "left", "known: multi, no_target, single"),
        ("{name: reasonseg, root: r}", "relation", "known: long, short"),
    ],
)
def test_families_of_a_curriculum_must_exist_in_the_data(data, family, others, tmp_path):
    preset = PRESET.replace("{name: scenes, train_images: 4, test_images: 2}", data)
    preset = preset.replace("steps: 10", CURRICULUM % family)
    preset += "  evaluation: {split: testA}\n" if "refer" in data else ""
    found = refused(tmp_path, STUDY, preset)
    assert f"training.curriculum.families: {data[7:].partition(',')[0].strip('}')} has no family {family!r}" in found
    assert others in found


def test_a_searched_arm_cannot_be_a_baseline(tmp_path):
    for baseline in ("sspe", "[pooling, sspe]"):
        found = refused(tmp_path, STUDY.replace("baseline: pooling", f"baseline: {baseline}"))
        assert "arm 'sspe' is searched, but a baseline must be a single point; name an arm that is not" in found


def test_paths_of_a_search_must_not_contain_each_other(tmp_path):
    found = refused(tmp_path, STUDY.replace("space: {", "space: {projector.position: [sspe], "))
    assert "is part of projector.position, which the search sets too" in found


def test_a_step_is_at_most_the_size_of_its_range(tmp_path):
    assert "found step: 30; must be at most high - low = 20" in refused(
        tmp_path, SAMPLED.replace("step: 10", "step: 30")
    )


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
def test_the_plan_reports_names_without_weights(setting, expected, tmp_path, capsys):
    path, file = write_study(tmp_path), tmp_path / "presets" / "small.yaml"
    paths = {"file": file, "short": shorten(str(file)), "folder": file.parent}
    assert run.main([str(path), "--plan", "--out", str(tmp_path / "none"), "--set", setting.format(**paths)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"{path}: ")
    assert expected.format(**paths) in printed


def test_settings_are_shortened_to_their_shortest_unique_suffix():
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


def test_the_plan_distinguishes_settings_with_the_same_last_key(tmp_path, capsys):
    text = STUDY.replace("projector.position.queries: [1, 2]", "training.steps: [5], training.curriculum.steps: [3]")
    preset = PRESET.replace("steps: 10", CURRICULUM % "attribute")
    assert run.main([str(write_study(tmp_path, text, preset)), "--plan", "--out", str(tmp_path / "none")]) == 0
    assert "training.steps=5, curriculum.steps=3" in capsys.readouterr().out
