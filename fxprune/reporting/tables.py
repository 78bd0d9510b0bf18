"""Which tables does a report have, and what stands in them? The same for all its forms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from fxprune.export.measurements import Timing
from fxprune.reporting.comparison import Comparison, LayerChange, Network


class Cell(NamedTuple):
    """A figure, and what puts it into proportion."""

    text: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.note})" if self.note else self.text


Row = tuple[Cell, ...]


class Table(NamedTuple):
    """Rows of cells; `texts` is how many columns from the left are words."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[Row, ...]
    texts: int = 1


UNKNOWN = Cell("-")


def list_tables(comparison: Comparison) -> list[Table]:
    """List the tables that have rows, the headline first."""
    tables = [
        compare_networks(comparison),
        show_layers(comparison),
        show_layer_times(comparison),
        show_odd_widths(comparison),
        show_errors(comparison),
    ]
    return [table for table in tables if table.rows]


def compare_networks(comparison: Comparison) -> Table:
    """One column a network: costs, accuracy, errors, and a row for each way of running it."""
    networks = comparison.networks
    rows: list[Row] = [
        row_of("parameters", networks, lambda network: network.parameters, "{:,}".format),
        row_of("multiply-accumulates", networks, lambda network: network.macs, "{:,}".format),
        row_of("ONNX file", networks, lambda network: network.file_size, format_bytes),
        (Cell("accuracy"), *(UNKNOWN if n.accuracy is None else Cell(f"{n.accuracy:.2%}") for n in networks)),
        (Cell("error of the file"), *(show_verification(network) for network in networks)),
        *list_timings(comparison),
    ]
    filled = tuple(row for row in rows if any(cell != UNKNOWN for cell in row[1:]))
    return Table("Side by side", ("", *(network.name for network in networks)), filled)


def row_of(
    title: str, networks: Sequence[Network], value: Callable[[Network], int | None], show: Callable[[int], str]
) -> Row:
    """One quantity of all networks, the others' as a share of the first one's."""
    first, *others = (value(network) for network in networks)
    cells = [UNKNOWN if other is None else Cell(show(other), share(other, first)) for other in others]
    return (Cell(title), UNKNOWN if first is None else Cell(show(first)), *cells)


def list_timings(comparison: Comparison) -> Iterable[Row]:
    """One row a runtime, number of threads and batch size."""
    timings = comparison.benchmark.timings if comparison.benchmark is not None else ()
    for way in dict.fromkeys((t.runtime, t.threads, t.batch_size) for t in timings):
        found = {t.name: t for t in timings if (t.runtime, t.threads, t.batch_size) == way}
        cells = [show_timing(found.get(network.name), index == 0) for index, network in enumerate(comparison.networks)]
        yield (Cell(f"{name_way(way[0], way[1])}, batch {way[2]}"), *cells)


def name_way(runtime: str, threads: int) -> str:
    """Name a runtime and its threads."""
    return f"{runtime}, {threads} thread{'' if threads == 1 else 's'}"


def show_timing(timing: Timing | None, is_first: bool) -> Cell:
    """A median, and the speed-up with its interval."""
    if timing is None:
        return UNKNOWN
    if is_first:
        return Cell(f"{timing.median:.3f} ms", f"quartiles {timing.lower_quartile:.3f} to {timing.upper_quartile:.3f}")
    interval = f"{timing.speedup:.2f}x, {timing.speedup_low:.2f} to {timing.speedup_high:.2f}"
    efficiency = "" if timing.efficiency is None else f"; efficiency {timing.efficiency:.2f}"
    return Cell(f"{timing.median:.3f} ms", interval + efficiency)


def show_verification(network: Network) -> Cell:
    """The largest error of a file against its module."""
    found = network.verification
    if found is None:
        return UNKNOWN
    verdict = f"within {found.tolerance:g}" if found.passed else f"NOT within {found.tolerance:g}"
    return Cell(f"{found.worst.error:.1e}", verdict)


def show_layers(comparison: Comparison) -> Table:
    """One row a layer, and what is left over at the end."""
    rows = [show_layer(layer) for layer in comparison.layers]
    first, last = comparison.networks[0], find_compact(comparison)
    if rows and None not in (first.parameters, first.macs, last.parameters, last.macs):
        weights = [
            sum(getattr(layer, f"weights_{when}") for layer in comparison.layers) for when in ("before", "after")
        ]
        macs = [sum(getattr(layer, f"macs_{when}") for layer in comparison.layers) for when in ("before", "after")]
        rest = (
            Cell("all else"),
            Cell("norms, biases, attention's products"),
            Cell(""),
            *show_changes((first.parameters or 0) - weights[0], (last.parameters or 0) - weights[1]),
            *show_changes((first.macs or 0) - macs[0], (last.macs or 0) - macs[1]),
        )
        rows.append(rest)
    headers = ("layer", "kind", "width", "parameters", "left", "multiply-accumulates", "left")
    return Table("Layer by layer", headers, tuple(rows), texts=2)


def find_compact(comparison: Comparison) -> Network:
    """The network that the first one is compared with layer by layer: the last that has a module."""
    return [network for network in comparison.networks if network.macs is not None][-1]


def show_layer(layer: LayerChange) -> Row:
    """One layer before and after."""
    after = "split" if layer.width_after is None else f"{layer.width_after:,}" if layer.width_after else "gone"
    unchanged = layer.width_after == layer.width_before
    return (
        Cell(layer.name),
        Cell(layer.kind),
        Cell(f"{layer.width_before:,}" if unchanged else f"{layer.width_before:,} → {after}"),
        *show_changes(layer.weights_before, layer.weights_after),
        *show_changes(layer.macs_before, layer.macs_after),
    )


def show_change(before: int, after: int) -> Cell:
    """A number before and after."""
    return Cell(f"{before:,}") if before == after else Cell(f"{before:,} → {after:,}")


def show_changes(before: int, after: int) -> tuple[Cell, Cell]:
    """A number before and after, and the share that is left."""
    return show_change(before, after), Cell(share(after, before))


def show_layer_times(comparison: Comparison) -> Table:
    """Where time was lost, if the layers were profiled."""
    layers = comparison.benchmark.layers if comparison.benchmark is not None else ()
    rows = tuple(
        (
            Cell(layer.layer),
            Cell(f"{layer.name}, {name_way(layer.runtime, layer.threads)}, batch {layer.batch_size}"),
            show_change(layer.first_macs, layer.macs),
            Cell(f"{layer.first_milliseconds:.3f} → {layer.milliseconds:.3f}"),
            UNKNOWN if layer.efficiency is None else Cell(f"{layer.efficiency:.2f}"),
            Cell(f"{layer.lost:.3f}"),
        )
        for layer in layers
    )
    headers = ("layer", "measured", "multiply-accumulates", "ms", "efficiency", "ms lost")
    return Table("Where time is lost", headers, rows, texts=2)


def show_odd_widths(comparison: Comparison) -> Table:
    """One row a layer that would be faster with fewer channels, if the layers were profiled."""
    rows = tuple(
        (
            Cell(odd.layer),
            Cell(f"{odd.name}, {name_way(odd.runtime, odd.threads)}, batch {odd.batch_size}"),
            Cell(f"{odd.width:,}"),
            Cell(f"{odd.narrower:,}"),
            Cell(f"{odd.speedup:.1f}x"),
        )
        for odd in (comparison.benchmark.odd_widths if comparison.benchmark is not None else ())
    )
    headers = ("layer", "measured", "width", "narrower", "would be as fast")
    return Table("Widths that cost more than their share", headers, rows, texts=2)


def show_errors(comparison: Comparison) -> Table:
    """One row an output of a file that was compared with its module."""
    rows = tuple(
        (
            Cell(network.name),
            Cell(output.name),
            Cell(f"{output.error:.1e}"),
            Cell(f"{output.difference:.1e}"),
            Cell(f"{output.variation:.2g}", "does not vary with the input" if output.is_vacuous else ""),
            UNKNOWN if output.argmax_agreement is None else Cell(f"{output.argmax_agreement:.1%}"),
        )
        for network in comparison.networks
        if network.verification is not None
        for output in network.verification.outputs
    )
    headers = ("file", "output", "error", "largest difference", "variation", "same argmax")
    return Table("Errors of the files", headers, rows, texts=2)


def share(part: int, whole: int | None) -> str:
    """A part in percent of the whole."""
    return f"{part / whole:.1%}" if whole else ""


def format_bytes(size: int) -> str:
    """Bytes in megabytes."""
    return f"{size / 1e6:.2f} MB"
