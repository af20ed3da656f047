import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ossicle.core.files import atomic_write, hash_file, hash_json, read_json, write_json


def test_a_file_appears_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "x.json", {"a": [1, "é"]})
    assert read_json(tmp_path / "deep" / "x.json") == {"a": [1, "é"]}
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "x.json"]


def test_an_error_leaves_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("before")

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("before")
    program = (
        "import sys, time; from pathlib import Path; from ossicle.core.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as f:\n"
        "    f.write(b'half'); f.flush(); print('writing', flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert path.read_text() == "before"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    write_json(tmp_path / "x", 1)
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask


def test_hashes_do_not_depend_on_the_order_of_keys() -> None:
    assert hash_json({"a": 1, "b": {"c": 2, "d": 3}}) == hash_json({"b": {"d": 3, "c": 2}, "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": 2})
    assert len(hash_json([], length=8)) == 8


def test_a_files_hash_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert hash_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_is_readable(tmp_path: Path) -> None:
    started = 0.1
    write_json(tmp_path / "x", {"t": started})
    assert json.loads((tmp_path / "x").read_text()) == {"t": started}
