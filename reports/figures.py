"""The figures of a report: quality against cost, families, parameter importance, a grid's heatmap, training curves."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from harness.results.labels import short_names
from reports.findings import Findings
from reports.frontier import COSTS, budgets, quality_against, quality_by_budget
from reports.numbers import is_missing
from reports.style import Draw, render, styles


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure that was drawn: its file's stem, its caption, and it as PNG on light and on dark paper."""

    name: str
    caption: str
    light: bytes
    dark: bytes


def draw_all(findings: Findings, folder: Path) -> list[Drawing]:
    """Every figure that the data can fill, as PNG and PDF in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings = []
    for name, caption, draw in _figures(findings):
        drawings.append(Drawing(name, caption, *render(draw, findings, folder / name)))
    return drawings


def _figures(findings: Findings) -> Iterator[tuple[str, str, Draw]]:
    if not findings.variants:
        return
    has_budgets = len(budgets(findings)) > 1
    for cost, label in COSTS.items():
        if cost == "tokens" and has_budgets:
            continue
        if any(not is_missing(variant.means.get(cost)) for variant in findings.variants):
            caption = (
                f"{findings.label} against {label}. Bars are 95% intervals; what would hide another is set "
                "beside it; the dashed line joins the Pareto front, whose arms are in bold."
            )
            yield f"{findings.metric}_{cost}", caption, lambda found, cost=cost: quality_against(found, cost)  # type: ignore[misc]
    if has_budgets:
        caption = (
            f"{findings.label} by visual tokens, a line for each arm that was run at several budgets; bands and bars "
            "are 95%."
        )
        yield "budget", caption, quality_by_budget
    if findings.families:
        caption = f"{findings.label} by family with 95% intervals; the dotted line is the baseline."
        yield "families", caption, families
    if findings.importance:
        method = findings.importance.get("method", "Optuna")
        yield "importance", f"Share of each searched parameter in the outcome, by {method}.", importance
    if searched_grid(findings) is not None:
        yield "grid", f"{findings.label} over the two searched parameters, means over seeds.", grid
    if findings.done["curve"].notna().any():
        caption = "Training loss and its parts; a line is the mean over seeds, its band their range."
        yield "training", caption, training


def families(findings: Findings) -> Figure:
    """One panel a family, one bar a variant."""
    names = findings.families
    num_columns = min(4, len(names))
    num_rows = -(-len(names) // num_columns)
    height = 0.6 + num_rows * (0.62 + 0.27 * len(findings.variants))
    figure = Figure(figsize=(10, height), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False).ravel()
    positions = np.arange(len(findings.variants))
    for axes, family in zip(panels, names, strict=False):
        estimates = [
            findings.score_table.estimate(variant.name, findings.metric, family) for variant in findings.variants
        ]
        values = np.array([estimate.value for estimate in estimates])
        errors = np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T.clip(min=0)
        colors = [style.color for style in styles(findings)]
        ink = mpl.rcParams["text.color"]
        axes.barh(
            positions, values, color=colors, height=0.72, xerr=errors, error_kw={"ecolor": ink, "elinewidth": 1.1}
        )
        if findings.baseline is not None:
            baseline = [variant.name for variant in findings.variants].index(findings.baseline)
            axes.axvline(values[baseline], ls=":", lw=1.1, color=ink)
        axes.set_title(f"{family}  (n = {max(estimate.num_expressions for estimate in estimates)})", fontsize=11)
        axes.set_yticks(positions, [variant.name for variant in findings.variants])
        axes.grid(axis="y", visible=False)
    for place, axes in enumerate(panels):
        is_lowest = len(names) - num_columns <= place < len(names)
        axes.tick_params(labelbottom=is_lowest)
        axes.set_visible(place < len(names))
    panels[0].invert_yaxis()
    panels[0].set_xlim(0, None)
    figure.supxlabel(findings.label, fontsize=11)
    figure.get_layout_engine().set(hspace=0.08)  # type: ignore[union-attr, call-arg]
    return figure


def importance(findings: Findings) -> Figure:
    """Bars of each searched parameter's share, a panel an objective."""
    shares = (findings.importance or {})["importance"]
    num_parameters = max(len(values) for values in shares.values())
    figure = Figure(figsize=(9, 0.9 + 0.45 * num_parameters), layout="constrained")
    for axes, (objective, values) in zip(
        figure.subplots(1, len(shares), squeeze=False)[0], shares.items(), strict=True
    ):
        ordered = sorted(values.items(), key=lambda item: item[1])
        names = short_names(values)
        bars = axes.barh([names[path] for path, _ in ordered], [share for _, share in ordered], height=0.6)
        axes.bar_label(bars, [f"{share:.0%}" for _, share in ordered], padding=4, fontsize=10)
        axes.set_xlim(0, 1.15)
        axes.set_title(objective, fontsize=11)
        axes.grid(axis="y", visible=False)
    return figure


def searched_grid(findings: Findings) -> pd.DataFrame | None:
    """Mean score over the two parameters of a search, rows x columns; None unless exactly two were searched."""
    done = findings.done
    points = [json.loads(point or "{}") for point in done["point"]]
    scored = [{**point, "score": score} for point, score in zip(points, done[findings.metric], strict=True) if point]
    paths = sorted({path for point in points for path in point})
    if len(paths) != 2 or any(isinstance(value, dict | list) for point in points for value in point.values()):
        return None
    table = pd.DataFrame(scored).astype({"score": float})
    return table.pivot_table(index=paths[0], columns=paths[1], values="score", aggfunc="mean")


def grid(findings: Findings) -> Figure:
    """The searched grid as a heatmap with its values written in."""
    table = searched_grid(findings)
    assert table is not None
    figure = Figure(figsize=(2.6 + 1.3 * table.shape[1], 1.4 + 0.8 * table.shape[0]), layout="constrained")
    axes = figure.add_subplot()
    sns.heatmap(table, annot=True, fmt=".3f", cmap="cividis", ax=axes, cbar_kws={"label": findings.label}, linewidths=1)
    names = short_names([str(table.index.name), str(table.columns.name)])
    axes.set_xlabel(names[str(table.columns.name)])
    axes.set_ylabel(names[str(table.index.name)])
    axes.invert_yaxis()
    axes.tick_params(axis="y", rotation=0)
    return figure


def training(findings: Findings) -> Figure:
    """Training curves, a panel each part of the loss that any cell has."""
    curves = {variant.name: _curve(findings, variant.name) for variant in findings.variants}
    every = pd.concat(curves.values()).drop(columns=["step", "seed"])
    parts = [part for part in every.columns if every[part].any()]
    figure = Figure(figsize=(10, 3.1 if len(parts) <= 4 else 5.6), layout="constrained")
    panels = figure.subplots(-(-len(parts) // 4), min(4, len(parts)), squeeze=False, sharex=True).ravel()
    for axes, part in zip(panels, parts, strict=False):
        for (name, curve), style in zip(curves.items(), styles(findings), strict=True):
            if part not in curve:
                continue
            by_step = curve.groupby("step")[part]
            mean = by_step.mean()
            axes.plot(mean.index, mean, lw=1.5, color=style.color, label=name)
            axes.fill_between(mean.index, by_step.min(), by_step.max(), color=style.color, alpha=0.15, lw=0)
        axes.set_title(part, fontsize=11)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
    for axes in panels[len(parts) :]:
        axes.remove()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=10)
    return figure


def _curve(findings: Findings, variant: str) -> pd.DataFrame:
    """The losses of a variant's cells by step and seed; without rows where none kept its curve."""
    cells = findings.cells(variant).dropna(subset="curve")
    curves = [
        pd.DataFrame(json.loads(curve)).assign(seed=seed)
        for curve, seed in zip(cells["curve"], cells["seed"], strict=True)
    ]
    return pd.concat(curves) if curves else pd.DataFrame()
