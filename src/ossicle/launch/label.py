"""``ossicle label``: k-means targets from MFCCs or a run's features."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ossicle.launch.experiment import resolved

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


def task(cfg: "DictConfig") -> None:
    """Make the labels that the config describes and report how they fit the phones, where phones are known."""
    from ossicle.data.index import DatasetIndex
    from ossicle.data.labels import LabelSet
    from ossicle.launch.labels import LabelRequest, make
    from ossicle.launch.runs import find_run
    from ossicle.stage.labelling import label_quality

    config = resolved(cfg)
    request = LabelRequest(
        shards=Path(cfg.shards),
        split=cfg.split,
        source=cfg.source,
        clusters=cfg.clusters,
        seed=cfg.seed,
        output=Path(config["output"]),
        run=find_run(Path(cfg.run)) if cfg.run else None,
        layer=cfg.layer,
        sample_frames=cfg.sample_frames,
    )
    place = make(request)
    log.info("labels: %s", place)
    labels = LabelSet.load(place)
    log.info("card: %s", labels.card)
    index = DatasetIndex.load(request.shards, request.split)
    if index.read_meta(0).phones:
        log.info("against the phones: %s", {k: round(v, 3) for k, v in label_quality(labels, index).items()})
