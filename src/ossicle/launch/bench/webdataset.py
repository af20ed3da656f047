"""A plain webdataset pipeline: whole files are decoded, cut and stacked."""

import io
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import soundfile
import torch
from torch import Tensor
from webdataset.compat import WebDataset, WebLoader

from ossicle.core.seeds import numpy_generator
from ossicle.launch.bench.work import PREFETCH, Work


def batches(work: Work) -> Iterator[Tensor]:
    """WebDataset's stages in the order of its manual: shards drawn for ever, members, decoded samples, batches."""
    dataset = (
        WebDataset(work.shard_names(), resampled=True, shardshuffle=False, seed=work.seed, select_files=_is_audio)
        .map(partial(_crop, work.crop_samples, numpy_generator(work.seed, "webdataset")))
        .select(_is_there)
        .batched(work.rows, collation_fn=np.stack, partial=False)
    )
    loader = WebLoader(
        dataset, batch_size=None, num_workers=work.workers, prefetch_factor=PREFETCH if work.workers else None
    )
    for batch_BS in loader:
        yield torch.as_tensor(batch_BS)


def _is_audio(name: str) -> bool:
    return not name.endswith(".json")


def _is_there(wave_S: np.ndarray | None) -> bool:
    return wave_S is not None


def _crop(length: int, draw: np.random.Generator, sample: Mapping[str, object]) -> np.ndarray | None:
    data = next(value for key, value in sample.items() if not key.startswith("__"))
    assert isinstance(data, bytes)
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        if file.frames < length:
            return None
        wave_S = file.read(dtype="float32")
    start = int(draw.integers(len(wave_S) - length + 1))
    return wave_S[start : start + length]
