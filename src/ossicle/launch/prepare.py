"""``ossicle prepare``: a corpus becomes verified shards with an index."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ossicle.core.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.table import Table

    from ossicle.data.card import Summary
    from ossicle.data.prepare import Share

log = logging.getLogger(__name__)


def task(cfg: "DictConfig") -> None:
    """Prepare the corpus that the config names, or a part of it, or verify what was prepared."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from rich.console import Console

    from ossicle.data.prepare import Preparation
    from ossicle.data.verify import verify
    from ossicle.launch.binding import check_binding

    missing = OmegaConf.missing_keys(cfg)
    if missing:
        raise ConfigError(f"no value for: {', '.join(sorted(missing))}", "state it on the command line: KEY=VALUE")
    output, share, workers = Path(cfg.output), share_of(cfg.part, cfg.parts), cfg.workers or num_cores()
    if cfg.verify:
        number = verify(output, workers, share.part, share.parts)
        log.info("%s: %s utterances are as they were written", output, f"{number:,}")
        return
    if cfg.corpus.get("input", "") is None:
        raise ConfigError("no value for: input", "state the folder of recordings: input=DIR")
    check_binding(OmegaConf.to_container(cfg.corpus, resolve=True))
    corpus = instantiate(cfg.corpus, _convert_="all")
    if cfg.get("cut") is not None:
        check_binding({"cut": OmegaConf.to_container(cfg.cut, resolve=True)})
        corpus = instantiate(cfg.cut, _convert_="all")(corpus)
    preparation = Preparation(corpus, output, cfg.shard_s, cfg.max_bad_fraction, cfg.audio_format)
    summary = preparation.run(share, workers)
    if summary is None:
        log.info("part %d of %d is done; other parts of %s are not", share.part, share.parts, output)
        return
    Console().print(table_of(summary))
    if summary.num_bad:
        log.warning("%d inputs could not be used; each is named in %s", summary.num_bad, output / "quarantine.jsonl")


def share_of(part: int | None, parts: int) -> "Share":
    """What of the work is this process's: as the config says, else by its number in a SLURM array.

    Raises:
        ConfigError: There are several parts, and nothing says which is this one.
    """
    from ossicle.data.prepare import Share

    environment = os.environ
    if part is None and parts > 1 and "SLURM_ARRAY_TASK_ID" in environment:
        part = int(environment["SLURM_ARRAY_TASK_ID"])
    if part is None and parts > 1:
        problem = f"parts={parts} and no part: which of them is to be done?"
        raise ConfigError(problem, f"add -m for all of them, or cluster=slurm, or state one from part=0 to {parts - 1}")
    array = environment.get("SLURM_ARRAY_JOB_ID", environment.get("SLURM_JOB_ID"))
    return Share(part or 0, parts, array if parts > 1 else None)


def num_cores() -> int:
    """Cores that this process may use: those that SLURM gave the task, else those it may run on."""
    return int(os.environ.get("SLURM_CPUS_PER_TASK", "0")) or len(os.sched_getaffinity(0))


def table_of(summary: "Summary") -> "Table":
    """What a prepared dataset holds, as a table."""
    from rich.table import Table

    caption = f"{summary.audio_format}, content {summary.content_hash[:16]}, lengths in {summary.path / 'lengths.png'}"
    table = Table(title=str(summary.path), caption=caption, title_justify="left", caption_justify="left")
    table.add_column("split")
    for name in ("shards", "utterances", "hours", "GB", "speakers"):
        table.add_column(name, justify="right")
    table.add_column("hours by language")
    for name, split in summary.splits.items():
        largest = sorted(split.hours_by_language.items(), key=lambda item: -item[1])
        languages = ", ".join(f"{language or 'unknown'} {hours:.2f}" for language, hours in largest[:8])
        more = f", and {len(largest) - 8} more" if len(largest) > 8 else ""
        counts = (f"{split.num_shards:,}", f"{split.num_utterances:,}", f"{split.hours:,.2f}")
        table.add_row(name, *counts, f"{split.bytes / 1e9:.3f}", f"{split.num_speakers:,}", languages + more)
    return table
