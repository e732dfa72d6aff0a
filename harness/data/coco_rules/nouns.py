"""Category names as English nouns, and names that people use for each other's objects.

Plurals are those of inflect, https://github.com/jaraco/inflect, which also has those of other files' categories. They
are correct for all COCO categories that have a plural. The tables are from contact sheets of photographs.
"""

from functools import cache

_SINGULAR_IN_S = ("bus",)
"""Singulars that end in a single s; all other such names may be plurals."""
_MASS = ("broccoli",)
_BUNCHES = ("banana", "carrot", "book")
"""Categories of COCO whose labels are sometimes single objects and sometimes bunches, heaps or rows of them."""
_LOOSE = ("dining table", "handbag", "backpack")
"""Categories of COCO that are never named: a table is labelled with or without the objects on it, or not at all under a
plate, and bags of all kinds are labelled as handbags and backpacks.
"""
_ALIKE = (
    *(("car", "truck", "bus"), ("bus", "train"), ("bicycle", "motorcycle")),
    *(("horse", "cow", "sheep"), ("backpack", "handbag", "suitcase")),
    *(("skis", "snowboard"), ("snowboard", "skateboard", "surfboard"), ("frisbee", "sports ball")),
    *(("bottle", "wine glass", "cup", "bowl", "vase"), ("bowl", "sink"), ("fork", "knife", "spoon")),
    *(("apple", "orange"), ("broccoli", "carrot"), ("sandwich", "hot dog"), ("sandwich", "cake", "donut")),
    *(("chair", "couch", "bench"), ("couch", "bed"), ("potted plant", "vase")),
    *(("tv", "laptop"), ("laptop", "keyboard"), ("mouse", "remote", "cell phone")),
    ("microwave", "oven", "toaster", "refrigerator"),
)
"""Categories of COCO whose objects look alike, or contain each other, so that one may be called by another's name."""


@cache
def are_alike(a: str, b: str) -> bool:
    """Whether an object of one category may be called by the name of the other.

    Names with the same last word are alike: a teddy bear may be called a bear.
    """
    return a != b and (a.split()[-1] == b.split()[-1] or any(a in group and b in group for group in _ALIKE))


def can_be_named(name: str) -> bool:
    """Whether the category is labelled in the same way everywhere."""
    return name not in _LOOSE


def is_single(name: str) -> bool:
    """Whether a label of the category is always one object rather than a bunch."""
    return name not in _BUNCHES and can_be_named(name)


def is_counted(name: str) -> bool:
    """Whether its labels are single objects with a countable name: no bunch, no substance, no plural such as skis."""
    return is_single(name) and name not in _MASS and not _may_be_plural(name)


def _may_be_plural(name: str) -> bool:
    word = name.split()[-1]
    return word.endswith("s") and not word.endswith("ss") and word not in _SINGULAR_IN_S


@cache
def plural(name: str) -> str:
    """The name of several objects."""
    if name in _MASS or _may_be_plural(name):
        return name
    import inflect  # only here, because it takes a second

    *words, last = name.split()
    return " ".join([*words, str(inflect.engine().plural_noun(last))])
