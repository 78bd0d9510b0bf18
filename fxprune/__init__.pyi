"""The public names and nothing else."""

from . import errors, export
from .api import convert, prepare
from .inspection.inspect import inspect
from .methods.feather import Feather
from .methods.filter_skeleton import FilterSkeleton
from .methods.gmp import GMP
from .methods.lrr import LRR
from .methods.probmask import ProbMask
from .methods.rni import RNI
from .methods.schedule import Cubic
from .methods.slimming import UCS, NetworkSlimming
from .methods.soft_threshold import STR
from .methods.st3 import ST3
from .methods.targets import Latency, Macs, Params, Sparsity
from .param_groups import param_groups
from .penalty import penalty
from .prune import prune, recalibrate
from .saving.load import load
from .saving.save import save
from .scheduler import Scheduler
from .stripes.lower import lower_stripes

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
