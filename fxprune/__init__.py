"""fxprune, a compiler for pruning: masks that train, conversion that is exact and checked, speed that is measured."""

from fxprune import errors, export
from fxprune.api import convert, prepare
from fxprune.inspection.inspect import inspect
from fxprune.methods.feather import Feather
from fxprune.methods.filter_skeleton import FilterSkeleton
from fxprune.methods.gmp import GMP
from fxprune.methods.lrr import LRR
from fxprune.methods.probmask import ProbMask
from fxprune.methods.rni import RNI
from fxprune.methods.schedule import Cubic
from fxprune.methods.slimming import UCS, NetworkSlimming
from fxprune.methods.soft_threshold import STR
from fxprune.methods.st3 import ST3
from fxprune.methods.targets import Latency, Macs, Params, Sparsity
from fxprune.param_groups import param_groups
from fxprune.penalty import penalty
from fxprune.prune import prune, recalibrate
from fxprune.saving.load import load
from fxprune.saving.save import save
from fxprune.scheduler import Scheduler
from fxprune.stripes.lower import lower_stripes

__all__ = [
    "GMP",
    "LRR",
    "RNI",
    "ST3",
    "STR",
    "UCS",
    "Cubic",
    "Feather",
    "FilterSkeleton",
    "Latency",
    "Macs",
    "NetworkSlimming",
    "Params",
    "ProbMask",
    "Scheduler",
    "Sparsity",
    "convert",
    "errors",
    "export",
    "inspect",
    "load",
    "lower_stripes",
    "param_groups",
    "penalty",
    "prepare",
    "prune",
    "recalibrate",
    "save",
]
