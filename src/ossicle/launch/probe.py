"""``ossicle probe``: what the frozen features of a run know."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ossicle.core.errors import ConfigError
from ossicle.launch import runs
from ossicle.launch.config import Config, nearest
from ossicle.launch.encoders import config_of, trained_encoder, untrained_encoder
from ossicle.launch.experiment import resolved, use_threads
from ossicle.launch.statistics import take_norms

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ossicle.data.utterance import Utterance
    from ossicle.probe.features import Featurizer
    from ossicle.probe.report import ProbeReport
    from ossicle.probe.tasks import ProbeTask

log = logging.getLogger(__name__)

BASELINES = ("logmel", "mfcc", "untrained")
TASKS = ("phone", "language", "speaker", "ctc", "ctc_recurrent", "abx", "abx_across")


def task(cfg: "DictConfig") -> None:
    """Probe a run and print the table."""
    from rich.console import Console

    from ossicle.probe.report import render

    config = resolved(cfg)
    report = probe(config)
    Console().print(render(report))


def probe(config: Config) -> "ProbeReport":
    """Probe the run that a config names.

    Args:
        config: A resolved config of the command.
    """
    from ossicle.probe.run import Protocol, read_clips, run_probe

    directory = runs.find_run(Path(config["run"]))
    trained_on = config_of(directory)["data"]
    if not (config["shards"] or "shards" in trained_on):
        raise ConfigError(f"{directory} was trained on a mixture", "name the dataset to be probed: shards=DIR")
    shards = Path(str(config["shards"] or trained_on["shards"]))
    output = Path(str(config["output"] or directory))
    use_threads({"threads": config["threads"]})
    protocol = Protocol(
        seeds=tuple(int(str(seed)) for seed in names(config, "seeds")),
        train_s=config["train_s"],
        dev_s=config["dev_s"],
        test_s=config["test_s"],
    )
    chosen = tasks(names(config, "tasks"))
    clips = read_clips(shards, protocol)
    return run_probe(
        featurizers(directory, names(config, "baselines"), config["device"]),
        clips,
        chosen,
        out_dir=output,
        protocol=protocol,
    )


def names(config: Config, key: str) -> list[str]:
    """A config's list as text."""
    value = config[key]
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{key}={value} is no list", f"write {key}=[{value}]")
    return [str(item) for item in value]


def choose(wanted: Sequence[str], known: Sequence[str], what: str) -> None:
    """Refuse names that are not known.

    Raises:
        ConfigError: One is unknown; the nearest are named.
    """
    for name in wanted:
        if name not in known:
            raise ConfigError(f"there is no {what} {name!r}{nearest(name, known)}", f"choose from: {', '.join(known)}")


def featurizers(directory: Path, baselines: Sequence[str], device: str) -> "list[Featurizer]":
    """The features that are compared: the baselines that are asked for, then the run's encoder."""
    import torch

    from ossicle.probe.features import EncoderFeatures, LogMelFeatures, MfccFeatures

    choose(baselines, BASELINES, "baseline")
    place = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    trained = trained_encoder(directory)
    made: list[Featurizer] = []
    if "logmel" in baselines:
        made.append(LogMelFeatures())
    if "mfcc" in baselines:
        made.append(MfccFeatures())
    if "untrained" in baselines:
        untrained = untrained_encoder(config_of(directory))
        take_norms(untrained, trained)
        made.append(EncoderFeatures(untrained.to(place), "untrained"))
    made.append(EncoderFeatures(trained.to(place), "pretrained"))
    return made


def tasks(wanted: Sequence[str]) -> "list[ProbeTask]":
    """The tasks that are asked for."""
    from ossicle.probe.abx import AbxAcross, AbxWithin
    from ossicle.probe.recognition import PhoneCTC, PhoneRecurrentCTC
    from ossicle.probe.tasks import FramePhones
    from ossicle.probe.utterance_tasks import Language, Speaker

    choose(wanted, TASKS, "task")
    makers = {
        "phone": FramePhones,
        "language": Language,
        "speaker": Speaker,
        "ctc": lambda: PhoneCTC(Phonemiser()),
        "ctc_recurrent": lambda: PhoneRecurrentCTC(Phonemiser()),
        "abx": AbxWithin,
        "abx_across": AbxAcross,
    }
    return [makers[name]() for name in wanted]


@dataclass(frozen=True)
class Phonemiser:
    """The phones of an utterance's text, by eSpeak NG; none where it has no text or no such language."""

    def __call__(self, utterance: "Utterance") -> list[str]:
        """Phones in order, pauses left out."""
        from data_prep.espeak import phonemise
        from ossicle.core.errors import DataError

        if not utterance.text:
            return []
        try:
            phones = phonemise(utterance.text, utterance.language)
        except DataError as error:
            log.debug("%s: %s", utterance.id, error)
            return []
        return [phone for phone in phones if phone != "_"]
