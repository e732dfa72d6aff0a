"""A result table in, files out: tables, figures, a gallery, and a page that answers the study's question."""

from reports.page import build

__all__ = ["build"]
