"""A run's report: one self-contained HTML page, the same report in Markdown, and every table and figure as a file."""

import base64
import json
from pathlib import Path
from typing import Any

import jinja2

from reports.caveats import caveats
from reports.figures import Drawing, draw_all
from reports.findings import Findings, load
from reports.gallery import gallery_items
from reports.narrative import answers, finding_sentences
from reports.numbers import DASH
from reports.result_tables import all_tables

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=jinja2.select_autoescape(["html.j2"]),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def build(run_folder: Path) -> Path:
    """Write a run's report from its tables alone and return the page, RUN/report/index.html.

    Raises:
        DataError: the folder holds no result table.
    """
    findings = load(run_folder)
    report = run_folder / "report"
    tables = all_tables(findings)
    for table in tables:
        table.write(report / "tables")
    drawings = draw_all(findings, report / "figures")
    content = {
        "study": run_folder.name,
        "question": findings.study.get("question") or run_folder.name,
        "answers": answers(findings),
        "judgements": [(judgement, finding_sentences(judgement)) for judgement in findings.judgements],
        "tables": {table.name: table for table in tables},
        "drawings": {drawing.name: drawing for drawing in drawings},
        "about_shown": findings.about_shown,
        "caveats": caveats(findings),
        "tracebacks": _tracebacks(findings),
        "provenance": _provenance(findings),
        "weights": _weights(findings),
    }
    page = _TEMPLATES.get_template("page.html.j2").render(
        content, pictures=_pictures(drawings), gallery_items=gallery_items(findings)
    )
    (report / "index.html").write_text(page, encoding="utf-8")
    (report / "report.md").write_text(_TEMPLATES.get_template("report.md.j2").render(content), encoding="utf-8")
    return report / "index.html"


def _pictures(drawings: list[Drawing]) -> dict[str, dict[str, str]]:
    return {drawing.name: {"light": _data_uri(drawing.light), "dark": _data_uri(drawing.dark)} for drawing in drawings}


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _tracebacks(findings: Findings) -> list[tuple[str, str]]:
    failed = findings.unfinished[findings.unfinished["status"] == "failed"]
    return [
        (f"{arm}, seed {seed:.0f}, cell {cell}", reason or DASH)
        for arm, seed, cell, reason in failed[["arm", "seed", "cell", "reason"]].to_numpy()
    ]


def _provenance(findings: Findings) -> list[tuple[str, str]]:
    """Pairs of a name and a value that document how to reproduce the numbers."""
    done = findings.done
    rows = done if len(done) else findings.results
    pairs: list[tuple[str, Any]] = [
        ("command", _unique(rows, "command")),
        ("date", _span(rows)),
        ("cells", f"{len(done)} finished of {len(findings.results)}"),
        ("seeds", ", ".join(f"{seed:.0f}" for seed in sorted(rows["seed"].unique()))),
        ("images scored", _unique(rows, "num_images")),
        ("samples scored", _unique(rows, "num_expressions")),
        ("images in the controls", _unique(rows, "num_control_images")),
        ("vision encoder", _unique(rows, "vision_encoder")),
        ("LLM", _unique(rows, "llm")),
        ("superpixels", _unique(rows, "superpixels")),
        *_flatten(findings.environment),
    ]
    return [(name, str(value)) for name, value in pairs if value not in (None, "")]


def _unique(rows: Any, column: str) -> str:
    values = rows[column].dropna().unique() if column in rows else []
    return ", ".join(f"{value:,.0f}" if isinstance(value, float) else str(value) for value in values)


def _span(rows: Any) -> str:
    days = sorted({str(started)[:10] for started in rows["started_at"].dropna()}) if "started_at" in rows else []
    return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else ""


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        pairs.extend(_flatten(value, f"{name}: ") if isinstance(value, dict) else [(name, value)])
    return pairs


def _weights(findings: Findings) -> list[dict[str, str]]:
    """Every weight file that a finished cell used, without duplicates."""
    texts = findings.done["weights"].dropna()
    known = {json.dumps(weight, sort_keys=True): weight for text in texts for weight in json.loads(text)}
    keys = ("name", "source", "revision", "sha256")
    return [{key: str(weight.get(key) or DASH) for key in keys} for weight in known.values()]
