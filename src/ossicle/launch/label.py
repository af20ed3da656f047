"""``ossicle label``: k-means targets from MFCCs or a run's features, on any number of ranks."""

import logging
import os
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, OssicleError
from ossicle.core.files import read_json, write_json
from ossicle.core.world import World
from ossicle.launch import runs
from ossicle.launch.config import Config
from ossicle.launch.experiment import resolved, stages, use_threads
from ossicle.launch.labels import (
    DEFAULT_CLUSTERS,
    DEFAULT_SAMPLE_FRAMES,
    LabelRequest,
    access_of,
    auto_layer,
    clock_of,
    criterion_of,
    device_of,
    folder_of,
    is_made,
    load_index,
    make,
    open_split,
    place_of,
)
from ossicle.launch.ranks import needs_ranks, run_ranks

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ossicle.core.peers import Peers
    from ossicle.data.labels import LabelCard
    from ossicle.stage.layers import LayerChoice
    from ossicle.stage.plan import Run

log = logging.getLogger(__name__)

OWN_KEYS = (
    "shards", "split", "source", "run", "source_layer", "clusters", "sample_frames", "fit", "centroids", "output",
    "feature_batch_s", "criterion", "eval_shards", "eval_split", "eval_s",
)  # fmt: skip
SHARED_KEYS = ("seed", "threads", "cluster")
PROGRAM = "ossicle.launch.label"
REQUEST_FILE = "request.json"
AUTO = "auto"


def task(cfg: "DictConfig") -> None:
    """Make the labels that the config describes and report how they fit the phones, where phones are known."""
    own, experiment = read_config(cfg)
    use_threads(own)
    if needs_ranks(own):
        request = request_of(own, experiment, choose(own, experiment))
        if is_made(request):
            report(place_of(request), request)
            return
        with tempfile.TemporaryDirectory(prefix="ossicle-label-") as folder:
            stated = {key: own[key] for key in SHARED_KEYS}
            write_json(Path(folder) / REQUEST_FILE, {"request": request.to_json(), **stated})
            run_ranks(own, Path(folder), PROGRAM)
        report(place_of(request), request)
        return
    with connected() as peers:
        layer = peers.told_by(0, choose(own, experiment) if peers.rank == 0 else None)
        request = request_of(own, experiment, layer)
        place = make(request, device_of(own["cluster"]["accelerator"], World.from_environment().local_rank), peers)
        if peers.rank == 0:
            report(place, request)


def read_config(cfg: "DictConfig") -> tuple[Config, Config | None]:
    """The command's own values, and the experiment's config where one is named.

    Raises:
        ConfigError: No dataset is named, or two are.
    """
    from omegaconf import OmegaConf

    shards, trained_on = cfg.shards, OmegaConf.select(cfg, "data.shards", throw_on_missing=False, default=None)
    if trained_on is None and shards is not None:
        OmegaConf.update(cfg, "data.shards", shards, force_add=True)
    elif shards is None:
        shards = trained_on
    if shards is None:
        raise ConfigError("no value for: shards", "name a prepared dataset: shards=corpora/mine")
    if trained_on not in {None, shards}:
        raise ConfigError(f"shards={shards} and data.shards={trained_on} are two datasets", "state one of them")
    plain = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [*OWN_KEYS, *SHARED_KEYS]), resolve=True)
    assert isinstance(plain, dict)
    own = {str(key): value for key, value in plain.items()} | {"shards": str(shards)}
    data = OmegaConf.to_container(OmegaConf.masked_copy(cfg.data, ["cache", "storage"]), resolve=True)
    assert isinstance(data, dict)
    own["access"] = access_of({**{str(key): value for key, value in data.items()}, "shards": shards})
    own["split"] = own["split"] or OmegaConf.select(cfg, "data.split") or "train"
    if OmegaConf.is_missing(cfg, "name"):
        return own, None
    experiment = {key: value for key, value in resolved(cfg).items() if key not in OWN_KEYS}
    return own, experiment


def request_of(own: Config, experiment: Config | None, layer: int | None) -> LabelRequest:
    """What is to be made: what the command states, and for the rest what the experiment's stages would ask for.

    Args:
        own: The command's values.
        experiment: A resolved config, or None.
        layer: The layer, where it is a layer that is clustered.
    """
    clusters, sample_frames = DEFAULT_CLUSTERS, DEFAULT_SAMPLE_FRAMES
    clock: FrameClock | None = None
    if experiment is not None:
        wanted, _ = _stage_of(experiment, own["source"])
        clusters = (wanted.clusters if wanted else None) or experiment["target"].get("num_classes", clusters)
        sample_frames = experiment["label_frames"]
        clock = clock_of(experiment)
    return LabelRequest(
        shards=own["shards"],
        split=own["split"],
        source=own["source"],
        clusters=own["clusters"] or clusters,
        seed=own["seed"],
        output=None if own["output"] is None else Path(own["output"]),
        run=_run_of(own, experiment) if own["source"] == "checkpoint" else None,
        layer=layer,
        sample_frames=own["sample_frames"] or sample_frames,
        clock=clock,
        fit=own["fit"],
        batch_s=own["feature_batch_s"],
        centroids=None if own["centroids"] is None else Path(own["centroids"]),
        access=own["access"],
    )


def _stage_of(experiment: Config, source: str) -> "tuple[Run | None, Run | None]":
    """The experiment's first run that clusters a source, and the run before it."""
    before = None
    for run in stages(experiment).runs():
        if run.label_source == {"checkpoint": "layer"}.get(source, source):
            return run, before
        before = run
    return None, None


def _run_of(own: Config, experiment: Config | None) -> Path | None:
    """The run directory whose encoder is clustered: the one that is named, else the experiment's own run before."""
    if own["run"] is not None:
        return runs.find_run(Path(own["run"]))
    if experiment is None:
        return None
    _, before = _stage_of(experiment, "checkpoint")
    place = runs.run_dir(experiment) / (before.name if before else "")
    if not (place / runs.ENCODER_FILE).is_file():
        raise ConfigError(
            f"the experiment's own run has not left {place / runs.ENCODER_FILE}", "train it first, or name one: run=DIR"
        )
    return place


def choose(own: Config, experiment: Config | None) -> int | None:
    """The layer: the one that is named, the best one where it is ``auto``, else the one of the experiment's stage."""
    if own["source"] != "checkpoint":
        return None
    named = own["source_layer"]
    if named is None and experiment is not None:
        wanted, _ = _stage_of(experiment, "checkpoint")
        named = wanted.layer if wanted else None
    if named != AUTO:
        if named is not None and not isinstance(named, int):
            raise ConfigError(f"layer={named} is no layer", "state a number, or layer=auto")
        return named
    request = request_of(own, experiment, 0)
    assert request.run is not None
    judged = load_index(request)
    if own["eval_shards"] is not None or own["eval_split"] is not None:
        shards, split = own["eval_shards"] or request.shards, own["eval_split"] or request.split
        judged = open_split(shards, split, own["access"] or {})
    choice = auto_layer(
        request.run,
        judged,
        criterion_of(own["criterion"], request.clusters, request.seed),
        folder_of(request),
        seconds=own["eval_s"],
        seed=request.seed,
        batch_s=request.batch_s,
        device=device_of(own["cluster"]["accelerator"]),
    )
    show_layers(choice)
    return choice.layer


@contextmanager
def connected() -> "Generator[Peers]":
    """The processes that a launcher (SLURM, torchrun, :func:`run_ranks`) started for this command."""
    from ossicle.core.peers import Alone, Connected

    world = World.from_environment()
    if world.size == 1:
        yield Alone()
        return
    peers = Connected.start(world, _meeting_place())
    yield peers
    peers.stop()  # not after an error: the others would not come


def _meeting_place() -> str:
    if "MASTER_ADDR" in os.environ:
        return "env://"
    from lightning.fabric.plugins.environments import SLURMEnvironment

    cluster = SLURMEnvironment(auto_requeue=False)
    return f"tcp://{cluster.main_address}:{cluster.main_port}"


def report(place: Path, request: LabelRequest) -> None:
    """Print where the labels lie, what they are, and how they fit the phones where these are known."""
    from ossicle.data.labels import LabelSet
    from ossicle.stage.quality import has_phones, label_quality

    labels = LabelSet.load(place)
    index = load_index(request)
    show_card(place, labels.card, label_quality(labels, index) if has_phones(index) else None)


def show_card(place: Path, card: "LabelCard", quality: Mapping[str, float] | None) -> None:
    """Print a card, and purities and PNMI where phones are known, as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Labels: {place}", title_justify="left", show_header=False)
    source = ", ".join(f"{key} {str(value)[:24]}" for key, value in card.source.items())
    table.add_row("source", source)
    table.add_row("data", f"{card.split}, {card.content_hash[:16]}, {card.num_utterances} utterances")
    table.add_row("frames", f"{card.num_frames} at {card.clock.frames_per_s:g} a second")
    table.add_row("clusters", f"{card.num_classes}, of which {card.dead_classes} have no frame")
    table.add_row("inertia", f"{card.inertia:.4g} a frame")
    table.add_row("entropy", f"{card.entropy_nats:.3f} nats: as many as {card.perplexity:.1f} clusters used alike")
    if quality is None:
        table.add_row("against phones", "no phones are known")
    else:
        table.add_row("phone purity", f"{quality['purity']:.3f}")
        table.add_row("cluster purity", f"{quality['cluster_purity']:.3f}")
        table.add_row("PNMI", f"{quality['pnmi']:.3f} over {quality['frames']:.0f} frames with a phone")
    Console().print(table)


def show_layers(choice: "LayerChoice") -> None:
    """Print every layer's scores as a table, the chosen one in bold."""
    from rich.console import Console
    from rich.table import Table

    criterion = ", ".join(f"{key} {value}" for key, value in choice.criterion.items())
    table = Table(title=f"Layers by {criterion}, over {choice.seconds:g} s of audio", title_justify="left")
    table.add_column("layer", justify="right")
    for name in choice.scores[0]:
        table.add_column(name, justify="right")
    for layer, found in enumerate(choice.scores):
        chosen = layer == choice.layer
        table.add_row(str(layer), *(f"{value:.3f}" for value in found.values()), style="bold" if chosen else None)
    Console().print(table)


def main() -> None:
    """One rank of several that :func:`run_ranks` started: its share of the labels that the folder's request names."""
    stated = read_json(Path(sys.argv[1]) / REQUEST_FILE)
    world = World.from_environment()
    logging.basicConfig(level=logging.INFO if world.is_first else logging.WARNING)
    use_threads(stated)
    try:
        with connected() as peers:
            request = LabelRequest.from_json(stated["request"])
            make(request, device_of(stated["cluster"]["accelerator"], world.local_rank), peers)
    except OssicleError as error:
        sys.stderr.write(f"\nossicle label, rank {world.rank}: {error}\n")
        sys.stderr.flush()
        os._exit(1)  # the others wait for this rank's word: leave without it


if __name__ == "__main__":
    main()
