"""The whole probe: a dataset and featurizers in, a report, a file and a picture out."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from ossicle.core.errors import ConfigError, DataError
from ossicle.data.index import DatasetIndex
from ossicle.data.utterances import iterate_utterances
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.probe.collect import Clip, collect, long_enough, take_clips
from ossicle.probe.features import EncoderFeatures, Featurizer, LogMelFeatures, MfccFeatures
from ossicle.probe.plot import plot_error_by_layer
from ossicle.probe.report import Outcome, ProbeReport, Record, Summary, summarise
from ossicle.probe.tasks import ProbeTask, Splits

REPORT_NAME = "probe.json"
PICTURE_NAME = "error_by_layer.png"

_RATE_HZ = 16_000

A = TypeVar("A")
B = TypeVar("B")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Protocol:
    """How much is looked at, and how often.

    Args:
        seeds: Each draws nine tenths of the training utterances, their order and the head's start.
        train_s: Seconds of audio to train heads on.
        dev_s: Seconds of audio to choose layers on.
        test_s: Seconds of audio to test on.
        longest_s: Longer utterances are passed over.
        data_seed: Draws the utterances; the same for every feature, so that all see the same ones.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    train_s: float = 1200.0
    dev_s: float = 300.0
    test_s: float = 600.0
    longest_s: float = 30.0
    data_seed: int = 0


def default_featurizers(trained: SpeechEncoder, untrained: SpeechEncoder) -> tuple[Featurizer, ...]:
    """The four that are compared: log-mel, MFCC, and the encoder before and after training."""
    return (
        LogMelFeatures(),
        MfccFeatures(),
        EncoderFeatures(untrained, "untrained"),
        EncoderFeatures(trained, "pretrained"),
    )


def read_clips(data_dir: Path, protocol: Protocol) -> Splits[tuple[Clip, ...]]:
    """Decode the utterances of the splits train, test and, where there is one, dev.

    A dataset without a test split is tested on dev, and layers are then chosen on left-out training utterances.

    Raises:
        DataError: The dataset has no training split, nothing to test on, or is damaged.
    """
    train = _read(DatasetIndex.load(data_dir, "train"), protocol.train_s, protocol)
    indices = {name: _open(data_dir, name) for name in ("dev", "test")}
    dev, test = indices["dev"], indices["test"]
    if test is None:
        if dev is None:
            raise DataError(f"{data_dir} has neither a split 'test' nor 'dev'", "prepare a dataset with one of them")
        _log.warning("%s has no split 'test': tested on 'dev'", data_dir)
        test, dev = dev, None
    return Splits(
        train,
        _read(test, protocol.test_s, protocol),
        None if dev is None else _read(dev, protocol.dev_s, protocol),
    )


def _open(data_dir: Path, split: str) -> DatasetIndex | None:
    return DatasetIndex.load(data_dir, split) if (data_dir / split).is_dir() else None


def _read(index: DatasetIndex, budget_s: float, protocol: Protocol) -> tuple[Clip, ...]:
    found = iterate_utterances(index, shuffle_seed=protocol.data_seed)
    return take_clips(found, budget_s=budget_s, longest_s=protocol.longest_s, rate_hz=index.rate_hz)


def run_probe(
    featurizers: Sequence[Featurizer],
    clips: Splits[tuple[Clip, ...]],
    tasks: Sequence[ProbeTask],
    *,
    out_dir: Path,
    protocol: Protocol | None = None,
    progress: Callable[[str], None] = _log.info,
) -> ProbeReport:
    """Probe every feature for every task, and write ``probe.json`` and ``error_by_layer.png``.

    Args:
        featurizers: What is compared; see :func:`default_featurizers`.
        clips: Utterances by split; see :func:`read_clips`.
        tasks: What is asked. A task that the data cannot answer is left out, and its note says why.
        out_dir: Where the files go.
        protocol: Seeds, and what is written beside the results.
        progress: Told what is being done, a line a step.

    Raises:
        ConfigError: Nothing to compare, or two features of one name.
        DataError: No utterance is long enough, or a feature is not finite.
    """
    protocol = protocol or Protocol()
    began = time.perf_counter()
    _check(featurizers, tasks)
    kept = _usable(clips, featurizers)
    utterances = _each(kept, lambda found: tuple(clip.utterance for clip in found))
    notes = [task.note(utterances) for task in tasks]
    able = [task for task, note in zip(tasks, notes, strict=True) if note.chance_error is not None]
    for note in notes:
        for remark in note.remarks:
            _log.warning("%s: %s", note.task, remark)
    records: list[Record] = []
    summary: list[Summary] = []
    for featurizer in featurizers if able else ():
        for task, outcomes in _probe_feature(featurizer, kept, able, protocol, progress):
            records += [outcome.record(task.name, featurizer.name) for outcome in outcomes]
            summary.append(summarise(task.name, featurizer.name, outcomes))
    order = {task.name: place for place, task in enumerate(tasks)}
    report = ProbeReport(
        records=tuple(sorted(records, key=lambda record: order[record.task])),
        summary=tuple(sorted(summary, key=lambda row: order[row.task])),
        tasks=tuple(notes),
        protocol=_describe(protocol, kept),
        seconds=round(time.perf_counter() - began, 2),
    )
    plot_error_by_layer(report, out_dir / PICTURE_NAME)
    report.write(out_dir / REPORT_NAME)
    return report


def _check(featurizers: Sequence[Featurizer], tasks: Sequence[ProbeTask]) -> None:
    for kind, names in (("feature", [f.name for f in featurizers]), ("task", [t.name for t in tasks])):
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"a probe needs one {kind} or more, of different names; it got {names}", f"name {kind}s")


def _usable(clips: Splits[tuple[Clip, ...]], featurizers: Sequence[Featurizer]) -> Splits[tuple[Clip, ...]]:
    kept = _each(clips, lambda found: long_enough(found, [featurizer.clock for featurizer in featurizers]))
    for name, found in (("training", kept.train), ("test", kept.test)):
        if not found:
            raise DataError(f"no {name} utterance is long enough to probe", "give longer utterances, or more audio")
    return kept if kept.dev else replace(kept, dev=None)


def _each(splits: Splits[A], function: Callable[[A], B]) -> Splits[B]:
    dev = None if splits.dev is None else function(splits.dev)
    return Splits(function(splits.train), function(splits.test), dev)


def _probe_feature(
    featurizer: Featurizer,
    clips: Splits[tuple[Clip, ...]],
    tasks: Sequence[ProbeTask],
    protocol: Protocol,
    progress: Callable[[str], None],
) -> Iterator[tuple[ProbeTask, list[Outcome]]]:
    progress(f"{featurizer.name}: extracting features")
    keep_frames = any(task.needs_frames for task in tasks)
    sets = _each(clips, lambda found: collect(featurizer, found, keep_frames=keep_frames))
    for task in tasks:
        progress(f"{featurizer.name}: heads for {task.name}")
        yield task, list(task.run(sets, featurizer.layers, protocol.seeds))


def _describe(protocol: Protocol, clips: Splits[tuple[Clip, ...]]) -> dict[str, float | int | list[int]]:
    """What was asked for, and what was there: seconds and utterances of each split."""
    value: dict[str, float | int | list[int]] = {"seeds": list(protocol.seeds), "data_seed": protocol.data_seed}
    for name, found in (("train", clips.train), ("dev", clips.dev or ()), ("test", clips.test)):
        value[f"{name}_utterances"] = len(found)
        value[f"{name}_s"] = round(sum(len(clip.waveform_S) for clip in found) / _RATE_HZ, 1)
    return value
