"""``ossicle pretrain``: carries out the chain of runs of an experiment, each from where it was left."""

import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ossicle.core.errors import DataError
from ossicle.core.files import atomic_write
from ossicle.core.world import World
from ossicle.launch import runs
from ossicle.launch.config import Config
from ossicle.launch.experiment import as_run, batch_share, check, labels_stated, resolved, stages, use_threads
from ossicle.launch.ranks import needs_ranks, run_ranks

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ossicle.stage.plan import Run

log = logging.getLogger(__name__)

LABEL_WAIT_S = 6 * 3600.0


def task(cfg: "DictConfig") -> float | None:
    """Run, or resume, what the config describes. Returns the last loss, which sweepers minimise."""
    from ossicle.launch.labels import check_labels

    config = resolved(cfg)
    check(config)
    check_labels(config)
    return pretrain(config, runs.run_dir(config))


def pretrain(config: Config, directory: Path) -> float | None:
    """Carry out every run of the config's chain that is not finished.

    Args:
        config: A resolved config.
        directory: The run directory.

    Returns:
        The loss at the last reading.
    """
    from omegaconf import OmegaConf

    from ossicle.meter.chain import chain_card
    from ossicle.meter.cost import CostCard

    first = World.from_environment().is_first
    state = runs.read_state(directory)
    if state.get("finished"):
        log.info("%s is finished: nothing to do (change the config or its seed for another run)", directory)
        return as_loss(state)
    if first:
        with atomic_write(directory / runs.CONFIG_FILE, "w") as file:
            file.write(OmegaConf.to_yaml(OmegaConf.create(dict(config))))
        runs.write_state(directory, name=config["name"], id=directory.name, finished=False)
    if needs_ranks(config):
        run_ranks(config, directory)
        return as_loss(runs.read_state(directory))
    log.info("run %s: %s", directory, batch_share(config))
    use_threads(config)
    loss: float | None = None
    before: Path | None = None
    chain = stages(config).runs()
    for run in chain:
        place = directory / run.name
        if not runs.read_state(place).get("trained"):
            loss = train_one(config, run, place, before, first=first)
            if first:
                runs.write_state(place, trained=True, loss=loss)
        before = place
    if first:
        if directory / chain[-1].name != directory:
            shutil.copyfile(directory / chain[-1].name / runs.ENCODER_FILE, directory / runs.ENCODER_FILE)
            chain_card([CostCard.read(directory / run.name / "cost.json") for run in chain]).write(
                directory / "cost.json"
            )
        runs.write_state(directory, finished=True, loss=loss, last_run=chain[-1].name)
    return loss


def as_loss(state: Config) -> float | None:
    """The loss that a finished run recorded."""
    loss = state.get("loss")
    return float(loss) if isinstance(loss, int | float) else None


def train_one(config: Config, run: "Run", place: Path, before: Path | None, *, first: bool) -> float | None:
    """One run of the chain: its labels where it needs them, then training.

    Args:
        config: A resolved config.
        run: The run.
        place: Where it writes.
        before: Where the run before it wrote, or None.
        first: Whether this process makes what is made once. Asked before any training: Lightning takes the environment
            that says so away when a fit ends.
    """
    from ossicle.launch.training import train

    changed = as_run(config, run)
    if run.clusters is not None and not labels_stated(changed["data"]):
        target = changed["target"]
        changed["target"] = {**target, "num_classes": run.clusters}
    data = changed["data"]
    if run.label_source is not None and not labels_stated(data):
        changed["data"] = with_labels(data, labels_for(config, run, before, first=first))
    return train(changed, place)


def labels_for(config: Config, run: "Run", before: Path | None, *, first: bool) -> Path:
    """The label set of a run; the first process makes it, the others wait for its card.

    Raises:
        DataError: The labels did not appear in time.
    """
    from ossicle.launch.labels import LabelRequest, access_of, clock_of, device_of, make, place_of

    (source,) = sources_of(config["data"]).values()  # of several, check() has refused to cluster one
    assert run.clusters is not None
    assert run.label_source is not None
    request = LabelRequest(
        shards=source["shards"],
        split=source.get("split") or "train",
        source="mfcc" if run.label_source == "mfcc" else "checkpoint",
        clusters=run.clusters,
        seed=config["seed"],
        run=before,
        layer=run.layer,
        sample_frames=config["label_frames"],
        clock=clock_of(config),
        access=access_of({**config["data"], **source}),
    )
    if first:
        return make(request, device_of(config["cluster"]["accelerator"]))
    if before is not None:
        wait_for(before / runs.ENCODER_FILE)
    card = place_of(request) / "card.json"
    wait_for(card)
    return card.parent


def sources_of(data: Config) -> dict[str, Config]:
    """Each dataset that the data are read from, by name: several in a mixture, one without a name elsewhere."""
    return dict(data.get("sources") or {"": data})


def with_labels(data: Config, labels: Path) -> dict[str, object]:
    """The data of one dataset with its labels named, be it a mixture of one or not."""
    if not data.get("sources"):
        return {**data, "labels": str(labels)}
    return {**data, "sources": {name: {**source, "labels": str(labels)} for name, source in data["sources"].items()}}


def wait_for(file: Path) -> None:
    """Wait until another process has written a file, which appears whole.

    Raises:
        DataError: It did not appear in time.
    """
    deadline = time.monotonic() + LABEL_WAIT_S
    while not file.is_file():
        if time.monotonic() > deadline:
            raise DataError(f"{file} did not appear in {LABEL_WAIT_S:.0f} s", "see what rank 0 said")
        time.sleep(0.2)
