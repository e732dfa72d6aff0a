"""The sections of a cell: which model validates each, and how a merged mapping becomes a `CellSpec`."""

import json
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict

import projectors
from harness import data, superpixels
from harness.errors import HarnessError, shorten, suggest, unknown_key
from harness.model.config import LINEAR, InitFromConfig, LLMConfig, MaskDecoderConfig, VisionConfig
from harness.study.nodes.yaml_node import YamlNode, merge
from harness.study.training_config import EvaluationConfig, TrainingConfig
from harness.study.validation import location_of, shown, validate
from harness.system.uninitialized import uninitialized
from projectors import REFERENCE_DIMS, IncompatibleError, ProjectorError
from projectors.registry import PROJECTORS, Registry


class CellSpec(BaseModel):
    """All settings that determine a cell's result, except its seed, with every default filled in.

    `data`, `superpixels` and `projector` are {"name": ..., **settings}. `superpixels` is None for a projector that does
    not use superpixels, so that an unused source does not change the cell's id. Without `init_from`, the LLM and the
    mask decoder are initialized as their own sections specify.
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
"""The split used for training, in every dataset."""
IS_MISSING = "is missing; set it in the arm, in base, or in the preset that the study extends"
DEFAULTS: dict[str, BaseModel | None] = {
    "mask_decoder": MaskDecoderConfig(),
    "init_from": None,
    "superpixels": None,
    "evaluation": EvaluationConfig(),
}
"""Optional sections and their defaults."""


class Sections:
    """The valid sections that were resolved before, by node.

    Merging keeps the nodes of sections that it does not change, so a section that many arms or search points share is
    validated once.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[YamlNode, Any]] = {}

    def resolve(self, section: str, node: YamlNode | None, problems: list[str]) -> Any:
        """The value of a section; problems are appended to `problems`."""
        if node is None:
            return DEFAULTS.get(section)
        key = (section, id(node))
        if key not in self._known:
            found: list[str] = []
            value = _resolve_section(section, node, found)
            if found:
                problems.extend(found)
                return value
            self._known[key] = (node, value)  # keeps the node alive, so that no other node gets its id
        return self._known[key][1]


def resolve(
    arm: YamlNode, problems: list[str], own_superpixels: YamlNode | None = None, sections: Sections | None = None
) -> CellSpec | None:
    """The specification of a merged arm; None if it has problems, each of them appended to `problems`.

    Args:
        own_superpixels: the section `superpixels` that the arm itself sets; it is a problem if it has no effect.
        sections: those that were resolved before; the sections of this arm are added.
    """
    sections = sections or Sections()
    found: list[str] = []
    found += [f"{value.location}: {unknown_key(key, SECTIONS)}" for key, value in arm.items() if key not in SECTIONS]
    found += [
        f"{arm.location}: section {section} {IS_MISSING}"
        for section in SECTIONS
        if section not in DEFAULTS and arm.get(section) is None
    ]
    resolved = {section: sections.resolve(section, arm.get(section), found) for section in SECTIONS}
    if not found:
        _check_superpixels(resolved, arm, own_superpixels, found)
        _check_split(resolved, arm, found)
        _check_location_loss(resolved, arm, found)
        _check_curriculum(resolved, arm, found)
        _check_devices(resolved, arm, found)
        _check_linear_reader(resolved, arm, found)
    problems.extend(found)
    return None if found else CellSpec.model_construct(**resolved)


def set_value(arm: YamlNode, path: str, value: YamlNode) -> YamlNode:
    """An arm with the value at a dotted path replaced."""
    return merge(arm, YamlNode.nest(path.split("."), value))


def _resolve_section(section: str, node: YamlNode, problems: list[str]) -> Any:
    if node.value is None and section in DEFAULTS:
        return DEFAULTS[section]
    if isinstance(node.value, str):
        node = YamlNode({"name": node}, node.location)
    if not node.is_mapping:
        problems.append(f"{node.location}: found {shown(node.plain())}; must be a mapping of settings")
        return None
    if section in MODELS:
        return validate(MODELS[section], node, problems)
    return _resolve_named(REGISTRIES[section], node, problems)


def _resolve_named(registry: Registry[Any], node: YamlNode, problems: list[str]) -> dict[str, Any] | None:
    """{"name": ..., **settings} of a section whose `name` determines its settings."""
    name = node.get("name")
    try:
        known = f"known: {', '.join(registry.names())}"
        if name is None:
            problems.append(f"{node.location.under('name')}: is missing; {known}")
            return None
        if not isinstance(name.value, str):
            problems.append(f"{name.location}: found {shown(name.plain())}; must be a name; {known}")
            return None
        model = registry.get(name.value).Config
    except (ProjectorError, HarnessError) as error:
        problems.append(f"{(name or node).location}: {error}")
        return None
    settings = node if "name" in model.model_fields else node.without("name")
    config = validate(model, settings, problems)
    return None if config is None else {"name": name.value, **config.model_dump(mode="json")}


def _check_superpixels(
    resolved: dict[str, Any], arm: YamlNode, own_superpixels: YamlNode | None, problems: list[str]
) -> None:
    """Removes superpixels that the projector does not use; those that it requires must be set."""
    name, required_inputs = resolved["projector"]["name"], projector_inputs(resolved["projector"])
    if required_inputs is None:
        return
    is_set, is_required = resolved["superpixels"] is not None, "superpixels" in required_inputs
    node = arm.get("superpixels") or arm.get("projector") or arm
    if is_required and not is_set:
        known = ", ".join(superpixels.names())
        problems.append(
            f"{node.location}: projector {name} requires superpixels; set superpixels to a source (known: {known})"
        )
    if is_set and not is_required:
        resolved["superpixels"] = None
        if own_superpixels is not None and own_superpixels.value is not None:
            problems.append(
                f"{own_superpixels.location}: cannot take effect, projector {name} does not use superpixels; remove it"
            )


def _check_split(resolved: dict[str, Any], arm: YamlNode, problems: list[str]) -> None:
    """The data must have a split for training, and a different one for evaluation."""
    settings = resolved["data"]
    config = data_config(settings)
    split, allowed = resolved["evaluation"].split, [name for name in config.splits if name != TRAIN]
    if TRAIN not in config.splits:
        node = arm.get("data") or arm
        problems.append(
            f"{node.location}: {settings['name']} has no split {TRAIN!r}, which training requires; add it to the data"
        )
    if split not in allowed:
        node = (arm.get("evaluation") or arm).get("split") or arm.get("data") or arm
        problems.append(
            f"{node.location}: {settings['name']} has no split {split!r} for evaluation; {suggest(split, allowed)}"
        )


def _check_location_loss(resolved: dict[str, Any], arm: YamlNode, problems: list[str]) -> None:
    """With point prompts, the location loss is the only loss that trains the predicted points of an LLM."""
    is_trained = resolved["llm"].name != LINEAR
    if is_trained and resolved["mask_decoder"].prompt == "points" and not resolved["training"].location_loss:
        node = (arm.get("training") or arm).get("location_loss") or arm.get("training") or arm
        problems.append(
            f"{node.location}: mask_decoder.prompt: points requires the location loss; "
            "set training.location_loss to a positive weight such as 1.0"
        )


def _check_curriculum(resolved: dict[str, Any], arm: YamlNode, problems: list[str]) -> None:
    """The families of a curriculum must exist in the data, if its configuration lists them."""
    curriculum = resolved["training"].curriculum
    families = None if curriculum is None else getattr(data_config(resolved["data"]), "families", None)
    if curriculum is None or families is None:
        return
    location = location_of(("training", "curriculum", "families"), arm)
    for family in curriculum.families:
        if family not in families:
            name = resolved["data"]["name"]
            problems.append(f"{location}: {name} has no family {shorten(family)!r}; {suggest(family, families)}")


def _check_devices(resolved: dict[str, Any], arm: YamlNode, problems: list[str]) -> None:
    """Each device needs an image of every step."""
    training = resolved["training"]
    if training.devices > training.batch_images:
        problems.append(
            f"{location_of(('training', 'devices'), arm)}: found {training.devices}, but a step has only "
            f"{training.batch_images} images; set training.batch_images to at least {training.devices}, or use fewer "
            "devices"
        )


def _check_linear_reader(resolved: dict[str, Any], arm: YamlNode, problems: list[str]) -> None:
    """The linear reader is fitted from zero on one device, and trains no mask decoder."""
    if resolved["llm"].name != LINEAR:
        return
    mask_decoder = resolved["mask_decoder"]
    if resolved["init_from"] is not None:
        location = (arm.get("init_from") or arm).location
        problems.append(f"{location}: init_from cannot take effect on llm {LINEAR!r}; set init_from: null in its arm")
    if mask_decoder.prompt != "points" and mask_decoder.model_dump() != MaskDecoderConfig().model_dump():
        location = (arm.get("mask_decoder") or arm).location
        problems.append(
            f"{location}: llm {LINEAR!r} trains no mask decoder; use {{name: scratch}} without sizes, which draws the "
            "regions of tokens, or a SAM with prompt: points"
        )
    if resolved["training"].devices > 1:
        location = location_of(("training", "devices"), arm)
        problems.append(f"{location}: llm {LINEAR!r} is fitted on one device; use 1")


def data_config(settings: dict[str, Any]) -> Any:
    """The configuration of a resolved section `data`."""
    return _data_config(settings["name"], json.dumps(settings))


@lru_cache(maxsize=256)
def _data_config(name: str, settings: str) -> Any:
    return data.get(name).Config.model_validate_json(settings)


def projector_inputs(projector: dict[str, Any]) -> frozenset[str] | None:
    """The inputs that a projector requires besides patches; None if that depends on the vision encoder.

    Required inputs may depend on names and switches in the settings, so the projector is built with the reference
    dimensions and without initial weights. Numbers are left at their defaults, which are valid for these dimensions.
    """
    settings = {key: value for key, value in projector.items() if key != "name"}
    return _required_inputs(projector["name"], json.dumps(_without_numbers(settings), sort_keys=True))


def _without_numbers(settings: Any) -> Any:
    """Settings without numbers and lists."""
    is_number = {key: isinstance(value, int | float) and not isinstance(value, bool) for key, value in settings.items()}
    return {
        key: _without_numbers(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if not is_number[key] and not isinstance(value, list)
    }


@lru_cache(maxsize=256)
def _required_inputs(name: str, settings: str) -> frozenset[str] | None:
    projector = projectors.get(name)
    config = projector.Config.model_validate_json(settings)
    try:
        with uninitialized():
            return projector(config, REFERENCE_DIMS).required_inputs
    except IncompatibleError:
        return None
