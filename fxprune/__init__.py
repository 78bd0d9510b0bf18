"""fxprune, a compiler for pruning: masks that train, conversion that is exact and checked, speed that is measured."""

from fxprune import errors, export
from fxprune.api import convert, prepare
from fxprune.inspection.inspect import inspect
from fxprune.methods.feather import Feather
from fxprune.methods.schedule import Cubic
from fxprune.methods.st3 import ST3
from fxprune.methods.targets import Sparsity
from fxprune.penalty import penalty
from fxprune.saving.load import load
from fxprune.saving.save import save
from fxprune.scheduler import Scheduler

__all__ = [
    "ST3",
    "Cubic",
    "Feather",
    "Scheduler",
    "Sparsity",
    "convert",
    "errors",
    "export",
    "inspect",
    "load",
    "penalty",
    "prepare",
    "save",
]
