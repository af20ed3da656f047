import errno
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from ossicle.data.claims import Claims

HOLDER = """
import sys
from pathlib import Path
from ossicle.data.claims import Claims
with Claims(Path(sys.argv[1])) as claims, claims.hold(7, wait=True) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


def test_a_claim_is_one_process_s_until_it_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        with Claims(tmp_path / ".lock") as claims:
            with claims.hold(7, wait=False) as held:
                assert not held
            with claims.hold(8, wait=False) as held:
                assert held
            other.kill()
            with claims.hold(7, wait=True) as held:
                assert held
            with claims.hold(7, wait=False) as held:  # given up at the end of the block
                assert held


def test_where_nothing_can_be_locked_every_claim_is_granted_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            with Claims(tmp_path / ".lock") as claims, claims.hold(number, wait=False) as held:
                assert held
    assert [record.message.count("No locks available") for record in caplog.records] == [1]
