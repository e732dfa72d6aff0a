"""Reports: golden tables, a self-contained page, and no number for a value that does not exist."""

import html
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import reports
from benchmarks import token_ceiling
from harness.errors import DataError
from reports.caveats import caveats
from reports.ceiling import by_superpixels
from reports.figures import draw_all, grid, training
from reports.findings import load
from reports.frontier import budgets
from reports.gallery import gallery_items
from reports.narrative import answers
from reports.numbers import DASH, count, fixed, p_value
from reports.result_tables import all_tables, main_table
from reports.tables import Cell, Column, Table, mark_best
from reports.unfinished import unfinished_table
from tests.report_tables import as_questions, at_budgets, tables, with_failures, write_run

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reported run with a failed and a skipped cell."""
    results, *both = at_budgets(*tables(), {0.5: {}})
    folder = write_run(tmp_path_factory.mktemp("runs") / "synthetic", with_failures(results), *both)
    reports.build(folder)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report" / "index.html").read_text()


class Resources(HTMLParser):
    """Collects the addresses that a page loads and the texts of its table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.cells: list[str] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded.extend(value or "" for key, value in attrs if key in ("src", "srcset", "href", "data"))
        self._in_cell = tag == "td" or (self._in_cell and tag in ("span", "small"))
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data


@pytest.mark.parametrize("suffix", ["md", "tex"])
def test_the_main_table_is_the_golden_one(run: Path, suffix: str):
    written = (run / "report" / "tables" / f"main.{suffix}").read_text()
    golden = GOLDEN / f"main.{suffix}"  # regenerate with UPDATE_GOLDEN=1
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(written)
    assert written == golden.read_text()


def test_every_table_and_figure_is_a_file(run: Path):
    report = run / "report"
    assert {path.suffix for path in (report / "tables").glob("main.*")} == {".md", ".tex", ".csv"}
    for name in ("giou_tokens", "giou_latency_ms", "families", "importance", "training"):
        assert (report / "figures" / f"{name}.png").stat().st_size > 5_000
        assert (report / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_loads_no_other_file(page: str):
    resources = Resources()
    resources.feed(page)
    assert len(resources.loaded) > 20
    assert [link for link in resources.loaded if not link.startswith(("data:", "#"))] == []
    assert re.findall(r"url\(|@import|https?://", page) == []


def test_missing_numbers_are_not_shown(page: str, run: Path):
    resources = Resources()
    resources.feed(page)
    assert len(resources.cells) > 100
    assert all(cell.strip() for cell in resources.cells)
    wrong = re.compile(r"\b(nan|none|inf|null)\b", re.IGNORECASE)
    shown = [cell for cell in resources.cells if wrong.search(cell)]
    assert shown == ["ValueError: NaN <loss> at 12"]
    assert not wrong.search((run / "report" / "tables" / "main.md").read_text())


def test_only_loss_terms_that_were_used_have_a_curve(run: Path):
    subplots = training(load(run)).axes
    # The location loss of these cells is 0.
    assert [axes.get_title() for axes in subplots] == ["loss", "answer", "bce", "dice"]


def test_the_page_has_every_sentence_and_the_provenance(run: Path, page: str):
    text, findings = html.unescape(re.sub(r"<[^>]+>", " ", page)), load(run)
    for words in (
        "How deep must the superpixel positional embedding be",
        *answers(findings),
        *caveats(findings),
        *(table.caption for table in all_tables(findings)),
        "python -m harness.run studies/synthetic.yaml",
        "ab" * 32,
        "2026-01-01 to 2026-01-03",
    ):
        assert words in text, words


def test_each_claim_has_its_verdict(page: str):
    assert re.findall(r'badge ([\w-]+)">', page) == ["supported", "refuted", "inconclusive"]


def test_a_traceback_is_escaped_and_complete(page: str):
    assert "NaN &lt;loss&gt; at 12" in page
    assert "<loss>" not in page


def test_markdown_links_stay_inside_the_report(run: Path):
    report = run / "report"
    links = re.findall(r"\]\(([^)]+)\)", (report / "report.md").read_text())
    assert len(links) > 10
    assert [link for link in links if not (report / link).exists()] == []


def test_the_same_tables_give_the_same_report(run: Path, tmp_path: Path):
    results, *both = at_budgets(*tables(), {0.5: {}})
    again = write_run(tmp_path / "synthetic", with_failures(results), *both)
    reports.build(again)
    for name in ("index.html", "report.md", "tables/main.tex", "tables/comparisons.csv"):
        assert (again / "report" / name).read_bytes() == (run / "report" / name).read_bytes(), name


def test_csv_holds_unrounded_numbers_and_intervals(run: Path):
    table = pd.read_csv(run / "report" / "tables" / "main.csv")
    assert {"giou", "giou_low", "giou_high", "ciou_low", "difference_high", "verdict"} <= set(table.columns)
    assert (table["giou"] != table["giou"].round(3)).all()


def test_gallery_follows_its_rules_and_shows_every_arm(run: Path):
    findings = load(run)
    shown = gallery_items(findings)
    assert [item.rule for item in shown][:2] == [
        "95% quantile of IoU of pooling",
        "75% quantile of IoU of pooling",
    ]
    assert sum(item.rule.startswith("largest gain") for item in shown) == 3
    assert [item.family for item in shown[-2:]] == ["absent", "absent"]
    names = [tile.title for tile in shown[0].tiles]
    assert names == ["target", "36 superpixels", *(variant.name for variant in findings.variants)]


def test_superpixels_of_several_arms_are_in_their_order_and_name_them(tmp_path: Path):
    results, samples = tables(num_images=4, num_seeds=1)
    fine, coarse = ({"count": count, "name": "felzenszwalb"} for count in (64, 4))
    used = {"no_position": fine, "bbox_mlp": coarse, "decoder_pe": fine}
    specs = [json.dumps({"superpixels": used.get(arm)}) for arm in results["arm"]]
    folder = write_run(tmp_path / "superpixels", results.assign(spec=specs), samples, num_gallery=1)
    [file] = (folder / "gallery").glob("*.felzenszwalb.png")
    file.unlink()
    # The names of the files are in another order than the arms.
    for key, settings, side in (("a", coarse, 2), ("b", fine, 8), ("c", {"name": "slic"}, 4)):
        rows, columns = np.indices((32, 32)) * side // 32
        text = PngInfo()
        text.add_text("Superpixels", json.dumps(settings, sort_keys=True))
        path = file.with_name(file.name.replace("felzenszwalb", key))
        Image.fromarray((rows * side + columns).astype(np.uint16)).save(path, pnginfo=text)
    tiles = gallery_items(load(folder))[0].tiles[1:4]
    assert [(tile.title, tile.score) for tile in tiles] == [
        ("64 superpixels", "no_position and decoder_pe"),
        ("4 superpixels", "bbox_mlp"),
        ("16 superpixels", ""),
    ]


def test_several_baselines_are_one_family_of_tests(tmp_path: Path):
    results, samples = tables(num_images=6, num_seeds=2)
    folder = write_run(tmp_path / "two", results, samples, num_gallery=0)
    study = folder / "study.resolved.yaml"
    study.write_text(study.read_text().replace("baseline: pooling", "baseline: [pooling, no_position]"))
    findings = load(folder)
    others = len(findings.variants) - 1
    assert findings.num_comparisons == 2 * others - 1, "each pair is one test, in either direction"
    pooling, none = (next(v for v in findings.variants if v.name == name) for name in ("pooling", "no_position"))
    forward, backward = none.against["pooling"], pooling.against["no_position"]
    assert forward.difference.delta == pytest.approx(-backward.difference.delta)
    assert forward.adjusted_p == backward.adjusted_p
    reports.build(folder)
    columns = pd.read_csv(folder / "report" / "tables" / "main.csv").columns
    assert {"difference_pooling", "difference_no_position", "verdict_no_position"} <= set(columns)
    assert (folder / "report" / "tables" / "comparisons_no_position.md").exists()


def test_gallery_importance_and_claims_are_optional(tmp_path: Path):
    results, samples = tables(num_images=6, num_seeds=1)
    folder = write_run(tmp_path / "bare", results, samples, num_gallery=0)
    (folder / "importance.json").unlink()
    (folder / "study.resolved.yaml").write_text("question: Is it?\nbaseline: missing\n")
    page = reports.build(folder).read_text()
    assert 'id="gallery"' not in page
    assert not (folder / "report" / "figures" / "importance.png").exists()


def test_an_arm_may_score_zero(tmp_path: Path):
    results, samples = tables(num_images=6, num_seeds=1)
    samples.loc[samples["arm"] == "pooling", "iou"] = 0.0
    results.loc[results["arm"] == "pooling", "giou"] = 0.0
    page = reports.build(write_run(tmp_path / "nothing", results, samples, num_gallery=0)).read_text()
    assert "No better than chance: pooling" in page


def test_a_run_without_finished_cells_reports_the_reasons(tmp_path: Path):
    results, samples = tables(num_images=4, num_seeds=1)
    failed = with_failures(results).iloc[-2:]
    page = reports.build(write_run(tmp_path / "failed", failed, samples.iloc[:0], num_gallery=0)).read_text()
    assert "No cell finished" in page
    assert "scale=5 does not divide" in page


def test_a_folder_without_results_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"found no results\.parquet in .*; run the study"):
        reports.build(tmp_path)


def test_two_searched_parameters_make_a_heatmap(tmp_path: Path):
    results, samples = tables(num_images=6, num_seeds=1)
    searched = results["arm"] == "sspe"
    points = [{"position.blocks": json.loads(point)["projector.position.blocks"], "position.queries": 4}
              for point in results.loc[searched, "point"]]  # fmt: skip
    results.loc[searched, "point"] = [json.dumps(point) for point in points]
    folder = write_run(tmp_path / "grid", results, samples, num_gallery=0)
    (axes, _) = grid(load(folder)).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("queries", "blocks")
    assert len(axes.texts) == 2


def test_only_equal_texts_share_the_best_mark():
    columns = (Column("arm", "arm", is_text=True), Column("x", "x", True), Column("y", "y", False))
    cells = [("a", 0.6001, 1.0), ("b", 0.6004, 2.0), ("c", float("nan"), 3.0)]
    rows = mark_best(columns, [(Cell(name), Cell(fixed(x), x), Cell(fixed(y), y)) for name, x, y in cells])
    assert [row[1].is_best for row in rows] == [True, True, False]
    assert [row[2].is_best for row in rows] == [True, False, False]


def test_latex_escapes_names():
    table = Table("t", "t", "50% & more", (Column("arm", "arm_name", is_text=True),), ((Cell("a_b <c>"),),))
    assert r"arm\_name" in table.latex()
    assert r"a\_b \textless{}c\textgreater{}" in table.latex()
    assert r"\caption{50\% \& more}" in table.latex()
    assert r"\toprule" in table.latex()


def test_latex_escapes_headings():
    for name, escaped in (
        ("{}", r"\{\}"),
        ("{0.x!r:>9}", r"\{0.x!r:\textgreater{}9\}"),
        (r"\%&_#$", r"\textbackslash{}\%\&\_\#\$"),
    ):
        table = Table("t", "t", "", (Column("arm", "arm"), Column("x", name)), ((Cell("a"), Cell("b")),))
        assert f"arm & {escaped} \\\\" in table.latex()


def test_markdown_cannot_be_broken_by_a_name():
    table = Table("t", "t", "", (Column("arm", "a|\nr<m", is_text=True),), ((Cell("a|b\nc"),),))
    assert "a\\|b c" in table.markdown()
    assert "a\\| r&lt;m" in table.markdown()
    assert table.markdown().count("\n") == 2


ODD = r"{odd} 50% & more_or_less #1 \alpha $x$ | <odd>"


def test_any_name_can_be_reported(tmp_path: Path):
    """Families come from the data, and search points may have any text."""
    results, samples = tables(num_images=6, num_seeds=2)
    renamed = {"pooling": f"a {ODD}", "bbox_mlp": f"b/{ODD}"}
    results, samples = (table.assign(arm=table["arm"].replace(renamed)) for table in (results, samples))
    samples["family"] = samples["family"].replace({"relation": ODD, "texture": "{}"})
    samples["domain"] = np.where(samples["image_id"].rank(method="dense") % 2 == 0, ODD, "studio")
    folder = write_run(tmp_path / "odd", results, samples, num_gallery=2)
    study = {"question": f"Is {ODD}?", "baseline": list(renamed.values()), "objectives": {"giou": "maximize"}}
    (folder / "study.resolved.yaml").write_text(json.dumps(study))
    page = reports.build(folder).read_text()
    assert html.escape(f"Comparison with a {ODD}") in page
    assert "<odd>" not in page
    written = sorted(path.name for path in (folder / "report" / "tables").glob("comparisons*.tex"))
    assert len(written) == 2, "one file per baseline, in the folder of tables"
    links = re.findall(r"\]\(([^)]+)\)", (folder / "report" / "report.md").read_text())
    assert [link for link in links if not (folder / "report" / link).exists()] == []
    for path in (folder / "report" / "tables").glob("*.tex"):
        plain = re.sub(r"\\textbackslash\{\}|\\text(less|greater)\{\}|\\[{}%&_#$]", "", path.read_text())
        assert not re.search(r"[#%]|alpha\{|\{odd", plain), path.name


def test_tables_hold_the_same_rows_in_every_rendering(run: Path):
    findings = load(run)
    for table in all_tables(findings):
        assert len(pd.read_csv(run / "report" / "tables" / f"{table.name}.csv")) == len(table.rows)
        assert table.markdown().count("\n") == len(table.rows) + 1
        assert table.latex().count(r"\\") >= len(table.rows) + 1
    assert len(unfinished_table(findings).rows) == 2
    assert len(main_table(findings).rows) == 6


@pytest.mark.parametrize(
    ("value", "text"),
    [(950, "950"), (999.6, "1.00k"), (12_345, "12.3k"), (180_000, "180k"), (1_250_000, "1.25M"), (41e9, "41.0G"),
     (0, "0"), (None, DASH), (float("nan"), DASH)],
)  # fmt: skip
def test_counts_have_three_digits_and_a_scale(value: float | None, text: str):
    assert count(value) == text


def test_missing_numbers_are_a_dash():
    assert [fixed(None), fixed(np.nan), p_value(np.nan), fixed(np.inf)] == [DASH] * 4
    assert [p_value(0.0001), p_value(0.0341), fixed(-0.05, signed=True)] == ["<0.001", "0.034", "\u22120.050"]


def test_several_domains_have_a_table(tmp_path: Path) -> None:
    results, samples = tables(num_images=12)
    assert "domains" not in {table.name for table in all_tables(load(write_run(tmp_path / "one", results, samples)))}
    samples["domain"] = np.where(samples["image_id"].rank(method="dense") % 2 == 0, "night", "studio")
    found = load(write_run(tmp_path / "two", results, samples))
    [table] = [table for table in all_tables(found) if table.name == "domains"]
    assert [column.key for column in table.columns] == ["arm", "night", "studio"]
    done = samples.merge(results[["cell", "status"]], on="cell")
    pooling = done[(done["arm"] == "pooling") & (done["domain"] == "night")]
    assert table.rows[0][1].value == pytest.approx(pooling.groupby("seed")["iou"].mean().mean())


def test_the_page_shows_every_table(tmp_path: Path) -> None:
    results, samples = tables(num_images=6, num_seeds=2)
    samples["domain"] = np.where(samples["image_id"].rank(method="dense") % 2 == 0, "night", "studio")
    folder = write_run(tmp_path / "domains", with_failures(results), samples, num_gallery=0)
    page = reports.build(folder).read_text()
    names = [table.name for table in all_tables(load(folder))]
    assert {"domains", "families", "comparisons", "unfinished"} <= set(names)
    assert [name for name in names if f'<section id="{name}">' not in page] == []
    assert page.index('id="families"') < page.index('id="domains"') < page.index('id="figures"')


def test_arms_with_several_budgets_have_a_figure(tmp_path: Path) -> None:
    results, samples = tables(num_images=12)
    assert not budgets(load(write_run(tmp_path / "one", results, samples)))
    runs = []
    for tokens in (4, 16, 64):
        renamed = results["cell"] + f"-{tokens}"
        runs.append(
            (
                results.assign(cell=renamed, point=f'{{"projector.tokens": {tokens}}}', tokens=float(tokens)),
                samples.assign(cell=samples["cell"] + f"-{tokens}"),
            )
        )
    kept = ("pooling", "decoder_pe")
    searched, scored = (pd.concat(frames) for frames in zip(*runs, strict=True))
    found = load(write_run(tmp_path / "two", searched[searched["arm"].isin(kept)], scored[scored["arm"].isin(kept)]))
    assert {arm: [each.means["tokens"] for each in variants] for arm, variants in budgets(found).items()} == {
        arm: [4.0, 16.0, 64.0] for arm in kept
    }
    assert "budget" in {drawing.name for drawing in draw_all(found, tmp_path)}


def test_a_study_of_questions_is_reported_without_masks(tmp_path: Path) -> None:
    results, samples = tables(num_images=12, num_seeds=1)
    results, answered = as_questions(results, samples)
    folder = write_run(tmp_path / "questions", results, samples)  # with pictures
    answered.to_parquet(folder / "samples.parquet")
    study = folder / "study.resolved.yaml"
    text = study.read_text().replace("giou: maximize", "accuracy: maximize")
    study.write_text(text[: text.index("claims:")])
    found = load(folder)
    [pooling, *_] = found.variants
    right = answered[answered["arm"] == "pooling"]["score"].mean()
    assert pooling.score.value == pytest.approx(right)
    assert pooling.against.keys() == set()
    reports.build(folder)
    written = (folder / "report" / "report.md").read_text()
    assert "accuracy ↑" in written
    assert "By family of question" in written
    assert not re.search(r"gIoU|expression|\[SEG\]|IoU", written)
    assert (folder / "report" / "figures" / "accuracy_tokens.png").exists()
    shown = gallery_items(found)
    assert {one.rule for one in shown if one.family == "texture"} == {
        "first texture question with the best score of pooling",
        "first texture question with the worst score of pooling",
    }
    assert len({one.image_id for one in shown}) == len(shown)
    first = shown[0]
    assert [text.arm for text in first.generated_text] == [
        "reference answer",
        *(variant.name for variant in found.variants),
    ]
    assert (first.generated_text[1].words, first.generated_text[1].score) == ("red", "1.00")


def test_a_token_ceiling_in_the_run_folder_has_a_table_and_a_figure(tmp_path: Path) -> None:
    results, samples = tables(num_images=6, num_seeds=1)
    folder = write_run(tmp_path / "ceiling", results, samples, num_gallery=0)
    assert "token_ceiling" not in reports.build(folder).read_text()
    images = range(12)
    rows = {
        f"{method}_{count}": pd.DataFrame(
            {
                "image_id": [str(image) for image in images],
                "expression_id": 0,
                "text": "the dog",
                "family": ["absent" if image == 0 else "category" for image in images],
                "domain": None,
                "method": method,
                "superpixels": count,
                "iou": [1.0 if image == 0 else count / 100 + image / 1000 for image in images],
                "intersection": 5,
                "union": 10,
                "predicted_area": 10,
                "target_area": [0 if image == 0 else 10 for image in images],
                "is_ambiguous": [None if image == 0 else image == 1 for image in images],
                "point_iou": float("nan"),
            }
        )
        for method, count in (("sam", 48), ("sam", 24), ("grid", 49))
    }
    token_ceiling.tables_of(rows).to_csv(folder / "token_ceiling.csv", index=False)
    page = reports.build(folder).read_text()
    [table] = [table for table in all_tables(load(folder)) if table.name == "token_ceiling"]
    assert [column.key for column in table.columns] == [
        *("source", "superpixels", "giou", "target_giou", "fp_rate", "ambiguous"),
    ]
    assert [row[0].text for row in table.rows] == ["sam_48", "sam_24", "grid_49"]
    assert [row[3].value for row in table.rows] == pytest.approx([0.486, 0.246, 0.496])
    assert table.rows[0][2].value == pytest.approx((0.486 * 11 + 1) / 12)
    assert table.rows[0][5].value == pytest.approx(1 / 11)
    assert [row[3].is_best for row in table.rows] == [False, False, True]
    assert page.index('id="families"') < page.index('id="token_ceiling"') < page.index('id="figures"')
    assert "Token ceiling by number of superpixels" in page
    figure = by_superpixels(load(folder))
    lines = {container.get_label(): container[0].get_xydata() for container in figure.axes[0].containers}
    assert lines["sam"] == pytest.approx(np.array([[24, 0.246], [48, 0.486]]))
    assert lines["grid"] == pytest.approx(np.array([[49, 0.496]]))
