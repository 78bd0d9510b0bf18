"""Layer by layer, what do networks take beside the first of them, and which widths are odd?"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fxprune.export.layer_profile import LayerCost, profile_layers
from fxprune.export.measurements import LayerTime, OddWidth
from fxprune.export.odd_widths import find_odd_widths
from fxprune.export.onnx_file import read_file
from fxprune.export.onnx_macs import count_macs
from fxprune.export.runtimes.interface import Array
from fxprune.export.runtimes.ort_cpu import OrtCpu


class Profile(NamedTuple):
    """What was found, as it goes into a Benchmark."""

    layers: tuple[LayerTime, ...] = ()
    odd_widths: tuple[OddWidth, ...] = ()


def profile_networks(
    paths: Mapping[str, Path], label: str, runtime: OrtCpu, feed: Mapping[str, Array], threads: int
) -> Profile:
    """Profile files by name on ONNX Runtime's CPU kernels, and time the odd widths of all but the first.

    Raises ExportError if the runtime refuses one, or its shapes do not follow from the inputs.
    """
    batch = next(array.shape[0] for array in feed.values() if array.ndim)
    profiles = {name: profile_layers(path, feed, threads) for name, path in paths.items()}
    (_, first), *others = profiles.items()
    layers, odd = [], []
    for name, profile in others:
        for layer in {**first, **profile}:
            dense, own = first.get(layer, LayerCost("")), profile.get(layer, LayerCost(""))
            layers.append(
                LayerTime(
                    runtime=label,
                    threads=threads,
                    batch_size=batch,
                    name=name,
                    layer=layer,
                    op=own.op or dense.op,
                    first_macs=dense.macs // batch,
                    macs=own.macs // batch,
                    first_milliseconds=dense.milliseconds,
                    milliseconds=own.milliseconds,
                )
            )
        works = count_macs(read_file(paths[name], weights=False), {key: array.shape for key, array in feed.items()})
        found = find_odd_widths(works, runtime, threads)
        odd += [OddWidth(label, threads, batch, name, *each) for each in found]
    return Profile(tuple(sorted(layers, key=lambda layer: -layer.lost)), tuple(odd))
