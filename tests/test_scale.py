"""Large studies stay usable. The bounds are twice those that hold on two cores, because machines differ."""

import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest

from harness.queue.cell_queue import CellQueue
from harness.queue.storage import default_path
from harness.results.run_folder import RunFolder
from harness.study.study import Study
from reports import build
from reports.findings import MAX_SHOWN, load
from reports.gallery import gallery_items
from reports.numbers import listed
from tests.large_study import large_study, write_finished_run

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study() -> Study:
    """10,000 cells: 5 seeds of 2,000 points."""
    return large_study(num_arms=1, num_points=1999, num_seeds=5)


@pytest.mark.parametrize(("arms", "points", "seeds"), [(99, 1, 100), (1, 1999, 5)])
def test_a_plan_of_ten_thousand_cells_takes_seconds_and_can_be_read(tmp_path, arms, points, seeds):
    seconds, printed = _plan(tmp_path / "many.yaml", large_study(arms, points, seeds))
    assert seconds < 10, "of the processor, with the import of libraries"
    number = (1 + arms * points) * seeds
    assert f"{number} of {number} cells to run" in printed
    assert printed.count("\n") < 250


def _plan(path: Path, study: Study) -> tuple[float, str]:
    """Seconds of the processor that `--plan` takes, and what it prints."""
    path.write_text(study.resolved())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "harness.run", str(path), "--plan", "--out", str(path.with_suffix(""))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_a_queue_of_ten_thousand_cells_is_filled_and_claimed_without_delay(tmp_path, study):
    with CellQueue(study, default_path(tmp_path)) as queue:
        seconds = {"fill": [_timed(lambda: queue.fill({}))]}
        claims = []
        seconds["claim"] = [_timed(lambda: claims.append(queue.claim())) for _ in range(9)]
        seconds["name"] = [_timed(lambda claim=claim: queue.name(claim)) for claim in claims]
        seconds["running"] = [_timed(queue.running) for _ in range(9)]
        seconds["deaths"] = [_timed(lambda claim=claim: queue.num_deaths(claim.trial)) for claim in claims]
        seconds["release"] = [_timed(lambda claim=claim: queue.release(claim)) for claim in claims[:4]]
        row = {"status": "done", "giou": 0.5, "tokens": 4.0, "latency_ms": 1.0}
        seconds["tell"] = [_timed(lambda claim=claim: queue.tell(claim, row)) for claim in claims[4:]]
        assert [claim.cell for claim in claims] == [cell for cell in study.cells() if cell.seed == 0][:9]
    assert seconds.pop("fill")[0] < 40
    assert {name: value for name, found in seconds.items() if (value := median(found)) > 0.1} == {}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    """A finished run of 50 arms with 4 points and one arm without a search, 402 cells in all."""
    folder = RunFolder(tmp_path_factory.mktemp("large") / "large")
    large = large_study(num_arms=50, num_points=4, num_seeds=2)
    write_finished_run(large, folder, num_images=30)
    folder.gather([cell.id for cell in large.cells()])
    return folder


def test_the_report_of_many_arms_takes_seconds_and_can_be_read(run):
    started = time.process_time()
    page = build(run.path)
    assert time.process_time() - started < 60
    assert page.stat().st_size < 8 * 2**20
    text = (run.path / "report" / "report.md").read_text()
    longest = max(len(line) for line in text.splitlines() if line.startswith("- "))
    assert longest < 2_000, "no sentence names all arms"
    rows = (run.path / "report" / "tables" / "main.csv").read_text().count("\n")
    assert rows == 1 + 201, "the table has all of them"


def test_figures_and_gallery_show_baselines_the_front_and_the_best(run):
    findings = load(run.path)
    names = [variant.name for variant in findings.shown]
    assert len(names) == MAX_SHOWN < len(findings.variants) == 201
    assert "pooling" in names
    assert findings.best.name in names
    front = sorted((v for v in findings.variants if v.is_on_front), key=lambda v: -v.score.value)
    assert {v.name for v in front[: MAX_SHOWN - 1]} <= {*names}
    assert names == [v.name for v in findings.variants if v.name in names], "in the order of the study"
    assert f"{MAX_SHOWN} of 201 arms are shown" in findings.about_shown
    assert [tile.title for tile in gallery_items(findings)[0].tiles][1:] == names


def test_a_long_list_ends_with_the_number_of_the_others():
    assert listed([f"a{i}" for i in range(24)]).endswith("a22 and a23")
    assert listed([f"a{i}" for i in range(25)]) == f"{', '.join(f'a{i}' for i in range(10))} and 15 others"


def _timed(call) -> float:
    """Seconds of the processor."""
    started = time.process_time()
    call()
    return time.process_time() - started
