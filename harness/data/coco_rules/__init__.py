"""Referring expressions about photographs, by rule from COCO's labels: facts of an image in, expressions out.

An expression is emitted only if its targets clearly satisfy it and every other object clearly does not, by the margins
in `space` and the doubts in `facts`. The rules use category names and masks only, never pixels.
"""

from harness.data.coco_rules.facts import ImageFacts, Instance, LabelledImage
from harness.data.coco_rules.grammar import FAMILIES, Absences, expressions

__all__ = ["FAMILIES", "Absences", "ImageFacts", "Instance", "LabelledImage", "expressions"]
