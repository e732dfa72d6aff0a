"""Reports: tables, figures, a gallery and a page that answers a study's question, made from its result tables."""

from reports.page import build

__all__ = ["build"]
