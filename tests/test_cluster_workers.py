"""Workers that are jobs: every cell once, also when jobs die, and none is left after an interruption."""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import submitit
from rich.console import Console

from harness import run
from harness.errors import HarnessError
from harness.execution import session
from harness.execution.run_study import ClusterTeam, execute
from harness.results.run_folder import RunFolder
from harness.study.study import Study
from harness.system.environment import command
from harness.system.lease import Owner, read
from harness.worker.slurm import SlurmOptions, slurm_cluster, slurm_options
from tests import fake_slurm
from tests.small_study import Cells, quiet, run_folder, write_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),  # in MLflow's own tables
]


def local_executor(folder: Path, name: str) -> submitit.Executor:
    """Jobs that are processes on this machine."""
    executor = submitit.AutoExecutor(folder, cluster="local")
    executor.update_parameters(name=name, timeout_min=60)
    return executor


def team(folder: RunFolder, num_jobs: int, make_cells) -> ClusterTeam:
    return ClusterTeam(num_jobs, local_executor(folder.path / "slurm", "test"), make_cells, Console(quiet=True))


def when_cells_run(folder: RunFolder, act: Callable[[Owner, str], None], number: int = 1) -> threading.Thread:
    """Starts a thread that calls `act` with the owners and ids of the first cells that run."""

    def watch() -> None:
        seen: list[str] = []
        deadline = time.monotonic() + 120
        while len(seen) < number and time.monotonic() < deadline:
            for found in filter(None, map(read, folder.leases())):
                if found[1].cell not in seen and len(seen) < number:
                    seen.append(found[1].cell)
                    act(found[0], found[1].cell)
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def wait_until_started(log: Path, cell: str) -> None:
    """Waits until a cell has written its line: its lease is there a moment earlier."""
    deadline = time.monotonic() + 60
    while not (log.exists() and cell in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)


def started_cells(folder: RunFolder) -> Counter[str]:
    """How often each cell was started, by the log of the run."""
    lines = map(json.loads, (folder.path / "run.log").read_text().splitlines())
    return Counter(line["cell"] for line in lines if line["event"] == "cell started")


@pytest.mark.usefixtures("cells")
def test_three_jobs_run_a_study_of_six_cells_to_its_report(tmp_path):
    kept = [
        line
        for line in (tmp_path / "study.yaml").read_text().splitlines()
        if not line.startswith(("  sspe:", "  decoder_pe:", "  sam:"))
    ]
    text = "\n".join(kept).replace("tokens: 36", "tokens: 16").replace("seeds: [0]", "seeds: [0, 1, 2]")
    (tmp_path / "study.yaml").write_text(text)
    study, folder = Study.from_yaml(tmp_path / "study.yaml"), RunFolder(tmp_path / "run")
    options = session.Options(workers=3, make_executor=local_executor)
    assert session.run(study, folder, options, Console(quiet=True)) == 0
    assert started_cells(folder) == Counter(cell.id for cell in study.cells())
    results = pd.read_parquet(folder.results)
    assert results["cell"].tolist() == [cell.id for cell in study.cells()]
    assert set(results["status"]) == {"done"}
    assert set(results["command"]) == {command()}, "the command of the run, not that of submitit in a job"
    assert "</html>" in (folder.path / "report" / "index.html").read_text()
    assert len([*(folder.path / "slurm").glob("*_submitted.pkl")]) == 3
    assert len([*(folder.path / "slurm").glob("*_result.pkl")]) == 3


def test_a_killed_job_is_replaced_and_its_cell_runs_again(tmp_path):
    study, folder, log = Study.from_yaml(write_study(tmp_path)), run_folder(tmp_path), tmp_path / "started.log"
    killed: list[str] = []

    def kill(owner: Owner, cell: str) -> None:
        wait_until_started(log, cell)
        os.kill(owner.pid, signal.SIGKILL)
        killed.append(cell)

    killer = when_cells_run(folder, kill)
    outcome = execute(study, folder, None, Cells(), quiet(), team=team(folder, 1, partial(Cells, seconds=0.3, log=log)))
    killer.join()
    assert (outcome.num_failed, len(outcome.cells)) == (0, 12)
    assert Counter(log.read_text().split()) == Counter([cell.id for cell in study.cells()] + killed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2], ids=["preempted", "time_limit"])
def test_a_job_that_its_cluster_ends_releases_its_cell_and_is_replaced(number, tmp_path):
    study, folder = Study.from_yaml(write_study(tmp_path), ["seeds=[0]"]), run_folder(tmp_path)
    ended: list[str] = []

    def end(owner: Owner, cell: str) -> None:
        wait_until_started(log, cell)
        for _ in range(2):
            os.kill(owner.pid, number)
            time.sleep(0.1)
        ended.append(cell)

    log = tmp_path / "started.log"
    ender = when_cells_run(folder, end)
    outcome = execute(study, folder, None, Cells(), quiet(), team=team(folder, 1, partial(Cells, seconds=1, log=log)))
    ender.join()
    assert (outcome.num_failed, outcome.num_run) == (0, 6)
    assert Counter(log.read_text().split()) == Counter([cell.id for cell in study.cells()] + ended)
    assert "worker died" not in (folder.path / "run.log").read_text()


def test_an_interruption_cancels_the_jobs_and_releases_their_cells(tmp_path):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs that ignore it
    study, folder = Study.from_yaml(write_study(tmp_path)), run_folder(tmp_path)
    owners: list[Owner] = []

    def interrupt(owner: Owner, _cell: str) -> None:
        owners.append(owner)
        if len(owners) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    interrupter = when_cells_run(folder, interrupt, number=2)
    with pytest.raises(KeyboardInterrupt):
        execute(study, folder, None, Cells(), quiet(), team=team(folder, 2, partial(Cells, seconds=60)))
    interrupter.join()
    assert [owner.is_dead for owner in owners] == [True, True]
    assert folder.leases() == []
    again = Cells()
    assert execute(study, folder, None, again, quiet()).num_failed == 0
    assert Counter(again.ran) == Counter(cell.id for cell in study.cells())


def test_an_error_of_the_user_in_a_job_ends_the_run_with_its_sentence(tmp_path):
    class Refused(Cells):  # of this function, because jobs cannot import the modules of tests by name
        def run(self, *_: object):
            raise HarnessError("the data are missing")

    study, folder = Study.from_yaml(write_study(tmp_path)), run_folder(tmp_path)
    with pytest.raises(HarnessError, match="the data are missing"):
        execute(study, folder, None, Cells(), quiet(), team=team(folder, 2, Refused))


def test_jobs_that_slurm_has_not_started_are_cancelled_when_no_cell_is_left(tmp_path, monkeypatch):
    state = tmp_path / "slurm"
    fake_slurm.install(state, monkeypatch, slots=1)
    study, folder, log = Study.from_yaml(write_study(tmp_path)), run_folder(tmp_path), tmp_path / "started.log"
    make = slurm_cluster(["time=1:00:00", "partition=gpu,long", "gres=gpu:1", "cpus_per_task=4", "setup=true"])
    jobs = ClusterTeam(3, make(folder.path / "slurm", study.name), partial(Cells, log=log), Console(quiet=True))
    outcome = execute(study, folder, None, Cells(), quiet(), team=jobs)
    assert (outcome.num_run, outcome.num_failed) == (12, 0)
    assert Counter(log.read_text().split()) == Counter(cell.id for cell in study.cells())
    assert {path.stem for path in state.glob("*.cancelled")} == {"1000_1", "1000_2"}
    [script] = [path.read_text() for path in state.glob("*.sh")]
    options = ["time=1:00:00", "partition=gpu,long", "gres=gpu:1", "cpus-per-task=4", "job-name=small", "array=0-2%3"]
    for option in [*options, "no-requeue"]:
        assert f"#SBATCH --{option}\n" in script
    assert "\ntrue\n" in script
    assert " --cpus-per-task=4 " in script.partition("srun ")[2]


def test_a_refusal_of_sbatch_ends_the_run_with_its_sentence(tmp_path, monkeypatch):
    fake_slurm.install(tmp_path / "slurm", monkeypatch, slots=1)
    study, folder = Study.from_yaml(write_study(tmp_path)), run_folder(tmp_path)
    executor = slurm_cluster(["time=60", "partition=closed"])(folder.path / "slurm", study.name)
    with pytest.raises(HarnessError, match=r"refused a job \(sbatch: error: invalid partition specified: closed\)"):
        execute(study, folder, None, Cells(), quiet(), team=ClusterTeam(2, executor, Cells, Console(quiet=True)))
    assert execute(study, folder, None, Cells(), quiet()).num_run == 12


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["partition"], r"--slurm 'partition' is not KEY=VALUE, as in partition=gpu; keys: time, partition, account"),
        (["=gpu"], r"--slurm '=gpu' is not KEY=VALUE"),
        (["gres="], r"--slurm 'gres=' is not KEY=VALUE"),
        (["partion=gpu"], r"--slurm partion=gpu: unknown key; did you mean partition\?; keys: time, partition"),
        (["time=60", "gpus_per_node=two"], r"gpus_per_node='two' is not allowed; give the GPUs of a job: an integer"),
        (["time=60", "cpus_per_task=0"], r"cpus_per_task='0' is not allowed; give the CPU cores of a job"),
        (["time=one hour"], r"time='one hour' is not allowed; give the time limit: minutes, HH:MM:SS or D-HH:MM:SS"),
        (["time=60", "mem=64 GB"], r"mem='64 GB' is not allowed; give the memory of a job: an integer with K, M, G"),
        (["time=60", "time=90"], r"--slurm time is given twice, as '60' and '90'; give it once"),
        (["partition=gpu"], r"--slurm time=\.\.\. is missing; give the time limit"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(texts, sentence):
    with pytest.raises(HarnessError, match=sentence):
        slurm_options(texts)


def test_submitit_knows_every_option(tmp_path):
    words = dict.fromkeys(SlurmOptions.model_fields, "1")
    assert local_executor(tmp_path, "test").update_parameters(**SlurmOptions.model_validate(words).parameters) is None


def refused(path: Path, arguments: list[str], capsys) -> str:
    """The sentence of a run that ends with code 2."""
    assert run.main([str(path), "--out", str(path.parent / "run"), *arguments]) == 2
    return capsys.readouterr().err


def test_a_machine_without_slurm_is_one_sentence_and_changes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    sentence = refused(write_study(tmp_path), ["--executor", "slurm", "--workers", "2", "--rerun"], capsys)
    assert sentence.startswith("--executor slurm: this machine has no sbatch, srun, sacct, scancel; run the command on")
    assert sentence.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--executor", "slurm", "--slurm", "time=60"], "--executor slurm needs --workers N"),
        (["--slurm", "time=60", "partition=gpu"], "--slurm time=60 has no effect without --executor slurm"),
        (
            ["--executor", "slurm", "--workers", "1", "--slurm", "time=60", "--storage", "sqlite:///a.db"],
            "--storage 'sqlite:///a.db' is for one process, and the workers are jobs on other machines",
        ),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_runs(arguments, sentence, tmp_path, capsys, monkeypatch):
    fake_slurm.install(tmp_path / "slurm", monkeypatch, slots=1)
    assert refused(write_study(tmp_path), arguments, capsys).startswith(sentence)
    assert not (tmp_path / "run").exists()
