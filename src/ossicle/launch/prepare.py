"""``ossicle prepare``: a corpus becomes verified shards with an index."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


def task(cfg: "DictConfig") -> None:
    """Prepare the corpus that the config names, or verify what was prepared."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from ossicle.core.errors import ConfigError
    from ossicle.data.prepare import prepare, verify
    from ossicle.launch.binding import check_binding

    missing = OmegaConf.missing_keys(cfg)
    if missing:
        raise ConfigError(f"no value for: {', '.join(sorted(missing))}", "state it on the command line: KEY=VALUE")
    if cfg.corpus.get("input", "") is None:
        raise ConfigError("no value for: input", "state the folder of recordings: input=DIR")
    check_binding(OmegaConf.to_container(cfg.corpus, resolve=True))
    output = Path(cfg.output)
    if cfg.verify:
        log.info("%s: %d utterances are as they were written", output, verify(output))
        return
    workers = cfg.workers or len(os.sched_getaffinity(0))
    corpus = instantiate(cfg.corpus, _convert_="all")
    summary = prepare(corpus, output, shard_s=cfg.shard_s, workers=workers, max_bad_fraction=cfg.max_bad_fraction)
    for name, split in summary.splits.items():
        log.info(
            "%s: %s utterances, %.2f h, %d speakers, %d languages, %d shards",
            output / name,
            f"{split.num_utterances:,}",
            split.hours,
            split.num_speakers,
            split.num_languages,
            split.num_shards,
        )
    if summary.num_bad:
        log.warning("%d inputs could not be used; each is named in %s", summary.num_bad, output / "quarantine.jsonl")
