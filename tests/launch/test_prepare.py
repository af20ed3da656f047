from pathlib import Path

import pytest
from rich.console import Console

from ossicle.core.errors import ConfigError
from ossicle.data.card import SplitSummary, Summary
from ossicle.data.index import DatasetIndex
from ossicle.data.prepare import Share
from ossicle.launch.config import compose
from ossicle.launch.prepare import num_cores, share_of, table_of, task
from tests.launch.toy import ossicle

SMALL = ("corpus.hours=0.02", "corpus.num_voices=8", "shard_s=10", "workers=1")


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_JOB_ID", "SLURM_JOB_ID", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)


def contents(output: Path) -> dict[str, bytes]:
    return {str(p.relative_to(output)): p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()}


def test_a_multirun_of_parts_makes_what_one_run_makes(tmp_path: Path) -> None:
    ran = ossicle("prepare", *SMALL, "parts=3", "-m", "output=parts", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "part 0 of 3 is done" in ran.stdout
    assert "hours by language" in ran.stdout
    task(compose("prepare", [*SMALL, f"output={tmp_path / 'one'}"]))
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")
    task(compose("prepare", [*SMALL, f"output={tmp_path / 'one'}", "verify=true"]))


def test_a_part_may_be_done_alone_and_the_last_writes_the_card(tmp_path: Path) -> None:
    for part in (2, 0, 1):
        assert not (tmp_path / "parts" / "dataset.json").exists()
        task(compose("prepare", [*SMALL, "parts=3", f"part={part}", f"output={tmp_path / 'parts'}"]))
    assert (tmp_path / "parts" / "dataset.json").exists()


def test_verify_is_a_switch_that_finds_a_changed_byte(tmp_path: Path) -> None:
    task(compose("prepare", [*SMALL, f"output={tmp_path / 'data'}"]))
    line = ("prepare", "corpus=synthetic", f"output={tmp_path / 'data'}", "--verify", "workers=1")
    ran = ossicle(*line, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "utterances are as they were written" in ran.stdout
    index = DatasetIndex.load(tmp_path / "data", "train")
    with index.shard_paths[0].open("r+b") as file:
        file.seek(int(index.rows["audio_offset"][0]) + 100)
        file.write(b"damage")
    ran = ossicle(*line, cwd=tmp_path)
    assert ran.returncode == 1
    assert "1 parts of" in ran.stderr
    assert "the audio of train row 0 in shard-000000.tar" in ran.stderr


def test_a_cluster_is_asked_for_no_gpu() -> None:
    config = compose("prepare", ["cluster=slurm", "parts=8"])
    assert config.cluster.gpus_per_node is None
    assert (
        compose("pretrain", ["experiment=hubert_tiny", "cluster=slurm", "cluster.devices=4"]).cluster.gpus_per_node == 4
    )


def test_the_part_is_the_config_s_else_that_of_the_slurm_array(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share_of(None, 1) == Share()
    assert share_of(2, 4) == Share(2, 4)
    with pytest.raises(ConfigError, match="parts=4 and no part"):
        share_of(None, 4)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    assert share_of(None, 4) == Share(3, 4, "77")
    assert share_of(1, 4) == Share(1, 4, "77")
    assert share_of(None, 1) == Share()
    with pytest.raises(ConfigError, match="part=3 of parts=2"):
        share_of(None, 2)


def test_a_task_uses_the_cores_that_slurm_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_cores() >= 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert num_cores() == 3


def test_the_table_says_what_the_card_says() -> None:
    split = SplitSummary(1234, 5, 6, 2, 7.5, {"de": 5.0, "": 2.5}, 2_500_000_000, "ab" * 16)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table_of(Summary(Path("corpora/x"), "x", "opus", {"train": split}, 0, "cd" * 16)))
    for words in ("corpora/x", "opus", "cdcdcdcdcdcdcdcd", "1,234", "7.50", "2.500", "de 5.00, unknown 2.50"):
        assert words in capture.get()
