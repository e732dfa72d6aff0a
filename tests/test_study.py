"""Loading of studies: all problems with their locations; merging, overrides, cells and their ids."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

import projectors
from harness.errors import StudyError
from harness.study import cell_spec
from harness.study.study import Point, Study
from tests.small_study import PRESET, STUDY, sampled_study, write_study

ROOT = Path(__file__).parent.parent


def problems(folder: Path, text: str, preset: str = PRESET, overrides: tuple[str, ...] = ()) -> list[str]:
    """The problems of a study, with paths relative to its folder."""
    with pytest.raises(StudyError) as caught:
        Study.from_yaml(write_study(folder, text, preset), overrides)
    return [problem.removeprefix(f"{folder}/") for problem in caught.value.problems]


def test_five_problems_are_five_messages_with_their_lines(tmp_path):
    text = (
        STUDY.replace("blocks: 3, queries: 4", "blocks: 3, queris: 4")
        .replace("name: pooling, tokens: 4", "name: poling, tokens: 4")
        .replace("arms: [sspe]", "arms: [ssp]")
        .replace("giou: maximize", "giou: maximise")
    )
    preset = PRESET.replace("steps: 10", "steps: -5")
    assert problems(tmp_path, text, preset) == [
        "presets/small.yaml:5: base.training.steps: found -5; should be greater than or equal to 1",
        "small.yaml:5: base.projector.position.queris: unknown key; did you mean queries?",
        "small.yaml:7: arms.pooling.projector.name: no projector 'poling'; did you mean pooling?",
        "small.yaml:11: search.arms.0: there is no arm 'ssp'; did you mean sspe?",
        "small.yaml:14: objectives.giou: found 'maximise'; should be 'maximize' or 'minimize'; did you mean maximize?",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("baseline: pooling", "baselin: pooling", "small.yaml:15: baselin: unknown key; did you mean baseline"),
        ("baseline: pooling", "baseline: poling", "small.yaml:15: baseline: there is no arm 'poling'"),
        ("baseline: pooling", "", "small.yaml:1: baseline: is missing"),
        ("tokens: minimize", "tokns: minimize", "small.yaml:14: objectives.tokns: there is no metric 'tokns'; did you"),
        ("giou: maximize", "giou: minimize", "small.yaml:14: objectives.giou: found minimize, but higher giou is"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "small.yaml:13: seeds.1: duplicate value 0"),
        ("seeds: [0, 1]", "seeds: [0, one]", "small.yaml:13: seeds.1: found 'one'; should be a valid integer"),
        ("seeds: [0, 1]", "seeds: [true]", "small.yaml:13: seeds.0: found True; should be a valid integer"),
        ("  space:", "  trials: 3\n  space:", "small.yaml:12: search.trials: cannot take effect with sampler grid"),
        ("  space:", "  sampler: tpe\n  space:", "small.yaml:12: search.sampler: sampler tpe requires the nu"),
        ("  space:", "  sampler: gird\n  space:", "small.yaml:12: search.sampler: found 'gird'; should be"),
        ("blocks: [1, 3]", "bloks: [1, 3]", "small.yaml:12: search.space.projector.position.bloks.0: unknown key; did"),
        ("blocks: [1, 3]", "blocks: [1, 99]", "small.yaml:12: search.space.projector.position.blocks.1: found 99;"),
        ("blocks: [1, 3]", "blocks: {low: 1, high: 3}", "small.yaml:12: search.space.projector.position.blocks: sampl"),
        ("sspe: {}", "sspe: {}\n  sspe: {}", "small.yaml:10: arms.sspe: duplicate key, first on line 9"),
        ("sspe: {}", "sspe: {trainin: {steps: 1}}", "small.yaml:9: arms.sspe.trainin: unknown key; did you mean trai"),
        ("sspe: {}", "sspe: {mask_head: scratch}", "small.yaml:9: arms.sspe.mask_head: mask_head is now named ma"),
        ("sspe: {}", "sspe: {start: null}", "small.yaml:9: arms.sspe.start: start is now named init_from; rename it"),
        ("sspe: {}", "sspe: {training: {pointing: 1.0}}", "small.yaml:9: arms.sspe.training.pointing: pointing is n"),
        ("sspe: {}", "sspe: {data: {name: scene}}", "small.yaml:9: arms.sspe.data.name: no dataset 'scene'"),
        ("name: grid", "name: gird", "small.yaml:4: base.superpixels.name: no superpixel source 'gird'; did"),
        ("position: bbox_mlp", "position: bbox", "small.yaml:8: arms.bbox_mlp.projector.position: there is no 'bbox'"),
        ("tokens: 4}}", "tokens: '4'}}", "small.yaml:7: arms.pooling.projector.tokens: found '4'; should be a valid"),
        ("tokens: 4}}", "tokens: 4}, superpixels: {name: slic}}", "small.yaml:7: arms.pooling.superpixels: cannot"),
        ("sspe: {}", "sspe: {superpixels: null}", "small.yaml:9: arms.sspe.superpixels: projector svp requires s"),
        ("extends: presets/small", "extends: presets/smal", "small.yaml:2: extends: there is no file"),
        ("sspe: {}", "sspe: {", "small.yaml:11: not valid YAML"),
        ("sspe: {}", "sspe: 4", "small.yaml:9: arms.sspe: found 4; should be a mapping"),
        ("baseline: pooling", "baseline: pooling\nclaims: [{claim: c, better: ssp, than: mlp}]", "small.yaml:16: clai"),
    ],
)  # fmt: skip
def test_a_problem_is_reported_with_its_location(tmp_path, old, new, expected):
    assert old in STUDY
    found = problems(tmp_path, STUDY.replace(old, new))
    assert any(problem.startswith(expected) for problem in found), found


def test_a_problem_that_all_arms_inherit_is_reported_once(tmp_path):
    assert len(problems(tmp_path, STUDY, PRESET.replace("width: 32", "widht: 32"))) <= 2
    assert len(problems(tmp_path, STUDY, PRESET.replace("steps: 10", "steps: 0"))) == 1


def test_a_missing_preset_is_one_problem(tmp_path):
    [problem] = problems(tmp_path, STUDY.replace("presets/small", "presets/smal"))
    assert "did you mean presets/small.yaml?" in problem


def test_an_override_selects_another_preset(tmp_path):
    path = write_study(tmp_path)
    (tmp_path / "presets" / "longer.yaml").write_text(PRESET.replace("steps: 10", "steps: 20"))
    study = Study.from_yaml(path, ["extends=presets/longer.yaml"])
    assert {cell.spec.training.steps for cell in study.cells() if cell.arm != "sspe"} == {20}
    [problem] = problems(tmp_path, STUDY, overrides=("extends=presets/long.yaml",))
    assert problem.startswith("--set extends=presets/long.yaml: there is no file")


def test_the_evaluation_split_exists_and_is_not_the_training_split(tmp_path):
    cells = Study.from_yaml(write_study(tmp_path), ["evaluation.split=validation"]).cells()
    assert {cell.spec.evaluation.split for cell in cells} == {"validation"}
    for split in ("train", "testA"):
        [problem] = problems(tmp_path, STUDY, overrides=(f"evaluation.split={split}",))
        assert problem.startswith(f"--set evaluation.split={split}: scenes has no split '{split}' for evaluation; ")


def test_a_preset_cannot_have_arms(tmp_path):
    [problem] = problems(tmp_path, STUDY, PRESET + "arms: {}\n")
    assert (
        problem == "presets/small.yaml:6: arms: not allowed in a preset (allowed: base, objectives, seeds, tracking); "
        "move it to the study"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "studies" / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_by_itself_is_a_study_of_the_mlp_on_all_patches(path):
    (cell,) = Study.from_yaml(path).cells()
    assert cell.arm == "mlp"
    assert cell.spec.projector["name"] == "mlp"


def test_overrides_apply_to_every_arm_and_their_problems_are_reported(tmp_path):
    study = Study.from_yaml(write_study(tmp_path), ["training.steps=7", "seeds=[5]", "arms.sspe.training.steps=9"])
    steps = {cell.arm: cell.spec.training.steps for cell in study.cells()}
    assert steps == {"pooling": 7, "bbox_mlp": 7, "sspe": 9}
    assert {cell.seed for cell in study.cells()} == {5}
    found = problems(
        tmp_path, STUDY, overrides=("training.stps=7", "steps", "sead=1", "arms.x.llm=tiny", "margin=[", "margin=2")
    )
    assert [problem.partition(":")[0] for problem in found] == [
        "--set arms.x.llm=tiny",
        "--set margin=2",
        "--set margin=[",
        "--set sead=1",
        "--set steps",
        "--set training.stps=7",
    ]


def test_another_name_drops_the_settings_of_the_first(tmp_path):
    study = Study.from_yaml(write_study(tmp_path))
    specs = {cell.arm: cell.spec for cell in study.cells()}
    assert specs["pooling"].projector == {"name": "pooling", "tokens": 4, "weights": None}
    assert specs["bbox_mlp"].projector["position"]["name"] == "bbox_mlp"
    assert "blocks" not in specs["bbox_mlp"].projector["position"]


def test_a_bare_name_is_shorthand_for_a_mapping(tmp_path):
    text = STUDY.replace("position: {name: sspe, blocks: 3, queries: 4}", "position: sspe")
    specs = [
        cell.spec.projector["position"]
        for cell in Study.from_yaml(write_study(tmp_path, text)).cells()
        if cell.arm == "sspe"
    ]
    assert {(position["blocks"], position["queries"]) for position in specs} == {(1, 1), (1, 2), (3, 1), (3, 2)}


def test_superpixels_are_not_part_of_an_arm_that_does_not_use_them(tmp_path):
    before = {cell.arm: cell for cell in Study.from_yaml(write_study(tmp_path)).cells()}
    after = {cell.arm: cell for cell in Study.from_yaml(write_study(tmp_path), ["superpixels.count=16"]).cells()}
    assert before["pooling"].spec.superpixels is None
    assert before["sspe"].spec.superpixels["count"] == 9
    assert before["pooling"].id == after["pooling"].id
    assert before["sspe"].id != after["sspe"].id


def test_arms_with_equal_settings_have_different_cells(tmp_path):
    study = Study.from_yaml(
        write_study(tmp_path, STUDY.replace("sspe: {}", "sspe: {}\n  again: {projector: {position: bbox_mlp}}"))
    )
    specs = {cell.arm: cell for cell in study.cells() if cell.seed == 0}
    assert specs["again"].spec == specs["bbox_mlp"].spec
    assert specs["again"].id != specs["bbox_mlp"].id


def test_a_grid_is_every_combination_with_every_seed(tmp_path):
    cells = Study.from_yaml(write_study(tmp_path)).cells()
    assert [(cell.arm, cell.seed) for cell in cells[:4]] == [
        *(("pooling", 0), ("pooling", 1)),
        *(("bbox_mlp", 0), ("bbox_mlp", 1)),
    ]
    assert len(cells) == len({cell.id for cell in cells}) == 2 * (2 + 4)
    assert [dict(cell.point) for cell in cells if cell.arm == "sspe" and cell.seed == 0] == [
        {"projector.position.blocks": blocks, "projector.position.queries": queries}
        for blocks in (1, 3)
        for queries in (1, 2)
    ]


def test_the_resolved_study_has_the_same_cells(tmp_path):
    study = Study.from_yaml(write_study(tmp_path))
    path = tmp_path / "elsewhere" / "study.resolved.yaml"
    path.parent.mkdir()
    path.write_text(study.resolved())
    again = Study.from_yaml(path)
    assert again.name == study.name
    assert [cell.id for cell in again.cells()] == [cell.id for cell in study.cells()]
    assert again.resolved().splitlines()[1:] == study.resolved().splitlines()[1:]


def test_a_fingerprint_changes_only_if_cells_change(tmp_path):
    study = Study.from_yaml(write_study(tmp_path))
    assert (
        Study.from_yaml(write_study(tmp_path), ["question=why", "baseline=bbox_mlp"]).fingerprint == study.fingerprint
    )
    assert Study.from_yaml(write_study(tmp_path), ["training.steps=3"]).fingerprint != study.fingerprint
    assert Study.from_yaml(write_study(tmp_path), ["seeds=[0]"]).fingerprint != study.fingerprint


def test_sampled_points_are_not_listed_before_the_run(tmp_path):
    study = sampled_study(tmp_path)
    assert [point.arm for point in study.points()] == ["pooling"]
    assert study.num_sampled == 4
    cells = study.cells_of(Point("sspe", {"training.steps": 30}))
    assert {cell.spec.training.steps for cell in cells} == {30}


def test_required_inputs_of_every_projector_are_known_on_the_meta_device():
    for name in projectors.names():
        settings = projectors.get(name).Config().model_dump(mode="json")
        assert cell_spec.projector_inputs({"name": name, **settings}) is not None


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_of_the_repository_loads(path):
    study = Study.from_yaml(path)
    assert study.cells()
    assert study.settings.claims or len(study.settings.arms) == 1, "a study that compares arms must state claims"


def as_mapping() -> dict[str, Any]:
    """`STUDY` on the shipped preset `embedded.yaml`, as a mapping."""
    mapping: dict[str, Any] = YAML(typ="safe", pure=True).load(STUDY)
    return {**mapping, "extends": "presets/embedded.yaml"}


def problems_of(mapping: Any, *overrides: str) -> list[str]:
    with pytest.raises(StudyError) as caught:
        Study.from_dict(mapping, overrides)
    return caught.value.problems


def test_a_mapping_gives_the_cells_of_the_same_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mapping, overrides = as_mapping(), ["training.steps=7"]
    before = copy.deepcopy(mapping)
    study = Study.from_dict(mapping, overrides, name="small")
    path = tmp_path / "small.yaml"
    path.write_text(STUDY.replace("presets/small.yaml", str(ROOT / "studies" / "presets" / "embedded.yaml")))
    written = Study.from_yaml(path, overrides)
    assert study.name == written.name == "small"
    assert study.cells() == written.cells()
    assert study.fingerprint == written.fingerprint
    assert mapping == before


def test_a_resolved_study_from_a_mapping_loads_as_yaml(tmp_path):
    study = Study.from_dict(as_mapping())
    path = tmp_path / "study.resolved.yaml"
    path.write_text(study.resolved())
    assert Study.from_yaml(path).cells() == study.cells()
    assert study.name == "study"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("tokens", {1, 2}, "found a value of type set; must be a mapping, a list, a string, a number, a bool or None"),
        ("tokens", math.nan, "found nan; should be a valid integer"),
        ("tokens", math.inf, "found inf; should be a valid integer"),
        ("tokens", "4", "found '4'; should be a valid integer"),
        ("tokens", True, "found True; should be a valid integer"),
        ("tokens", 2**64, "found a larger integer; must be an integer of at most 9,007,199,254,740,991 in absolute"),
        ("tokens", "x" * 20_000, "found a string of 20,000 characters; at most 10,000 are allowed; shorten it"),
        ("tokns", 4, "unknown key; did you mean tokens?"),
    ],
)
def test_a_wrong_value_in_a_mapping_is_one_message(key, value, expected):
    mapping = as_mapping()
    mapping["arms"]["pooling"] = {"projector": {"name": "pooling", key: value}}
    [problem] = problems_of(mapping)
    assert problem.startswith(f"study: arms.pooling.projector.{key}: {expected}")


def test_nan_in_a_mapping_is_refused_where_numbers_are_allowed():
    mapping = as_mapping()
    mapping["arms"]["pooling"]["training"] = {"learning_rate": math.nan}
    [problem] = problems_of(mapping)
    assert problem.startswith("study: arms.pooling.training.learning_rate: found nan; ")
    [problem] = problems_of({**as_mapping(), "margin": math.nan})
    assert problem.startswith("study: margin: found nan; ")


def test_keys_of_a_mapping_must_be_strings():
    for key, shown in ((1, "1 (int)"), (None, "None (NoneType)"), ((1, 2), "a value of type tuple")):
        mapping = as_mapping()
        mapping["arms"][key] = {}
        assert problems_of(mapping) == [f"study: arms: the key {shown} is not a string; use a string"]


def test_a_study_that_is_no_mapping_is_refused():
    [problem] = problems_of([1])
    assert problem == "study: found a value of type list; must be a mapping of keys to values"


def test_a_mapping_that_contains_itself_is_refused():
    mapping = as_mapping()
    mapping["base"]["data"] = mapping
    [problem] = problems_of(mapping)
    assert problem.startswith("study: is too large for a study: mappings and lists are nested more than 50 deep")


def test_all_problems_of_a_mapping_and_its_overrides_are_reported():
    mapping = as_mapping()
    mapping |= {"baseline": "poling", "extends": "presets/embeded.yaml"}
    found = problems_of(mapping, "margin=2")
    assert [problem.partition(";")[0] for problem in found] == [
        "--set margin=2: found 2",
        f"study: extends: there is no file {ROOT / 'studies' / 'presets' / 'embeded.yaml'}",
        "study: baseline: there is no arm 'poling'",
    ]


def test_tuples_and_numpy_floats_are_accepted_in_a_mapping():
    mapping = as_mapping()
    mapping |= {"seeds": (0, 1), "margin": np.float64(0.02)}
    study = Study.from_dict(mapping)
    assert study.settings.seeds == (0, 1)
    assert type(study.settings.margin) is float


def test_a_study_holds_plain_values():
    study = Study.from_dict(as_mapping())
    assert json.loads(json.dumps(study.arms)) == study.arms


def test_an_invalid_sampled_point_is_named_by_its_key(tmp_path):
    study = sampled_study(tmp_path)
    with pytest.raises(StudyError) as caught:
        study.cells_of(Point("sspe", {"training.steps": -1}))
    [problem] = caught.value.problems
    expected = f"{tmp_path / 'small.yaml'}: arms.sspe.training.steps: found -1; should be greater than or equal to 1"
    assert problem == expected
