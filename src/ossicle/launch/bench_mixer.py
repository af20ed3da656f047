"""``ossicle bench mixer``: every mixer over growing lengths, and how its time grows with them."""

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossicle.core.errors import ConfigError, MissingExtraError
from ossicle.launch.bench_checks import (
    COUNT,
    POSITIVE,
    THREADS,
    check_device,
    check_found,
    check_places,
    listed,
    numbers,
    word,
)
from ossicle.launch.binding import HYDRA_KEYS, check_binding
from ossicle.launch.config import groups
from ossicle.launch.experiment import resolved
from ossicle.launch.parts import entries

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ossicle.launch.bench.mixers import Point, Settings, Variant

log = logging.getLogger(__name__)

Record = dict[str, Any]


def task(cfg: "DictConfig") -> list[Record]:
    """Measure the mixers that the config names, print the table, and write records and picture where it says."""
    config = numbers(resolved(cfg), NUMBERS)
    check_places(config, "out", "table", "figure")
    check_figure(config["figure"])
    lengths = lengths_of(config)
    settings = settings_of(config)
    variants = chosen(config["mixers"], settings)
    records: list[Record] = []
    interrupted: KeyboardInterrupt | None = None
    try:
        for variant in variants:
            add(records, variant, lengths, settings, config)
    except KeyboardInterrupt as stop:
        interrupted = stop
    if records:
        show(records, lengths)
    if records and config["table"] is not None:
        Path(config["table"]).write_text(markdown(records, settings, config["fit_from"]), encoding="utf-8")
    if records and config["figure"] is not None:
        draw(records, Path(config["figure"]), settings)
    if interrupted is not None:
        raise interrupted
    check_found([each.get("step_ms") for each in records], [each.get("stopped") for each in records])
    return records


NUMBERS = {
    "dim": COUNT, "heads": COUNT, "rows": COUNT, "repeats": COUNT, "max_s": POSITIVE, "max_gb": POSITIVE,
    "threads": THREADS, "fit_from": COUNT,
}  # fmt: skip


def add(
    records: list[Record], variant: "Variant", lengths: Sequence[int], settings: "Settings", config: Mapping[str, Any]
) -> None:
    """Measure one mixer and add its records; all that there are go where ``out`` says."""
    import torch

    from ossicle.core.files import write_json
    from ossicle.launch.bench.mixers import exponent, measure
    from ossicle.launch.bench.records import versions
    from ossicle.launch.bench.steps import device_name

    points, stopped = measure(variant, lengths, settings)
    name = device_name(torch.device(settings.device))
    slope = exponent(points, config["fit_from"])
    log.info("%s: exponent %s%s", variant.label, f"{slope:.2f}" if slope else "-", f"; {stopped}" if stopped else "")
    records += [record(variant, point, settings, name) for point in points]
    records.append({**shared(variant, settings, name), "exponent": slope, "stopped": stopped, "versions": versions()})
    if config["out"] is not None:
        write_json(Path(config["out"]), records)


def lengths_of(config: Mapping[str, Any]) -> list[int]:
    """The lengths from the shortest on.

    Raises:
        ConfigError: One is no number of frames, or there is none.
    """
    told = {f"lengths[{place}]": frames for place, frames in enumerate(listed(config["lengths"], "lengths"))}
    return sorted(numbers(told, dict.fromkeys(told, COUNT)).values())


def check_figure(told: str | None) -> None:
    """Refuse a picture of a kind that matplotlib does not draw.

    Raises:
        ConfigError: The file's name does not end with one that it does.
    """
    if told is None:
        return
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if Path(told).suffix.lstrip(".") not in kinds:
        raise ConfigError(f"figure={told} is no kind of picture", f"let its name end with one of: {', '.join(kinds)}")


def chosen(listed: object, settings: "Settings") -> "list[Variant]":
    """The mixers that are measured; those that are named are built once, without memory.

    Args:
        listed: Entries as a hybrid's list has them: names, or names with numbers. None for all of ``conf/mixer``.
        settings: What is the same for every mixer.

    Raises:
        ConfigError: An entry names no mixer, or numbers that it does not take, or two are the same.
    """
    from ossicle.launch.bench.mixers import Variant, macs_of

    if listed is None:
        return [Variant(name) for name in groups()["mixer"] if name != "pattern"]
    variants: list[Variant] = []
    for place, (whole, own) in enumerate(entries(listed, "mixer", "mixers")):
        assert isinstance(listed, list | tuple)
        entry = listed[place]
        if isinstance(entry, Mapping) and "mixer" not in entry:
            raise ConfigError(f"mixers[{place}]={entry} names a class", "name a mixer of conf/mixer: {mixer: summary}")
        variant = Variant(entry["mixer"] if isinstance(entry, Mapping) else entry, own)
        reserved = sorted(HYDRA_KEYS & own.keys())
        if reserved:
            raise ConfigError(f"mixers[{place}].{reserved[0]} is no number of a mixer", "leave it out")
        check_binding({f"mixers[{place}]": {**whole, **own}})
        if variant in variants:
            raise ConfigError(f"mixers names {variant.label} twice", "name it once")
        with contextlib.suppress(MissingExtraError):  # which its row is to say
            macs_of(variant, 1, settings)
        variants.append(variant)
    return variants


def settings_of(config: Mapping[str, Any]) -> "Settings":
    """What is the same for every mixer.

    Raises:
        ConfigError: A device or precision that is not there, or numbers that measure nothing.
    """
    import torch

    from ossicle.core.processor import note_bf16
    from ossicle.launch.bench.mixers import Settings

    check_device(config)
    precisions = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if word(config, "precision", precisions) == "bfloat16" and config["device"] == "cpu":
        note_bf16()
    return Settings(
        dim=config["dim"],
        heads=config["heads"],
        rows=config["rows"],
        device=config["device"],
        dtype=precisions[config["precision"]],
        threads=config["threads"] or len(os.sched_getaffinity(0)),
        repeats=config["repeats"],
        max_s=config["max_s"],
        max_bytes=config["max_gb"] * 1e9,
    )


def shared(variant: "Variant", settings: "Settings", device_name: str) -> Record:
    """What all records of a mixer say."""
    return {
        "system": "ossicle",
        "mixer": variant.label,
        "numbers": dict(variant.numbers),
        "device": settings.device,
        "device_name": device_name,
        "threads": settings.threads,
        "precision": str(settings.dtype).removeprefix("torch."),
        "batch": settings.rows,
    }


def record(variant: "Variant", point: "Point", settings: "Settings", device_name: str) -> Record:
    """What is written of one mixer at one length; frames are not audio, and so have no rate of it."""
    from ossicle.meter.flops import peak_flops

    flops_per_s, peak = 2 * point.macs / point.forward_s, peak_flops(device_name)
    return {
        **shared(variant, settings, device_name),
        "frames": point.frames,
        "forward_ms": 1000 * point.forward_s,
        "step_ms": 1000 * point.step_s,
        "peak_memory_bytes": point.peak_bytes,
        "macs": point.macs,
        "flops_per_s": flops_per_s,
        "mfu": None if peak is None else flops_per_s / peak,
    }


def show(records: Sequence[Record], lengths: Sequence[int]) -> None:
    """Print the time of forward and backward by mixer and length, with the exponent."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title="forward and backward, ms; growth of time from the fitted length on", box=box.SIMPLE)
    table.add_column("mixer", no_wrap=True)
    for frames in lengths:
        table.add_column(f"{frames:,}", justify="right", no_wrap=True)
    table.add_column("growth", justify="right", no_wrap=True)
    for last in (r for r in records if "exponent" in r):
        times = {r["frames"]: r["step_ms"] for r in records if r["mixer"] == last["mixer"] and "frames" in r}
        cells = (f"{times[frames]:,.0f}" if frames in times else "-" for frames in lengths)
        growth = "-" if last["exponent"] is None else f"T^{last['exponent']:.2f}"
        table.add_row(last["mixer"], *cells, growth)
    Console().print(table)


def markdown(records: Sequence[Record], settings: "Settings", fit_from: int) -> str:
    """The whole record for readers: a line a mixer with its growth and last length, then one for each length."""
    threads = f", {settings.threads} thread(s)" if settings.device == "cpu" else ""
    precision = str(settings.dtype).removeprefix("torch.")
    lines = [
        f"{settings.rows} x T x {settings.dim}, {settings.heads} heads, {precision}, {settings.device}{threads}.",
        f"Growth: the exponent of forward and backward over T from {fit_from:,} frames on, by least squares.",
        "",
        "| mixer | growth | longest | why no longer |",
        "|---|---|---|---|",
    ]
    for last in (r for r in records if "exponent" in r):
        longest = max((r["frames"] for r in records if r["mixer"] == last["mixer"] and "frames" in r), default=0)
        growth = "-" if last["exponent"] is None else f"T^{last['exponent']:.2f}"
        lines.append(f"| {last['mixer']} | {growth} | {longest:,} | {last['stopped'] or ''} |")
    lines += [
        "",
        "| mixer | T | forward, ms | forward and backward, ms | peak memory, MB | MACs, M | GFLOP/s forward |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['mixer']} | {r['frames']:,} | {r['forward_ms']:,.1f} | {r['step_ms']:,.1f} |"
        f" {r['peak_memory_bytes'] / 1e6:,.0f} | {r['macs'] / 1e6:,.0f} | {r['flops_per_s'] / 1e9:.1f} |"
        for r in records
        if "frames" in r
    ]
    return "\n".join(lines) + "\n"


def draw(records: Sequence[Record], path: Path, settings: "Settings") -> None:
    """Time over frames, one line a mixer."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(10, 6), layout="constrained")
    names = [r["mixer"] for r in records if "exponent" in r]
    for place, name in enumerate(names):
        points = [(r["frames"], r["step_ms"]) for r in records if r["mixer"] == name and "frames" in r]
        if points:
            style = ("o-", "s--", "^:")[place // 10 % 3]  # ten colours, told apart by marks where lines are too short
            axis.loglog(*zip(*points, strict=True), style, markersize=4, label=name, color=f"C{place % 10}")
    axis.set_xlabel("frames")
    axis.set_ylabel("forward and backward, ms")
    axis.set_title(f"{settings.rows} x T x {settings.dim}, {settings.device}, {settings.threads} thread(s)")
    axis.grid(visible=True, which="both", alpha=0.2)
    figure.legend(loc="outside right upper", fontsize="x-small", handlelength=3.5)
    figure.savefig(path, dpi=150)
    plt.close(figure)
