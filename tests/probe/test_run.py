import json
import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from ossicle.core.errors import ConfigError, DataError
from ossicle.probe.collect import Clip
from ossicle.probe.ctc import CTCTraining
from ossicle.probe.features import Featurizer, LogMelFeatures, MfccFeatures
from ossicle.probe.linear import HeadTraining
from ossicle.probe.recognition import PhoneCTC
from ossicle.probe.report import ProbeReport
from ossicle.probe.run import Protocol, read_clips, run_probe
from ossicle.probe.tasks import FramePhones, Splits
from ossicle.probe.utterance_tasks import Language, Speaker

QUICK = HeadTraining(epochs=1, batch_frames=256)


def test_a_probe_leaves_a_record_per_task_feature_layer_and_seed_and_a_picture(
    tmp_path: Path, splits: Callable[..., Splits[tuple[Clip, ...]]], planted: Callable[..., Featurizer]
) -> None:
    features = [planted("mfcc", 1, None), planted("untrained", 3, None), planted("pretrained", 3, 2)]
    ctc = PhoneCTC(lambda utterance: utterance.text.split(), CTCTraining(epochs=1))
    tasks = [FramePhones(QUICK), Language(), Speaker(), ctc]
    steps: list[str] = []
    protocol = Protocol(seeds=(0, 5))
    report = run_probe(features, splits(), tasks, out_dir=tmp_path, protocol=protocol, progress=steps.append)

    found = {(r.task, r.feature, r.layer, r.seed) for r in report.records}
    layers = {"mfcc": ["0"], "untrained": ["0", "1", "2", "weighted"], "pretrained": ["0", "1", "2", "weighted"]}
    expected = {
        (task, name, layer, seed)
        for task in ("phone", "language", "speaker")
        for name, of in layers.items()
        for layer in of
        for seed in (0, 5)
    }
    expected |= {("ctc", name, of[-1], seed) for name, of in layers.items() for seed in (0, 5)}
    assert found == expected
    assert len(report.records) == len(expected)
    assert len(report.summary) == 12
    assert report.errors("phone")["pretrained"] < 0.1 < report.errors("phone")["untrained"]
    assert steps[0] == "mfcc: extracting features"

    written = json.loads((tmp_path / "probe.json").read_text())
    assert written["protocol"]["seeds"] == [0, 5]
    assert written["protocol"]["test_utterances"] == 24
    fields = {"task", "feature", "layer", "seed", "accuracy", "error", "error_low", "error_high", "selection_error"}
    fields |= {"num_train", "num_test", "seconds", "error_speech", "layer_weights"}
    for record in written["records"]:
        assert set(record) == fields
        assert record["accuracy"] == pytest.approx(1 - record["error"])
        assert record["error_low"] <= record["error"] + 1e-9
        assert record["error"] <= record["error_high"] + 1e-9
    assert ProbeReport.read(tmp_path / "probe.json") == report

    picture = matplotlib.image.imread(tmp_path / "error_by_layer.png")
    assert picture.shape[1] > 4 * 400
    panels = np.array_split(picture[..., :3], 4, axis=1)
    assert all(len(np.unique(panel.reshape(-1, 3), axis=0)) > 50 for panel in panels)


def test_a_task_that_the_data_cannot_answer_is_left_out_and_says_why(
    tmp_path: Path, splits: Callable[..., Splits[tuple[Clip, ...]]], planted: Callable[..., Featurizer]
) -> None:
    silent = PhoneCTC(lambda _: [])
    report = run_probe([planted("p")], splits(), [Speaker(), silent], out_dir=tmp_path, protocol=Protocol(seeds=(0,)))
    assert {record.task for record in report.records} == {"speaker"}
    assert "no text" in report.tasks[1].remarks[0]


def test_names_must_differ_and_utterances_must_have_frames(
    tmp_path: Path, splits: Callable[..., Splits[tuple[Clip, ...]]], planted: Callable[..., Featurizer]
) -> None:
    with pytest.raises(ConfigError, match="different names"):
        run_probe([planted("p"), planted("p")], splits(), [Speaker()], out_dir=tmp_path)
    short = Splits(*(tuple(Clip(c.utterance, c.waveform_S[:9]) for c in part) for part in (splits().train,) * 2))
    with pytest.raises(DataError, match="long enough"):
        run_probe([planted("p")], short, [Speaker()], out_dir=tmp_path)


def test_the_synthetic_corpus_is_probed_from_its_shards(synthetic_dataset: Path, tmp_path: Path) -> None:
    protocol = Protocol(seeds=(0,), train_s=60, dev_s=15, test_s=30)
    clips = read_clips(synthetic_dataset, protocol)
    again = read_clips(synthetic_dataset, protocol)
    assert [c.utterance.id for c in clips.train] == [c.utterance.id for c in again.train]
    assert sum(len(c.waveform_S) for c in clips.train) <= 60 * 16_000
    assert clips.dev
    tasks = [FramePhones(QUICK), Language(), Speaker()]
    report = run_probe([LogMelFeatures(), MfccFeatures()], clips, tasks, out_dir=tmp_path, protocol=protocol)
    phone = report.tasks[0]
    assert phone.chance_error is not None
    assert phone.num_classes > 20
    for feature in ("logmel", "mfcc"):
        assert report.errors("phone")[feature] < phone.chance_error - 0.1
    assert {row.task for row in report.summary} >= {"phone", "language"}


def test_without_a_test_split_dev_is_tested_on_and_not_chosen_on(synthetic_dataset: Path, tmp_path: Path) -> None:
    protocol = Protocol(train_s=20, dev_s=10, test_s=15)
    whole = read_clips(synthetic_dataset, protocol)
    assert whole.dev is not None
    copy = tmp_path / "data"
    shutil.copytree(synthetic_dataset, copy, ignore=shutil.ignore_patterns("test"))
    clips = read_clips(copy, protocol)
    assert clips.dev is None
    dev = [clip.utterance.id for clip in whole.dev]
    tested = [clip.utterance.id for clip in clips.test]
    assert tested[: len(dev)] == dev
    assert 0 < sum(len(clip.waveform_S) for clip in whole.dev) <= 10 * 16_000
    shutil.rmtree(copy / "dev")
    with pytest.raises(DataError, match="neither a split"):
        read_clips(copy, protocol)


def test_a_dev_split_without_a_usable_utterance_is_none(
    tmp_path: Path, splits: Callable[..., Splits[tuple[Clip, ...]]], planted: Callable[..., Featurizer]
) -> None:
    clips = splits()
    short = tuple(Clip(clip.utterance, clip.waveform_S[:9]) for clip in clips.train[:2])
    report = run_probe(
        [planted("p", 1, 0)], Splits(clips.train, clips.test, short), [FramePhones(QUICK)], out_dir=tmp_path,
        protocol=Protocol(seeds=(0,)),
    )  # fmt: skip
    assert report.tasks[0].selected_on.startswith("a tenth")
    assert report.protocol["dev_utterances"] == 0
