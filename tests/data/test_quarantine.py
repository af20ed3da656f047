import json
import subprocess
import sys
from pathlib import Path

import pytest

from ossicle.core.errors import DataError
from ossicle.data.quarantine import Quarantine

WRITER = """
import sys
from pathlib import Path
from ossicle.data.quarantine import Quarantine
quarantine = Quarantine(Path(sys.argv[1]), 1.0)
for number in range(300):
    quarantine.add(f"{sys.argv[2]}-{number}", "x" * 200)
"""


def test_a_bad_input_is_written_down_with_its_reason(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "run" / "quarantine.jsonl", 0.5)
    quarantine.add("наука.wav", "holds no samples")
    quarantine.ok(3)
    lines = (tmp_path / "run" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"name": "наука.wav", "reason": "holds no samples"}]
    assert (quarantine.num_bad, quarantine.num_seen) == (1, 4)


def test_no_file_is_made_while_all_is_well(tmp_path: Path) -> None:
    Quarantine(tmp_path / "quarantine.jsonl", 0.0).ok(100)
    assert not list(tmp_path.iterdir())


def test_too_many_bad_inputs_stop_the_run_and_few_do_not() -> None:
    quarantine = Quarantine(None, 0.1)
    quarantine.ok(18)
    quarantine.add("a", "bad")
    quarantine.add("b", "bad")  # 2 of 20 is the allowed tenth
    with pytest.raises(DataError, match=r"3 of 21 inputs are bad .*c: worse"):
        quarantine.add("c", "worse")


def test_the_first_inputs_decide_nothing() -> None:
    quarantine = Quarantine(None, 0.1)
    for number in range(19):
        quarantine.add(str(number), "bad")
    with pytest.raises(DataError):
        quarantine.add("19", "bad")


def test_processes_share_one_file_without_mixing_lines(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, name], stderr=subprocess.DEVNULL) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    names = {json.loads(line)["name"] for line in path.read_text(encoding="utf-8").splitlines()}
    assert names == {f"{name}-{number}" for name in "ab" for number in range(300)}
