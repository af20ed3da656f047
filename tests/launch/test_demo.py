import json
from pathlib import Path

import pytest

from tests.launch.toy import ossicle


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes where the machine is its own; other work on it must not fail the test
def test_the_demo_takes_a_fifth_of_the_phone_errors_away(tmp_path: Path) -> None:
    ran = ossicle("demo", cwd=tmp_path, timeout_s=1800, OMP_NUM_THREADS="2")
    assert ran.returncode == 0, ran.stderr
    (summary,) = tmp_path.glob("runs/demo/*/demo.json")
    found = json.loads(summary.read_text())
    errors = found["phone_error"]
    assert set(errors) == {"logmel", "mfcc", "untrained", "pretrained"}
    assert errors["pretrained"] <= 0.8 * min(errors["logmel"], errors["mfcc"], errors["untrained"])
    assert found["seconds"] > 0
    assert (summary.parent / "error_by_layer.png").stat().st_size > 10_000
    assert "wrong phones" in ran.stdout
