"""``ossicle demo``: the whole way on the embedded corpus, and what came of it in words that a newcomer understands."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ossicle.core.files import hash_json, read_json, write_json
from ossicle.launch import runs
from ossicle.launch.config import Config, compose
from ossicle.launch.experiment import check, resolved

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

FEATURES = ("logmel", "mfcc", "untrained", "pretrained")
NAMES = {
    "logmel": "log-mel spectrum (no learning)",
    "mfcc": "MFCC (no learning)",
    "untrained": "this encoder before training",
    "pretrained": "this encoder after training",
}


def task(cfg: "DictConfig") -> None:
    """Synthesise, shard, label, pretrain, probe, and print what each step gave and cost."""
    from ossicle.launch import prepare, pretrain, probe

    started = time.monotonic()
    demo = resolved(cfg)
    directory = Path(demo["runs"]) / "demo" / hash_json({k: v for k, v in demo.items() if k != "runs"}, length=8)
    config = resolved(compose("pretrain", pretrain_overrides(demo, directory)))
    check(config)  # before the minutes that speech takes
    seconds: dict[str, float] = {}

    def timed(name: str, since: float) -> float:
        now = time.monotonic()
        seconds[name] = round(now - since, 1)
        return now

    mark = started
    log.info("1/4 speech: %s hours by eSpeak NG, in %s", demo["hours"], demo["shards"])
    corpus = ["corpus=synthetic", f"corpus.hours={demo['hours']}", f"output={demo['shards']}", *demo["prepare"]]
    prepare.task(compose("prepare", corpus))
    mark = timed("prepare", mark)

    log.info("2/4 pretraining: %s, no label is seen but clusters of the sound itself", demo["recipe"])
    run = runs.run_dir(config)
    pretrain.pretrain(config, run)
    mark = timed("pretrain", mark)

    log.info("3/4 probing: what a linear classifier reads from frozen features, on voices that were never heard")
    report = probe.probe(
        resolved(compose("probe", [f"run={run}", f"shards={demo['shards']}", f"output={directory}", *demo["probe"]]))
    )
    timed("probe", mark)

    log.info("4/4 the result")
    summary = {
        "run": str(run),
        "experiment": demo["recipe"],
        "phone_error": report.errors("phone"),
        "language_error": report.errors("language"),
        "speaker_error": report.errors("speaker"),
        "seconds": round(time.monotonic() - started, 1),
        "seconds_by_step": seconds,
        "cost": read_json(run / "cost.json"),
    }
    write_json(directory / "demo.json", summary)
    show(summary, directory, run, demo["shards"])


def pretrain_overrides(demo: Config, directory: Path) -> list[str]:
    """The overrides of the demo's pretraining run."""
    return [
        f"experiment={demo['recipe']}",
        f"data.shards={demo['shards']}",
        f"runs={directory.parent.parent}",
        f"seed={demo['seed']}",
        *demo["pretrain"],
    ]


def show(summary: Config, directory: Path, run: Path, shards: str) -> None:
    """Print the table, the cost and three commands to go on with."""
    from rich.console import Console
    from rich.table import Table

    from ossicle.meter.cost import CostCard, render

    console = Console()
    table = Table(title="Which features know what was said? (errors, lower is better)", title_justify="left")
    table.add_column("features")
    for title in ("wrong phones", "wrong language", "wrong speaker"):
        table.add_column(title, justify="right")
    for feature in FEATURES:
        cells = []
        for key in ("phone_error", "language_error", "speaker_error"):
            errors = summary[key]
            assert isinstance(errors, Mapping)
            cells.append(f"{100 * errors[feature]:.1f} %" if feature in errors else "-")
        table.add_row(NAMES[feature], *cells, style="bold" if feature == "pretrained" else None)
    console.print(table)
    console.print(render(CostCard.read(run / "cost.json")))
    phones = summary["phone_error"]
    best = min(phones[f] for f in FEATURES[:3])
    change = phones["pretrained"] / best
    console.print(
        f"The phones are those of voices and sentences that training never met. Pretraining took the error from "
        f"{100 * best:.1f} % (the best of the other three) to {100 * phones['pretrained']:.1f} %, "
        f"{100 * abs(1 - change):.0f} % {'fewer' if change <= 1 else 'more'} mistakes, "
        f"in {summary['seconds']:.0f} seconds.\n"
        f"Plots and numbers: {directory}\n\nNext:\n"
        f"  ossicle pretrain experiment=best_rq_tiny data.shards={shards}\n"
        f"  ossicle prepare corpus=folder input=YOUR_AUDIO output=corpora/mine\n"
        f"  ossicle pretrain -m experiment=hubert_tiny data.shards={shards} seed=0,1 encoder.num_layers=2,3\n",
        highlight=False,
    )
