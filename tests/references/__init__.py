"""A naive reference for each projector, in a module of the projector's name.

A module defines:
    VARIANTS: settings to test under `tests.projector_cases.DIMS`.
    PARAMETERS: pairs of settings and number of parameters at LLaVA's size, as measured in the official classes.
    WITHOUT_GRADIENT: suffixes of parameters without a gradient: the bias of keys cancels in the softmax.
    reference(projector, batch, image): the valid tokens of one image, by plain loops that share no code with ours.
    flops(projector, batch): FLOPs of a batch of one image without padding, by a formula.
    official_shapes(projector), official_forward(state, batch): if weights were published, their names and shapes, and
        the output of the authors' module for images without padding, (B, T, D).
    unpublished(projector): parameters that the release lacks and that are applied to the official output; optional.
    OTHER_MODULES: names of other modules' weights in the authors' whole checkpoints.
"""

import pkgutil
from importlib import import_module
from types import ModuleType
from typing import Any

import projectors

REFERENCES: dict[str, ModuleType] = {
    module.name: import_module(f"tests.references.{module.name}")
    for module in pkgutil.iter_modules(__path__)
    if module.name != "plain"
}
# A projector that nobody listed, as one of an installed package, is tested with its defaults.
CASES: list[tuple[str, dict[str, Any]]] = [
    (name, settings)
    for name in projectors.names()
    for settings in (REFERENCES[name].VARIANTS if name in REFERENCES else [{}])
]
IDS = [f"{name}-{index}" for index, (name, _) in enumerate(CASES)]
