"""Sphinx directive `generated`: inserts Markdown that is made from the code while the documentation is built."""

from collections.abc import Callable

import metric_table
import projector_catalogue
import settings_reference
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

CONTENT: dict[str, Callable[[], str]] = {
    **settings_reference.CONTENT,
    **projector_catalogue.CONTENT,
    **metric_table.CONTENT,
}
"""Argument of the directive -> the Markdown that takes its place."""


class Generated(SphinxDirective):
    """`{generated} NAME` with a name in `CONTENT`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The parsed Markdown; headings become subsections of the page."""
        name = self.arguments[0]
        if name not in CONTENT:
            raise ExtensionError(f"no generated content {name!r}; known: {', '.join(CONTENT)}")
        return self.parse_text_to_nodes(CONTENT[name](), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive."""
    app.add_directive("generated", Generated)
    return {"parallel_read_safe": True}
