"""What a probe found: records, their summary, the file and the table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ossicle.core.files import read_json, write_json
from ossicle.probe.interval import Interval, bootstrap

WEIGHTED = "weighted"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Record:
    """One head: trained on one layer of one feature for one task from one seed, and tested.

    Args:
        task: ``phone``, ``language``, ``speaker``, ``ctc`` or ``ctc_recurrent``.
        feature: The featurizer's name.
        layer: The layer's name, or ``weighted``.
        seed: What drew the training utterances, their order and the head's start.
        accuracy: 1 - error.
        error: Fraction of test frames (phone), utterances (language, speaker) or phones (ctc, edits over phones).
        error_low: Lower end of the 95 % interval over test utterances.
        error_high: Upper end.
        selection_error: Error on the dev split (or left out of training): what layers are chosen by.
        num_train: Frames or utterances that the head was trained on.
        num_test: Frames, utterances or phones that it was tested on.
        seconds: Time to train and test it.
        error_speech: For phones, the error over the frames that are not silence.
        layer_weights: For ``weighted``, the learned weights of the layers.
    """

    task: str
    feature: str
    layer: str
    seed: int
    accuracy: float
    error: float
    error_low: float
    error_high: float
    selection_error: float
    num_train: int
    num_test: int
    seconds: float
    error_speech: float | None = None
    layer_weights: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A head's test in the terms that records and summaries are made of.

    Args:
        layer: The layer's name, or ``weighted``.
        seed: The head's seed.
        errors_U: Errors in every test utterance, shape (U,).
        counts_U: Units in every test utterance, shape (U,).
        selection_error: Error on what layers are chosen by.
        num_train: Units trained on.
        seconds: Time to train and test.
        speech_errors_U: Errors outside silence, where the task knows silence.
        speech_counts_U: Units outside silence.
        layer_weights: For ``weighted``, the learned weights.
    """

    layer: str
    seed: int
    errors_U: NDArray[np.float64]
    counts_U: NDArray[np.float64]
    selection_error: float
    num_train: int
    seconds: float
    speech_errors_U: NDArray[np.float64] | None = None
    speech_counts_U: NDArray[np.float64] | None = None
    layer_weights: tuple[float, ...] | None = None

    @property
    def error_speech(self) -> float | None:
        """Error over the units that are not silence, or None where silence is not known."""
        if self.speech_errors_U is None or self.speech_counts_U is None:
            return None
        total = float(self.speech_counts_U.sum())
        return float(self.speech_errors_U.sum()) / total if total else None

    def record(self, task: str, feature: str) -> Record:
        """This outcome as a record."""
        interval = bootstrap(self.errors_U[None], self.counts_U)
        return Record(
            task=task,
            feature=feature,
            layer=self.layer,
            seed=self.seed,
            accuracy=1 - interval.error,
            error=interval.error,
            error_low=interval.low,
            error_high=interval.high,
            selection_error=self.selection_error,
            num_train=self.num_train,
            num_test=int(self.counts_U.sum()),
            seconds=round(self.seconds, 3),
            error_speech=self.error_speech,
            layer_weights=self.layer_weights,
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """A feature's result in a task: the layer with the least selection error, its test error as a mean over seeds."""

    task: str
    feature: str
    layer: str
    error: float
    error_low: float
    error_high: float
    accuracy: float
    error_speech: float | None
    selection_error: float
    num_seeds: int


def summarise(task: str, feature: str, outcomes: Sequence[Outcome]) -> Summary:
    """Choose the layer by selection error averaged over seeds, and state its test error over seeds and utterances."""
    by_layer: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_layer.setdefault(outcome.layer, []).append(outcome)
    selection = {layer: float(np.mean([o.selection_error for o in found])) for layer, found in by_layer.items()}
    best = min(selection, key=selection.__getitem__)
    chosen = by_layer[best]
    interval = bootstrap(np.stack([o.errors_U for o in chosen]), chosen[0].counts_U)
    speech = [o.error_speech for o in chosen if o.error_speech is not None]
    return Summary(
        task=task,
        feature=feature,
        layer=best,
        error=interval.error,
        error_low=interval.low,
        error_high=interval.high,
        accuracy=1 - interval.error,
        error_speech=float(np.mean(speech)) if speech else None,
        selection_error=selection[best],
        num_seeds=len(chosen),
    )


@dataclass(frozen=True, slots=True)
class TaskNote:
    """What a task was: how many classes, what chance gives, what was left out and why.

    Args:
        task: The task's name.
        num_classes: Classes of the head.
        chance_error: Error of always naming the class that is most frequent in training.
        selected_on: What layers were chosen on.
        excluded: Classes of the test that training never showed; their units are not counted.
        remarks: Anything else a reader must know, a reason for not having run included.
    """

    task: str
    num_classes: int = 0
    chance_error: float | None = None
    selected_on: str = ""
    excluded: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """Everything that a probe found."""

    records: tuple[Record, ...]
    summary: tuple[Summary, ...]
    tasks: tuple[TaskNote, ...]
    protocol: dict[str, float | int | list[int]] = field(default_factory=dict)
    seconds: float = 0.0

    def errors(self, task: str) -> dict[str, float]:
        """Test error of every feature in a task, at the layer chosen for it."""
        return {row.feature: row.error for row in self.summary if row.task == task}

    def interval(self, task: str, feature: str) -> Interval:
        """Test error of a feature in a task with its interval over seeds and utterances."""
        row = next(row for row in self.summary if (row.task, row.feature) == (task, feature))
        return Interval(row.error, row.error_low, row.error_high)

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        write_json(path, {"format": _FORMAT, **asdict(self)})

    @classmethod
    def read(cls, path: Path) -> "ProbeReport":
        """Read a report that :meth:`write` wrote."""
        value = read_json(path)
        records = tuple(Record(**_with_tuples(row, "layer_weights")) for row in value["records"])
        notes = tuple(TaskNote(**_with_tuples(row, "excluded", "remarks")) for row in value["tasks"])
        summary = tuple(Summary(**row) for row in value["summary"])
        return cls(records, summary, notes, value["protocol"], value["seconds"])


def _with_tuples(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """A row of JSON with tuples where the dataclass has them."""
    return {key: tuple(value) if key in names and value is not None else value for key, value in row.items()}


def render(report: ProbeReport) -> Table:
    """The summary as a table: a row a task, a column a feature, errors in per cent with half the interval's width."""
    features = list(dict.fromkeys(row.feature for row in report.summary))
    table = Table(title="Error of linear heads on frozen features, % (layer), lower is better")
    table.add_column("task")
    table.add_column("chance", justify="right")
    for feature in features:
        table.add_column(feature, justify="right")
    found = {(row.task, row.feature): row for row in report.summary}
    for note in report.tasks:
        rows = {feature: found[note.task, feature] for feature in features if (note.task, feature) in found}
        if not rows:
            continue
        least = min(row.error for row in rows.values())
        chance = "-" if note.chance_error is None else f"{100 * note.chance_error:.1f}"
        table.add_row(note.task, chance, *(_cell(rows.get(feature), least) for feature in features))
    return table


def _cell(row: Summary | None, least: float) -> str:
    if row is None:
        return "-"
    text = f"{100 * row.error:.1f} ±{50 * (row.error_high - row.error_low):.1f} ({row.layer})"
    return f"[bold]{text}[/bold]" if row.error == least else text
