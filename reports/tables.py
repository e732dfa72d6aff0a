"""A table and its renderings as Markdown, LaTeX (booktabs, best in bold) and CSV; the page template renders HTML."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from reports.numbers import DASH, MINUS, is_missing

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "\n": " ", DASH: "--", MINUS: "$-$", "Δ": r"$\Delta$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """The text of a cell, its number and interval; `note` is shown in small print, such as the interval."""

    text: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""
    is_best: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A column: `key` is its name in CSV, `label` includes the unit, `higher_is_better` decides which cell is bold."""

    key: str
    label: str
    higher_is_better: bool | None = None
    is_text: bool = False

    @property
    def heading(self) -> str:
        """The label with an arrow in the better direction."""
        arrow = {True: " ↑", False: " ↓", None: ""}[self.higher_is_better]
        return f"{self.label}{arrow}"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under columns."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """A pipe table; best in bold."""
        rows = [[_markdown(cell) for cell in row] for row in self.rows]
        align = ["left" if column.is_text else "right" for column in self.columns]
        headings = [_markdown_text(column.heading) for column in self.columns]
        return tabulate(rows, headings, "pipe", disable_numparse=True, colalign=align)

    def latex(self) -> str:
        """A booktabs table; best in bold."""
        texts = pd.DataFrame([[_latex(cell) for cell in row] for row in self.rows])
        bold = [["bfseries: ;" if cell.is_best else "" for cell in row] for row in self.rows]
        # relabel_index takes format strings, in which braces are doubled.
        headings = [_escape(column.heading).replace("{", "{{").replace("}", "}}") for column in self.columns]
        styler = texts.style.hide(axis="index").relabel_index(headings, axis="columns")
        if bold:
            styler = styler.apply(lambda frame: pd.DataFrame(bold, frame.index, frame.columns), axis=None)
        return styler.to_latex(
            hrules=True,
            column_format="".join("l" if column.is_text else "r" for column in self.columns),
            caption=_escape(self.caption),
            label=f"tab:{self.name}",
            position_float="centering",
        )

    def csv(self) -> str:
        """`frame` as text."""
        return self.frame().to_csv(index=False, lineterminator="\n")

    def frame(self) -> pd.DataFrame:
        """The unrounded numbers; intervals have their own columns."""
        columns: dict[str, list[object]] = {}
        for index, column in enumerate(self.columns):
            cells = [row[index] for row in self.rows]
            columns[column.key] = [cell.text if column.is_text else cell.value for cell in cells]
            if any(cell.low is not None for cell in cells):
                columns[f"{column.key}_low"] = [cell.low for cell in cells]
                columns[f"{column.key}_high"] = [cell.high for cell in cells]
        return pd.DataFrame(columns)

    def write(self, folder: Path) -> None:
        """NAME.md, NAME.tex and NAME.csv."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.md").write_text(f"{self.markdown()}\n\n{self.caption}\n")
        (folder / f"{self.name}.tex").write_text(self.latex())
        (folder / f"{self.name}.csv").write_text(self.csv())


def mark_best(columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> tuple[tuple[Cell, ...], ...]:
    """The same rows, with the best cell and cells of equal text marked in every column that has a direction."""
    marked = [list(row) for row in rows]
    for index, column in enumerate(columns):
        values = [row[index].value for row in marked]
        known = [value for value in values if value is not None and not is_missing(value)]
        if column.higher_is_better is None or len(known) < 2:
            continue
        choose: Callable[[list[float]], float] = max if column.higher_is_better else min
        best = next(row[index].text for row in marked if row[index].value == choose(known))
        for row in marked:
            row[index] = replace(row[index], is_best=row[index].text == best)
    return tuple(tuple(row) for row in marked)


def _markdown(cell: Cell) -> str:
    text = _markdown_text(cell.text)
    text = f"**{text}**" if cell.is_best else text
    return f"{text} {cell.note}".rstrip()


def _markdown_text(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _latex(cell: Cell) -> str:
    note = f" {{\\scriptsize {_escape(cell.note)}}}" if cell.note else ""
    return _escape(cell.text) + note


def _escape(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
