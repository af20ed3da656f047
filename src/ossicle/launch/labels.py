"""Labels for masked prediction: which features are clustered, on which clock, and where the labels lie."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.launch.config import Config
from ossicle.launch.encoders import fingerprint, trained_encoder, untrained_encoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ossicle.data.index import DatasetIndex

log = logging.getLogger(__name__)

MFCC_HOP_MS = 10.0
DEFAULT_SAMPLE_FRAMES = 200_000


@dataclass(frozen=True)
class LabelRequest:
    """Everything that decides a set of labels.

    Args:
        shards: A prepared dataset.
        split: Its split.
        source: ``mfcc`` or ``layer``.
        clusters: Number of clusters (V).
        seed: Seeds the sample and the centroids.
        output: Folder of label sets; None for ``labels`` beside the shards.
        run: The run directory whose encoder's layer is clustered, with source ``layer``.
        layer: Which layer: 0 is the input of the first block.
        sample_frames: Frames that the centroids are fitted on.
        clock: The clock of the labels with source ``mfcc``; None for 50 frames a second.

    Raises:
        ConfigError: The source is unknown, or lacks its run or layer.
    """

    shards: Path
    split: str
    source: str
    clusters: int
    seed: int = 0
    output: Path | None = None
    run: Path | None = None
    layer: int | None = None
    sample_frames: int = DEFAULT_SAMPLE_FRAMES
    clock: FrameClock | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be carried out."""
        if self.source not in {"mfcc", "layer"}:
            raise ConfigError(f"source={self.source} is unknown", "choose mfcc or layer")
        if self.source == "layer" and (self.run is None or self.layer is None):
            raise ConfigError("source=layer needs a run and a layer", "state run=runs/NAME/ID layer=6")

    def recipe(self) -> dict[str, object]:
        """What the features are, for the card: labels are traced to the very weights they come from."""
        if self.source == "mfcc":
            return {"source": "mfcc", "features": "13 MFCCs, deltas, delta-deltas", "hop_ms": MFCC_HOP_MS}
        assert self.run is not None
        return {"source": "layer", "encoder": fingerprint(self.run), "layer": self.layer, "run": self.run.name}


def features_of(request: LabelRequest) -> "tuple[Callable[[Tensor], Tensor], FrameClock]":
    """The function from a waveform (1, S) to the frames (T, D) that are clustered, and their clock.

    Raises:
        ConfigError: The encoder has no such layer, or MFCCs cannot be had on the clock.
    """
    import torch

    from ossicle.ops.spectral import mfcc, spectral_clock

    if request.source == "mfcc":
        base = spectral_clock(hop_ms=MFCC_HOP_MS)
        stride = (request.clock.stride_samples if request.clock else 2 * base.stride_samples) // base.stride_samples
        clock = base.then(1, stride)
        if request.clock is not None and not clock.agrees_with(request.clock):
            raise ConfigError(
                f"MFCCs every {MFCC_HOP_MS:g} ms have no frames on the model's clock {request.clock}",
                "cluster a layer of a run of this model instead (source=layer)",
            )
        return (lambda waveform_1S: mfcc(waveform_1S, hop_ms=MFCC_HOP_MS)[0, ::stride]), clock
    assert request.run is not None
    assert request.layer is not None
    model = trained_encoder(request.run)
    if not 0 <= request.layer <= model.num_layers:
        raise ConfigError(
            f"layer={request.layer}: the encoder of {request.run} has layers 0 to {model.num_layers}",
            f"choose a layer up to {model.num_layers}",
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    layer = request.layer

    def extract(waveform_1S: "Tensor") -> "Tensor":
        with torch.inference_mode():
            return model(waveform_1S.to(device), layers=True).layers[layer][0].float()

    return extract, model.clock


def clock_of(config: Config) -> FrameClock:
    """The clock of the model that a config describes, without its weights."""
    import torch

    with torch.device("meta"):
        return untrained_encoder(config).clock


def place_of(request: LabelRequest) -> Path:
    """Where the labels of a request lie, made or not."""
    from ossicle.stage.labelling import label_path

    _, clock = features_of(request)
    return label_path(
        load_index(request),
        clock,
        folder_of(request),
        clusters=request.clusters,
        sample_frames=request.sample_frames,
        seed=request.seed,
        source=request.recipe(),
    )


def make(request: LabelRequest) -> Path:
    """Make the labels of a request, or find them made.

    Returns:
        The directory of the label set.
    """
    from ossicle.stage.labelling import make_labels

    extract, clock = features_of(request)
    return make_labels(
        load_index(request),
        extract,
        clock,
        folder_of(request),
        clusters=request.clusters,
        sample_frames=request.sample_frames,
        seed=request.seed,
        source=request.recipe(),
    )


def folder_of(request: LabelRequest) -> Path:
    """The folder of label sets."""
    return request.output if request.output is not None else request.shards / "labels"


def load_index(request: LabelRequest) -> "DatasetIndex":
    """The split that is labelled."""
    from ossicle.data.index import DatasetIndex

    return DatasetIndex.load(request.shards, request.split)
