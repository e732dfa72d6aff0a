"""Noun phrases and the objects of a scene that they describe."""

from collections.abc import Iterator
from itertools import combinations, product
from typing import NamedTuple

from harness.data.scenes.scene import Scene, SceneObject

_PLURAL = {"cross": "crosses"}


class Phrase(NamedTuple):
    """A noun with its adjectives; None for an attribute that is not mentioned."""

    texture: str | None
    colour: str | None
    shape: str | None

    def text(self, plural: bool = False, size: str | None = None) -> str:
        """The words, without article."""
        noun = self.shape or "object"
        if plural:
            noun = _PLURAL.get(noun, noun + "s")
        return " ".join(word for word in (size, self.texture, self.colour, noun) if word)

    def parts(self) -> Iterator["Phrase"]:
        """Every phrase with a proper subset of these attributes."""
        named = [field for field in self._fields if getattr(self, field)]
        for count in range(1, len(named) + 1):
            for dropped in combinations(named, count):
                yield self._replace(**dict.fromkeys(dropped))


class Facts:
    """A scene's objects and every phrase that describes at least one of them.

    Attributes:
        phrases: the objects that each phrase describes.
        unique: phrases of colour and shape that describe one object, with that object.
        shared: phrases of colour and shape, or neither, that describe several.
    """

    def __init__(self, scene: Scene) -> None:
        self.objects = scene.objects
        self.phrases: dict[Phrase, tuple[SceneObject, ...]] = {}
        for one in scene.objects:
            appearance = one.appearance
            for texture, colour, shape in product(
                (None, appearance.texture), (None, appearance.colour), (None, appearance.shape)
            ):
                phrase = Phrase(texture, colour, shape)
                self.phrases[phrase] = (*self.phrases.get(phrase, ()), one)
        untextured = [(phrase, found) for phrase, found in self.phrases.items() if phrase.texture is None]
        self.unique = [(phrase, found[0]) for phrase, found in untextured if len(found) == 1]
        self.shared = [(phrase, found) for phrase, found in untextured if len(found) > 1]
