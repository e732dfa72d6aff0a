"""The embedded benchmark: procedural images with exact masks and referring expressions of known families.

The seed and the version determine every pixel and every word, on every machine. The scene (objects, expressions and
questions) does not depend on the domain, so transfer tests are controlled: the same index of a split shows the same
scene in every domain. `python -m harness.data.scenes --sheet sheet.png` renders a contact sheet.
"""

from collections.abc import Sequence
from typing import Literal, overload

from pydantic import BaseModel, ConfigDict, Field, field_validator

from harness.data.example import Example, ObjectFacts, Question, encode_ids
from harness.data.scenes.draw import DOMAINS, render
from harness.data.scenes.grammar import FAMILIES, expressions
from harness.data.scenes.questions import CAPTION_FAMILY, QUESTION_FAMILIES, caption, caption_request, questions
from harness.data.scenes.scene import Scene, sample
from harness.data.scenes.stable_rng import StableRng
from harness.errors import DataError, suggest

__all__ = [
    "DOMAINS",
    "FAMILIES",
    "SPLITS",
    "Config",
    "Scene",
    "caption",
    "load",
    "questions_about",
    "scene_graph",
]

SPLITS = ("train", "validation", "test")
Domain = Literal["studio", "canvas", "sketch", "night"]
Asks = Literal["expressions", "questions", "captions"]
# Separate random streams, so that a change to one part does not affect the others.
_PAINT, _SCENE, _WORDS, _QUESTIONS = range(4)


class Config(BaseModel):
    """The scenes and queries of a study."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["scenes"] = "scenes"
    version: Literal[1] = Field(default=1, description="of the generator; a version fixes all pixels and words")
    seed: int = Field(default=0, ge=0, lt=2**32, description="a different seed gives different scenes in every split")
    domains: tuple[Domain, ...] = Field(
        default=("studio",), min_length=1, description="visual domains, which alternate over the images of a split"
    )
    test_domains: tuple[Domain, ...] | None = Field(
        default=None, min_length=1, description="domains of the test split; defaults to `domains`"
    )
    train_images: int = Field(default=800, ge=1, description="images of the training split")
    validation_images: int = Field(default=100, ge=1, description="images of the validation split")
    test_images: int = Field(default=200, ge=1, description="images of the test split")
    asks: tuple[Asks, ...] = Field(default=("expressions",), min_length=1, description="kinds of queries per image")
    expressions_per_image: int = Field(default=8, ge=1, le=12, description="referring expressions per image")
    train_expressions_per_image: int | None = Field(
        default=None, ge=1, le=36, description="of the training split; defaults to `expressions_per_image`"
    )

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; training uses the first."""
        return SPLITS

    @property
    def families(self) -> tuple[str, ...]:
        """Families of all queries."""
        of = {"expressions": FAMILIES, "questions": QUESTION_FAMILIES, "captions": (CAPTION_FAMILY,)}
        return tuple(dict.fromkeys(family for asks in self.asks for family in of[asks]))

    @property
    def scored_domains(self) -> tuple[str, ...]:
        """Domains of the validation and test splits."""
        return tuple(dict.fromkeys([*self.domains, *(self.test_domains or ())]))

    @field_validator("domains", "test_domains", "asks")
    @classmethod
    def _check_unique(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(set(names)) < len(names):
            raise ValueError(f"has a duplicate: {', '.join(names)}; list each value once")
        return names


def _key(config: Config, split: str, index: int) -> tuple[int, ...]:
    return config.version, config.seed, SPLITS.index(split), index


def scene_graph(config: Config, split: str, index: int) -> Scene:
    """The scene graph behind one image."""
    return sample(StableRng((*_key(config, split, index), _SCENE)))


def questions_about(config: Config, split: str, index: int) -> tuple[Question, ...]:
    """Questions with answers about one image; `caption` describes the same scene graph."""
    graph = scene_graph(config, split, index)
    return questions(graph, StableRng((*_key(config, split, index), _QUESTIONS)))


class _Split(Sequence[Example]):
    """The images of a split, generated at first access and then kept."""

    def __init__(self, config: Config, split: str) -> None:
        self._config = config
        self._split = split
        self._kept: dict[int, Example] = {}
        self._length: int = getattr(config, f"{split}_images")

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        if position not in self._kept:
            self._kept[position] = self._make(position)
        return self._kept[position]

    def _make(self, index: int) -> Example:
        config, key = self._config, _key(self._config, self._split, index)
        domains = config.test_domains if self._split == "test" and config.test_domains else config.domains
        domain = domains[index % len(domains)]
        graph = scene_graph(config, self._split, index)
        count = config.expressions_per_image
        if self._split == "train" and config.train_expressions_per_image is not None:
            count = config.train_expressions_per_image
        return Example(
            image_id=f"scenes-{config.version}/{domain}-{config.seed}/{self._split}/{index:06d}",
            picture=render(graph, DOMAINS[domain], StableRng((*key, _PAINT, list(DOMAINS).index(domain)))),
            objects=encode_ids(graph.ids),
            expressions=expressions(graph, count, StableRng((*key, _WORDS))) if "expressions" in config.asks else (),
            questions=(
                *(questions_about(config, self._split, index) if "questions" in config.asks else ()),
                *([caption_request(graph)] if "captions" in config.asks else ()),
            ),
            domain=domain,
            attributes=tuple(
                ObjectFacts(one.appearance.elongation, one.occlusion, one.visible) for one in graph.objects
            ),
        )


def load(config: Config, split: str) -> Sequence[Example]:
    """The examples of a split, in a fixed order.

    Raises:
        DataError: the split does not exist.
    """
    if split not in SPLITS:
        raise DataError(f"scenes has no split {split!r}; {suggest(split, SPLITS)}")
    return _Split(config, split)
