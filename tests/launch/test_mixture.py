import json
from pathlib import Path

import pytest
import torch

from ossicle.core.errors import ConfigError
from ossicle.launch.config import compose
from ossicle.launch.experiment import check, labels_stated, resolved
from tests.launch.toy import TOY, ossicle, single_run


def test_a_mixture_pretrains_from_the_command_line(synthetic_dataset: Path, tmp_path: Path) -> None:
    sources = (
        f"data.sources={{one:{{shards:{synthetic_dataset}}},two:{{shards:{synthetic_dataset},split:dev,weight:2}}}}"
    )
    line = ("pretrain", "experiment=best_rq_tiny", "data=mixture", sources, f"runs={tmp_path}", *TOY)
    ran = ossicle(*line, "max_steps=4", "checkpoint_every=2", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    run = single_run(tmp_path, "best_rq_tiny")
    shares = json.loads((run / "shares.json").read_text())
    assert {component["source"] for component in shares["components"]} == {"one", "two"}
    assert sum(component["share"] for component in shares["components"]) == pytest.approx(1)
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["position"] == 4
    assert "data/share/one/" in (run / "metrics.csv").read_text().splitlines()[0]


def config(name: str, sources: str) -> dict[str, object]:
    toy = [item for item in TOY if not item.startswith("schedule")]
    return resolved(compose("pretrain", [f"experiment={name}", "data=mixture", f"data.sources={sources}", *toy]))


def test_stages_that_would_cluster_a_mixture_are_refused_before_they_start() -> None:
    with pytest.raises(ConfigError, match="not those of another") as caught:
        check(config("hubert_tiny", "{a:{shards:x},b:{shards:y,labels:l}}"))
    assert "data.sources.NAME.labels" in caught.value.mend
    labelled = config("hubert_tiny", "{a:{shards:x,labels:k},b:{shards:y,labels:l}}")
    assert labels_stated(labelled["data"])  # type: ignore[arg-type]
    check(labelled)
