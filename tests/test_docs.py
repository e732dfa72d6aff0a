"""The code, studies and links of the README and of docs/ work."""

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data.scenes import Config as ScenesConfig
from harness.data.scenes import load as load_scenes
from harness.study.study import Study
from projectors import REFERENCE_DIMS, ProjectorError, VisualFeatures, register

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.fixture
def import_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports the first Python block of a page under the name of the file that the page tells to save it as."""

    def load_page(page: str) -> ModuleType:
        text = (ROOT / page).read_text()
        name = re.search(r"[Ss]ave this as\s`[\w/]+/(\w+)\.py`", text)[1]
        path = tmp_path / f"{name}.py"
        path.write_text(re.search(r"```python\n(.+?)```", text, re.DOTALL)[1])
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load_page


def test_the_projector_registers_and_turns_patches_into_tokens(import_page):
    kind = import_page("README.md").Strided
    with pytest.raises(ProjectorError, match="registers two projectors, Strided and Other"):
        register(type("Other", (kind,), {"__module__": "strided"}))
    dims = REFERENCE_DIMS
    patches = torch.randn(2, dims.num_patches, dims.vision)
    patch_mask = torch.ones(2, dims.num_patches, dtype=torch.bool)
    projector = kind(kind.Config(), dims)
    tokens = projector(VisualFeatures(patches, patch_mask))
    assert tokens.embeds.shape == (2, projector.max_tokens, dims.language)
    assert tokens.mask.all()


def test_the_superpixel_source_partitions_an_image(import_page):
    source = import_page("docs/add_superpixel_source.md")
    (example,) = load_scenes(ScenesConfig(test_images=1), "test")
    labels = source.segment(source.Config(count=24), example)
    assert labels.shape == example.image.shape[:2]
    assert labels.dtype == np.int16
    assert 4 < labels.max() + 1 <= 24
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))


def test_the_dataset_loads_an_example(import_page, tmp_path):
    dataset = import_page("docs/add_dataset.md")
    image, mask = np.full((20, 30, 3), 90, np.uint8), np.zeros((20, 30), np.uint8)
    mask[5:10, 5:20] = 255
    Image.fromarray(image).save(tmp_path / "0001.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    line = {"image": "0001.png", "mask": "mask.png", "expression": "The dog"}
    (tmp_path / "train.jsonl").write_text(json.dumps(line) + "\n")
    (example,) = dataset.load(dataset.Config(root=tmp_path), "train")
    assert np.array_equal(example.image, image)
    assert example.expressions[0].text == "the dog"
    assert np.array_equal(example.mask(example.expressions[0]), mask > 0)


@pytest.mark.parametrize(("page", "number"), [("README.md", 18), ("docs/concepts.md", 18)])
def test_the_study_of_a_page_is_valid(page, number, tmp_path):
    shutil.copytree(ROOT / "studies" / "presets", tmp_path / "presets")
    path = tmp_path / "study.yaml"
    path.write_text(re.search(r"```yaml\n(question.+?)```", (ROOT / page).read_text(), re.DOTALL)[1])
    assert len(Study.from_yaml(path).cells()) == number


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page):
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_pages_name_exist(page):
    named = re.findall(r"`((?:studies|examples|harness|benchmarks)/[\w/.-]+)`", page.read_text())
    examples = {
        "studies/strided.yaml",
        "harness/superpixels/methods/quickshift.py",
        "harness/data/datasets/png_masks.py",
    }
    assert [path for path in named if path not in examples and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_pages_name_modules_and_options_that_exist(page):
    text = page.read_text()
    for module in re.findall(r"python -m ((?:harness|benchmarks)[\w.]*)", text):
        assert importlib.util.find_spec(module) is not None, module
    options = {*re.findall(r"(?:harness\.run|\.\.\.)[^`\n|]* (--[\w-]+)", text)}
    known = {*re.findall(r'"(--[\w-]+)"', (ROOT / "harness" / "run.py").read_text())}
    assert options <= known
