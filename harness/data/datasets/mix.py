"""A mix of training datasets; images that any of them reserves for scoring are excluded from training.

RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO share COCO's images, and training images of one are test images of another.

Source: the overlap of their splits, https://arxiv.org/abs/1511.02283, section 3, and LISA's training mix.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from harness import data
from harness.data.example import Example
from harness.errors import HarnessError


def _resolved(settings: dict[str, Any]) -> dict[str, Any]:
    if settings.get("name") == "mix":
        raise ValueError("a mix must not contain another mix; list all datasets in one")
    try:
        found = data.get(str(settings.get("name")))
    except HarnessError as error:
        raise ValueError(str(error)) from None
    return found.Config.model_validate(settings).model_dump(mode="json")


Part = Annotated[dict[str, Any], AfterValidator(_resolved)]


class Config(BaseModel):
    """The training datasets and the scored dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["mix"] = "mix"
    train: tuple[Part, ...] = Field(min_length=1, description="datasets whose train split is used")
    score: Part = Field(description="dataset whose other splits are scored")

    @model_validator(mode="after")
    def _check_shared_images(self) -> "Config":
        if any(part.get("copy_paste") for part in self.train):
            raise ValueError(
                "images of copy_paste may show objects of images that another dataset reserves for scoring; set "
                "copy_paste: 0 in a mix"
            )
        names = {part["name"] for part in (*self.train, self.score)}
        others = sorted(names - {"gqa", "reasonseg", "scenes"})
        if "gqa" in names and others:
            raise ValueError(
                f"gqa and {others[0]} may share images of COCO under different ids, so images that one reserves for "
                "scoring cannot be excluded from training; mix gqa only with reasonseg and scenes"
            )
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """Training, and the other splits of the scored dataset."""
        return ("train", *_scoring_splits(self.score))


def load(config: Config, split: str) -> Sequence[Example]:
    """The concatenated examples of the training datasets, or a split of the scored dataset.

    Raises:
        DataError: a file is missing or malformed, or the split does not exist.
    """
    if split != "train":
        return _load(config.score, split)
    reserved = {
        image_id
        for part in (*config.train, config.score)
        for name in _scoring_splits(part)
        for image_id in _image_ids(part, name)
    }
    return [one for part in config.train for one in _load(part, "train") if one.image_id not in reserved]


def _scoring_splits(part: dict[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in data.get(part["name"]).Config.model_validate(part).splits if name != "train")


def _image_ids(part: dict[str, Any], split: str) -> Iterable[str]:
    dataset = data.get(part["name"])
    if hasattr(dataset, "image_ids"):
        return dataset.image_ids(dataset.Config.model_validate(part), split)
    return (example.image_id for example in _load(part, split))


def _load(part: dict[str, Any], split: str) -> Sequence[Example]:
    dataset = data.get(part["name"])
    return dataset.load(dataset.Config.model_validate(part), split)
