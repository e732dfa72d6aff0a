"""A study and its cells.

`harness.study.schema` describes the keys of a study: `question`, `extends`, `base`, `arms`, `search`, `seeds`,
`objectives`, `baseline`, `margin`, `claims`, `tracking`. A preset may set `base`, `seeds`, `objectives` and `tracking`.
"""

import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ruamel.yaml import YAML

from harness.errors import StudyError
from harness.study.cell_code import component_code
from harness.study.cell_spec import CellSpec, Sections, resolve, set_value
from harness.study.loading import LoadedStudy, load_mapping, load_yaml
from harness.study.nodes.yaml_node import SourceLocation, YamlNode
from harness.study.schema import Choice, StudySettings, ends_of, grid
from harness.system.device import default_device
from harness.system.precision import resolve_precision

__all__ = ["Cell", "CellSpec", "Point", "Study"]


@dataclass(frozen=True, slots=True)
class Point:
    """One configuration of an arm: a value for each path of the search space; empty if the arm is not searched."""

    arm: str
    values: Mapping[str, Choice] = field(default_factory=dict)

    def to_json(self) -> str:
        """The values as JSON with sorted keys; the column `point` of the results."""
        return json.dumps(dict(self.values), sort_keys=True)


@dataclass(frozen=True, slots=True)
class Cell:
    """One model to train and score.

    Args:
        id: first 12 hex digits of the hash of arm, seed, specification and code, so that equal cells have equal ids.
        point: a value for each path of the search space.
        code: fingerprint of the source code of the projector and of the superpixel method.
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
        """The columns of a row that identify the cell and its components."""
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
    """A checked study, made by `from_yaml` or `from_dict`.

    Args:
        name: of the run folder.
        source: the file as the user named it, or the name of a study made from a mapping.
        arms: each arm merged into base, as plain values.
        overrides: `key=value` overrides, in order.
    """

    name: str
    source: str
    settings: StudySettings
    arms: Mapping[str, dict[str, Any]]
    overrides: tuple[str, ...] = ()

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Loads and checks a study file. A preset by itself is a study of one arm with the projector `mlp`.

        Args:
            overrides: `key=value`, with the value in YAML; `training.steps` is short for `base.training.steps`, and
                `extends=FILE` selects another preset.

        Raises:
            StudyError: with every problem in the file, its preset and the overrides.
        """
        path = Path(path)
        return cls._of(load_yaml(path, overrides), path.stem, str(path), overrides)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any], overrides: Sequence[str] = (), name: str = "study") -> Self:
        """Checks a study whose keys and values are those of a study file.

        Args:
            mapping: `extends` is relative to the repository's folder `studies`, as in `presets/embedded.yaml`.
            overrides: as in `from_yaml`.
            name: of the study if `mapping` has no `name`; messages begin with it, as in `study: arms.x.projector`.

        Raises:
            StudyError: with every problem in the mapping, its preset and the overrides.
        """
        return cls._of(load_mapping(mapping, name, overrides), name, name, overrides)

    @classmethod
    def _of(cls, loaded: LoadedStudy, name: str, source: str, overrides: Sequence[str]) -> Self:
        return cls(loaded.settings.name or name, source, loaded.settings, loaded.arms, tuple(overrides))

    def points(self) -> list[Point]:
        """Every configuration that is known before the study runs, in the order of the arms."""
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
        """One cell per seed; computed once per point.

        Raises:
            StudyError: the values of the point are invalid together.
        """
        key = (point.arm, point.to_json())
        if key not in self._cells:
            spec = self.spec(point)
            code = component_code(spec)
            ids = cell_ids(point.arm, self.settings.seeds, spec, code)
            self._cells[key] = [
                Cell(self.name, cell, point.arm, point.values, seed, spec, code)
                for cell, seed in zip(ids, self.settings.seeds, strict=True)
            ]
        return list(self._cells[key])

    def spec(self, point: Point) -> CellSpec:
        """The full specification at a point; `precision: auto` is replaced by the precision used on this machine.

        Raises:
            StudyError: the values of the point are invalid together.
        """
        arm = self._nodes[point.arm]
        location = arm.location
        for path, value in point.values.items():
            arm = set_value(arm, path, YamlNode.of(value, location.under(path)))
        problems: list[str] = []
        spec = resolve(arm, problems, sections=self._sections)
        if spec is None:
            raise StudyError(problems)
        precision = resolve_precision(spec.training.precision, default_device())
        return spec.model_copy(update={"training": spec.training.model_copy(update={"precision": precision})})

    @cached_property
    def _cells(self) -> dict[tuple[str, str], list[Cell]]:
        """The cells of points that were asked for before."""
        return {}

    @cached_property
    def _nodes(self) -> dict[str, YamlNode]:
        """The arms as nodes."""
        return {
            arm: YamlNode.of(values, SourceLocation(self.source, None, f"arms.{arm}"))
            for arm, values in self.arms.items()
        }

    @cached_property
    def _sections(self) -> Sections:
        """The sections that points share."""
        return Sections()

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: another process computes the cells again, which is faster than to send them."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def cells_to_check(self) -> list[Cell]:
        """The known cells, and two points of each sampled arm: the first and the last value of every path."""
        cells, search = self.cells(), self.settings.search
        if search is None or search.sampler != "tpe":
            return cells
        for arm, values in itertools.product(search.arms, ends_of(search.space)):
            with suppress(StudyError):  # values that are invalid together are pruned when they are sampled
                cells += self.cells_of(Point(arm, values))
        return cells

    @property
    def num_sampled(self) -> int:
        """Number of points that the sampler chooses during the run."""
        search = self.settings.search
        return search.trials or 0 if search is not None and search.sampler == "tpe" else 0

    @property
    def num_sampled_cells(self) -> int:
        """Number of cells at those points."""
        return self.num_sampled * len(self.settings.seeds)

    @property
    def num_cells(self) -> int:
        """Number of all cells, with those at points that are not chosen yet."""
        return len(self.cells()) + self.num_sampled_cells

    @property
    def devices(self) -> int:
        """The largest number of devices on which a cell is trained."""
        return max((cell.spec.training.devices for cell in self.cells_to_check()), default=1)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the arms and their order, the search, the seeds and the objectives only."""
        settings = self.settings.model_dump(mode="json", include={"search", "seeds", "objectives"})
        arms = [(arm, self.spec(Point(arm)).model_dump(mode="json")) for arm in self.arms]
        return hashlib.sha256(json.dumps([arms, settings], sort_keys=True).encode()).hexdigest()[:8]

    def resolved(self) -> str:
        """The study as YAML, self-contained and without `tracking`; loading it gives the same cells."""
        excluded = {"name", "base", "extends", "arms", "tracking"}
        settings = self.settings.model_dump(mode="json", exclude=excluded, exclude_none=True)
        arms = {arm: self.spec(Point(arm)).model_dump(mode="json") for arm in self.arms}
        text = io.StringIO()
        kept = [override for override in self.overrides if not override.startswith(("tracking.", "tracking="))]
        text.write(f"# resolved from {' '.join([self.source, *(f'--set {override}' for override in kept)])}\n")
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.width = 120
        yaml.dump({"name": self.name, **settings, "arms": arms}, text)
        return text.getvalue()


def cell_ids(arm: str, seeds: Iterable[int], spec: CellSpec, code: str) -> list[str]:
    """Of each seed, the first 12 hex digits of the hash of everything that determines a cell's result."""
    name, settings = json.dumps(arm), json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    texts = (f"[{name}, {seed}, {settings}, {json.dumps(code)}]" for seed in seeds)
    return [hashlib.sha256(text.encode()).hexdigest()[:12] for text in texts]
