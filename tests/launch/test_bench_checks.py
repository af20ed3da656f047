"""What the benches are told and cannot mean is refused in a line or two, before anything is built or measured."""

import json
import os
import signal
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from ossicle.core.errors import ConfigError, OssicleError
from ossicle.launch.bench.player import Player
from ossicle.launch.bench_checks import COUNT, POSITIVE, THREADS, Number, check_found, check_places, numbers, words
from ossicle.launch.cli import main
from tests.launch.toy import ENVIRONMENT, command

MIXER = ["mixers=[summary]", "lengths=[20]", "dim=16", "repeats=1"]
PEERS = ["systems=[ossicle]", "precision=float32", "batch=1", "crop_s=1", "steps=1", "rounds=1", "warmup=0"]
STEP = ["experiment=hubert_tiny", "batch=1", "crop_s=1", "steps=1", "rounds=1", "warmup=0"]
DATA = ["shards=nowhere"]

REFUSED = [
    ("mixer", "lengths=[]", "lengths=[] names nothing"),
    ("mixer", "lengths=[0]", "lengths[0]=0 measures nothing"),
    ("mixer", "lengths=[50,a]", "lengths[1]=a is not what it can be"),
    ("mixer", "lengths=[1.5]", "state a whole number"),
    ("mixer", "lengths=null", "lengths[0]=None is not what it can be"),
    ("mixer", "lengths=[50,50]", "names 50 twice"),
    ("mixer", "dim=a", "dim=a is not what it can be"),
    ("mixer", "mixers=[attention] dim=15", "num_heads=4 does not divide the width 15"),
    ("mixer", "heads=1.5", "state a whole number"),
    ("mixer", "max_s=inf", "max_s=inf is endless"),
    ("mixer", "threads=0", "give 1 or more"),
    ("mixer", "fit_from=null", "fit_from=None is not what it can be"),
    ("mixer", "precision=bf16", "did you mean bfloat16"),
    ("mixer", "device=[cpu]", "choose one"),
    ("mixer", "precision=[float32]", "is a list"),
    ("mixer", "out=/dev/null", "out=/dev/null is no file"),
    ("mixer", "out=5", "out=5 names no file"),
    ("mixer", "table=/proc/table.md", "table=/proc/table.md cannot be written"),
    ("mixer", "figure=picture", "let its name end with"),
    ("mixer", "out=x table=x", "out's file too"),
    ("peers", "systems=[]", "systems=[] names nothing"),
    ("peers", "systems=[ossicle,ossicle]", "names ossicle twice"),
    ("peers", "model=[hubert_tiny]", "choose one"),
    ("peers", "precision=[]", "precision=[] names nothing"),
    ("peers", "compile=[]", "compile=[] names nothing"),
    ("peers", "compile=5", "there is no compile=5"),
    ("peers", "batch=a", "batch=a is not what it can be"),
    ("peers", "batch=null", "batch=None is not what it can be"),
    ("peers", "crop_s=nan", "crop_s=nan is endless"),
    ("peers", "layer_drop=2", "give 1 or less"),
    ("peers", "sizes=5", "sizes=5 names no size"),
    ("peers", "sizes={dim: a}", "sizes.dim=a is not what it can be"),
    ("peers", "sizes={layers: 0}", "sizes.layers=0 measures nothing"),
    ("peers", "sizes={heads: 5}", "does not divide"),
    ("peers", "sizes={position_groups: 7}", "position"),
    ("peers", "together=5", "state true or false"),
    ("step", "experiments=[]", "experiments=[] names nothing"),
    ("step", "experiments=['']", "there is no experiment ''"),
    ("step", "experiments=[hubert_tiny,hubert_tiny]", "names hubert_tiny twice"),
    ("step", "steps=null", "steps=None is not what it can be"),
    ("step", "rounds=1.5", "state a whole number"),
    ("step", "precision=bf16", "precision=bf16 is not one that runs take"),
    ("step", "clip_norm=x", "clip_norm=x is not what it can be"),
    ("step", "crop_s=0.1 objective.mask_start_probability=0.5", "raise crop_s"),
    ("step", "mixer=synthesizer_dense mixer.max_frames=20", "a crop of crop_s=1.0 has 49"),
    ("step", "out=/proc/records.json", "out=/proc/records.json cannot be written"),
    ("data", "systems=[]", "systems=[] names nothing"),
    ("data", "scenario=[both]", "choose one"),
    ("data", "systems=osicle", "did you mean ossicle"),
    ("data", "workers=-1", "give 0 or more"),
    ("data", "seconds=x", "seconds=x is not what it can be"),
    ("data", "rounds=1.5", "state a whole number"),
    ("data", "out=/proc/records.json", "cannot be written"),
]  # fmt: skip
USUAL = {"mixer": MIXER, "peers": PEERS, "step": STEP, "data": DATA}


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(("bench", "told", "words_of_it"), REFUSED, ids=[f"{b} {t}" for b, t, _ in REFUSED])
def test_what_measures_nothing_is_refused_in_two_lines(
    bench: str, told: str, words_of_it: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [told] if "'" in told or "{" in told else told.split()
    keys = {word.partition("=")[0] for word in own}
    with pytest.raises(SystemExit) as caught:
        main(["bench", bench, *(word for word in USUAL[bench] if word.partition("=")[0] not in keys), *own])
    said = capsys.readouterr().err.strip()
    assert caught.value.code == 2
    assert words_of_it in said
    assert len(said.splitlines()) == 2


def test_a_whole_number_with_a_point_is_one() -> None:
    assert numbers({"batch": 2.0, "threads": None}, {"batch": COUNT, "threads": THREADS}) == {
        "batch": 2, "threads": None,
    }  # fmt: skip
    assert isinstance(numbers({"batch": 2.0}, {"batch": COUNT})["batch"], int)
    assert isinstance(numbers({"max_s": 2.5}, {"max_s": POSITIVE})["max_s"], float)
    with pytest.raises(ConfigError, match="above 0"):
        numbers({"max_s": 0}, {"max_s": POSITIVE})
    with pytest.raises(ConfigError, match=r"0\.5 or less"):
        numbers({"share": 0.6}, {"share": Number(float, most=0.5)})


def test_one_word_stands_for_a_list_of_it() -> None:
    assert words({"systems": "a"}, "systems", ("a", "b")) == words({"systems": ["a"]}, "systems", ("a", "b")) == ["a"]


def test_folders_of_records_are_made_and_nothing_is_left_in_them(tmp_path: Path) -> None:
    check_places({"out": str(tmp_path / "new" / "records.json"), "table": None}, "out", "table")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(ConfigError, match="is no file"):
        check_places({"out": str(tmp_path)}, "out")


def test_a_bench_that_measured_nothing_fails() -> None:
    check_found([None, 3.0], ["no memory", None])
    with pytest.raises(OssicleError, match="nothing was measured: no memory"):
        check_found([None], ["no memory"])


SMALL = "sizes={dim: 32, layers: 1, heads: 2, ffn_dim: 64, conv_dim: 16}"


def children(process: int) -> list[tuple[int, str]]:
    """The processes that a process started, in their order, with their command lines."""
    found: list[tuple[int, str]] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == process:
                found.append((int(folder.name), (folder / "cmdline").read_text().replace("\0", " ")))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


@pytest.fixture
def bench(tmp_path: Path) -> subprocess.Popen[str]:
    """A bench of two systems that would take hours, after the first turn of each."""
    line = command(
        "bench", "peers", "systems=[ossicle,torchaudio]", SMALL, "precision=float32", "batch=1", "crop_s=1", "steps=5",
        "rounds=100000", "warmup=0", "threads=1", "out=records.json",
    )  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(
            line, cwd=tmp_path, env=ENVIRONMENT, stdout=log, stderr=log, text=True, start_new_session=True
        )
    for _ in range(1200):
        told = (tmp_path / "log").read_text()
        if "torchaudio: " in told or started.poll() is not None:
            break
        time.sleep(0.1)
    assert "torchaudio: " in told, told
    return started


def test_a_killed_system_is_named_and_ctrl_c_ends_a_bench_with_what_it_has_measured(
    bench: subprocess.Popen[str], tmp_path: Path
) -> None:
    spawned = [number for number, line in children(bench.pid) if "spawn_main" in line]
    os.kill(spawned[0], signal.SIGKILL)
    time.sleep(1)
    os.killpg(bench.pid, signal.SIGINT)  # as a terminal does: every process of the command gets it
    assert bench.wait(60) == 130
    told = (tmp_path / "log").read_text()
    assert "Traceback" not in told
    assert "ossicle is absent: its process was ended by SIGKILL" in told
    assert told.rstrip().endswith("ossicle bench peers: interrupted")
    ours, theirs = json.loads((tmp_path / "records.json").read_text())
    assert ours["audio_s_per_s"] is None
    assert theirs["audio_s_per_s"] > 0
    assert children(bench.pid) == []


def echo(line: Connection, _method: str) -> None:
    """Says that it stands, then its process's number once."""
    line.send(None)
    line.recv()
    line.send(os.getpid())
    time.sleep(600)


def test_a_system_that_was_killed_while_nobody_asked_says_so_when_asked() -> None:
    player = Player(echo)
    assert player.ready() is None
    number = player.ask("number", 0)
    assert isinstance(number, int)
    os.kill(number, signal.SIGKILL)
    time.sleep(0.5)
    told = [player.ask("turn", 1) for _ in range(2)]
    assert told == ["its process was ended by SIGKILL: out of memory, most likely"] * 2
    player.dismiss()
    player.end()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["mixer", "peers", "step", "data"])
def test_a_gpu_that_is_not_there_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", name, *USUAL[name], "device=cuda"])
    assert "set device=cpu" in capsys.readouterr().err
