"""``ossicle bench step``: the bare training step of any composition, or of several beside each other."""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossicle.core.errors import ConfigError
from ossicle.launch.bench_checks import (
    COUNT,
    SEED,
    SWITCH,
    THREADS,
    Number,
    check_device,
    check_found,
    check_places,
    listed,
    numbers,
)
from ossicle.launch.config import Config, compose, conf_dir, groups, nearest
from ossicle.launch.experiment import resolved

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ossicle.launch.bench.steps import Builder, Measured, StepWork

log = logging.getLogger(__name__)

Record = dict[str, Any]


def task(cfg: "DictConfig") -> list[Record]:
    """Measure what the config names, print the table, and write the records where ``out`` says."""
    from ossicle.core.files import write_json
    from ossicle.launch.bench.bare import BareStep
    from ossicle.launch.bench.records import record, versions

    config = numbers(resolved(cfg), {**NUMBERS, "apart": SWITCH})
    check_places(config, "out")
    work = work_of(config)
    compositions = composed(config)
    for name, composition in compositions.items():
        check_parts(composition, name, work.samples)
    log.info("%d steps in each of %d turns of %s", config["steps"], config["rounds"], ", ".join(compositions))
    builders: dict[str, Builder] = {name: partial(BareStep, part) for name, part in compositions.items()}
    records: list[Record] = []

    def tell(found: "Mapping[str, Measured]") -> None:
        """Add records; ratios are to the first composition: what stands beside Ossicle is measured by bench peers."""
        for name, result in found.items():
            each: Record = {**record("ossicle", result, work), "experiment": name, "versions": versions()}
            records.append(each)
            base = records[0]["audio_s_per_s"]
            each["ratio"] = each["audio_s_per_s"] / base if base and each["audio_s_per_s"] else None
        if config["out"] is not None:
            write_json(Path(config["out"]), records)

    interrupted = measure(builders, work, config, tell)
    if records:
        show(records)
        if config["out"] is not None:
            log.info("wrote %s", config["out"])
    if interrupted is not None:
        raise interrupted
    check_found([each["audio_s_per_s"] for each in records], [each["absent"] for each in records])
    return records


def measure(
    builders: "Mapping[str, Builder]",
    work: "StepWork",
    config: Config,
    tell: "Callable[[Mapping[str, Measured]], None]",
) -> KeyboardInterrupt | None:
    """Measure compositions as the config says: in turns, each in a process of its own, or one after another in this.

    Args:
        builders: What builds each, by its name.
        work: What all are asked for.
        config: How long and where they are measured.
        tell: Told what each did, as soon as it is known.

    Returns:
        Ctrl-C, if it came.
    """
    from ossicle.launch.bench.player import Stopped
    from ossicle.launch.bench.steps import alone, take_turns

    often = {"steps": config["steps"], "rounds": config["rounds"]}
    try:
        if config["apart"]:
            tell(take_turns(builders, work, **often, together=config["together"]))
        else:
            for name, build in builders.items():  # each is told as it comes: what follows may be cut off
                tell({name: alone(build, work, **often)})
    except Stopped as stop:
        tell(stop.results)
        return stop
    except KeyboardInterrupt as stop:
        return stop
    return None


NUMBERS = {
    "batch": COUNT, "crop_s": Number(float, 0.1), "steps": COUNT, "rounds": COUNT, "warmup": Number(int, 0),
    "threads": THREADS, "seed": SEED, "together": SWITCH,
}  # fmt: skip
"""What this bench and ``bench peers`` count with."""


def work_of(config: Config) -> "StepWork":
    """What every system is asked for; precision and compilation are left to the systems' own configs.

    Args:
        config: A config of this bench or of ``bench peers``, its :data:`NUMBERS` checked.

    Raises:
        ConfigError: A device that is not there.
    """
    from ossicle.launch.bench.steps import StepWork

    check_device(config)
    rate_hz = 16_000
    return StepWork(
        batch=config["batch"],
        samples=round(config["crop_s"] * rate_hz),
        rate_hz=rate_hz,
        device=config["device"],
        threads=config["threads"] or len(os.sched_getaffinity(0)),
        seed=config["seed"],
        warmup=config["warmup"],
    )


def composed(config: Config) -> dict[str, dict[str, Any]]:
    """The config of each composition, as ``ossicle pretrain`` would have it.

    Args:
        config: The resolved config of the bench.

    Raises:
        ConfigError: An experiment is unknown, or none is named.
    """
    choice, overrides = told_on_the_command_line()
    known = groups()["experiment"]
    found: dict[str, dict[str, Any]] = {}
    for entry in listed(choice if config["experiments"] is None else config["experiments"], "experiments"):
        name, *own = str(entry).split() or [""]
        if name not in known:
            raise ConfigError(
                f"there is no experiment {name!r}{nearest(name, known)}", f"choose from: {', '.join(known)}"
            )
        # nothing is read: an experiment on a mixture of corpora is measured as one on a single dataset
        parts = [f"experiment={name}", "data=shards", "data.shards=null", f"cluster.accelerator={config['device']}"]
        found[str(entry)] = resolved(compose("pretrain", [*parts, *overrides, *own]))
    return found


def told_on_the_command_line() -> tuple[str, list[str]]:
    """The chosen experiment, and the overrides that are of ``ossicle pretrain``."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    keys = set(OmegaConf.load(conf_dir() / "bench_step.yaml")) - {"defaults", "hydra", "data"} | {"experiment"}
    told = HydraConfig.get()
    ours = [item for item in told.overrides.task if item.partition("=")[0] not in keys]
    return str(told.runtime.choices["experiment"]), ours


def check_parts(config: Config, name: str, samples: int) -> None:
    """Hold a composition against its classes and its crops before a process is started for it.

    Args:
        config: Its config, as ``ossicle pretrain`` would have it.
        name: What it is called.
        samples: Length of its crops.

    Raises:
        ConfigError: Its parts do not fit, or such a crop is too short or too long for them.
    """
    from ossicle.launch.binding import check_binding
    from ossicle.launch.experiment import as_run, build_on_meta, check_lengths, check_own_values, stages

    try:
        check_own_values(config)
        check_binding({key: value for key, value in config.items() if key != "data"})
        last = stages(config).runs()[-1]
        model, objective = build_on_meta(as_run(config, last), last.clusters)
        crop_s = samples / model.clock.rate_hz
        check_lengths(model, objective, {"min_crop_s": crop_s, "max_crop_s": crop_s})
    except ConfigError as error:
        problem, mend = (re.sub(r"data\.(min|max)_crop_s", "crop_s", text) for text in (error.problem, error.mend))
        raise ConfigError(f"{name}: {problem}", mend) from error


def show(records: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """Print what was measured, one line a system or composition; columns without any figure are left out.

    Args:
        records: What was measured.
        title: What stands above; None for the work and the device.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or heading(records), title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("experiment" if "experiment" in records[0] else "system", overflow="fold")
    columns = [column for column in COLUMNS if any(each.get(column.key) is not None for each in records)]
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for each in records:
        table.add_row(label(each), *(column.cell(each) for column in columns))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, FILE_WIDTH)
    console.print(table)
    for line in notes(records):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for each in records:
        if each["absent"] is not None:
            reason = f"{label(each)} is absent: {each['absent']}"
            console.print(reason, style="yellow", highlight=False, markup=False, soft_wrap=True)


def notes(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What stands beneath a table: versions, and why a column is not there."""
    versions = records[0].get("versions") or {}
    lines = [", ".join(f"{name} {version}" for name, version in versions.items() if version)]
    for what, key in (("MFU", "mfu_reason"), ("energy", "energy_reason")):
        reasons = {each[key]: None for each in records if each.get(key)}
        lines += [f"{what} is unknown: {reason}" for reason in reasons]
    return [line for line in lines if line]


FILE_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Args:
        heading: Its heading.
        key: Its key in records.
        scale: What the value is multiplied by.
        form: How it is written.
    """

    heading: str
    key: str
    scale: float = 1.0
    form: str = ",.1f"

    def cell(self, each: Mapping[str, Any]) -> str:
        """A record's figure; a dash where there is none."""
        value = each.get(self.key)
        return "-" if value is None else format(value * self.scale, self.form)


COLUMNS = (
    Column("a second", "audio_s_per_s", form=",.2f"),
    Column("a CPU s", "audio_s_per_cpu_s", form=",.2f"),
    Column("ratio", "ratio", form=".2f"),
    Column("ms/step", "step_ms"),
    Column("GMAC/s", "macs_per_audio_s", 1e-9, ",.3g"),
    Column("TFLOP/s", "flops_per_s", 1e-12, ",.3g"),
    Column("MFU %", "mfu", 100),
    Column("GiB", "peak_memory_bytes", 2.0**-30, ",.2f"),
    Column("Wh/h", "energy_kwh_per_audio_h", 1000, ",.3g"),
    Column("compile s", "compile_s"),
)


def heading(records: Sequence[Mapping[str, Any]]) -> str:
    """The work and the device."""
    first = records[0]
    name = next((each["device_name"] for each in records if "device_name" in each), "not asked")
    return (
        f"{first['batch']} x {first['crop_s']:g} s on {first['device']} ({name}), {first['threads']} threads;"
        " audio-seconds a second"
    )


def label(each: Mapping[str, Any]) -> str:
    """What a line is called."""
    return str(each.get("experiment", each["system"]))
