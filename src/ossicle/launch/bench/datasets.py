"""Hugging Face ``datasets``: the same tars streamed; whole files are read, crops decoded."""

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import cast

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ossicle.core.errors import MissingExtraError
from ossicle.core.seeds import numpy_generator
from ossicle.launch.bench.work import PREFETCH, Work

Example = Mapping[str, bytes]


def batches(work: Work) -> Iterator[Tensor]:
    """Its streaming webdataset builder and torch's DataLoader.

    Audio stays undecoded and goes to soundfile, which decodes the crop alone: the library's own decoding needs
    torchcodec and decodes whole files.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "bench", "the peer datasets") from error
    datasets.disable_progress_bars()
    files = {"train": work.shard_names()}
    column = work.audio_suffix()
    # stated: Audio needs torchcodec even where nothing is decoded, and what would be inferred of the metadata fails at
    # lists of numbers and words, as timed phones are
    features = datasets.Features({column: datasets.Value("binary")})
    streamed = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True, features=features)
    streamed = streamed.select_columns([column])
    long_enough = streamed.filter(partial(_is_long_enough, column, work.crop_samples))
    loader = DataLoader(
        cast("IterableDataset[Example]", long_enough.repeat(None)),
        batch_size=work.rows,
        num_workers=work.workers,
        prefetch_factor=PREFETCH if work.workers else None,
        collate_fn=partial(_collate, column, work.crop_samples, numpy_generator(work.seed, "datasets")),
    )
    yield from loader


def _is_long_enough(column: str, length: int, example: Example) -> bool:
    return soundfile.info(io.BytesIO(example[column])).frames >= length


def _collate(column: str, length: int, draw: np.random.Generator, examples: Sequence[Example]) -> Tensor:
    batch_BS = np.empty((len(examples), length), dtype=np.float32)
    for out_S, example in zip(batch_BS, examples, strict=True):
        with soundfile.SoundFile(io.BytesIO(example[column])) as file:
            file.seek(int(draw.integers(file.frames - length + 1)))
            file.read(out=out_S)
    return torch.from_numpy(batch_BS)
