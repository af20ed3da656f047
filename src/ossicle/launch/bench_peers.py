"""``ossicle bench peers``: HuBERT's training step beside other toolkits', in the same run."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossicle.core.errors import ConfigError
from ossicle.launch.bench_step import heading, show, work_of
from ossicle.launch.config import Config, nearest
from ossicle.launch.experiment import resolved

if TYPE_CHECKING:
    from collections.abc import Callable

    from omegaconf import DictConfig

    from ossicle.launch.bench.peers.shape import Shape
    from ossicle.launch.bench.steps import StepWork, Subject

log = logging.getLogger(__name__)

Record = dict[str, Any]


def systems() -> Mapping[str, "Callable[[Shape, StepWork], Subject]"]:
    """Every system by its name."""
    from ossicle.launch.bench.peers import minimal_hubert, ossicle, speechbrain, torchaudio, transformers

    return {
        "ossicle": ossicle.hubert,
        "transformers": transformers.hubert,
        "transformers_wav2vec2": transformers.wav2vec2,
        "torchaudio": torchaudio.hubert,
        "speechbrain": speechbrain.wav2vec2,
        "minimal_hubert": minimal_hubert.hubert,
    }


def task(cfg: "DictConfig") -> list[Record]:
    """Measure every system at every precision, print the tables, and write the records where ``out`` says."""
    from ossicle.core.files import write_json
    from ossicle.core.processor import note_bf16
    from ossicle.system.execution import MODES

    config = resolved(cfg)
    chosen = [one_of(name, "systems", systems()) for name in listed(config["systems"])]
    precisions = [one_of(name, "precision", ("float32", "bfloat16")) for name in listed(config["precision"])]
    if "bfloat16" in precisions and config["device"] == "cpu":
        note_bf16()
    shape = shape_of(config)
    records: list[Record] = []
    for compiled in listed(config["compile"]):
        for precision in precisions:
            mode = one_of(compiled, "compile", MODES) if isinstance(compiled, str) else MODES[0]
            work = replace(work_of(config), bfloat16=precision == "bfloat16", compile=bool(compiled), compile_mode=mode)
            found = measure(chosen, shape, work, config)
            records += found
            how = f"{precision}, {f'compiled ({mode})' if compiled else 'eager'}"
            show(found, f"{config['model']}, {how}: {heading(found)}")
            if config["out"] is not None:
                write_json(Path(config["out"]), records)
    if config["out"] is not None:
        log.info("wrote %s", config["out"])
    return records


def measure(chosen: list[str], shape: "Shape", work: "StepWork", config: Config) -> list[Record]:
    """Every system at one precision, eager or compiled.

    Args:
        chosen: Names of the systems.
        shape: Sizes of the model.
        work: What all are asked for.
        config: How long they are measured.
    """
    from ossicle.launch.bench.records import record, versions
    from ossicle.launch.bench.steps import take_turns

    known = systems()
    builders = {name: partial(known[name], shape) for name in chosen}
    found = take_turns(builders, work, steps=config["steps"], rounds=config["rounds"], together=config["together"])
    same: Record = {
        "model": config["model"],
        "sizes": asdict(shape),
        "precision": "bfloat16" if work.bfloat16 else "float32",
        "compile": work.compile,
        "compile_mode": work.compile_mode if work.compile else None,
        "versions": versions(),
    }
    records = [{**record(name, result, work), **same} for name, result in found.items()]
    base = records[0]["audio_s_per_s"]
    for each in records:
        each["ratio"] = each["audio_s_per_s"] / base if base and each["audio_s_per_s"] else None
    return records


def listed(value: object) -> list[Any]:
    """One value, or several."""
    return list(value) if isinstance(value, list | tuple) else [value]


def one_of(word: str, key: str, choices: "Mapping[str, object] | tuple[str, ...]") -> str:
    """A word that means something.

    Raises:
        ConfigError: It means nothing here.
    """
    if word not in choices:
        raise ConfigError(f"there is no {key}={word}{nearest(str(word), choices)}", f"choose from {', '.join(choices)}")
    return word


def shape_of(config: Config) -> "Shape":
    """The model's sizes, with those that the config states in place of its own.

    Raises:
        ConfigError: The model or a size is unknown.
    """
    from ossicle.launch.bench.peers.shape import SHAPES

    shape = SHAPES[one_of(config["model"], "model", tuple(SHAPES))]
    sizes = [name for name, value in asdict(shape).items() if isinstance(value, int) and not isinstance(value, bool)]
    sizes_stated = dict(config["sizes"] or {})
    for name in sizes_stated:
        one_of(name, "sizes", tuple(sizes))
    return replace(shape, layer_drop=config["layer_drop"], **sizes_stated)
