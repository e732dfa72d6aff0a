"""Sphinx configuration: `sphinx-build -W --keep-going -n docs docs/_build/html`; needs no network and no GPU."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

project = "svp-harness"
author = "the svp-harness contributors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated_reference"]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", r".*")]
"""Types of other libraries have no inventory here, because the build fetches nothing."""

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist", "html_image"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "description"
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "svp-harness"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sphinx = False
html_show_copyright = False
