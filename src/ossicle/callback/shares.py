"""How the audio that was trained on is shared out over sources and languages, beside what was wanted."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from typing_extensions import override

from ossicle.core.files import write_json
from ossicle.data.module import Heard, PlannedModule
from ossicle.system.watcher import Watcher

CHECKPOINT_KEY = "heard_samples"
FILE = "shares.json"
_MOST_COLUMNS = 64


class SharesMeter(Watcher):
    """Logs data/share/SOURCE/LANGUAGE and writes shares.json, where the data are of more than one source or language.

    Batches are counted on the host before they go to the device, by what was really read: of bad utterances, those that
    took their places. Sums go into checkpoints, so that a resumed run counts what it resumes and not what was lost.

    Args:
        run_dir: Where the run writes.
        config: The resolved config; not used.
    """

    def __init__(self, *, run_dir: Path, config: Mapping[str, object]) -> None:
        del config
        self.path = Path(run_dir) / FILE
        self.before: dict[str, int] = {}

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        self.before = dict(cast("dict[str, int]", checkpoint.get(CHECKPOINT_KEY, {})))

    def totals(self, trainer: Trainer, system: LightningModule) -> dict[str, int]:
        """Samples of each source and language so far, over ranks and resumptions. Call it on every rank."""
        heard = heard_of(trainer)
        if heard is None:
            return {}
        counts = torch.tensor(heard.samples, dtype=torch.int64, device=system.device)
        if trainer.world_size > 1:
            dist.all_reduce(counts)
        names = [label(*name) for name in heard.names]
        return {n: count + self.before.get(n, 0) for n, count in zip(names, counts.tolist(), strict=True)}

    @override
    def measure(self, trainer: Trainer, system: LightningModule) -> Mapping[str, float]:
        totals = self.totals(trainer, system)
        heard = heard_of(trainer)
        if heard is None or not any(totals.values()):
            return {}
        if trainer.is_global_zero:
            shares = report(heard, totals, vars(trainer)["datamodule"].index.rate_hz)
            write_json(self.path, shares, durable=False)  # a disk takes longer than a step
        whole = sum(totals.values())
        if len(totals) <= _MOST_COLUMNS:
            return {f"data/share/{name}": count / whole for name, count in totals.items()}
        sources: dict[str, float] = {}
        for (source, _), count in zip(heard.names, totals.values(), strict=True):
            sources[f"data/share/{source}"] = sources.get(f"data/share/{source}", 0.0) + count / whole
        return sources

    @override
    def on_metrics(self, trainer: Trainer, system: LightningModule, metrics: Mapping[str, float], step: int) -> None:
        """Nothing: :meth:`measure` has written what there is."""

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        checkpoint[CHECKPOINT_KEY] = self.totals(trainer, pl_module)


def heard_of(trainer: Trainer) -> Heard | None:
    """The counter of the run's data, where there is more than one thing to tell apart."""
    data = vars(trainer)["datamodule"]
    return data.heard if isinstance(data, PlannedModule) and len(data.heard.names) > 1 else None


def label(source: str, language: str) -> str:
    """A component's name in metrics and files."""
    return f"{source}/{language}" if source else language


def report(heard: Heard, totals: Mapping[str, int], rate_hz: int) -> dict[str, object]:
    """What shares.json holds: hours and share of each component and, of a mixture, the share that was wanted."""
    whole = sum(totals.values())
    wanted = heard.wanted or (None,) * len(heard.names)
    components = [
        {"source": source, "language": language, "hours": count / rate_hz / 3600, "share": count / whole, "wanted": w}
        for (source, language), count, w in zip(heard.names, totals.values(), wanted, strict=True)
    ]
    return {"hours": whole / rate_hz / 3600, "components": components}
