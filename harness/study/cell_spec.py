"""The sections of a cell: which model checks each, and how a merged mapping becomes a `CellSpec`."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

import projectors
from harness import data, superpixels
from harness.errors import HarnessError, shorten, suggest, unknown_key
from harness.model.config import InitFromConfig, LLMConfig, MaskDecoderConfig, VisionConfig
from harness.study.training_config import EvaluationConfig, TrainingConfig
from harness.study.validation import spot_of, validate
from harness.study.yaml_node import SourceLocation, YamlNode, merge
from projectors import REFERENCE_DIMS, IncompatibleError, ProjectorError
from projectors.registry import PROJECTORS, Registry


class CellSpec(BaseModel):
    """Everything that decides what a cell trains and scores, except its seed; every default filled in.

    `data`, `superpixels` and `projector` are {"name": ..., **settings}. `superpixels` is None for a projector without
    superpixels, so that a source it does not use does not change the identity of the cell. Without `init_from`, the LLM
    and the mask decoder are initialized as their own sections say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: dict[str, Any]
    vision_encoder: VisionConfig
    llm: LLMConfig
    mask_decoder: MaskDecoderConfig
    init_from: InitFromConfig | None = None
    superpixels: dict[str, Any] | None
    projector: dict[str, Any]
    training: TrainingConfig
    evaluation: EvaluationConfig


REGISTRIES: dict[str, Registry[Any]] = {
    "data": data.DATASETS,
    "superpixels": superpixels.SOURCES,
    "projector": PROJECTORS,
}
"""The sections whose `name` picks a component with a `Config` of its own."""
MODELS: dict[str, type[BaseModel]] = {
    "vision_encoder": VisionConfig,
    "llm": LLMConfig,
    "mask_decoder": MaskDecoderConfig,
    "init_from": InitFromConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
}
SECTIONS = tuple(CellSpec.model_fields)
TRAIN = "train"
"""The split that training reads, in every dataset."""
IS_MISSING = "is missing; give it in the arm, in base, or in the preset that base extends"
DEFAULTS: dict[str, BaseModel | None] = {
    "mask_decoder": MaskDecoderConfig(),
    "init_from": None,
    "superpixels": None,
    "evaluation": EvaluationConfig(),
}
"""The sections that may be left out, and what holds then."""


def resolve(tree: YamlNode, problems: list[str], superpixels_asked_by: YamlNode | None = None) -> CellSpec | None:
    """The specification in a merged mapping; None where it has mistakes, each of them appended to `problems`.

    Args:
        superpixels_asked_by: where an arm sets superpixels of its own; then they must take effect.
    """
    mistakes: list[str] = []
    mistakes += [f"{value.spot}: {unknown_key(key, SECTIONS)}" for key, value in tree.items() if key not in SECTIONS]
    mistakes += [
        f"{tree.spot}: section {section} {IS_MISSING}"
        for section in SECTIONS
        if section not in DEFAULTS and tree.get(section) is None
    ]
    resolved = {section: _resolve_section(section, tree.get(section), mistakes) for section in SECTIONS}
    if not mistakes:
        _match_superpixels(resolved, tree, superpixels_asked_by, mistakes)
        _match_split(resolved, tree, mistakes)
        _match_location_loss(resolved, tree, mistakes)
        _match_curriculum(resolved, tree, mistakes)
    problems.extend(mistakes)
    return None if mistakes else CellSpec.model_construct(**resolved)


def set_values(arm: YamlNode, values: Mapping[str, Any], spot: SourceLocation) -> YamlNode:
    """An arm with dotted paths set to values, which are said to stand at `spot`."""
    for path, value in values.items():
        arm = merge(arm, YamlNode.nest(path.split("."), YamlNode.of(value, spot)))
    return arm


def _resolve_section(section: str, tree: YamlNode | None, problems: list[str]) -> Any:
    if tree is None or (tree.value is None and section in DEFAULTS):
        return DEFAULTS.get(section)
    if isinstance(tree.value, str):
        tree = YamlNode({"name": tree}, tree.spot)
    if not tree.is_mapping:
        problems.append(f"{tree.spot}: found {shorten(repr(tree.plain()))}; must be a mapping of settings")
        return None
    if section in MODELS:
        return validate(MODELS[section], tree, problems)
    return _resolve_named(REGISTRIES[section], tree, problems)


def _resolve_named(registry: Registry[Any], tree: YamlNode, problems: list[str]) -> dict[str, Any] | None:
    """{"name": ..., **settings} of a section whose name decides which settings there are."""
    name = tree.get("name")
    try:
        known = f"known: {', '.join(registry.names())}"
        if name is None:
            problems.append(f"{tree.spot.under('name')}: is missing; {known}")
            return None
        if not isinstance(name.value, str):
            problems.append(f"{name.spot}: found {shorten(repr(name.plain()))}; must be a name; {known}")
            return None
        model = registry.get(name.value).Config
    except (ProjectorError, HarnessError) as error:
        problems.append(f"{(name or tree).spot}: {error}")
        return None
    settings = tree if "name" in model.model_fields else tree.without("name")
    config = validate(model, settings, problems)
    return None if config is None else {"name": name.value, **config.model_dump(mode="json")}


def _match_superpixels(
    resolved: dict[str, Any], tree: YamlNode, asked_by: YamlNode | None, problems: list[str]
) -> None:
    """Superpixels go to projectors that need them, and only to those."""
    name, required_inputs = resolved["projector"]["name"], projector_inputs(resolved["projector"])
    if required_inputs is None:
        return
    is_given, is_needed = resolved["superpixels"] is not None, "superpixels" in required_inputs
    place = tree.get("superpixels") or tree.get("projector") or tree
    if is_needed and not is_given:
        known = ", ".join(superpixels.names())
        problems.append(f"{place.spot}: projector {name} needs superpixels; give superpixels a source (known: {known})")
    if is_given and not is_needed:
        resolved["superpixels"] = None
        if asked_by is not None and asked_by.value is not None:
            problems.append(f"{asked_by.spot}: cannot take effect, projector {name} needs no superpixels; remove it")


def _match_split(resolved: dict[str, Any], tree: YamlNode, problems: list[str]) -> None:
    """What is scored is a split of the data, and not the one that is trained on."""
    settings = resolved["data"]
    config = data_config(settings)
    split, allowed = resolved["evaluation"].split, [name for name in config.splits if name != TRAIN]
    if TRAIN not in config.splits:
        place = tree.get("data") or tree
        problems.append(
            f"{place.spot}: {settings['name']} has no split {TRAIN!r} here, which training reads; give it one"
        )
    if split not in allowed:
        place = (tree.get("evaluation") or tree).get("split") or tree.get("data") or tree
        problems.append(f"{place.spot}: {settings['name']} has no split {split!r} to score; {suggest(split, allowed)}")


def _match_location_loss(resolved: dict[str, Any], tree: YamlNode, problems: list[str]) -> None:
    """Points predicted from [SEG] are trained by one loss only."""
    if resolved["mask_decoder"].prompt == "points" and not resolved["training"].location_loss:
        place = (tree.get("training") or tree).get("location_loss") or tree.get("training") or tree
        problems.append(
            f"{place.spot}: with mask_decoder.prompt: points nothing else teaches [SEG] where to point; "
            "give training.location_loss a weight, as 1.0"
        )


def _match_curriculum(resolved: dict[str, Any], tree: YamlNode, problems: list[str]) -> None:
    """A curriculum begins with families that the data has, where the data knows them without being read."""
    curriculum, families = resolved["training"].curriculum, getattr(data_config(resolved["data"]), "families", None)
    if curriculum is None or families is None:
        return
    place = spot_of(("training", "curriculum", "families"), tree)
    for family in curriculum.families:
        if family not in families:
            name = resolved["data"]["name"]
            problems.append(f"{place}: {name} has no family {shorten(family)!r}; {suggest(family, families)}")


def data_config(settings: dict[str, Any]) -> Any:
    """The configuration of a resolved section `data`."""
    return data.get(settings["name"]).Config.model_validate(settings)


def projector_inputs(projector: dict[str, Any]) -> frozenset[str] | None:
    """What this projector reads beside patches; None where it cannot tell without its real backbone.

    Needs may depend on the names and switches among the settings, so a projector is built to be asked, without memory
    and on the reference backbone. Its numbers are the defaults, which fit that backbone, whatever the study says.
    """
    settings = {key: value for key, value in projector.items() if key != "name"}
    return _required_inputs(projector["name"], json.dumps(_without_numbers(settings), sort_keys=True))


def _without_numbers(value: Any) -> Any:
    """Settings without numbers and lists."""
    is_number = {key: isinstance(one, int | float) and not isinstance(one, bool) for key, one in value.items()}
    return {
        key: _without_numbers(one) if isinstance(one, dict) else one
        for key, one in value.items()
        if not is_number[key] and not isinstance(one, list)
    }


@lru_cache(maxsize=256)
def _required_inputs(name: str, settings: str) -> frozenset[str] | None:
    projector = projectors.get(name)
    config = projector.Config.model_validate_json(settings)
    try:
        with torch.device("meta"):
            return projector(config, REFERENCE_DIMS).required_inputs
    except IncompatibleError:
        return None
