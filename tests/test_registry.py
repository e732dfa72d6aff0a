"""Projectors, superpixel sources and datasets are found by name, in this project and in installed packages."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.study.cell_spec import REGISTRIES
from projectors.registry import Registry

ROOT = Path(__file__).parent.parent
MODULES = {
    "projector": """\
'''Mean: one visual token per image.'''
from torch import nn
from projectors import Projector, ProjectorConfig, VisualTokens, register

@register
class Mean(Projector):
    class Config(ProjectorConfig):
        pass

    def __init__(self, config, dims):
        super().__init__(config, dims)
        self.project = nn.Linear(dims.vision, dims.language)

    @property
    def max_tokens(self):
        return 1

    @property
    def required_inputs(self):
        return frozenset({"superpixels"})

    def forward(self, features):
        return VisualTokens.dense(self.project(features.patches.mean(1, keepdim=True)))
""",
    "superpixels": """\
'''Halves: the upper and the lower half of an image.'''
import numpy as np
from harness.superpixels.source import SourceConfig

class Config(SourceConfig):
    pass

def segment(config, example):
    labels = np.zeros(example.size, np.int16)
    labels[example.size[0] // 2:] = 1
    return labels
""",
    "data": """\
'''Scenes under another name.'''
from typing import Literal
from harness.data import scenes

class Config(scenes.Config):
    name: Literal["{name}"] = "{name}"

def load(config, split):
    return scenes.load(config, split)
""",
}
"""A module that defines one component, by the section of a study that names the component."""
STUDY = """\
question: Do components of another package run?
base:
  data: {name: my_data, train_images: 4, test_images: 2}
  vision_encoder: {name: dinov2-small}
  llm: {name: tiny, width: 32, layers: 1, heads: 2}
  superpixels: {name: my_superpixels}
  projector: {name: my_projector}
  training: {steps: 2}
arms: {mean: {}}
seeds: [0]
objectives: {giou: maximize}
baseline: mean
"""
BUILT_IN = {"projector": "pooling", "superpixels": "slic", "data": "scenes"}

every_section = pytest.mark.parametrize("section", REGISTRIES)


def install(folder: Path, package: str, entries: dict[str, dict[str, str]], module: str) -> None:
    """An installed package with one module per entry point.

    Args:
        folder: on Python's path.
        entries: name -> module by the section of a study.
        module: the text of each module; `{name}` becomes the name of its file.
    """
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (folder / package).mkdir()
    (folder / package / "__init__.py").touch()
    lines = []
    for section, named in entries.items():
        lines += [f"[{REGISTRIES[section].group}]", *(f"{name} = {package}.{file}" for name, file in named.items())]
        for file in named.values():
            text = module or MODULES[section]
            (folder / package / f"{file}.py").write_text(text.replace("{name}", file))
    (metadata / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def registry_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Registry]:
    """Installs a package with one entry point, and returns a section's registry that has not listed its names yet."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def installed(section: str, name: str, file: str = "", module: str = "", suffix: str = "") -> Registry:
        # Python caches modules by name, so every test needs a package name of its own.
        install(tmp_path, tmp_path.name + suffix, {section: {name: file or name}}, module)
        return replace(REGISTRIES[section])

    return installed


@every_section
def test_the_files_of_the_folder_are_the_names(section):
    registry = REGISTRIES[section]
    folder = ROOT / registry.package.replace(".", "/")
    files = {path.stem for path in folder.iterdir() if path.name.endswith(".py") or (path / "__init__.py").exists()}
    assert files - {"__init__"} - registry.shared <= set(registry.names())
    assert not registry.shared & set(registry.names())


@every_section
def test_an_unknown_name_is_refused_with_near_matches(section):
    registry, name = REGISTRIES[section], BUILT_IN[section]
    with pytest.raises(registry.error, match=f"no {registry.kind} '{name[1:]}'; did you mean {name}"):
        registry.get(name[1:])
    with pytest.raises(registry.error, match=f"no {registry.kind} 'xyz'; known: .*{name}"):
        registry.get("xyz")


@every_section
def test_another_package_adds_a_component(section, registry_with):
    registry = registry_with(section, "added")
    assert registry.names() == sorted([*REGISTRIES[section].names(), "added"])
    assert registry.get("added").Config()


@every_section
def test_an_entry_point_with_a_built_in_name_is_refused(section, registry_with, tmp_path):
    registry, name = registry_with(section, BUILT_IN[section]), BUILT_IN[section]
    message = f"entry point '{name}' of the package {tmp_path.name} in {registry.group} has the name of another"
    with pytest.raises(registry.error, match=message):
        registry.names()
    with pytest.raises(registry.error, match=message):
        registry.get(name)


@every_section
def test_two_packages_with_one_name_are_refused(section, registry_with):
    registry_with(section, "added")
    registry = registry_with(section, "added", suffix="_again")
    with pytest.raises(registry.error, match=f"has the name of another {registry.kind}; rename"):
        registry.names()


@every_section
def test_an_entry_point_has_the_name_of_its_module(section, registry_with):
    registry = registry_with(section, "added", file="other")
    with pytest.raises(registry.error, match=r"names \w+\.other; the entry point must have the name of its module"):
        registry.names()


@every_section
def test_a_module_that_defines_nothing_is_refused(section, registry_with):
    registry = registry_with(section, "added", module="SIZE = 1")
    with pytest.raises(registry.error, match=rf"\.added defines no {registry.kind}; {registry.requirement}"):
        registry.get("added")


@every_section
@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:", "SyntaxError: invalid syntax"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
    ],
)
def test_a_broken_package_is_named_in_one_sentence(section, module, reason, registry_with, tmp_path):
    registry = registry_with(section, "added", module=module)
    assert "added" in registry.names()
    with pytest.raises(registry.error) as caught:
        registry.get("added")
    entry = f"the entry point 'added' of the package {tmp_path.name} in {registry.group} names {tmp_path.name}.added"
    assert str(caught.value).startswith(f"{entry}, which cannot be imported ({reason}")
    assert str(caught.value).endswith("); repair or uninstall that package")
    assert "\n" not in str(caught.value)
    assert registry.get(BUILT_IN[section])


def test_a_file_with_two_projectors_is_refused(registry_with):
    second = MODULES["projector"].partition("@register\n")[2].replace("Mean", "Second")
    registry = registry_with("projector", "added", module=f"{MODULES['projector']}\n@register\n{second}")
    with pytest.raises(registry.error, match=r"added\.py registers two projectors, Mean and Second; move one"):
        registry.get("added")


def test_names_are_listed_without_torch():
    code = (
        "import sys, projectors; from harness import data, superpixels; "
        "print(bool(projectors.names() and data.names() and superpixels.names()), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.slow
def test_a_study_runs_components_of_another_package(tmp_path):
    install(tmp_path, "my_package", {section: {f"my_{section}": f"my_{section}"} for section in REGISTRIES}, "")
    study = tmp_path / "study.yaml"
    study.write_text(STUDY)
    command = [sys.executable, "-m", "harness.run", str(study), "--check", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all configurations passed" in done.stdout
