"""Error by layer as a picture."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ossicle.core.files import atomic_write
from ossicle.probe.report import WEIGHTED, ProbeReport, Record, Summary

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def plot_error_by_layer(report: ProbeReport, path: Path) -> None:
    """Draw a panel a task: encoders as lines over layers, their weighted sums as points, spectra as level lines.

    Bands and bars are 95 % intervals: over test utterances for layers (mean over seeds), over both for level lines.
    """
    tasks = [note.task for note in report.tasks if any(record.task == note.task for record in report.records)]
    figure = Figure(figsize=(5.2 * max(1, len(tasks)), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    features = list(dict.fromkeys(record.feature for record in report.records))
    colours = {feature: _COLOURS[place % len(_COLOURS)] for place, feature in enumerate(features)}
    axes = figure.subplots(1, max(1, len(tasks)), squeeze=False)[0]
    for axis, task in zip(axes, tasks, strict=False):
        _draw(axis, report, task, colours)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=130)


def _draw(axis: Axes, report: ProbeReport, task: str, colours: dict[str, str]) -> None:
    depth = 0
    for feature, colour in colours.items():
        records = [record for record in report.records if (record.task, record.feature) == (task, feature)]
        numbered = sorted({int(record.layer) for record in records if record.layer.isdecimal()})
        if len(numbered) > 1:
            depth = max(depth, *numbered)
            _line(axis, numbered, records, feature, colour)
        else:
            rows = [row for row in report.summary if (row.task, row.feature) == (task, feature)]
            _level(axis, rows, colour)
    for feature, colour in colours.items():
        chosen = [r for r in report.records if (r.task, r.feature, r.layer) == (task, feature, WEIGHTED)]
        if chosen and any(r.layer.isdecimal() for r in report.records if (r.task, r.feature) == (task, feature)):
            _point(axis, depth + 1, chosen, colour)
    note = next(note for note in report.tasks if note.task == task)
    if note.chance_error is not None:
        axis.axhline(100 * note.chance_error, color="0.6", linestyle=":", linewidth=1, label="chance")
    axis.set_title(f"{task} ({note.num_classes} classes)")
    axis.set_xlabel("layer")
    axis.set_ylabel("phone error rate, %" if task.startswith("ctc") else "error, %")
    axis.set_xticks([*range(depth + 1), depth + 1], [*map(str, range(depth + 1)), "sum"])
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)


def _line(axis: Axes, layers: list[int], records: list[Record], feature: str, colour: str) -> None:
    by_layer = [[record for record in records if record.layer == str(layer)] for layer in layers]
    middle, low, high = (
        np.array([100 * np.mean([take(record) for record in found]) for found in by_layer])
        for take in (_error, _low, _high)
    )
    axis.plot(layers, middle, marker="o", color=colour, label=feature)
    axis.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)


def _error(record: Record) -> float:
    return record.error


def _low(record: Record) -> float:
    return record.error_low


def _high(record: Record) -> float:
    return record.error_high


def _point(axis: Axes, place: int, records: list[Record], colour: str) -> None:
    middle, low, high = (100 * float(np.mean([take(r) for r in records])) for take in (_error, _low, _high))
    bars = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
    axis.errorbar([place], [middle], yerr=bars, marker="D", color=colour, capsize=3)


def _level(axis: Axes, rows: list[Summary], colour: str) -> None:
    for row in rows:
        axis.axhline(100 * row.error, color=colour, linestyle="--", label=row.feature)
        axis.axhspan(100 * row.error_low, 100 * row.error_high, color=colour, alpha=0.08, linewidth=0)
