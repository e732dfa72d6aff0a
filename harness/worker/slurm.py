"""What `--slurm KEY=VALUE` sets: the options of sbatch for the jobs of a run."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from submitit import AutoExecutor, Executor

from harness.errors import HarnessError, shorten, unknown_key

MakeExecutor = Callable[[Path, str], Executor]
"""Makes submitit's executor of a run from the folder of its files and the name of its jobs."""
_COMMANDS = ("sbatch", "srun", "sacct", "scancel")
_Word = Annotated[str, Field(pattern=r"^\S+$")]
_Count = Annotated[int, Field(ge=1)]
_Memory = Annotated[str, Field(pattern=r"^\d+[KMGT]?$")]


class SlurmOptions(BaseModel):
    """Options of sbatch. A job is one worker, on one node."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    time: str = Field(pattern=r"^(\d+-)?\d+(:\d+){0,2}$", description="time limit: minutes, HH:MM:SS or D-HH:MM:SS")
    partition: _Word | None = Field(default=None, description="names of partitions, separated by commas")
    account: _Word | None = Field(default=None, description="the account that is charged")
    qos: _Word | None = Field(default=None, description="name of a quality of service")
    gres: _Word | None = Field(default=None, description="resources such as gpu:1 or gpu:a100:1")
    gpus_per_node: _Count | None = Field(default=None, description="GPUs of a job: an integer, 1 or more")
    cpus_per_task: _Count | None = Field(default=None, description="CPU cores of a job: an integer, 1 or more")
    mem: _Memory | None = Field(default=None, description="memory of a job: an integer with K, M, G or T")
    mem_per_cpu: _Memory | None = Field(default=None, description="memory per CPU core: an integer with K, M, G or T")
    mem_per_gpu: _Memory | None = Field(default=None, description="memory per GPU: an integer with K, M, G or T")
    constraint: _Word | None = Field(default=None, description="features of a node, such as a100|h100")
    nodelist: _Word | None = Field(default=None, description="names of nodes, separated by commas")
    exclude: _Word | None = Field(default=None, description="names of nodes, separated by commas")
    wckey: _Word | None = Field(default=None, description="key under which jobs are counted")
    setup: str | None = Field(default=None, description="a shell command that a job runs first")

    @property
    def parameters(self) -> dict[str, Any]:
        """Arguments of submitit's `update_parameters`.

        The run replaces jobs that ended early, so SLURM must not start them again. srun of SLURM 22.05 to 23.02 does
        not inherit the cores of sbatch.
        """
        set_ones = self.model_dump(exclude_none=True)
        if self.setup is not None:
            set_ones["setup"] = [self.setup]
        if self.cpus_per_task is not None:
            set_ones["srun_args"] = [f"--cpus-per-task={self.cpus_per_task}"]
        set_ones["additional_parameters"] = {"no-requeue": True}
        return {f"slurm_{key}": value for key, value in set_ones.items()}

    def executor(self, folder: Path, name: str) -> Executor:
        """Submitit's executor of a run. Submits nothing.

        Args:
            folder: of logs and of what jobs receive and return; all nodes see it.
            name: of the jobs.
        """
        executor = AutoExecutor(folder, cluster="slurm")
        executor.update_parameters(name=name, **self.parameters)
        return executor


def slurm_cluster(texts: Sequence[str]) -> MakeExecutor:
    """What makes the executor of a run from the values of `--slurm`.

    Raises:
        HarnessError: this machine lacks the commands of SLURM, or refer to `slurm_options`.
    """
    missing = [command for command in _COMMANDS if shutil.which(command) is None]
    if missing:
        raise HarnessError(
            f"--executor slurm: this machine has no {', '.join(missing)}; run the command on a machine from which jobs "
            "are submitted to SLURM, or leave --executor out"
        )
    return slurm_options(texts).executor


def slurm_options(texts: Sequence[str]) -> SlurmOptions:
    """The options in texts like `partition=gpu`.

    Raises:
        HarnessError: a text is not KEY=VALUE, a key is unknown or given twice, or a value is not allowed.
    """
    fields = SlurmOptions.model_fields
    keys = f"keys: {', '.join(fields)}"
    values = dict[str, str]()
    for text in texts:
        key, _, value = text.partition("=")
        if not key or not value:
            raise HarnessError(f"--slurm {shorten(text)!r} is not KEY=VALUE, as in partition=gpu; {keys}")
        if key not in fields:
            raise HarnessError(f"--slurm {shorten(text)}: {unknown_key(key, fields)}; {keys}")
        if key in values:
            raise HarnessError(f"--slurm {key} is given twice, as {values[key]!r} and {value!r}; give it once")
        values[key] = value
    try:
        return SlurmOptions.model_validate(values)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
    allowed = fields[key].description
    if key in values:
        raise HarnessError(f"--slurm {key}={shorten(values[key])!r} is not allowed; give the {allowed}")
    raise HarnessError(f"--slurm {key}=... is missing; give the {allowed}")
