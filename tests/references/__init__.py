"""A naive reference for each projector, one file of the projector's name each.

A file gives:
    VARIANTS: settings to test under `tests.projector_cases.DIMS`.
    PARAMETERS: pairs of settings and the count of parameters at LLaVA's size, as measured in the official classes.
    WITHOUT_GRADIENT: how the names of those end that never learn: the bias of a release's keys adds as much to each
        score, which the softmax takes away again.
    reference(projector, batch, image): the valid tokens of one image, by plain loops that share no code with ours.
    flops(projector, batch): of a batch of one image without padding, by hand.
    official_shapes(projector), official_forward(state, batch): where weights were published, their names and shapes and
        what the authors' module makes of images without padding, (B, T, D).
    unpublished(projector): what the release has not, and the official output is put through; most have nothing.
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
