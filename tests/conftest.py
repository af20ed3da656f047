from pathlib import Path

import pytest

from data_prep.synthetic import SyntheticCorpus
from ossicle.data.prepare import prepare


@pytest.fixture(scope="session")
def synthetic_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About three minutes of synthetic speech by 8 voices in 6 languages, prepared: train, dev and test."""
    output = tmp_path_factory.mktemp("data") / "synthetic"
    corpus = SyntheticCorpus(hours=0.05, num_voices=8)
    prepare(corpus, output, shard_s=40, workers=1, max_bad_fraction=0.0)
    return output
