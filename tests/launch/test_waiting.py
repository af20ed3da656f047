import threading
import time
from pathlib import Path

import pytest

from ossicle.core.errors import DataError
from ossicle.launch.pretrain import wait_for


def test_a_rank_waits_for_what_another_writes(tmp_path: Path) -> None:
    def write() -> None:
        time.sleep(0.3)
        (tmp_path / "card.json").write_text("{}")

    writer = threading.Thread(target=write)
    writer.start()
    wait_for(tmp_path / "card.json")
    writer.join()
    assert (tmp_path / "card.json").is_file()


def test_what_never_comes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ossicle.launch.pretrain.LABEL_WAIT_S", 0.1)
    with pytest.raises(DataError, match=r"card.json did not appear"):
        wait_for(tmp_path / "card.json")
