"""Runs on a real SLURM, on two virtual nodes of this machine. Skipped where it is not installed."""

import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ossicle.core.files import read_json
from ossicle.launch.config import compose
from ossicle.launch.prepare import task
from tests.launch.slurm_cluster import slurm_cluster, wait_until
from tests.launch.test_loggers import rows
from tests.launch.test_prepare import contents
from tests.launch.toy import ENVIRONMENT, TOY, command, single_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ON_TWO_NODES = (
    "cluster=slurm", "cluster.num_nodes=2", "cluster.devices=1", "data.batch_s=2", "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.gpus_per_node=0", "hydra.launcher.timeout_min=20",
)  # fmt: skip
LONG = ("max_steps=400", "callback.collapse.start_step=500")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), num_nodes=2) as environment:
        yield environment


def pretrain(shards: Path, root: Path, cluster: Mapping[str, str], *overrides: str) -> subprocess.Popen[str]:
    arguments = command("pretrain", "experiment=best_rq_tiny", f"data.shards={shards}", *TOY, *ON_TWO_NODES, *overrides)
    return subprocess.Popen(
        arguments, cwd=root, env={**ENVIRONMENT, **cluster}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_a_multirun_on_two_nodes_is_submitted_and_trains_with_two_ranks(
    synthetic_dataset: Path, tmp_path: Path, cluster: Mapping[str, str]
) -> None:
    with pretrain(synthetic_dataset, tmp_path, cluster, "max_steps=3", "seed=0,1") as run:
        said, _ = run.communicate(timeout=400)
    assert run.returncode == 0, said
    found = sorted((tmp_path / "runs" / "best_rq_tiny").iterdir())
    assert len(found) == 2
    for place in found:
        assert read_json(place / "run.json")["finished"] is True
        # 3 steps of 4 s each to the nearest crop, half of them on either node: one node alone would count half of it
        assert read_json(place / "cost.json")["audio_hours"]["value"] == pytest.approx(12 / 3600, rel=0.25)
        assert len(rows(place / "metrics.csv")) == 3


@pytest.fixture(scope="module")
def whole(synthetic_dataset: Path, cluster: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two nodes that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole")
    with pretrain(synthetic_dataset, root, cluster, *LONG) as run:
        said, _ = run.communicate(timeout=600)
    assert run.returncode == 0, said
    return single_run(root / "runs", "best_rq_tiny")


@pytest.mark.parametrize("how", ["signalled", "preempted"])
def test_a_job_that_must_go_saves_is_requeued_and_ends_with_the_weights_of_one_never_stopped(
    how: str, whole: Path, synthetic_dataset: Path, tmp_path: Path, cluster: Mapping[str, str]
) -> None:
    with pretrain(synthetic_dataset, tmp_path, cluster, *LONG) as run:
        metrics = tmp_path / "runs" / "best_rq_tiny"
        wait_until("the twentieth step", lambda: steps(metrics) >= 20, timeout_s=300)
        job = ask(cluster, "squeue", "-h", "-o", "%A").strip()
        if how == "signalled":
            ask(cluster, "scancel", "--signal=USR2", job)
        else:  # a job of a better partition wants both nodes for itself
            urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
            ask(cluster, "sbatch", *urgent)
        wait_until("a requeued job", lambda: restarts(cluster, job) == 1, timeout_s=100)
        said, _ = run.communicate(timeout=600)
    assert run.returncode == 0, said
    place = single_run(tmp_path / "runs", "best_rq_tiny")
    assert [int(row["step"]) for row in rows(place / "metrics.csv")] == list(range(1, 401))
    ours, theirs = (load_file(found / "encoder.safetensors") for found in (place, whole))
    assert ours.keys() == theirs.keys()
    assert all((ours[key] == theirs[key]).all() for key in ours)


SMALL_CORPUS = ("corpus=synthetic", "corpus.hours=0.02", "corpus.num_voices=8", "shard_s=10", "workers=1")
SCRIPT = Path(__file__).parents[2] / "slurm" / "prepare.sbatch"


@pytest.mark.parametrize("how", ["launcher", "sbatch"])
def test_an_array_of_jobs_prepares_the_bytes_that_one_process_prepares(
    how: str, tmp_path: Path, cluster: Mapping[str, str]
) -> None:
    if how == "launcher":
        on_cluster = ("cluster=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=20")
        ran = subprocess.run(
            command("prepare", *SMALL_CORPUS, *on_cluster, "parts=3", f"output={tmp_path / 'parts'}"),
            cwd=tmp_path, env={**ENVIRONMENT, **cluster}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
    else:
        job = ask(
            cluster, "sbatch", "--parsable", "--array=0-2", "--cpus-per-task=1", f"--chdir={SCRIPT.parents[1]}",
            f"--output={tmp_path}/%A_%a.out", str(SCRIPT), *SMALL_CORPUS, f"output={tmp_path / 'parts'}",
        ).strip()  # fmt: skip
        wait_until("the array's end", lambda: not ask(cluster, "squeue", "-h", "-j", job).strip(), timeout_s=300)
        said = "".join(file.read_text() for file in tmp_path.glob("*.out"))
        assert (tmp_path / "parts" / "dataset.json").is_file(), said
    task(compose("prepare", [*SMALL_CORPUS, f"output={tmp_path / 'one'}"]))
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")


def steps(runs: Path) -> int:
    """Steps that the one run in a folder has logged so far."""
    time.sleep(0.2)
    return sum(len(file.read_text().splitlines()) - 1 for file in runs.glob("*/metrics.csv"))


def restarts(cluster: Mapping[str, str], job: str) -> int:
    shown = ask(cluster, "scontrol", "show", "job", job)
    return int(shown.partition("Restarts=")[2].split()[0])


def ask(cluster: Mapping[str, str], *arguments: str) -> str:
    return subprocess.run(arguments, capture_output=True, text=True, env=dict(cluster), check=True).stdout
