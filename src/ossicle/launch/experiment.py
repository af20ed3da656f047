"""From a composed config to a frozen Experiment: the one place where configs become parts."""

import logging
import os
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossicle.core.errors import ConfigError
from ossicle.launch.binding import check_binding, check_number
from ossicle.launch.config import Config, check_choices
from ossicle.launch.parts import fit_parts
from ossicle.launch.preflight import BatchShare, check_crops, share_batch

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ossicle.layer.speech_encoder import SpeechEncoder
    from ossicle.objective.base import Objective
    from ossicle.stage.plan import Run, Stages
    from ossicle.system.build import Experiment
    from ossicle.system.execution import Execution

log = logging.getLogger(__name__)

PARTS = ("frontend", "mixer", "encoder", "model", "target", "objective", "augmentation", "optim", "schedule")

NUMBERS: dict[str, object] = {
    "seed": int, "max_steps": int, "label_frames": int, "batch_s": float, "clip_norm": float | None,
    "ema_decay": float | None, "log_every": int, "checkpoint_every": int, "keep_checkpoints": int,
    "threads": int | None, "compile": bool, "recompute.blocks": int, "recompute.frontend": bool,
}  # fmt: skip
"""Values of a config outside its parts that are numbers."""


def resolved(cfg: "DictConfig") -> dict[str, Any]:
    """The config as plain containers, every interpolation resolved, every part with numbers that it takes.

    Raises:
        ConfigError: A mandatory value is missing, all that are missing are named; or a part cannot be chosen so.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    chosen = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    if "experiment" in chosen:  # another command composes experiments by itself
        check_choices(cfg, chosen)
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"no value for: {', '.join(missing)}", f"state it on the command line: {missing[0]}=...")
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the config does not resolve: {error}", "mend the interpolation that it names") from error
    assert isinstance(plain, dict)
    told = stated()
    return fit_stage(fit_parts({str(key): value for key, value in plain.items()}, told), told)


def stated() -> set[str]:
    """Keys of the command line's overrides, where Hydra runs a command."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return set()
    return {item.partition("=")[0].lstrip("+~") for item in HydraConfig.get().overrides.task}


def instantiate_part(config: Config, name: str) -> Callable[..., Any]:
    """One part of the config as a factory.

    Raises:
        ConfigError: The part cannot be made from what the config states.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(config[name], _convert_="all")
    except InstantiationException as error:
        raise ConfigError(f"{name}: {error.__cause__ or error}", f"mend {name} in the config") from error


def world_size(config: Config) -> int:
    """Ranks that the config asks for."""
    cluster = config["cluster"]
    return int(cluster["devices"]) * int(cluster["num_nodes"])


def batch_share(config: Config) -> BatchShare:
    """How the config's global batch is shared over its ranks."""
    data = config["data"]
    return share_batch(config["batch_s"], data["batch_s"], world_size(config))


def labels_stated(data: Config) -> bool:
    """Whether the config names the labels of its data, of every source where it is a mixture."""
    sources = data.get("sources")
    return all(s.get("labels") for s in sources.values()) if sources else data.get("labels") is not None


def reads_labels(config: Config) -> bool:
    """Whether the config's target is made of labels on disk: other targets name their classes alike."""
    return str(config["target"].get("_target_", "")).startswith("ossicle.target.kmeans.")


def fit_stage(config: dict[str, Any], stated: Collection[str]) -> dict[str, Any]:
    """The config with one run in place of an experiment's chain that makes labels, where the target reads none.

    Args:
        config: A config with its parts.
        stated: Keys that the command line states.

    Raises:
        ConfigError: The command line itself asks for such a chain.
    """
    stage, target = config.get("stage"), config.get("target")
    if not stage or not target or reads_labels(config):
        return config
    if not any(run.get("clusters") for run in stage.get("iterations") or ()):
        return config
    name = str(target["_target_"]).rpartition(".")[2]
    if "stage" in stated:
        raise ConfigError(
            f"the stage clusters frames into labels, and the target reads none: {name}",
            "set stage=single, or target=kmeans",
        )
    log.info("the experiment's stages make labels, which %s does not read: one run instead (stage=single)", name)
    return {**config, "stage": {"_target_": "ossicle.stage.plan.Single"}}


def needs_statistics(frontend: Config) -> bool:
    """Whether a frontend's config, or that of one inside it, asks for a norm of all data."""
    inner = frontend.get("frontend")
    return frontend.get("norm") in {"global", "running"} or (bool(inner) and needs_statistics(inner))


def stages(config: Config) -> "Stages":
    """The chain of runs that the config asks for."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(config["stage"], _convert_="all")
    except InstantiationException as error:
        raise ConfigError(f"stage: {error.__cause__ or error}", "mend the stages in the config") from error


def check(config: Config) -> None:
    """Everything about a config that can be checked before a device is asked for, the building of its parts included.

    Raises:
        ConfigError: A part's arguments do not fit its class, the batch does not divide, no crop can be made, the stages
            contradict, or the parts do not fit each other.
    """
    check_own_values(config)
    check_binding(config)
    batch_share(config)
    check_crops(config["data"])
    if "urls" in config["data"] and str(config["target"].get("_target_")).startswith("ossicle.target.kmeans."):
        raise ConfigError(
            "the target reads labels, which are found by an index, and data=stream has none",
            "prepare the audio (ossicle prepare), or take a target that needs no labels: experiment=best_rq",
        )
    if "urls" in config["data"] and needs_statistics(config["frontend"]):
        raise ConfigError(
            "the frontend normalises by all data, which are measured by an index, and data=stream has none",
            "prepare the audio (ossicle prepare), or set frontend.norm=utterance",
        )
    for run in stages(config).runs():
        if run.label_source and len(config["data"].get("sources") or ()) > 1 and not labels_stated(config["data"]):
            raise ConfigError(
                f"a stage clusters {run.label_source} features, and the data are a mixture: clusters of one source are"
                " not those of another",
                "state labels of one clustering for each source (data.sources.NAME.labels), or train on one dataset",
            )
        if run.label_source is None and reads_labels(config) and not labels_stated(config["data"]):
            raise ConfigError(
                "the target reads labels, and neither the data name any nor does a stage make them",
                "choose stage=iterations, or make labels with ossicle label and state data.labels=DIR",
            )
        model, objective = build_on_meta(as_run(config, run), run.clusters)
        check_lengths(model, objective, config["data"])


def check_own_values(config: Config) -> None:
    """Hold the values outside a config's parts against what they can be: its numbers and its precision.

    Raises:
        ConfigError: One is of another kind, or the precision is none that runs take.
    """
    from ossicle.system.trainer import check_precision

    for key, kind in NUMBERS.items():
        group, _, name = key.rpartition(".")
        holder = config.get(group, {}) if group else config
        if name in holder:
            check_number(key, holder[name], kind)
    check_precision(config["precision"])


def check_lengths(model: "SpeechEncoder", objective: "Objective", data: Config) -> None:
    """Hold the lengths of the data's crops against what model and objective take.

    Args:
        model: Built, on the meta device too.
        objective: Its objective.
        data: The data's config.

    Raises:
        ConfigError: The shortest crop is too short for the loss, or the longest too long for a mixer.
    """
    from ossicle.mixer.base import Mixer

    rate_hz = model.clock.rate_hz
    objective.check_crop(model, round(data["min_crop_s"] * rate_hz))
    slowest = max(model.layer_factor(layer) for layer in range(1, model.num_layers + 1))
    frames = model.clock.num_frames(round(data["max_crop_s"] * rate_hz)) // slowest
    for mixer in model.modules():
        if isinstance(mixer, Mixer) and mixer.max_frames is not None and mixer.max_frames < frames:
            raise ConfigError(
                f"mixer.max_frames={mixer.max_frames}, and a crop of data.max_crop_s={data['max_crop_s']} has {frames}",
                f"set mixer.max_frames={frames} or more",
            )


def as_run(config: Config, run: "Run") -> dict[str, Any]:
    """The config with the steps of one run of its chain, and those of them that warm up."""
    changed = dict(config)
    if run.max_steps is not None:
        changed["max_steps"] = run.max_steps
    if run.warmup_steps is not None and "warmup_steps" in config["schedule"]:
        changed["schedule"] = {**config["schedule"], "warmup_steps": run.warmup_steps}
    return changed


def build_on_meta(config: Config, clusters: int | None = None) -> "tuple[SpeechEncoder, Objective]":
    """Build a config's parts without their weights, as one run of its chain has them.

    Args:
        config: A resolved config, as :func:`as_run` has it.
        clusters: Classes of the target in this run, or None for the config's own.

    Returns:
        The model, and its objective.
    """
    import torch
    from torch import nn

    from ossicle.system.build import connect

    parts = {name: instantiate_part(config, name) for name in PARTS}
    extra = {} if clusters is None else {"num_classes": clusters}
    with torch.device("meta"):
        model, objective = connect(
            frontend=parts["frontend"],
            mixer=parts["mixer"],
            encoder=parts["encoder"],
            model=parts["model"],
            target=partial(parts["target"], **extra),
            objective=parts["objective"],
        )
    # compiling and float8 are left out: the machine that asks for a GPU need not have one
    replace(execution(config), compile=False, compile_mode="default", float8=False).prepare(model)
    parts["augmentation"](clock=model.clock)
    parts["schedule"](max_steps=config["max_steps"])
    parts["optim"](nn.ModuleList([model, objective]))
    return model, objective


def use_threads(config: Config) -> None:
    """Set torch's threads as the config says; without a word, the ranks of a machine share its cores evenly.

    Where there is no GPU, the process keeps its memory between steps besides.
    """
    import torch

    from ossicle.core.memory import keep_memory

    if not torch.cuda.is_available():
        keep_memory()
    ranks = config["cluster"]["devices"] if "cluster" in config else 1
    torch.set_num_threads(config["threads"] or max(1, len(os.sched_getaffinity(0)) // ranks))


def execution(config: Config) -> "Execution":
    """How a config wants blocks to be run."""
    from ossicle.system.execution import Execution

    return Execution(
        compile=config["compile"],
        compile_mode=config["compile_mode"],
        recompute_blocks=config["recompute"]["blocks"],
        recompute_frontend=config["recompute"]["frontend"],
        float8=config["precision"] in {"float8", "float8-emulated"},
        emulate_float8=config["precision"] == "float8-emulated",
        **({"num_shapes": shapes} if (shapes := config["data"].get("num_shapes")) else {}),
    )


def experiment(config: Config, run_dir: Path) -> "Experiment":
    """The parts of a config, ready to be built.

    Args:
        config: A resolved config.
        run_dir: Where this run writes.
    """
    from hydra.utils import instantiate

    from ossicle.system.build import Experiment

    parts = {name: instantiate_part(config, name) for name in PARTS}
    data = instantiate(config["data"], _convert_="all")
    if callable(data) and not hasattr(data, "train_dataloader"):
        data = data(seed=config["seed"], quarantine=run_dir / "quarantine.jsonl")
    watchers = [instantiate(node, _convert_="all") for node in dict(config["callback"] or {}).values() if node]
    cluster = config["cluster"]
    return Experiment(
        name=config["name"],
        seed=config["seed"],
        **parts,
        data=data,
        max_steps=config["max_steps"],
        accumulate=batch_share(config).accumulate,
        clip_norm=config["clip_norm"],
        precision=config["precision"],
        execution=execution(config),
        ema_decay=config["ema_decay"],
        init_from=config["init_from"],
        log_every=config["log_every"],
        callbacks=tuple(watchers),
        accelerator=cluster["accelerator"],
        devices=cluster["devices"],
        num_nodes=cluster["num_nodes"],
    )
