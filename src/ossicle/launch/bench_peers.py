"""``ossicle bench peers``: HuBERT's training step beside other toolkits', in the same run."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossicle.core.errors import ConfigError
from ossicle.launch.bench_checks import COUNT, Number, check_found, check_places, listed, numbers, word, words
from ossicle.launch.bench_step import NUMBERS, check_parts, heading, show, work_of
from ossicle.launch.config import Config, compose
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

    config = numbers(resolved(cfg), {**NUMBERS, "layer_drop": Number(float, 0, most=1)})
    check_places(config, "out")
    chosen = words(config, "systems", systems())
    precisions = words(config, "precision", ("float32", "bfloat16"))
    modes = compile_modes(config)
    base = work_of(config)
    shape = shape_of(config)
    check_shape(shape, base)
    if "bfloat16" in precisions and config["device"] == "cpu":
        note_bf16()
    records: list[Record] = []
    for compiled, mode in modes:
        for precision in precisions:
            work = replace(base, bfloat16=precision == "bfloat16", compile=compiled, compile_mode=mode)
            found, interrupted = measure(chosen, shape, work, config)
            records += found
            how = f"{precision}, {f'compiled ({mode})' if compiled else 'eager'}"
            show(found, f"{config['model']}, {how}: {heading(found)}")
            if config["out"] is not None:
                write_json(Path(config["out"]), records)
                log.info("wrote %s", config["out"])
            if interrupted is not None:
                raise interrupted
    check_found([each["audio_s_per_s"] for each in records], [each["absent"] for each in records])
    return records


def compile_modes(config: Config) -> list[tuple[bool, str]]:
    """Whether torch.compile is asked for, with its mode then, each way that the config names.

    Raises:
        ConfigError: A value is neither true, nor false, nor a mode.
    """
    from ossicle.system.execution import MODES

    told = listed(config["compile"], "compile")
    for each in told:
        if not isinstance(each, bool):
            words({"compile": each}, "compile", MODES)  # or true or false, as --help says
    return [(each, MODES[0]) if isinstance(each, bool) else (True, each) for each in told]


def measure(
    chosen: list[str], shape: "Shape", work: "StepWork", config: Config
) -> tuple[list[Record], KeyboardInterrupt | None]:
    """Every system at one precision, eager or compiled.

    Args:
        chosen: Names of the systems.
        shape: Sizes of the model.
        work: What all are asked for.
        config: How long they are measured.

    Returns:
        A record of each, and Ctrl-C if it came: then of what was measured before.
    """
    from ossicle.launch.bench.player import Stopped
    from ossicle.launch.bench.records import record, versions
    from ossicle.launch.bench.steps import take_turns

    known = systems()
    builders = {name: partial(known[name], shape) for name in chosen}
    interrupted: Stopped | None = None
    try:
        found = take_turns(builders, work, steps=config["steps"], rounds=config["rounds"], together=config["together"])
    except Stopped as stop:
        found, interrupted = stop.results, stop
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
    return records, interrupted


def shape_of(config: Config) -> "Shape":
    """The model's sizes, with those that the config states in place of its own.

    Raises:
        ConfigError: The model or a size is unknown.
    """
    from ossicle.launch.bench.peers.shape import SHAPES

    shape = SHAPES[word(config, "model", SHAPES)]
    sizes = [name for name, value in asdict(shape).items() if isinstance(value, int) and not isinstance(value, bool)]
    stated = config["sizes"] or {}
    if not isinstance(stated, Mapping):
        raise ConfigError(f"sizes={stated} names no size", "name sizes with numbers: sizes={dim: 64, layers: 2}")
    for name in stated:
        words({"sizes": name}, "sizes", sizes)
    whole = numbers(
        {f"sizes.{name}": size for name, size in stated.items()}, {f"sizes.{name}": COUNT for name in stated}
    )
    return replace(shape, layer_drop=config["layer_drop"], **{name: whole[f"sizes.{name}"] for name in stated})


def check_shape(shape: "Shape", work: "StepWork") -> None:
    """Hold sizes and crops against Ossicle's own parts, which say what no system could build.

    Raises:
        ConfigError: Sizes do not fit each other, or a crop is too short to be masked.
    """
    from ossicle.launch.bench.peers.ossicle import SINGLE, overrides

    config = resolved(compose("pretrain", overrides(shape, work)))
    check_parts({**config, "stage": SINGLE}, shape.experiment, work.samples)
