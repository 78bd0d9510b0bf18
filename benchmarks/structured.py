"""At equal multiply-accumulates, which way of pruning channels keeps most accuracy? Over seeds, in one table.

    python benchmarks/structured.py --dataset cifar10.npz --weights resnet20.safetensors --epochs 4 --seeds 0 1 2

Every candidate starts from the same trained network, sees the same images in the same order for as many epochs, and
ends at the same share of the multiply-accumulates. The candidates are fxprune's methods, the places where a gate may
sit while it trains, the magnitudes that may say how much a unit matters, and Torch-Pruning's group-norm pruner with
sparse learning (its regulariser for the first half of the epochs, pruning, fine-tuning for the second half; its own
scripts' strength of 5e-4 and global ranking).

Weights of a ResNet with padded shortcuts are read as projections that compute the same (a 1 x 1 convolution that picks
the channels), since Torch-Pruning does not follow the padding. A line for each finished run is added to the results
file, and what is there already is not run again.
"""

from __future__ import annotations

import argparse
import fnmatch
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from tabulate import tabulate
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from json_lines import add_line, read_lines
from placements import PLACEMENTS, settle

import fxprune
from calls import read_call
from command_line import Place
from data import Images, load_images
from finish import convert_and_compare, count_correct
from fxprune import export
from fxprune.methods.scores import Slice, unit_scores
from models import build_model
from ranks import Ranks
from recipes import RECIPES, Recipe
from train import Training

HERE = Ranks(0, 1, torch.device("cpu"))
HELD_OUT = 500  # training images that each epoch is judged by in the log; the test images are read once, at the end
STRENGTH = 5e-4  # of Torch-Pruning's regulariser, as in its scripts for CIFAR-10

Score = Callable[[Mapping[str, Tensor], Sequence[Slice], int], Tensor]


def columns_only(parameters: Mapping[str, Tensor], slices: Sequence[Slice], units: int) -> Tensor:
    """Score by the columns that read a unit alone."""
    return unit_scores(parameters, [each for each in slices if each.dim == 1], units)


def filters_times_scales(parameters: Mapping[str, Tensor], slices: Sequence[Slice], units: int) -> Tensor:
    """Score by the filters that make a unit, times its batch norms' scales."""
    filters = [each for each in slices if each.dim == 0 and parameters[each.parameter].dim() > 1]
    scales = [each for each in slices if parameters[each.parameter].dim() == 1]
    return unit_scores(parameters, filters, units) * unit_scores(parameters, scales, units)


def unscaled(parameters: Mapping[str, Tensor], slices: Sequence[Slice], units: int) -> Tensor:
    """Score by the root mean square over all coupled slices as they are, layers compared by their weights' size."""
    squares, counts = torch.zeros(units + 1), torch.zeros(units + 1)
    for each in slices:
        values = parameters[each.parameter].detach().square().transpose(0, each.dim)
        values = values.reshape(len(each.index), -1)
        index = each.index.remainder(units + 1)
        squares.index_add_(0, index, values.sum(1))
        counts.index_add_(0, index, torch.full((len(index),), float(values.shape[1])))
    return (squares / counts.clamp_min(1))[:-1].sqrt()


@dataclass(frozen=True)
class Scored(fxprune.Feather):
    """Feather with another score of units."""

    score: Score = unit_scores

    def score_units(self, parameters: Mapping[str, Tensor], slices: Sequence[Slice], units: int) -> Tensor:
        return self.score(parameters, slices, units)


class Candidate(NamedTuple):
    """One way of pruning; a method of None is Torch-Pruning."""

    name: str
    method: fxprune.Feather | fxprune.ST3 | fxprune.GMP | None
    placement: str = "columns"


CANDIDATES = (
    Candidate("Feather", fxprune.Feather()),
    Candidate("ST3", fxprune.ST3()),
    Candidate("GMP", fxprune.GMP()),
    Candidate("Torch-Pruning, group norm", None),
    Candidate("Feather, closed units learn", fxprune.Feather(), "learning columns"),
    Candidate("Feather, gates on norms", fxprune.Feather(), "norms"),
    Candidate("Feather, gates on activations", fxprune.Feather(), "activations"),
    Candidate("Feather, score of columns", Scored(score=columns_only)),
    Candidate("Feather, score of filters times scales", Scored(score=filters_times_scales)),
    Candidate("Feather, unscaled score", Scored(score=unscaled)),
)

TEXT = """\
{model} on {dataset}, from trained weights, {epochs} epochs of {images:,} images, learning rate {rate},
batches of {batch}, seeds {seeds}. Accuracy is the compact network's on the test images: the mean, the standard
deviation, and over how many seeds.
{runs} runs took {hours:.1f} hours on {threads} thread, torch {torch}.

{table}
"""


def main() -> None:
    options = read_options()
    warnings.filterwarnings("ignore", category=UserWarning)
    results = read_results(options.results)
    for key in list_runs(options):
        if key not in results and not options.table_only:
            print(key, flush=True)
            results[key] = run(key, options)
            add_line(options.results, {"key": key, "result": results[key]})
            write_table(results, options)
    print(write_table(results, options))


class Key(NamedTuple):
    """What one run is."""

    candidate: str
    remaining: float
    seed: int
    epochs: int
    limit: int | None


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cifar10", help="as for examples/train.py")
    parser.add_argument("--model", default="resnet20", help="one of CIFAR's ResNets, with projections")
    parser.add_argument("--weights", required=True, help="safetensors; padded shortcuts are read as projections")
    parser.add_argument("--colours", default="own", choices=("own", "imagenet"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--train-limit", type=int, help="take only so many training images")
    parser.add_argument("--test-limit", type=int, help="take only so many test images")
    parser.add_argument("--remaining", type=float, nargs="+", default=[0.5, 1 / 3], help="of multiply-accumulates")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", default=["*"], help="globs over the candidates' names")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("runs/structured.jsonl"))
    parser.add_argument("--table", type=Path, default=Path("runs/structured.md"))
    parser.add_argument("--table-only", action="store_true", help="run nothing: write the table of what is there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    return options


def list_runs(options: argparse.Namespace) -> Iterator[Key]:
    """List the runs, a whole table of the first seed before the second."""
    for seed in options.seeds:
        for remaining in options.remaining:
            for candidate in CANDIDATES:
                if any(fnmatch.fnmatch(candidate.name, glob) for glob in options.only):
                    yield Key(candidate.name, round(remaining, 3), seed, options.epochs, options.train_limit)


def read_results(path: Path) -> dict[Key, dict[str, Any]]:
    return {Key(*found["key"]): found["result"] for found in read_lines(path)}


def run(key: Key, options: argparse.Namespace) -> dict[str, Any]:
    """Train one candidate; give what the compact network gets right and costs."""
    started = time.perf_counter()
    candidate = next(each for each in CANDIDATES if each.name == key.candidate)
    recipe = replace(
        RECIPES["feather-cifar10-channels"],
        dataset=options.dataset,
        model=options.model,
        colours=options.colours,
        epochs=key.epochs,
        rate=options.rate,
        train_limit=key.limit,
        test_limit=options.test_limit,
        held_out=HELD_OUT,
        seed=key.seed,
    )
    place = Place(out=options.results.parent / "structured", quiet=True, bf16=True, channels_last=True)
    place.out.mkdir(parents=True, exist_ok=True)
    images = load_images(recipe, place, HERE)
    example = next(images.test())[0][:2]
    torch.manual_seed(key.seed)
    model = build_model(read_call(recipe.model), images.classes)
    model.load_state_dict(read_as_projections(options.weights, model))
    dense = export.count(model.eval(), example)
    train = train_other if candidate.method is None else train_own
    compact, (correct, count), lost = train(candidate, key, model, recipe, place, images, example)
    cost = export.count(compact, example)
    return {
        "accuracy": correct / count,
        "lost": lost,
        "macs": cost.macs / dense.macs,
        "parameters": cost.parameters / dense.parameters,
        "seconds": time.perf_counter() - started,
    }


def train_own(
    candidate: Candidate, key: Key, model: nn.Module, recipe: Recipe, place: Place, images: Images, example: Tensor
) -> tuple[nn.Module, tuple[int, int], int]:
    """Train with masks for all epochs, and convert; give how many are right, of how many, and how many changed."""

    def prepare() -> fxprune.PreparedModel:
        target = fxprune.Macs(remaining=key.remaining)
        return fxprune.prepare(model, example, method=candidate.method, target=target, exclude=("linear",))

    prepared = prepare()
    PLACEMENTS[candidate.placement](prepared)
    training = Training(recipe, place, HERE, images, prepared.train())
    training.train_phase(0, None, None)
    compact, conversion = convert_and_compare(settle(prepared, prepare()), images, HERE)
    lost = conversion.images - conversion.agreeing
    if candidate.placement != "columns":  # what was trained, beside what was settled
        lost += abs(count_correct(prepared, images.test(), HERE)[0] - conversion.after)
    return compact, (conversion.after, conversion.images), lost


def train_other(
    candidate: Candidate, key: Key, model: nn.Module, recipe: Recipe, place: Place, images: Images, example: Tensor
) -> tuple[nn.Module, tuple[int, int], int]:
    """Train with Torch-Pruning's regulariser, prune step by step to the multiply-accumulates, and fine-tune."""
    import torch_pruning as tp

    pruner = tp.pruner.GroupNormPruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        reg=STRENGTH,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=400,
        ignored_layers=[model.linear],
    )
    half = replace(recipe, epochs=key.epochs // 2, method="none")
    with before_each_step(lambda: pruner.regularize(model)):
        Training(half, place, HERE, images, model.train()).train_phase(0, None, None)
    dense = export.count(model.eval(), example).macs
    for _ in range(400):
        if export.count(model, example).macs <= key.remaining * dense:
            break
        pruner.step()
    later = replace(half, epochs=key.epochs - half.epochs, seed=recipe.seed + 1000)
    Training(later, place, HERE, images, model.train()).train_phase(0, None, None)
    return model, count_correct(model, images.test(), HERE), 0


@contextmanager
def before_each_step(call: Callable[[], None]) -> Iterator[None]:
    """Call this before every optimizer's step."""
    handle = register_optimizer_step_pre_hook(lambda *_: call())
    try:
        yield
    finally:
        handle.remove()


def read_as_projections(path: str, model: nn.Module) -> dict[str, Tensor]:
    """Read weights; where the model has a projection and the file none, make one that pads the channels with zeros."""
    values = load_file(path)
    for name, own in model.state_dict().items():
        if name in values or ".shortcut." not in name:
            continue
        if own.dim() == 4:
            pad = (own.shape[0] - own.shape[1]) // 2
            values[name] = torch.zeros_like(own)
            values[name][pad : pad + own.shape[1], :, 0, 0] = torch.eye(own.shape[1])
        elif name.endswith("weight"):
            values[name] = torch.full_like(own, (1 + 1e-5) ** 0.5)
        else:
            values[name] = torch.ones_like(own) if name.endswith("var") else torch.zeros_like(own)
    return values


def write_table(results: Mapping[Key, dict[str, Any]], options: argparse.Namespace) -> str:
    """Write the table of what is there so far, and return it."""
    text = describe(results, options)
    options.table.write_text(text, encoding="utf-8")
    return text


def describe(results: Mapping[Key, dict[str, Any]], options: argparse.Namespace) -> str:
    """Put a row for each candidate of which there are runs, and columns for each share of the multiply-accumulates."""
    wanted = {key: results[key] for key in list_runs(options) if key in results}
    headers = ["candidate"]
    for remaining in options.remaining:
        headers += [f"accuracy at {remaining:.0%} of the MACs", "MACs", "parameters"]
    rows = []
    for candidate in dict.fromkeys(key.candidate for key in wanted):
        row = [candidate]
        for remaining in options.remaining:
            of_row = [r for k, r in wanted.items() if k.candidate == candidate and k.remaining == round(remaining, 3)]
            if not of_row:
                row += ["", "", ""]
                continue
            accuracies = [result["accuracy"] for result in of_row]
            spread = f" ± {statistics.stdev(accuracies):.2%}" if len(accuracies) > 1 else ""
            row.append(f"{statistics.mean(accuracies):.2%}{spread} ({len(of_row)})")
            row += [f"{statistics.mean(result[name] for result in of_row):.1%}" for name in ("macs", "parameters")]
        rows.append(row)
    return TEXT.format(
        model=options.model,
        dataset=Path(options.dataset).name,
        epochs=options.epochs,
        images=options.train_limit or 50_000,
        rate=options.rate,
        batch=RECIPES["feather-cifar10-channels"].batch_size,
        seeds=", ".join(map(str, options.seeds)),
        runs=len(wanted),
        hours=sum(result["seconds"] for result in wanted.values()) / 3600,
        threads=options.threads,
        torch=torch.__version__,
        table=tabulate(rows, headers, tablefmt="github", disable_numparse=True),
    )


if __name__ == "__main__":
    main()
