"""Labels for masked prediction: which features are clustered, on which clock, and where the labels lie."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.core.files import hash_json, read_json, write_json
from ossicle.launch.config import Config
from ossicle.launch.encoders import fingerprint, trained_encoder, untrained_encoder
from ossicle.launch.experiment import reads_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from ossicle.core.peers import Peers
    from ossicle.data.index import DatasetIndex
    from ossicle.layer.speech_encoder import SpeechEncoder
    from ossicle.stage.frames import Features
    from ossicle.stage.labelling import LabelRecipe
    from ossicle.stage.layers import Criterion, LayerChoice

log = logging.getLogger(__name__)

MFCC_HOP_MS = 10.0
DEFAULT_CLUSTERS = 100
DEFAULT_SAMPLE_FRAMES = 200_000
BATCH_S = {"cpu": 30.0, "cuda": 160.0}
SOURCES = ("mfcc", "checkpoint")
CRITERIA = ("pnmi", "abx")


@dataclass(frozen=True)
class LabelRequest:
    """Everything that decides a set of labels, and how much is taken at once.

    Args:
        shards: A prepared dataset.
        split: Its split.
        source: ``mfcc`` or ``checkpoint``.
        clusters: Number of clusters (V).
        seed: Seeds the sample and the centroids.
        output: Folder of label sets; None for ``labels`` beside the shards.
        run: The run directory whose encoder's layer is clustered, with source ``checkpoint``.
        layer: Which layer: 0 is the input of the first block.
        sample_frames: Frames that the centroids are fitted on.
        clock: The clock of the model that the labels are for; None for any, MFCCs then at 50 frames a second.
        fit: How clusters are fitted.
        batch_s: Audio that is taken through the features at once, in seconds; None for 30 on a CPU and 160 on a GPU.
        centroids: A label set whose centroids are taken, and none fitted: datasets that are mixed need one clustering.
        access: Of shards behind a URL, the config's ``cache`` and ``storage``: how they are come by, not what they are.

    Raises:
        ConfigError: The source is unknown, or lacks its run or layer.
    """

    shards: Path | str
    split: str
    source: str
    clusters: int
    seed: int = 0
    output: Path | None = None
    run: Path | None = None
    layer: int | None = None
    sample_frames: int = DEFAULT_SAMPLE_FRAMES
    clock: FrameClock | None = None
    fit: str = "lloyd"
    batch_s: float | None = None
    centroids: Path | None = None
    access: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be carried out."""
        if self.source not in SOURCES:
            raise ConfigError(f"source={self.source} is unknown", f"choose {' or '.join(SOURCES)}")
        if self.source == "checkpoint" and (self.run is None or self.layer is None):
            raise ConfigError("source=checkpoint needs a run and a layer", "state run=runs/NAME/ID layer=6")
        if self.batch_s is not None and self.batch_s <= 0:
            raise ConfigError(f"feature_batch_s={self.batch_s:g} takes no audio", "state seconds: feature_batch_s=60")

    def recipe(self) -> "LabelRecipe":
        """What decides the labels, for their name and card: they are traced to the very weights they come from."""
        from ossicle.stage.labelling import LabelRecipe

        if self.source == "mfcc":
            source: dict[str, object] = {
                "source": "mfcc",
                "features": "13 MFCCs, deltas, delta-deltas",
                "hop_ms": MFCC_HOP_MS,
            }
        else:
            assert self.run is not None
            source = {
                "source": "checkpoint",
                "encoder": fingerprint(self.run),
                "layer": self.layer,
                "run": self.run.name,
            }
        return LabelRecipe(source, self.clusters, self.sample_frames, self.seed, self.fit, self.centroids)

    def to_json(self) -> dict[str, object]:
        """The request as JSON has it."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Config) -> "LabelRequest":
        """The request that :meth:`to_json` wrote."""
        known = dict(value)
        for key in ("output", "run", "centroids"):
            known[key] = None if known[key] is None else Path(known[key])
        known["clock"] = None if known["clock"] is None else FrameClock(**known["clock"])
        return cls(**known)


def device_of(accelerator: str, local_rank: int = 0) -> "torch.device":
    """Where a rank computes: a GPU of its own where there is one and ``accelerator`` allows it."""
    import torch

    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def features_of(request: LabelRequest, device: "torch.device | None" = None) -> "Features":
    """What is clustered.

    Args:
        request: Which features.
        device: Where they are made; None for a GPU where there is one.

    Raises:
        ConfigError: The encoder has no such layer, or the features are not on the clock that is asked for.
    """
    device = device_of("auto") if device is None else device
    if request.source == "mfcc":
        return _mfccs(request, device)
    assert request.run is not None
    assert request.layer is not None
    model = trained_encoder(request.run).to(device)
    if not 0 <= request.layer <= model.num_layers:
        raise ConfigError(
            f"layer={request.layer}: the encoder of {request.run} has layers 0 to {model.num_layers}",
            f"choose a layer up to {model.num_layers}",
        )
    if request.clock is not None and not model.clock.agrees_with(request.clock):
        raise ConfigError(
            f"the frames of {request.run} lie on {model.clock}, those of the model that is to learn them on"
            f" {request.clock}",
            "cluster a run of a model on the same clock",
        )
    return _layers(model, slice(request.layer, request.layer + 1), _batch_s(request.batch_s, device), device)


def _mfccs(request: LabelRequest, device: "torch.device") -> "Features":
    import torch

    from ossicle.ops.packing import Packing
    from ossicle.ops.spectral import mfcc, spectral_clock
    from ossicle.stage.frames import Features

    base = spectral_clock(hop_ms=MFCC_HOP_MS)
    stride = (request.clock.stride_samples if request.clock else 2 * base.stride_samples) // base.stride_samples
    clock = base.then(1, max(1, stride))
    if request.clock is not None and not clock.agrees_with(request.clock):
        raise ConfigError(
            f"MFCCs every {MFCC_HOP_MS:g} ms have no frames on the model's clock {request.clock}",
            "cluster a layer of a run of this model instead (source=checkpoint)",
        )

    def extract(waveform_BS: "Tensor", lengths: "Sequence[int]") -> "Tensor":
        frames_BTD = mfcc(waveform_BS.to(device), hop_ms=MFCC_HOP_MS, lengths_B=torch.tensor(lengths))[:, ::stride]
        return Packing.of([clock.num_frames(length) for length in lengths], device).unpad(frames_BTD)

    return Features(extract, clock, _batch_s(request.batch_s, device), _decoders(device), device)


def _layers(model: "SpeechEncoder", chosen: slice, batch_s: float, device: "torch.device") -> "Features":
    """An encoder's layers, side by side where they are several."""
    import torch

    from ossicle.stage.frames import Features

    def extract(waveform_BS: "Tensor", lengths: "Sequence[int]") -> "Tensor":
        with torch.inference_mode():
            return torch.cat(model.packed(waveform_BS.to(device), lengths, layers=True).layers[chosen], -1).float()

    return Features(extract, model.clock, batch_s, _decoders(device), device)


def _batch_s(stated: float | None, device: "torch.device") -> float:
    return BATCH_S[device.type] if stated is None else stated


def _decoders(device: "torch.device") -> int:
    """Threads that decode: one keeps up with a CPU's features, a GPU needs several."""
    import torch

    return 1 if device.type == "cpu" else max(1, min(8, torch.get_num_threads()))


def clock_of(config: Config) -> FrameClock:
    """The clock of the model that a config describes, without its weights."""
    import torch

    with torch.device("meta"):
        return untrained_encoder(config).clock


def place_of(request: LabelRequest) -> Path:
    """Where the labels of a request lie, made or not."""
    from ossicle.stage.labelling import label_path

    clock = features_of(request, device_of("cpu")).clock
    return label_path(load_index(request), clock, folder_of(request), request.recipe())


def is_made(request: LabelRequest) -> bool:
    """Whether the labels of a request are made."""
    from ossicle.data.labels import is_finished

    return is_finished(place_of(request))


def make(request: LabelRequest, device: "torch.device | None" = None, peers: "Peers | None" = None) -> Path:
    """Make the labels of a request, or find them made.

    Args:
        request: Which labels.
        device: Where features are made and clustered; None for a GPU where there is one.
        peers: The ranks that share the work.

    Returns:
        The directory of the label set.
    """
    from ossicle.stage.labelling import make_labels

    features = features_of(request, device)
    return make_labels(load_index(request), features, folder_of(request), request.recipe(), peers=peers)


def folder_of(request: LabelRequest) -> Path:
    """The folder of label sets.

    Raises:
        ConfigError: The shards lie elsewhere than in a folder, and no folder is named.
    """
    if request.output is not None:
        return request.output
    if "://" in str(request.shards):
        mend = "ossicle label ... output=labels/NAME names a folder; then train with data.labels=THE SET THAT IT MADE"
        raise ConfigError(f"labels cannot be written beside {request.shards}", mend)
    return Path(request.shards) / "labels"


def load_index(request: LabelRequest) -> "DatasetIndex":
    """The split that is labelled."""
    return open_split(request.shards, request.split, request.access or {})


def open_split(shards: Path | str, split: str, access: Mapping[str, Any]) -> "DatasetIndex":
    """A split as the config's ``cache`` and ``storage`` come by it."""
    from ossicle.data.cache import ShardCache
    from ossicle.data.index import DatasetIndex

    stated = {key: value for key, value in dict(access.get("cache") or {}).items() if key in {"dir", "max_gb"}}
    return DatasetIndex.load(shards, split, ShardCache(**stated) if stated else None, access.get("storage"))


def access_of(data: Config) -> dict[str, Any] | None:
    """What the config says of the way to shards behind a URL, None for shards on this machine's disks."""
    if "://" not in str(data.get("shards")):
        return None
    return {key: data[key] for key in ("cache", "storage") if data.get(key)}


def criterion_of(name: str, clusters: int, seed: int) -> "Criterion":
    """What ``layer=auto`` goes by.

    Raises:
        ConfigError: There is no such criterion.
    """
    from ossicle.stage.layers import Abx, Pnmi

    if name not in CRITERIA:
        raise ConfigError(f"criterion={name} is unknown", f"choose {' or '.join(CRITERIA)}")
    return Pnmi(clusters, seed) if name == "pnmi" else Abx(seed)


def auto_layer(
    run: Path,
    index: "DatasetIndex",
    criterion: "Criterion",
    folder: Path,
    *,
    seconds: float,
    seed: int,
    batch_s: float | None = None,
    device: "torch.device | None" = None,
) -> "LayerChoice":
    """The best layer of a run's encoder. A choice that was made before is read again.

    Args:
        run: The run directory.
        index: A split with phones.
        criterion: What decides.
        folder: Where the choice is written down.
        seconds: Audio to listen to.
        seed: Draws the utterances.
        batch_s: Audio that is taken through the encoder at once, in seconds; None as :class:`LabelRequest` says.
        device: Where features are made; None for a GPU where there is one.
    """
    from ossicle.stage.layers import LayerChoice, choose_layer

    decided_by = {
        "encoder": fingerprint(run),
        "data": index.content_hash,
        "seconds": seconds,
        "seed": seed,
        **criterion.describe(),
    }
    file = folder / f"layers-{hash_json(decided_by)}.json"
    if file.is_file():
        found = read_json(file)
        return LayerChoice(found["layer"], tuple(found["scores"]), found["criterion"], found["seconds"])
    device = device_of("auto") if device is None else device
    model = trained_encoder(run).to(device)
    features = _layers(model, slice(None), _batch_s(batch_s, device), device)
    choice = choose_layer(index, features, model.num_layers + 1, criterion, seconds=seconds, seed=seed)
    write_json(file, asdict(choice))
    return choice


def check_labels(config: Config) -> None:
    """Refuse labels that the data name and that are not the model's, before a device is asked for.

    Raises:
        ConfigError: Their clock or number of classes is another.
        DataError: They are of other data, unfinished or damaged.
    """
    from ossicle.data.labels import LabelSet

    data = config["data"]
    sources = [source for source in dict(data.get("sources") or {"": data}).values() if source.get("labels")]
    if not sources:
        return
    clock = clock_of(config)
    classes = config["target"].get("num_classes") if reads_labels(config) else None
    for source in sources:
        labels = LabelSet.load(source["labels"])
        access = {"cache": data.get("cache"), "storage": source.get("storage")}
        index = open_split(source["shards"], source.get("split") or "train", access)
        labels.check(index, clock, classes)
