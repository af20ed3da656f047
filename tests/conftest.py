import os
from pathlib import Path

import pytest
import torch

from data_prep.synthetic import SyntheticCorpus
from ossicle.data.prepare import prepare

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // WORKERS))  # files run side by side


@pytest.fixture(scope="session")
def synthetic_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About three minutes of synthetic speech by 8 voices in 6 languages, prepared: train, dev and test."""
    output = tmp_path_factory.mktemp("data") / "synthetic"
    corpus = SyntheticCorpus(hours=0.05, num_voices=8)
    prepare(corpus, output, shard_s=40, workers=1, max_bad_fraction=0.0)
    return output
