"""Fingerprints depend only on the code of a module and of its imports within its package."""

import pytest

from harness.system import fingerprint as module
from harness.system.fingerprint import fingerprint

FILES = {
    "__init__.py": "",
    "width.py": "WIDTH = 3\n",
    "unused.py": "OTHER = 1\n",
    "lazy.py": "DEPTH = 2\n",
    "typed.py": "class Kind: ...\n",
    "projector.py": '''
"""Says what it is."""
import os
from typing import TYPE_CHECKING
from .width import WIDTH
if TYPE_CHECKING:
    from pack.typed import Kind

def build():
    """Builds."""
    from pack import lazy
    return WIDTH * lazy.DEPTH  # a product
''',
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a package, some of its files changed; returns the fingerprint of its projector."""
    monkeypatch.syspath_prepend(str(tmp_path))
    place = tmp_path / "pack"
    place.mkdir()

    def fingerprint_with(**changed):
        for name, text in {**FILES, **{f"{stem}.py": text for stem, text in changed.items()}}.items():
            (place / name).write_text(text)
        for cached in (module.fingerprint, module._imported, module._source, module._tree):
            cached.cache_clear()
        return fingerprint("pack.projector")

    return fingerprint_with


def test_code_changes_a_fingerprint(package):
    before = package()
    assert package(projector=FILES["projector.py"].replace("WIDTH * ", "WIDTH + ")) != before
    assert package() == before


@pytest.mark.parametrize("imported", ["width", "lazy"])
def test_imported_code_of_the_package_changes_a_fingerprint(package, imported):
    before = package()
    assert package(**{imported: FILES[f"{imported}.py"].replace("= ", "= 1")}) != before


@pytest.mark.parametrize("other", ["unused", "typed"])
def test_code_that_is_not_imported_does_not_change_a_fingerprint(package, other):
    before = package()
    assert package(**{other: FILES[f"{other}.py"] + "MORE = 1\n"}) == before


def test_comments_docstrings_and_formatting_do_not_change_a_fingerprint(package):
    text = FILES["projector.py"]
    edited = text.replace("# a product", "# another comment").replace("Says what it is.", "Says it again.")
    edited = (
        edited.replace('"""Builds."""', '"""Builds it."""')
        .replace("WIDTH * lazy", "(WIDTH  *  lazy")
        .replace("DEPTH ", "DEPTH) ")
    )
    before = package()
    assert package(projector=edited) == before


def test_a_projector_depends_on_its_own_modules_only():
    closure = module._closure(("projectors.svp.svp",))
    assert {"projectors.svp.sspe", "projectors.svp.ssa", "projectors.layers"} <= closure
    assert not {"projectors.mlp", "projectors.qformer"} & closure
    assert not any(name.startswith("harness") for name in closure)


def test_a_superpixel_source_depends_on_the_modules_it_computes_with():
    methods = "harness.superpixels.methods"
    slic, sam = (module._closure((f"{methods}.{name}",)) for name in ("slic", "sam"))
    assert "harness.superpixels.partition" in slic
    assert "harness.model.mask_decoder.decoder" not in slic
    assert {"harness.superpixels.filter", "harness.model.mask_decoder.decoder"} <= sam


def test_only_modules_that_exist_are_declared_as_infrastructure():
    declared = [f"harness.{name}" for name in (*module._INFRASTRUCTURE, *module._NUMERIC)]
    assert [name for name in declared if module._source(name) is None] == []
