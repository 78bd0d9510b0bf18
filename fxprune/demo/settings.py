"""What can be asked of the demo, and what is refused before any training?"""

import importlib.util
import tempfile
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

import torch

from fxprune.demo.choices import DIGIT_NET, Device, Granularity, MethodName
from fxprune.errors import FxpruneError
from fxprune.methods.base import Method
from fxprune.methods.feather import Feather
from fxprune.methods.st3 import ST3
from fxprune.methods.targets import Sparsity

OWN_EPOCHS, TORCHVISION_EPOCHS = 10, 8
OWN_RATE, TORCHVISION_RATE = 2e-3, 5e-4  # at 2e-3 networks without batch norm die (squeezenet ends in a ReLU)


class DemoError(FxpruneError):
    """The demo cannot be run as asked."""


@dataclass(frozen=True)
class Settings:
    """One run of the demo; `epochs` of None means 10 for the demo's own model and 8 for torchvision's.

    `seconds` is the measuring time of the benchmark, a file and batch size.
    """

    method: MethodName = "feather"
    granularity: Granularity = "channel"
    target: float = 0.5
    model: str = DIGIT_NET
    epochs: int | None = None
    seed: int = 0
    device: Device = "cpu"
    out: Path = Path("runs/demo")
    seconds: float = 3.0

    @property
    def epoch_count(self) -> int:
        """The epochs that each of the two models is trained for."""
        if self.epochs is not None:
            return self.epochs
        return OWN_EPOCHS if self.model == DIGIT_NET else TORCHVISION_EPOCHS

    @property
    def learning_rate(self) -> float:
        """The highest learning rate of the cycle."""
        return OWN_RATE if self.model == DIGIT_NET else TORCHVISION_RATE

    def build_method(self) -> Method:
        """Make the method of that name."""
        return Feather() if self.method == "feather" else ST3(sigma=self.method == "st3-sigma")

    def __str__(self) -> str:
        epochs = f"{self.epoch_count} epoch{'s' if self.epoch_count > 1 else ''}"
        return (
            f"{self.model} on handwritten digits, {epochs}, seed {self.seed}: {self.method}, "
            f"{self.granularity} granularity, {self.target:.4g} masked"
        )


def check_settings(settings: Settings) -> None:
    """Refuse what would fail later, and create the out folder.

    Raises DemoError for a missing package, device, model or folder and for numbers that make no sense, and
    TargetError for a target outside (0, 1).
    """
    for package, extra in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(package) is None:
            raise DemoError(f"the demo needs {extra}, which is not installed; run: pip install 'fxprune[demo]'")
    Sparsity(settings.target)
    _check_choices(settings)
    if settings.epoch_count < 1:
        raise DemoError(f"epochs={settings.epochs}: give 1 or more")
    if not settings.seconds > 0:
        raise DemoError(f"seconds={settings.seconds}: the benchmark needs more than 0 seconds a file and batch size")
    if not 0 <= settings.seed < 2**32:
        raise DemoError(f"seed={settings.seed}: give a whole number from 0 to 2**32 - 1")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise DemoError("device=cuda: torch finds no CUDA device here; use the CPU instead")
    _check_model_name(settings.model)
    _make_folder(settings.out)


def _check_choices(settings: Settings) -> None:
    choices = (
        ("method", settings.method, get_args(MethodName)),
        ("granularity", settings.granularity, get_args(Granularity)),
        ("device", settings.device, get_args(Device)),
    )
    for name, given, known in choices:
        if given not in known:
            raise DemoError(f"{name}={given!r}: give one of {', '.join(known)}")


def _check_model_name(name: str) -> None:
    from torchvision import models  # costs a second, so only where it is needed

    known = [DIGIT_NET, *models.list_models(module=models)]
    if name in known:
        return
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "give a classifier of torchvision, such as resnet18"
    raise DemoError(f"model={name!r} is no classifier of torchvision's; {hint}")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise DemoError(f"out={out}: cannot be written ({error.strerror}); give another folder") from error
