"""A study and the cells it becomes.

A study file says `question`, `extends`, `base`, `arms`, `search`, `seeds`, `objectives`, `baseline`, `margin`, `claims`
(`harness.study.schema`); the preset that it extends may give `base`, `seeds` and `objectives`.
"""

import hashlib
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ruamel.yaml import YAML

from harness.errors import StudyError
from harness.study.cell_code import component_code
from harness.study.cell_spec import CellSpec, resolve, set_values
from harness.study.loading import read_study
from harness.study.schema import Choice, StudySettings, ends_of, grid
from harness.study.yaml_node import SourceLocation, YamlNode
from harness.system.device import default_device
from harness.system.precision import resolve_precision

__all__ = ["Cell", "CellSpec", "Point", "Study", "load"]


@dataclass(frozen=True, slots=True)
class Point:
    """One configuration of an arm: the values of the search space's paths; empty for an arm that is not searched."""

    arm: str
    values: Mapping[str, Choice] = field(default_factory=dict)

    def to_json(self) -> str:
        """The values as text, the same for equal points; the column `point` of the results."""
        return json.dumps(dict(self.values), sort_keys=True)


@dataclass(frozen=True, slots=True)
class Cell:
    """One model to train and score.

    Args:
        id: 12 hex digits of the hash of arm, seed, specification and code; the same cell in every run of every study.
        point: values of the search space's paths.
        code: fingerprint of the source of its projector and superpixel source.
    """

    study: str
    id: str
    arm: str
    point: Mapping[str, Choice]
    seed: int
    spec: CellSpec
    code: str

    @property
    def columns(self) -> dict[str, str | int]:
        """The columns of a row that name the cell and its parts."""
        spec = self.spec
        return {
            "study": self.study,
            "cell": self.id,
            "arm": self.arm,
            "point": json.dumps(dict(self.point), sort_keys=True),
            "seed": self.seed,
            "projector": spec.projector["name"],
            "superpixels": spec.superpixels["name"] if spec.superpixels else "none",
            "vision_encoder": spec.vision_encoder.name,
            "llm": spec.llm.name,
            "spec": spec.model_dump_json(),
        }


@dataclass(frozen=True)
class Study:
    """A study without mistakes.

    Args:
        name: of its run folder.
        source: the file it was read from, as given.
        arms: each arm merged over base.
        overrides: `--set` arguments, in order.
    """

    name: str
    source: str
    settings: StudySettings
    arms: Mapping[str, YamlNode]
    overrides: tuple[str, ...] = ()

    def points(self) -> list[Point]:
        """Every configuration that is known before the study runs, in the order of the arms; sampled ones are not."""
        search = self.settings.search
        points = []
        for arm in self.arms:
            if search is None or arm not in search.arms:
                points.append(Point(arm))
            elif search.sampler == "grid":
                points += [Point(arm, values) for values in grid(search.space)]
        return points

    def cells(self) -> list[Cell]:
        """Every cell that is known before the study runs."""
        return [cell for point in self.points() for cell in self.cells_of(point)]

    def cells_of(self, point: Point) -> list[Cell]:
        """One cell a seed.

        Raises:
            StudyError: the values of the point do not go together.
        """
        spec = self.spec(point)
        code = component_code(spec)
        return [
            Cell(self.name, cell_id(point.arm, seed, spec, code), point.arm, point.values, seed, spec, code)
            for seed in self.settings.seeds
        ]

    def spec(self, point: Point) -> CellSpec:
        """The full specification at a point, with the precision that `auto` stands for on this machine.

        Raises:
            StudyError: the values of the point do not go together.
        """
        problems: list[str] = []
        tree = set_values(self.arms[point.arm], point.values, SourceLocation(self.source, None, f"arms.{point.arm}"))
        spec = resolve(tree, problems)
        if spec is None:
            raise StudyError(problems)
        precision = resolve_precision(spec.training.precision, default_device())
        return spec.model_copy(update={"training": spec.training.model_copy(update={"precision": precision})})

    def cells_to_check(self) -> list[Cell]:
        """The known cells, and for sampled arms those at the ends of the search space: all first, all last values."""
        cells, search = self.cells(), self.settings.search
        if search is None or search.sampler != "tpe":
            return cells
        for arm, values in itertools.product(search.arms, ends_of(search.space)):
            with suppress(StudyError):  # values that do not go together are pruned when they are sampled
                cells += self.cells_of(Point(arm, values))
        return cells

    @property
    def num_sampled(self) -> int:
        """Points that only the run will choose."""
        search = self.settings.search
        return search.trials or 0 if search is not None and search.sampler == "tpe" else 0

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the arms, the search, the seeds or the objectives do, and with nothing else."""
        settings = self.settings.model_dump(mode="json", include={"search", "seeds", "objectives"})
        arms = {arm: self.spec(Point(arm)).model_dump(mode="json") for arm in self.arms}
        return hashlib.sha256(json.dumps([arms, settings], sort_keys=True).encode()).hexdigest()[:8]

    def resolved(self) -> str:
        """The study as YAML with nothing left to look up, except `tracking`; loading it gives the same cells."""
        left_out = {"name", "base", "extends", "arms", "tracking"}
        settings = self.settings.model_dump(mode="json", exclude=left_out, exclude_none=True)
        arms = {arm: self.spec(Point(arm)).model_dump(mode="json") for arm in self.arms}
        text = io.StringIO()
        overrides = [f"--set {given}" for given in self.overrides if not given.startswith(("tracking.", "tracking="))]
        text.write(f"# resolved from {' '.join([self.source, *overrides])}\n")
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.width = 120
        yaml.dump({"name": self.name, **settings, "arms": arms}, text)
        return text.getvalue()


def cell_id(arm: str, seed: int, spec: CellSpec, code: str) -> str:
    """First 12 hex digits of the hash of everything that decides a cell's result."""
    text = json.dumps([arm, seed, spec.model_dump(mode="json"), code], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Reads and checks a study file.

    Args:
        overrides: `a.b=value`, the value in YAML; `training.steps` is short for `base.training.steps`.

    Raises:
        StudyError: with every mistake that the file, its preset and the overrides hold.
    """
    settings, arms = read_study(path, overrides)
    return Study(settings.name or path.stem, str(path), settings, arms, tuple(overrides))
