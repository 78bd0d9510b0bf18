"""What decides a run? A recipe: the hyper-parameters of a paper, by name, each an option of the command line.

What the papers do and these recipes leave out, for good reasons, stands beside the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated as As
from typing import Literal

from models import Initial


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is learnt; what stands here is CIFAR-10 as the papers' baselines train it."""

    dataset: As[str, "cifar10, cifar100, fashion-mnist, an .npz file, or a folder with train/ and val/"] = "cifar10"
    model: As[str, "as a call: 'resnet20(width=32)', 'vgg16', or a name of torchvision's"] = "resnet20"
    initial: As[Initial, "how weights are drawn: torch's way, or He's by fan_in or fan_out"] = "fan_in"
    norm_scale: As[float, "the scale that batch norms start with"] = 1.0
    weights: As[str | None, "a .safetensors file to start from; 'none' starts with random weights"] = None

    method: As[str, "as a call: 'Feather(p=3)', 'ST3(sigma=True)'; 'none' trains the dense model"] = "none"
    target: As[str | None, "as a call: 'Sparsity(0.9)', 'Macs(remaining=0.5)'; 'none' for the method's own"] = None
    granularity: As[Literal["weight", "stripe", "channel"], "what one gate closes"] = "weight"
    shapes: As[Literal["free", "rectangles"], "the stripes that a filter keeps: any, or a rectangle"] = "free"
    exclude: As[tuple[str, ...], "layers to leave as they are: names, or globs over names"] = ()

    epochs: As[int, "of the training, or of its first phase"] = 160
    prunings: As[int, "how often fxprune.prune follows a phase, with one more phase behind it"] = 0
    tune_epochs: As[int, "of each phase after a pruning"] = 0
    tune_compact: As[bool, "convert after the pruning and fine-tune the compact model"] = False

    batch_size: As[int, "images a step, over all processes"] = 128
    rate: As[float, "the learning rate after the warm-up"] = 0.1
    schedule: As[Literal["step", "cosine"], "how the learning rate falls, in every phase"] = "step"
    milestones: As[tuple[float, ...], "step: the shares of a phase after which the rate falls tenfold"] = (0.5, 0.75)
    warm_up: As[int, "epochs in which the learning rate rises from zero"] = 0
    momentum: As[float, "of SGD"] = 0.9
    nesterov: As[bool, "Nesterov's momentum"] = False
    decay: As[float, "weight decay"] = 1e-4
    decay_all: As[bool, "decay biases and norms too, where no method says which parameters decay"] = False
    clip: As[float | None, "the largest norm of the gradient; 'none' leaves it"] = None
    smoothing: As[float, "label smoothing"] = 0.0

    image_size: As[int, "of an image folder: what training crops and evaluation cuts out"] = 224
    colours: As[Literal["own", "imagenet"], "of arrays: whose mean and deviation normalise the images"] = "own"
    padding: As[int, "of arrays: pixels on each side before a random crop; 0 crops nothing"] = 4
    padding_mode: As[Literal["constant", "replicate"], "zeros, or the edge's pixels"] = "constant"
    flip: As[bool, "flip half of the images"] = True
    held_out: As[int, "training images, the last, that are kept for validation"] = 0
    best_from: As[float | None, "share of a phase from which the best epoch on these is kept; 'none': the last"] = None
    train_limit: As[int | None, "take only so many training images"] = None
    test_limit: As[int | None, "take only so many test images"] = None
    seed: As[int, "the same seed gives the same run on the same machine"] = 0

    def __post_init__(self) -> None:
        if self.best_from is not None and not self.held_out:
            raise SystemExit("--best-from chooses an epoch on held-out images, never on test images: give --held-out")
        if self.prunings and self.method == "none":
            raise SystemExit(f"--prunings {self.prunings} needs a --method")
        if self.tune_compact and self.prunings != 1:
            raise SystemExit("--tune-compact fine-tunes what one pruning left: give --prunings 1")

    @property
    def phases(self) -> tuple[int, ...]:
        """The epochs of each phase."""
        return (self.epochs, *[self.tune_epochs] * self.prunings)


# The baseline of Pruning Filter in Filter, and of RNI with its two rivals. All three papers choose the best epoch on
# the test set; here the last one counts.
DENSE = Recipe()
SKELETON = replace(DENSE, initial="torch", norm_scale=0.5, batch_size=64, decay_all=True)
RNI = replace(
    DENSE,
    model="vgg16(conv_bias=True)",
    method="RNI(strength=1e-3, shift=3)",
    target="Sparsity(0.5, least=3)",
    granularity="channel",
    initial="fan_out",
    norm_scale=0.5,
    batch_size=64,
    nesterov=True,
    decay_all=True,
    prunings=1,
    tune_epochs=160,
    tune_compact=True,
)
UCS = replace(RNI, method="UCS()")
INNER = ("linear",)  # padded shortcuts tie all streams to the last layer: what is left are the blocks' inner channels

# Feather, BMVC 2023: the authors' code for CIFAR-100, of which the paper's three networks are --model.
FEATHER = replace(
    DENSE,
    model="resnet20(width=32)",
    method="Feather(p=3)",
    target="Sparsity(0.9)",
    initial="fan_out",
    schedule="cosine",
    decay=5e-4,
    clip=3.0,
)

# ST-3, WACV 2023. Left out: ten more epochs with a fixed mask, and a momentum of 0.99 in the batch norms, where torch
# means by it the weight of the newest batch.
ST3 = replace(
    DENSE,
    model="resnet20(head_bias=False)",
    method="ST3()",
    target="Sparsity(0.9)",
    clip=3.0,
    padding_mode="replicate",
    held_out=5000,
    best_from=0.5,
)
IMAGENET = replace(
    DENSE,
    dataset="imagenet",
    model="resnet50",
    initial="torch",
    epochs=100,
    warm_up=5,
    schedule="cosine",
    smoothing=0.1,
)
ST3_IMAGENET = replace(
    IMAGENET,
    method="ST3(schedule=Cubic(begin=0.05, end=0.5))",
    target="Sparsity(0.9)",
    batch_size=512,
    rate=0.2,
    momentum=0.875,
    decay=5e-5,
    clip=3.0,
)
# STR, ICML 2020, and its GMP, there with the same share of every layer, here with one threshold. In
# STR weight decay pulls the thresholds up, and so decides the sparsity: 2.25e-5 gave 90.23%.
STR_IMAGENET = replace(IMAGENET, method="STR(start=-3200.0)", batch_size=256, rate=0.256, momentum=0.875, decay=2.25e-5)

RECIPES: dict[str, Recipe] = {
    "dense-cifar10": DENSE,
    "feather-cifar100": replace(FEATHER, dataset="cifar100"),
    "feather-cifar10": FEATHER,
    "feather-cifar10-channels": replace(FEATHER, granularity="channel", target="Sparsity(0.5)"),
    "st3-cifar10": ST3,
    "st3-sigma-cifar10": replace(ST3, method="ST3(sigma=True)"),
    "st3-imagenet": ST3_IMAGENET,
    "st3-sigma-imagenet": replace(ST3_IMAGENET, method="ST3(sigma=True, schedule=Cubic(begin=0.05, end=0.5))"),
    "swp-cifar10": replace(
        SKELETON,
        model="resnet56",
        method="FilterSkeleton(alpha=1e-5, delta=0.05)",
        granularity="stripe",
        exclude=("*.shortcut.*", "linear"),
    ),
    "swp-vgg16-cifar10": replace(
        SKELETON,
        model="vgg16",
        method="FilterSkeleton(alpha=1e-5, delta=0.01)",
        granularity="stripe",
        exclude=("linear",),
    ),
    "rni-cifar10": RNI,
    "rni-resnet56-cifar10": replace(
        RNI, model="resnet56(shortcut='padding')", method="RNI(strength=1e-4, shift=0)", exclude=INNER
    ),
    "slimming-cifar10": replace(RNI, method="NetworkSlimming(strength=1e-4)"),
    "slimming-resnet56-cifar10": replace(
        RNI, model="resnet56(shortcut='padding')", method="NetworkSlimming(strength=1e-5)", exclude=INNER
    ),
    "ucs-cifar10": UCS,
    "ucs-resnet56-cifar10": replace(UCS, model="resnet56(shortcut='padding')", exclude=INNER),
    # the baselines of ST-3's paper, in its setting
    "gmp-cifar10": replace(ST3, method="GMP(sticky=True, schedule=Cubic(begin=0.03125, end=0.5))"),
    "gmp-loose-cifar10": replace(ST3, method="GMP(sticky=False, schedule=Cubic(begin=0.03125, end=0.5))"),
    "gmp-imagenet": replace(STR_IMAGENET, method="GMP(schedule=Cubic(begin=0.2, end=0.79))", target="Sparsity(0.9)"),
    "lrr-cifar10": replace(ST3, method="LRR(rate=0.2)", best_from=0.5, prunings=11, tune_epochs=160),
    "str-cifar10": replace(ST3, method="STR(start=-8.0)", target=None),
    "str-imagenet": STR_IMAGENET,
    "probmask-cifar10": replace(ST3, method="ProbMask()", epochs=300, batch_size=256, schedule="cosine"),
}
