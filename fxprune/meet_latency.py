"""How does what is predicted of a latency become what is measured?

Gates are closed in a copy of the prepared model, which is converted, exported and timed beside the dense one; what is
predicted is corrected by what was measured, until that is what was asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fxprune.export.benchmark import benchmark
from fxprune.latency_trial import LatencyTrial
from fxprune.methods.targets import Latency
from fxprune.methods.unit_costs import UnitCosts
from fxprune.model import PreparedModel, as_example
from fxprune.passes.measure_costs import check_reach_of_units
from fxprune.run_alone import all_threads
from fxprune.scheduler import find_masked
from fxprune.sharding import on_first_rank

TOLERANCE = 0.02
"""Of the latency that was asked for."""

MOST_TRIALS = 6

MOST = 0.999
"""Of the dense latency, which a trial is taken to have at the most: pruning is taken to save something."""

SECONDS = 6.0
"""For the timing of each network, at the most."""


@all_threads()
def meet_latency(
    prepared: PreparedModel, target: Latency, share: float, convert: Callable[[nn.Module], nn.Module]
) -> tuple[LatencyTrial, ...]:
    """Correct the costs of a prepared model until closing `share` of the latency does so, and list the trials.

    `convert` makes a network of a prepared one. The trial that came closest stands last, and the costs follow it. Gates
    and weights stay as they are.

    Raises TargetError where the target is out of reach, ExportError where the runtime or the exporter refuses the
    model.
    """
    costs = prepared.fxprune.costs
    assert isinstance(costs, UnitCosts)
    found = on_first_rank(lambda: try_networks(prepared, costs, target, share, convert))
    correct(costs, *found[-1])
    return tuple(trial for trial, _ in found)


def try_networks(
    prepared: PreparedModel, costs: UnitCosts, target: Latency, share: float, convert: Callable[[nn.Module], nn.Module]
) -> list[tuple[LatencyTrial, Tensor]]:
    """Time pruned networks, and correct the costs after each; give the trials with the open units of each group."""
    network = copy.deepcopy(prepared).eval()
    masks = network.fxprune
    masks.costs = costs
    masks.set_gates(torch.ones_like(masks.gates))
    dense = convert(network)
    found: list[tuple[LatencyTrial, Tensor]] = []
    while len(found) < MOST_TRIALS:
        check_reach_of_units(costs)
        masks.set_gates(prepared.fxprune.gates)
        masks.refresh(find_masked(network, masks), share)
        left = costs.count_open(masks.gates)
        if any(torch.equal(left, other) for _, other in found):
            break  # no number of units comes closer
        predicted = float(costs.cost(left) / costs.total)
        found.append((time_beside(dense, convert(network), prepared, target, 1 - share, predicted), left.cpu()))
        correct(costs, *found[-1])
        if found[-1][0].miss <= TOLERANCE:
            break
    return sorted(found, key=lambda each: -each[0].miss)


def time_beside(
    dense: nn.Module, compact: nn.Module, prepared: PreparedModel, target: Latency, asked: float, predicted: float
) -> LatencyTrial:
    """Export both networks and time them in turns."""
    timed = benchmark(
        {"dense": dense, "compact": compact}, runtimes=(target.runtime,), batch_sizes=(target.batch_size,),
        threads=target.threads, seconds=SECONDS, precision=TOLERANCE, example_inputs=as_example(prepared.inputs),
    )  # fmt: skip
    base, own = timed.timings
    measured, low, high = (1 / speedup for speedup in (own.speedup, own.speedup_high, own.speedup_low))
    return LatencyTrial(asked, predicted, measured, low, high, base.median, own.median)


def correct(costs: UnitCosts, trial: LatencyTrial, left: Tensor) -> None:
    """Let what was measured of a trial be what the costs predict of it; it is never quite all."""
    costs.calibrate(left.to(costs.size.device), min(trial.measured, MOST))
