"""Frontends that normalise by all data: their mean and deviation are measured once, before a run's first step."""

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ossicle.launch.config import Config
from ossicle.launch.labels import open_split

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ossicle.frontend.logmel import LogMel
    from ossicle.layer.normalisation import GlobalNorm
    from ossicle.stage.frames import Features

log = logging.getLogger(__name__)

NUM_FRAMES = 1_000_000
"""Frames of 10 ms that are measured, 2.8 hours: whole utterances, so that many voices are among them."""
BATCH_S = 30.0


def global_norms(model: "nn.Module") -> "Iterator[tuple[LogMel, GlobalNorm]]":
    """The frontends inside a model that normalise by all data."""
    from ossicle.frontend.logmel import LogMel
    from ossicle.layer.normalisation import GlobalNorm

    for part in model.modules():
        if isinstance(part, LogMel):
            yield from ((part, norm) for norm in part.norm.modules() if isinstance(norm, GlobalNorm))


def fit_norms(model: "nn.Module", config: Config) -> bool:
    """Measure a model's norms of all data, on the CPU; every rank finds the same.

    Args:
        model: The model, before its first step.
        config: A resolved config: its data are measured, and its seed draws them.

    Returns:
        Whether there was one.

    Raises:
        DataError: The data hold no frame.
    """
    from ossicle.stage.statistics import feature_moments

    norms = list(global_norms(model))
    if not norms:
        return False
    data = config["data"]
    indexes = [
        open_split(
            source["shards"],
            source.get("split") or "train",
            {"cache": data.get("cache"), "storage": source.get("storage")},
        )
        for source in dict(data.get("sources") or {"": data}).values()
    ]
    for frontend, norm in norms:
        norm.fit(*feature_moments(_mels(frontend), indexes, NUM_FRAMES, config["seed"]))
        log.info("log-mel frames are normalised by the mean and deviation of %d bands over the data", frontend.num_mels)
    return True


def take_norms(model: "nn.Module", other: "nn.Module") -> None:
    """Give a model the norms of all data that another one of the same parts was given."""
    for (_, mine), (_, theirs) in zip(global_norms(model), global_norms(other), strict=True):
        mine.load_state_dict(theirs.state_dict())


def _mels(frontend: "LogMel") -> "Features":
    import torch

    from ossicle.ops.packing import Packing
    from ossicle.stage.frames import Features

    cpu = torch.device("cpu")

    def extract(waveform_BS: "Tensor", lengths: "Sequence[int]") -> "Tensor":
        packing = Packing.of([frontend.mel_clock.num_frames(length) for length in lengths], cpu)
        with torch.inference_mode():
            return packing.unpad(frontend.mels(waveform_BS))

    return Features(extract, frontend.mel_clock, BATCH_S, 1, cpu)
