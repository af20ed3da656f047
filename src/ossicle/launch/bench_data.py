"""``ossicle bench data``: audio-seconds a second of the reader, by stage, beside its peers on the same shards."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossicle.launch.bench_checks import (
    COUNT,
    POSITIVE,
    SEED,
    Number,
    check_device,
    check_found,
    check_places,
    numbers,
    word,
    words,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ossicle.data.index import DatasetIndex
    from ossicle.launch.bench.rounds import Result
    from ossicle.launch.bench.work import System, Work

log = logging.getLogger(__name__)

SCENARIOS = ("utterances", "long")
PACKAGES = ("ossicle", "torch", "numpy", "soundfile", "webdataset", "datasets", "lhotse")
BARE = ("libsndfile", "libsndfile_frames")  # one core by definition, whatever workers are asked for

Record = dict[str, Any]


def systems() -> Mapping[str, "System"]:
    """Every system by its name."""
    from ossicle.launch.bench import datasets, lhotse, libsndfile, ossicle, webdataset

    return {
        "ossicle": ossicle.batches,
        "libsndfile": libsndfile.batches,
        "libsndfile_frames": libsndfile.frame_batches,
        "webdataset": webdataset.batches,
        "datasets": datasets.batches,
        "lhotse": lhotse.shard_batches,
        "lhotse_files": lhotse.file_batches,
    }


def task(cfg: "DictConfig") -> list[Record]:
    """Measure every system in every scenario, print the tables, and write the records where ``out`` says."""
    from omegaconf import OmegaConf

    from ossicle.core.errors import ConfigError
    from ossicle.core.files import write_json
    from ossicle.data.index import DatasetIndex
    from ossicle.launch.bench.player import Stopped

    missing = OmegaConf.missing_keys(cfg)
    if missing:
        raise ConfigError(f"no value for: {', '.join(sorted(missing))}", "state it on the command line: KEY=VALUE")
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    config = numbers({str(key): value for key, value in plain.items()}, NUMBERS)
    chosen = check(config)
    index = DatasetIndex.load(config["shards"], config["split"])
    records: list[Record] = []
    for scenario in SCENARIOS if config["scenario"] == "both" else (config["scenario"],):
        interrupted: Stopped | None = None
        with tempfile.TemporaryDirectory(prefix="ossicle-bench-") as scratch:
            work = _work(config, scenario, index, Path(scratch))
            try:
                found = _measure(chosen, work, config)
            except Stopped as stop:
                found, interrupted = stop.results, stop
        records += [_record(name, result, scenario, work) for name, result in found.items()]
        show([record for record in records if record["scenario"] == scenario], work)
        if config["out"] is not None:
            write_json(Path(config["out"]), records)
            log.info("wrote %s", config["out"])
        if interrupted is not None:
            raise interrupted
    check_found([each["audio_s_per_s"] for each in records], [each["absent"] for each in records])
    return records


NUMBERS = {
    "workers": Number(int, 0), "seconds": POSITIVE, "rounds": COUNT, "batch_s": POSITIVE, "crop_s": POSITIVE,
    "long_crop_s": POSITIVE, "num_long": COUNT, "long_s": POSITIVE, "seed": SEED,
}  # fmt: skip


def check(config: Mapping[str, Any]) -> dict[str, "System"]:
    """The systems that a config names.

    Raises:
        ConfigError: A word that means nothing here, or a device that is not there.
    """
    known = systems()
    word(config, "scenario", (*SCENARIOS, "both"))
    chosen = words(config, "systems", known)
    check_device(config)
    check_places(config, "out")
    return {name: known[name] for name in chosen}


def _work(config: Mapping[str, Any], scenario: str, index: "DatasetIndex", scratch: Path) -> "Work":
    import os

    from ossicle.core.errors import ConfigError
    from ossicle.data.index import DatasetIndex
    from ossicle.launch.bench.long import SPLIT, prepare_long
    from ossicle.launch.bench.work import Work

    crop_s = config["crop_s"] if scenario == "utterances" else config["long_crop_s"]
    if scenario == "long":
        path = prepare_long(
            index,
            Path(config["cache"]),
            num_files=config["num_long"],
            file_s=config["long_s"],
            seed=config["seed"],
            workers=len(os.sched_getaffinity(0)),
        )
        index = DatasetIndex.load(path, SPLIT)
    crop_samples = round(crop_s * index.rate_hz) // 320 * 320
    longest = int(index.rows["samples"].max())
    if not 0 < crop_samples <= longest:
        raise ConfigError(
            f"no crop of {crop_s} s can be had: the longest utterance lasts {longest / index.rate_hz:.2f} s",
            "set crop_s or long_crop_s",
        )
    return Work(
        shards=index.path,
        split=index.split,
        rate_hz=index.rate_hz,
        crop_samples=crop_samples,
        rows=max(1, round(config["batch_s"] / crop_s)),
        workers=config["workers"],
        seed=config["seed"],
        scratch=scratch,
        augmentation=config["augmentation"],
        device=config["device"],
    )


def _measure(chosen: Mapping[str, "System"], work: "Work", config: Mapping[str, Any]) -> dict[str, "Result"]:
    from ossicle.launch.bench.ossicle import stages
    from ossicle.launch.bench.rounds import compare

    log.info(
        "%s: crops of %g s out of %s, %d a batch; %g s of each system in %d rounds",
        work.shards,
        work.crop_s,
        work.split,
        work.rows,
        config["seconds"],
        config["rounds"],
    )
    bare = {name: work.alone() for name in BARE}
    return compare(
        chosen,
        {name: bare.get(name, work) for name in chosen},
        seconds=config["seconds"],
        rounds=config["rounds"],
        staged={"ossicle": stages} if "ossicle" in chosen else {},
    )


def _record(name: str, result: "Result", scenario: str, work: "Work") -> Record:
    """What is written of one system."""
    workers = 0 if name in BARE else work.workers
    record: Record = {
        "system": name,
        "scenario": scenario,
        "device": work.device,
        "batch": work.rows,
        "crop_s": work.crop_s,
        "workers": workers,
        "audio_s_per_s": None,
        "audio_s_per_s_per_worker": None,
        "audio_s_per_cpu_s": None,
        "step_ms": None,
        "peak_memory_bytes": result.peak_memory_bytes,
        "absent": result.absent,
        "versions": _versions(),
    }
    if result.rounds and result.absent is None:
        record |= {
            "audio_s_per_s": result.rate(),
            "audio_s_per_s_per_worker": result.rate() / max(1, workers),
            "audio_s_per_cpu_s": result.cpu_rate(),
            "step_ms": result.step_ms(),
            "rounds": [r.audio_s / r.wall_s for r in result.rounds],
            "cpu_rounds": [r.audio_s / r.cpu_s for r in result.rounds],
        }
    if result.stages:
        record["stages"] = _stages(result, max(1, workers))
    return record


def _stages(result: "Result", workers: int) -> dict[str, Record]:
    """Each stage's share of a worker's time, and the rate that it would have were it the only one."""
    whole = sum(stage.wall_s for stage in result.stages)
    found: dict[str, Record] = {}
    for stage in result.stages:
        rate = result.staged_audio_s / stage.wall_s if stage.wall_s > 0 else None
        found[stage.name] = {
            "share": stage.wall_s / whole,
            "cpu_s": stage.cpu_s,
            "wall_s": stage.wall_s,
            "audio_s_per_s_per_worker": rate,
            "audio_s_per_s_per_node": None if rate is None else rate * workers,
            "audio_s_per_cpu_s": result.staged_audio_s / stage.cpu_s if stage.cpu_s > 0 else None,
        }
    return found


def _versions() -> dict[str, str | None]:
    import soundfile

    from ossicle.system.provenance import installed

    found: dict[str, str | None] = {"libsndfile": soundfile.__libsndfile_version__}
    return found | {package: installed(package) for package in PACKAGES}


def show(records: Sequence[Record], work: "Work") -> None:
    """Print one scenario's systems, and Ossicle's stages."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = (
        f"{records[0]['scenario']}: crops of {work.crop_s:g} s, {work.rows} a batch, {work.device}, "
        f"{work.workers} workers; audio-seconds a second"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("system", no_wrap=True)
    for name in ("node", "worker", "CPU s", "of libsndfile", "ms/batch", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    base = next((r["audio_s_per_cpu_s"] for r in records if r["system"] == "libsndfile"), None)
    for record in records:
        if record["audio_s_per_s"] is None:
            table.add_row(record["system"], "absent")
            continue
        table.add_row(
            record["system"],
            f"{record['audio_s_per_s']:,.0f}",
            f"{record['audio_s_per_s_per_worker']:,.0f}",
            f"{record['audio_s_per_cpu_s']:,.0f}",
            f"{100 * record['audio_s_per_cpu_s'] / base:.0f} %" if base else "",
            f"{record['step_ms']:,.1f}",
            f"{record['peak_memory_bytes'] / 1e6:,.0f}",
        )
    console.print(table)
    for record in records:
        if record["absent"] is not None:
            reason = f"{record['system']} is absent: {record['absent']}"
            console.print(reason, style="yellow", highlight=False, markup=False, soft_wrap=True)
    stages = next((record["stages"] for record in records if "stages" in record), None)
    if stages is not None:
        _show_stages(stages)


def _show_stages(stages: Mapping[str, Record]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = "ossicle by stage, each as if it were the only one"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("stage")
    for name in ("share of time", "worker", "node", "CPU s"):
        table.add_column(name, justify="right")
    for name, stage in stages.items():
        rates = (stage["audio_s_per_s_per_worker"], stage["audio_s_per_s_per_node"], stage["audio_s_per_cpu_s"])
        cells = ("-" if rate is None else f"{rate:,.0f}" for rate in rates)
        table.add_row(name, f"{100 * stage['share']:.1f} %", *cells)
    Console().print(table)
