"""Train a network by a recipe of the literature, prune it, convert it, export it and measure it.

    python examples/train.py --recipe feather-cifar100
    python examples/train.py --recipe st3-cifar10 --target "Sparsity(0.95)" --epochs 40 --bf16
    torchrun --nproc-per-node 8 examples/train.py --recipe st3-imagenet --data /path/of/data --bf16
    python examples/train.py --recipe st3-cifar10 --resume

Every hyper-parameter of a recipe is an option: see `--help`. The out folder gets log.csv (and TensorBoard's files where
that is installed), checkpoint.pt after every epoch, then compact.safetensors, dense.onnx, compact.onnx and result.json.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

import fxprune
from calls import make, read_call
from command_line import Place, read_command_line
from data import Images, load_images
from finish import Conversion, convert_and_compare, count_correct, write_result
from fxprune.model import PreparedModel
from models import build_model, initialise
from ranks import Ranks, join_ranks
from recipes import Recipe


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line says; in every process that torchrun starts."""
    recipe, place = read_command_line(arguments)
    if place.threads is not None:
        torch.set_num_threads(place.threads)
    with join_ranks(place.device) as ranks:
        run(recipe, place, ranks)


def run(recipe: Recipe, place: Place, ranks: Ranks) -> None:
    """Go through the recipe's phases, with a pruning between each two, and leave a compact model behind."""
    started = time.perf_counter()
    place.out.mkdir(parents=True, exist_ok=True)
    images = load_images(recipe, place, ranks)
    example = next(images.test())[0][:2].cpu()
    dense = make_model(recipe, images.classes)
    training = Training(recipe, place, ranks, images, prepare_model(dense, example, recipe))
    saved = read_checkpoint(recipe, place)
    conversion: Conversion | None = None
    first = 0 if saved is None else saved["phase"]
    if saved is not None:
        training.rows = saved["rows"]
        conversion = None if saved["conversion"] is None else Conversion(**saved["conversion"])
        if conversion is not None:
            training.model = fxprune.load(dense, place.out / "pruned.safetensors")
    for phase in range(first, len(recipe.phases)):
        resumed = saved if phase == first else None
        if phase and resumed is None:
            fxprune.prune(training.model)
            if recipe.tune_compact:
                training.model, conversion = convert_and_compare(training.model, images, ranks, place.align)
                if ranks.is_first:
                    fxprune.save(training.model, place.out / "pruned.safetensors")
        training.train_phase(phase, conversion, resumed)
    if conversion is None and recipe.method != "none":
        training.model, conversion = convert_and_compare(training.model, images, ranks, place.align)
        correct = conversion.after, conversion.images
    else:
        correct = count_correct(training.model, images.test(), ranks)
    if ranks.is_first:
        seconds = time.perf_counter() - started
        result = write_result(recipe, place, dense, training.model, example, correct, conversion, seconds)
        print(result)
    ranks.wait()
    if conversion is not None and not conversion.is_exact:
        sys.exit(f"{conversion}: conversion has changed the model; this is a bug in fxprune, please report it")


def make_model(recipe: Recipe, classes: int) -> nn.Module:
    """Make the recipe's model, the same for the same seed."""
    torch.manual_seed(recipe.seed)
    model = build_model(read_call(recipe.model), classes)
    initialise(model, recipe.initial, recipe.norm_scale)
    if recipe.weights is not None:
        read_weights(model, recipe.weights)
    return model


def read_weights(model: nn.Module, path: str) -> None:
    """Fill the model from a safetensors file that has its names and shapes."""
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise SystemExit(f"--weights {path}: cannot be read ({error})") from error
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise SystemExit(f"--weights {path} is of another model: {first[:200]}") from error


def prepare_model(dense: nn.Module, example: Tensor, recipe: Recipe) -> nn.Module:
    """Prepare a copy of the model as the recipe says; `none` trains the model itself."""
    if recipe.method == "none":
        return dense
    return fxprune.prepare(
        dense,
        example,
        method=make(recipe.method),
        target=None if recipe.target is None else make(recipe.target),
        granularity=recipe.granularity,
        shapes=recipe.shapes,
        exclude=recipe.exclude,
    )


class Training:
    """A model on its way through the phases of a recipe, and the log of its epochs."""

    def __init__(self, recipe: Recipe, place: Place, ranks: Ranks, images: Images, model: nn.Module) -> None:
        self.recipe, self.place, self.ranks, self.images, self.model = recipe, place, ranks, images, model
        self.rows: list[dict[str, float]] = []

    def train_phase(self, phase: int, conversion: Conversion | None, saved: dict[str, Any] | None) -> None:
        """Train for the epochs of a phase, or for those that a checkpoint leaves of it."""
        recipe, ranks, epochs = self.recipe, self.ranks, self.recipe.phases[phase]
        self.model.to(ranks.device)
        if self.place.channels_last:
            self.model.to(memory_format=torch.channels_last)
        optimizer = make_optimizer(self.model, recipe)
        rate = LambdaLR(optimizer, lambda step: find_rate(recipe, step / self.images.steps, epochs))
        sparsity = self._follow(optimizer)
        best: dict[str, Any] | None = None
        first = 0
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            rate.load_state_dict(saved["rate"])
            first, best = saved["epoch"], saved["best"]
        wrapped: Any = ranks.wrap(self.model)
        if self.place.compile:
            wrapped = torch.compile(wrapped)
        for epoch in range(first, epochs):
            row = self._train_epoch(phase, epoch, wrapped, optimizer, rate)
            ranks.share_buffers(self.model)
            batches = self.images.held_out() if recipe.held_out else self.images.test()
            correct, count = count_correct(self.model, batches, ranks)
            row |= {"accuracy": correct / count, "sparsity": sparsity()}
            self.rows.append(row)
            may_be_best = recipe.best_from is not None and epoch + 1 > recipe.best_from * epochs
            if may_be_best and (best is None or row["accuracy"] > best["accuracy"]):
                best = {"accuracy": row["accuracy"], "model": copy_state(self.model)}
            if ranks.is_first:
                self._write(row)
                write_checkpoint(
                    self.place,
                    {
                        "recipe": dataclasses.asdict(recipe),
                        "phase": phase,
                        "epoch": epoch + 1,
                        "rows": self.rows,
                        "model": self.model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "rate": rate.state_dict(),
                        "best": best,
                        "conversion": None if conversion is None else dataclasses.asdict(conversion),
                    },
                )
        if best is not None:
            self.model.load_state_dict(best["model"])

    def _follow(self, optimizer: Optimizer) -> Any:
        """Let a prepared model's masks follow the optimizer; give what tells how far its schedule is."""
        if not isinstance(self.model, PreparedModel):
            return lambda: 0.0
        masked = self.recipe.phases[:1] if self.recipe.tune_compact else self.recipe.phases
        scheduler = fxprune.Scheduler(self.model, optimizer, total_steps=sum(masked) * self.images.steps)
        return lambda: scheduler.sparsity

    def _train_epoch(
        self, phase: int, epoch: int, model: Any, optimizer: Optimizer, rate: LambdaLR
    ) -> dict[str, float]:
        """Train for one epoch; give what is logged of it."""
        recipe, ranks, started = self.recipe, self.ranks, time.perf_counter()
        number = sum(recipe.phases[:phase]) + epoch
        torch.manual_seed(1_000_003 * recipe.seed + number)  # dropout goes on alike when a run is resumed
        sums = torch.zeros(3, device=ranks.device)  # loss, right, count
        hidden = self.place.quiet or not ranks.is_first or None  # None: hidden unless on a terminal
        title = f"phase {phase + 1} epoch {epoch + 1}"
        first_rate = rate.get_last_lr()[0]
        model.train()
        for images, labels in tqdm(self.images.train(number), title, self.images.steps, disable=hidden, leave=False):
            with torch.autocast(ranks.device.type, torch.bfloat16, enabled=self.place.bf16):
                outputs = model(images)
                logits = outputs[0] if isinstance(outputs, tuple) else outputs  # auxiliary heads follow behind
                loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.smoothing)
            if isinstance(self.model, PreparedModel):
                loss = loss + fxprune.penalty(self.model)
            loss.backward()
            if recipe.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
            right = (logits.argmax(1) == labels).sum()
            sums += torch.stack([loss.detach() * len(labels), right, labels.new_tensor(len(labels))])
        loss_sum, right_sum, count = ranks.add_up(sums).tolist()
        return {
            "phase": phase + 1,
            "epoch": epoch + 1,
            "rate": first_rate,
            "loss": loss_sum / count,
            "train_accuracy": right_sum / count,
            "seconds": time.perf_counter() - started,
        }

    def _write(self, row: dict[str, float]) -> None:
        """Write the log anew, and add the row to TensorBoard's where that is installed."""
        with (self.place.out / "log.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(self.rows)
        if not self.place.quiet:
            kind = "held out" if self.recipe.held_out else "test"
            print(
                f"phase {row['phase']} epoch {row['epoch']}: loss {row['loss']:.4f}, {kind} accuracy "
                f"{row['accuracy']:.2%}, sparsity {row['sparsity']:.1%}, {row['seconds']:.0f} s"
            )
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            with SummaryWriter(self.place.out / "tensorboard") as board:
                for name, value in row.items():
                    board.add_scalar(name, value, len(self.rows))


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Make SGD; what a prepared model's parameters need says its method, of any other biases and norms are spared."""
    if isinstance(model, PreparedModel):
        groups = fxprune.param_groups(model, lr=recipe.rate, weight_decay=recipe.decay)
    else:
        parameters = list(model.parameters())
        spared = [] if recipe.decay_all else [p for p in parameters if p.dim() < 2]
        decayed = [p for p in parameters if not any(p is other for other in spared)]
        groups = [{"params": decayed, "weight_decay": recipe.decay}, {"params": spared, "weight_decay": 0.0}]
    return SGD(groups, lr=recipe.rate, momentum=recipe.momentum, nesterov=recipe.nesterov)


def find_rate(recipe: Recipe, epoch: float, epochs: int) -> float:
    """Give the share of the learning rate after so many of a phase's epochs, which may be a fraction."""
    if epoch < recipe.warm_up:
        return (epoch + 1e-3) / recipe.warm_up
    if recipe.schedule == "step":
        return 0.1 ** sum(epoch >= share * epochs for share in recipe.milestones)
    return 0.5 * (1 + math.cos(math.pi * (epoch - recipe.warm_up) / max(1, epochs - recipe.warm_up)))


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def write_checkpoint(place: Place, state: dict[str, Any]) -> None:
    """Write the checkpoint so that a run which is broken off leaves the one before."""
    path = place.out / "checkpoint.pt"
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def read_checkpoint(recipe: Recipe, place: Place) -> dict[str, Any] | None:
    """Read the checkpoint to resume from, if that was asked for and there is one."""
    path = Path(place.out / "checkpoint.pt")
    if not place.resume or not path.exists():
        return None
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    changed = [name for name, value in dataclasses.asdict(recipe).items() if saved["recipe"].get(name) != value]
    if changed:
        raise SystemExit(
            f"{path} is of a run with other settings of {', '.join(changed)}; give those, or another --out"
        )
    return saved


if __name__ == "__main__":
    main()
