import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ossicle.core.errors import ConfigError, DataError
from ossicle.data.labels import LabelSet
from ossicle.launch import pretrain
from ossicle.launch.cli import respelt
from ossicle.launch.config import compose
from ossicle.launch.experiment import resolved
from ossicle.launch.label import choose, read_config, request_of, show_card, show_layers
from ossicle.launch.labels import LabelRequest, clock_of, is_made, make, place_of
from ossicle.stage.layers import LayerChoice
from tests.launch.toy import ENVIRONMENT, TOY, command, ossicle


def asked(*overrides: str) -> LabelRequest:
    own, experiment = read_config(compose("label", list(overrides)))
    return request_of(own, experiment, choose(own, experiment))


def test_a_dataset_alone_gets_a_hundred_clusters_of_mfccs() -> None:
    request = asked("shards=corpora/mine")
    assert request == LabelRequest("corpora/mine", "train", "mfcc", clusters=100)


def test_an_experiment_is_labelled_as_its_own_first_stage_would_be() -> None:
    overrides = ["experiment=hubert_tiny", "data.shards=corpora/mine", "seed=3"]
    request = asked(*overrides)
    config = resolved(compose("pretrain", overrides))
    assert request == LabelRequest(
        "corpora/mine", "train", "mfcc", clusters=500, seed=3, sample_frames=50_000, clock=clock_of(config)
    )
    assert asked(*overrides, "clusters=7", "sample_frames=70", "split=dev").clusters == 7
    assert asked("experiment=hubert_tiny", "shards=corpora/mine", "seed=3") == request


def test_a_command_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    for overrides, words in (
        ([], "no value for: shards"),
        (["shards=a", "data.shards=b"], "two datasets"),
        (["shards=a", "source=checkpoint"], "needs a run and a layer"),
        (["shards=a", "source=checkpoint", f"run={tmp_path}"], "holds no finished run"),
        (["shards=a", "source=checkpoint", "source_layer=auto"], "needs a run and a layer"),
        (["experiment=hubert_base", "shards=a", "source=checkpoint", f"runs={tmp_path}"], "train it first"),
        (["experiment=hubert_tiny", "shards=a", "source=checkpoint", "run=x", "source_layer=last"], "no layer"),
    ):
        with pytest.raises(ConfigError, match=words):
            asked(*overrides)


def test_two_ranks_label_as_one_and_go_on_after_a_kill(synthetic_dataset: Path, tmp_path: Path) -> None:
    line = [
        "label",
        f"shards={synthetic_dataset}",
        "clusters=20",
        "sample_frames=3000",
        "threads=1",
        "cluster.accelerator=cpu",
    ]
    alone = make(
        LabelRequest(synthetic_dataset, "train", "mfcc", clusters=20, sample_frames=3000, output=tmp_path / "1")
    )
    two = [*line, "cluster.devices=2", f"output={tmp_path / '2'}"]
    victim = subprocess.Popen(command(*two), cwd=tmp_path, env=ENVIRONMENT, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("2/*/shard-*.json")) and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    subprocess.run(["kill", "-KILL", "--", f"-{victim.pid}"], check=False)
    assert victim.wait() in {-signal.SIGKILL, 0}
    ran = ossicle(*two, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "phone purity" in ran.stdout
    (place,) = (tmp_path / "2").iterdir()
    assert place.name == alone.name
    for file in alone.glob("*.npy"):
        assert (place / file.name).read_bytes() == file.read_bytes()
    assert is_made(asked(*two[1:]))


def test_a_rank_that_fails_names_the_reason_and_ends_the_others(synthetic_dataset: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    ran = ossicle(
        "label", f"shards={synthetic_dataset}", "clusters=20", "sample_frames=30", "cluster.devices=2", "threads=1",
        f"output={tmp_path / 'file' / 'x'}", "split=nowhere", cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode != 0
    assert "no split 'nowhere'" in ran.stderr
    assert time.monotonic() - started < 100


def test_pretraining_on_wrong_labels_ends_before_it_begins(synthetic_dataset: Path, tmp_path: Path) -> None:
    place = make(LabelRequest(synthetic_dataset, "dev", "mfcc", clusters=8, output=tmp_path, sample_frames=2000))
    data = [
        f"data.shards={synthetic_dataset}",
        f"data.labels={place}",
        f"runs={tmp_path / 'runs'}",
        *TOY,
        "max_steps=2",
    ]
    with pytest.raises(DataError, match="other data"):
        pretrain.task(compose("pretrain", ["experiment=hubert_tiny", *data]))
    with pytest.raises(ConfigError, match="have 8 classes and the target 500"):
        pretrain.task(compose("pretrain", ["experiment=hubert_tiny", *data, "data.split=dev"]))
    assert not (tmp_path / "runs").exists()


def test_what_is_known_of_labels_is_printed(
    synthetic_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = LabelRequest(synthetic_dataset, "dev", "mfcc", clusters=8, output=tmp_path, sample_frames=2000)
    card = LabelSet.load(make(request)).card
    show_card(place_of(request), card, {"purity": 0.5, "cluster_purity": 0.25, "pnmi": 0.125, "frames": 7})
    said = capsys.readouterr().out
    for words in (
        "0.500",
        "0.250",
        "PNMI",
        "0.125 over 7",
        f"{card.num_frames} at 50 a second",
        card.content_hash[:16],
    ):
        assert words in said
    show_card(place_of(request), card, None)
    assert "no phones are known" in capsys.readouterr().out
    show_layers(LayerChoice(1, ({"pnmi": 0.2}, {"pnmi": 0.4}), {"criterion": "pnmi"}, 30.0))
    said = capsys.readouterr().out
    assert "0.200" in said
    assert "0.400" in said


def test_a_layer_is_asked_for_by_its_word_though_a_group_of_parts_has_it() -> None:
    assert respelt("label", "layer=auto") == "source_layer=auto"
    assert respelt("label", "layer=1,2") == "source_layer=1,2"
    assert respelt("label", "-m") == "-m"
    assert respelt("pretrain", "layer/spec_augment@x=y") == "layer/spec_augment@x=y"


def test_a_request_reads_from_json_as_it_was_written() -> None:
    request = asked("shards=corpora/mine", "fit=minibatch")
    assert LabelRequest.from_json(json.loads(json.dumps(request.to_json()))) == request
