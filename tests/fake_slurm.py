"""Commands of SLURM on one machine, with as many slots as FAKE_SLURM_SLOTS; jobs that find none stay pending.

`python tests/fake_slurm.py sbatch FILE`, and likewise srun, sacct and scancel; FAKE_SLURM is the folder of its state.
"""

import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path


def install(folder: Path, monkeypatch, slots: int) -> None:
    """Put the commands first in the PATH of this process and of those that it starts."""
    folder.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel"):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" {name} "$@"\n')
        path.chmod(0o755)
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("FAKE_SLURM_SLOTS", str(slots))
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def sbatch(state: Path, file: str) -> None:
    """Start the jobs of a script, as far as there are slots."""
    text = Path(file).read_text()
    if "--partition=closed" in text:
        sys.exit("sbatch: error: invalid partition specified: closed")
    number = str(1000 + len([*state.glob("*.sh")]))
    (state / f"{number}.sh").write_text(text)
    array = re.search(r"#SBATCH --array=0-(\d+)", text)
    for index in range(int(array[1]) + 1) if array else [None]:
        job = number if index is None else f"{number}_{index}"
        if len([*state.glob("*.pid")]) >= int(os.environ["FAKE_SLURM_SLOTS"]):
            (state / f"{job}.pending").touch()
            continue
        names = {"SLURM_JOB_ID": number}
        if index is not None:
            names |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": str(index)}
        line = f'bash "{file}"; echo $? > "{state}/{job}.code"'
        with Path(os.devnull).open("w") as null:
            process = subprocess.Popen(
                ["bash", "-c", line], env=os.environ | names, start_new_session=True, stdout=null, stderr=null
            )
        (state / f"{job}.pid").write_text(str(process.pid))
    sys.stdout.write(f"Submitted batch job {number}\n")


def srun(_state: Path, *arguments: str) -> None:
    """Run a command with its output in files."""
    rest, outputs = [*arguments], {}
    while rest[0].startswith("-"):
        option = rest.pop(0)
        if option in ("--output", "--error"):
            outputs[option] = rest.pop(0)
    names = {"%j": "SLURM_JOB_ID", "%A": "SLURM_ARRAY_JOB_ID", "%a": "SLURM_ARRAY_TASK_ID"}
    for number, option in ((1, "--output"), (2, "--error")):
        path = outputs[option].replace("%t", "0")
        for short, name in names.items():
            path = path.replace(short, os.environ.get(name, ""))
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.execvp(rest[0], rest)


def sacct(state: Path, *arguments: str) -> None:
    """Print the state of jobs."""
    sys.stdout.write("JobID|State|NodeList\n")
    for number in {after for before, after in pairwise(arguments) if before == "-j"}:
        for job in {path.stem for path in state.glob(f"{number}*") if path.suffix != ".sh"}:
            sys.stdout.write(f"{job}|{_state_of(state, job)}|here\n")


def _state_of(state: Path, job: str) -> str:
    if (state / f"{job}.cancelled").exists():
        return "CANCELLED by 0"
    if (state / f"{job}.pending").exists():
        return "PENDING"
    code = state / f"{job}.code"
    if not code.exists():
        return "RUNNING"
    return "COMPLETED" if code.read_text().strip() == "0" else "FAILED"


def scancel(state: Path, job: str) -> None:
    """End a job, or its wait."""
    (state / f"{job}.cancelled").touch()
    if (state / f"{job}.pid").exists():
        os.killpg(int((state / f"{job}.pid").read_text()), signal.SIGTERM)


if __name__ == "__main__":
    {"sbatch": sbatch, "srun": srun, "sacct": sacct, "scancel": scancel}[sys.argv[1]](
        Path(os.environ["FAKE_SLURM"]), *sys.argv[2:]
    )
