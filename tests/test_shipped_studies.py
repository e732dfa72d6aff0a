"""Every kind of arm in `studies/` passes all stages of a cell, in both precisions, on tiny data.

What cannot be had or is too large here is replaced by something of the same kind: official datasets by scenes, vision
encoders and pretrained LLMs by small random ones of their families, Meta's SAMs by sam-scenes.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from harness import data, superpixels
from harness.assembly import assembly
from harness.cache.encodings import frozen_sam
from harness.execution.preflight import preflight
from harness.model.config import LLMConfig, MaskDecoderConfig, VisionConfig
from harness.study.study import Cell, Study
from tests import checkpoints

STUDIES = sorted((Path(__file__).parent.parent / "studies").glob("*.yaml"))
SCENES = {"train_images": 2, "validation_images": 1, "test_images": 2, "expressions_per_image": 4}
PRECISIONS = ("float32", "bfloat16")


def kind(cell: Cell) -> tuple[str, ...]:
    """Arms of different kinds run different code: projector, superpixel source, mask decoder, LLM, queries."""
    spec = cell.spec
    projector = spec.projector
    parts = (projector.get(part) for part in ("position", "aggregation"))
    names = [str(part["name"] if isinstance(part, dict) else part) for part in parts if part is not None]
    superpixels = spec.superpixels or {"name": "none"}
    source = f"{superpixels['name']}-adaptive" if superpixels.get("granularity") == "adaptive" else superpixels["name"]
    llm = spec.llm.name if spec.llm.name in ("tiny", "linear") else "pretrained"
    mask_decoder = "scratch" if spec.mask_decoder.name == "scratch" else f"sam-{spec.mask_decoder.prompt}"
    return (projector["name"], *names, source, mask_decoder, llm, *spec.data.get("asks", ()))


def kinds() -> dict[tuple[str, ...], tuple[Path, str]]:
    """Each kind once, with the study and the cell of that kind."""
    found: dict[tuple[str, ...], tuple[Path, str]] = {}
    for path in STUDIES:
        for cell in Study.from_yaml(path).cells():
            found.setdefault(kind(cell), (path, cell.id))
    return found


KINDS = kinds()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Small random checkpoints, and one cache for all arms."""
    folder = tmp_path_factory.mktemp("shipped")
    checkpoints.write_encoder("dinov2", folder / "dinov2")
    checkpoints.write_llm("llama", folder / "llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVP_HARNESS_CACHE", str(folder / "cache"))
        for loaded in (assembly.vision_encoder, frozen_sam):
            loaded.cache_clear()
        yield folder
    for loaded in (assembly.vision_encoder, frozen_sam):
        loaded.cache_clear()


def shrunk(cell: Cell, place: Path) -> Cell:
    """The cell with small components of the same kinds."""
    spec = cell.spec
    scenes = {**_scenes(), **({"asks": spec.data["asks"]} if "asks" in spec.data else {})}
    fitting = {"layers": [1, 2], "heads": 4}
    changed = {
        "data": scenes,
        "vision_encoder": VisionConfig(name=str(place / "dinov2"), frame=spec.vision_encoder.frame),
        "evaluation": spec.evaluation.model_copy(update={"split": "test"}),
        "projector": {name: fitting.get(name, value) for name, value in spec.projector.items()},
        "training": spec.training,
    }
    if spec.llm.name not in ("tiny", "linear"):
        lora = None if spec.llm.lora is None else spec.llm.lora.model_copy(update={"rank": 2})
        changed["llm"] = LLMConfig.model_validate(
            {**spec.llm.model_dump(), "name": str(place / "llama"), "layers": None, "lora": lora and lora.model_dump()}
        )
        changed["init_from"] = None
    if spec.mask_decoder.name != "scratch":
        changed["mask_decoder"] = MaskDecoderConfig.model_validate(
            {**spec.mask_decoder.model_dump(), "name": "sam-scenes"}
        )
    if spec.superpixels is not None and "model" in spec.superpixels:
        changed["superpixels"] = _sam_scenes(spec.superpixels)
    return _with(cell, changed)


def _scenes() -> dict[str, object]:
    return {"name": "scenes", **data.get("scenes").Config(**SCENES).model_dump(mode="json", exclude={"name"})}


def _sam_scenes(settings: dict[str, object]) -> dict[str, object]:
    config = superpixels.get("sam").Config(granularity=settings["granularity"])
    return {"name": "sam", **config.model_dump(mode="json")}


def _with(cell: Cell, changed: dict[str, object]) -> Cell:
    return replace(cell, spec=cell.spec.model_copy(update=changed))


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("key", KINDS, ids="-".join)
def test_an_arm_of_a_shipped_study_passes_the_preflight(place, key, precision):
    path, cell_id = KINDS[key]
    cell = shrunk(next(each for each in Study.from_yaml(path).cells() if each.id == cell_id), place)
    training = cell.spec.training.model_copy(update={"precision": precision})
    lines: list[str] = []
    assert preflight([_with(cell, {"training": training})], lines.append) == []
    assert all(" passed " in line for line in lines), "none is skipped"
