"""Which models the zoo has, by family."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.zoo.cases import Source


class Family(NamedTuple):
    """Where the models of a family come from, and their names."""

    source: Source
    list_names: Callable[[], list[str]]
    is_brief: bool = False  # prepared, converted and compared only: neither inspected nor exported


FAMILIES = ("torchvision", "timm", "transformers")
"""What is run without a choice. timm is the smallest model of each of its architecture files."""

ON_DEMAND = ("timm-all", "libraries")
"""What is run on demand only: all of timm's models, briefly, and models of other libraries, which must be installed."""


def get_family(name: str) -> Family:
    """Load one family; the libraries of the others need not be there."""
    if name == "torchvision":
        from tests.zoo import torchvision_models

        return Family(torchvision_models.TORCHVISION, torchvision_models.list_names)
    if name in ("timm", "timm-all"):
        from tests.zoo import timm_models

        if name == "timm-all":
            return Family(timm_models.TIMM, timm_models.list_all, is_brief=True)
        return Family(timm_models.TIMM, timm_models.list_smallest)
    if name == "transformers":
        from tests.zoo import transformers_models

        return Family(transformers_models.TRANSFORMERS, transformers_models.list_names)
    if name == "libraries":
        from tests.zoo import library_models

        return Family(library_models.OTHERS, library_models.list_names)
    raise ValueError(f"family {name!r} is unknown; give one of {', '.join((*FAMILIES, *ON_DEMAND))}, or all")
