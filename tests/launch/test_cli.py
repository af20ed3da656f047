import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ossicle.launch.cli import BENCHES, COMMANDS, main, on_cluster, options_first, usage
from ossicle.launch.config import conf_dir, groups
from tests.launch.toy import ossicle

HEAVY = """
import sys
from ossicle.launch.cli import main
main(sys.argv[1:])
print([name for name in ("torch", "lightning") if name in sys.modules])
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["pretrain", "--help"], ["pretrain", "experiment=hubert_tiny", "data.shards=x", "--cfg", "job"]],
)
def test_help_and_configs_import_neither_torch_nor_lightning(arguments: list[str], tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", HEAVY, *arguments], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert ran.stdout.rstrip().endswith("[]")


def test_usage_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert all(name in capsys.readouterr().out or name in usage() for name in COMMANDS)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "bench"])
def test_help_of_a_command_lists_its_parts_and_values_with_what_they_are(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([command, "--help"])
    said = capsys.readouterr().out
    stated = yaml.safe_load((conf_dir() / f"{command}.yaml").read_text())
    for key in stated.keys() - {"defaults", "hydra"}:
        assert f"\n  {key}:" in said
    parts = {key for item in stated["defaults"] if isinstance(item, dict) for key in item if " " not in key}
    for word in parts:
        assert f"\n  {word}=" in said
        assert all(f"\n    {option} " in said for option in groups()[word.partition("@")[0]])
    assert "hydra" not in said.replace("${hydra:", "")


def test_help_shows_the_values_of_a_part_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    main(["pretrain", "optim/schedule@schedule=tri_stage", "--help"])
    assert "_target_: ossicle.optim.schedules.TriStage" in capsys.readouterr().out
    main(["bench", "step", "--help"])
    assert BENCHES["step"] in capsys.readouterr().out


def test_a_misspelt_command_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["pretrian"])
    assert caught.value.code == 2
    assert "did you mean pretrain" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrain", "experiment=hubert_tiny", "optim.lrr=1"], ["'optim.lrr'", "did you mean optim.lr"]),
        (["pretrain", "experiment=hubert_tiny", "mixr=attention"], ["'mixr'", "did you mean mixer"]),
        (["pretrain", "experiment=hubert_tiny", "mixer=atention"], ["mixer=atention", "did you mean attention"]),
        (["pretrain", "experiment=hubert_tini"], ["experiment=hubert_tini", "did you mean hubert_tiny"]),
        (["pretrain", "experiment=hubert_tiny"], ["no value for: data.shards"]),
        (["pretrain"], ["experiment"]),
        (["prepare", "corpus=folder"], ["no value for: input", "input=DIR"]),
        (["pretrain", "experiment=hubert_tiny", "data.shards=x", "batch_s=33"], ["batch_s=33", "set batch_s=32"]),
        (["probe", "run=nowhere"], ["holds no finished run"]),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_command_line_is_refused_in_two_lines(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    ran = ossicle(*arguments, cwd=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "->" in ran.stderr
    for word in words:
        assert word in ran.stderr


def test_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    ran = ossicle("pretrain", "experiment=best_rq_tiny", "data.shards=nowhere", "wandb.mode=disabled", cwd=tmp_path)
    assert ran.returncode == 1
    assert "nowhere" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "overrides" not in ran.stderr


def test_a_cluster_is_reached_through_a_multirun_of_one_job() -> None:
    assert on_cluster(["experiment=x", "cluster=slurm"])
    assert not on_cluster(["cluster=local"])
    assert not on_cluster(["experiment=x"])


def test_options_may_stand_anywhere_among_overrides() -> None:
    assert options_first(["a=1", "-m", "b=2", "--cfg", "job", "~c"]) == ["-m", "--cfg", "job", "a=1", "b=2", "~c"]
