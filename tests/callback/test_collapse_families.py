"""Each family of objectives, trained for real, with a part of it made to collapse: the guard says which, only then."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lightning import LightningDataModule
from torch import Tensor, nn

from ossicle.core.clock import FrameClock
from ossicle.core.errors import CollapseError
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import LabelCard, LabelWriter
from ossicle.launch.config import compose
from ossicle.launch.experiment import experiment, resolved
from ossicle.system.build import build
from ossicle.system.pretraining import Pretraining
from ossicle.system.trainer import make_trainer
from tests.launch.toy import TOY

CLUSTERS = 64  # of which a head that has learned nothing names several


def at(module: nn.Module, path: str) -> Tensor:
    """A parameter or buffer by its path."""
    return module.state_dict(keep_vars=True)[path].data


def silent_frontend(system: Pretraining) -> None:
    for parameter in system.model.get_submodule("frontend").parameters():
        parameter.data.zero_()


def constant_output(system: Pretraining) -> None:
    at(system.model, "encoder.norm.weight").zero_()


def one_code(system: Pretraining) -> None:
    at(system.objective, "target.logits.weight").zero_()
    at(system.objective, "target.logits.bias")[0] = 1e4


def one_code_in_one_group(system: Pretraining) -> None:
    weight, bias = (at(system.objective, f"target.logits.{name}") for name in ("weight", "bias"))
    weight[: len(weight) // 2] = 0
    bias[0] = 1e4


def one_code_in_the_frontend(system: Pretraining) -> None:
    at(system.model, "frontend.quantiser.logits.weight").zero_()
    at(system.model, "frontend.quantiser.logits.bias").view(2, -1)[:, 0] = 1e4


def one_far_code_in_the_frontend(system: Pretraining) -> None:
    at(system.model, "frontend.quantiser.codebook_GVD")[:, 1:] += 1e3


def blind_predictions(system: Pretraining) -> None:
    at(system.objective, "predict.weight").zero_()


def blind_context(system: Pretraining) -> None:
    for name in ("weight", "bias"):
        at(system.objective, f"project_context.{name}").zero_()


def one_class(system: Pretraining) -> None:
    at(system.objective, "head.project.weight").zero_()


def equal_codes(system: Pretraining) -> None:
    codebook = at(system.objective, "target.codebook_VK")
    codebook.copy_(codebook[:1].expand_as(codebook).clone())


def one_class_in_a_lower_layer(system: Pretraining) -> None:
    at(system.objective, "layer_heads.0.project.weight").zero_()


def one_class_of_codes(system: Pretraining) -> None:
    at(system.objective, "head.weight").zero_()


def one_code_from_a_lower_layer(system: Pretraining) -> None:
    at(system.objective, "heads.0.weight").zero_()


def one_code_of_one_codebook(system: Pretraining) -> None:
    weight, bias = (at(system.objective, f"heads.{name}") for name in ("weight", "bias"))
    codes = len(weight) // system.objective.target.top_layers  # ty: ignore
    weight[:codes] = 0
    bias[0] = 1e4


def nothing(system: Pretraining) -> None:
    del system


def one_teachers_layer_with_one_code(system: Pretraining) -> None:
    at(system.objective, "target.state_KVE")[0, 1:, :-1] = 1e3


@dataclass(frozen=True)
class Family:
    """An experiment, what makes it collapse, and the sign of that alone.

    Args:
        experiment: Its name.
        sabotage: What is done to it before the first step.
        sign: What the guard must say then, and without it must not.
        metric: What was read for it.
        overrides: Of the experiment, collapsed or not.
        fatal: Overrides that make it collapse.
        sound: What stands in their place where it does not.
    """

    experiment: str
    sabotage: Callable[[Pretraining], None]
    sign: str
    metric: str
    overrides: tuple[str, ...] = ()
    fatal: tuple[str, ...] = ()
    sound: tuple[str, ...] = ()


KMEANS = ("layer/quantiser@frontend.quantiser=kmeans",)
AT_ONCE = ("target.momentum.start=0", "target.momentum.end=0")
MOVING = ("optim.lr=1e-3",)  # so that a student leaves a teacher that stays
ONE, MANY = (("stage=single", f"target.num_classes={CLUSTERS}", f"data.labels={{root}}/{n}") for n in (1, CLUSTERS))
LOWEST = ("objective.contrastive_layer=1",)  # of two
CODES, GROUP = "the target uses hardly any codes", "a codebook of the target uses hardly any codes"
NEGATIVES, FOLLOWS = "the model guesses among negatives", "the model guesses what follows"
CLASSES, HEAD = "the model predicts hardly any classes", "a head predicts hardly any classes"
ITSELF = "the teacher is the student itself"
USED, LEAST = "target/codes_perplexity", "target/codes_least_perplexity"
PREDICTED, GAP = "objective/codes_perplexity", "target/teacher_gap"
CONTRASTIVE, FORESEEN = "objective/accuracy_contrastive", "objective/accuracy_foreseen"
FAMILIES = {
    "contrastive, one code": Family("wav2vec2_tiny", one_code, CODES, USED),
    "contrastive, one code in one group": Family("wav2vec2_tiny", one_code_in_one_group, GROUP, LEAST),
    "contrastive, blind": Family("wav2vec2_tiny", blind_context, NEGATIVES, CONTRASTIVE),
    "contrastive, constant output": Family(
        "wav2vec2_tiny", constant_output, "the encoder's output is nearly constant", "objective/output_std"
    ),
    "contrastive beside codes, one code": Family("w2v_bert_tiny", one_code, CODES, USED, LOWEST),
    "contrastive beside codes, blind": Family("w2v_bert_tiny", blind_context, NEGATIVES, CONTRASTIVE, LOWEST),
    "codes beside contrastive, one class": Family("w2v_bert_tiny", one_class_of_codes, CLASSES, PREDICTED, LOWEST),
    "foreseeing, constant frames": Family(
        "wav2vec_tiny", silent_frontend, "the frames that are foreseen are nearly constant", "target/frame_std"
    ),
    "foreseeing by InfoNCE, blind": Family("cpc_tiny", blind_predictions, FOLLOWS, FORESEEN),
    "foreseeing, blind": Family("wav2vec_tiny", blind_predictions, FOLLOWS, FORESEEN),
    "foreseen codes, one": Family("vq_wav2vec_tiny", one_code_in_the_frontend, CODES, USED),
    "foreseen clusters, one": Family("vq_wav2vec_tiny", one_far_code_in_the_frontend, CODES, USED, KMEANS),
    "masked prediction, one class": Family("best_rq_tiny", one_class, CLASSES, PREDICTED),
    "masked prediction, one target": Family("best_rq_tiny", equal_codes, CODES, USED),
    "masked prediction of clusters, one class": Family("hubert_tiny", one_class, CLASSES, PREDICTED, MANY),
    "masked prediction of clusters, one label": Family("hubert_tiny", nothing, CODES, USED, (), ONE, MANY),
    "masked prediction in layers, one class": Family("fast_hubert_tiny", one_class, CLASSES, PREDICTED, MANY),
    "masked prediction in layers, one class below": Family(
        "fast_hubert_tiny",
        one_class_in_a_lower_layer,
        f"{CLASSES} at layer 1",
        "objective/layer_1/codes_perplexity",
        MANY,
    ),
    "masked prediction in layers, one label": Family("fast_hubert_tiny", nothing, CODES, USED, (), ONE, MANY),
    "a teacher's codes, one in one layer": Family("spidr_tiny", one_teachers_layer_with_one_code, GROUP, LEAST),
    "a teacher's codes, one predicted below": Family(
        "spidr_tiny", one_code_from_a_lower_layer, HEAD, "objective/codes_least_perplexity"
    ),
    "a teacher's codes, one predicted of a layer": Family(
        "dinosr_tiny", one_code_of_one_codebook, HEAD, "objective/codes_least_perplexity"
    ),
    "a teacher's codes, of the student itself": Family("dinosr_tiny", nothing, ITSELF, GAP, MOVING, AT_ONCE),
    "contrast with a teacher, the student itself": Family("spiral_tiny", nothing, ITSELF, GAP, MOVING, AT_ONCE),
}


def label(path: Path, shards: Path, clock: FrameClock, used: int) -> None:
    """Write labels of the training split of which the first few are used, in turn."""
    index = DatasetIndex.load(shards, "train")
    writer = LabelWriter(path, index)
    lengths = [clock.num_frames(int(row["samples"])) for row in index.rows]
    for shard in range(writer.num_shards):
        writer.write_shard(shard, [np.arange(lengths[row]) % used for row in writer.rows_of(shard).tolist()])
    writer.finish(
        LabelCard(
            clock=clock, num_classes=CLUSTERS, source={}, split="train", content_hash=index.content_hash,
            num_utterances=index.num_utterances, num_frames=sum(lengths), inertia=1.0, entropy_nats=math.log(used),
            perplexity=used, dead_classes=CLUSTERS - used, seconds=0.0, details={},
        )
    )  # fmt: skip


def train(family: Family, shards: Path, root: Path, *words: str, collapsed: bool) -> None:
    """Two steps of a family on the synthetic corpus, at next to no learning rate."""
    name = family.experiment
    guard = ("callback.collapse.start_step=1", "callback.collapse.patience=2", "optim.lr=1e-9", "max_steps=2")
    large = ("batch_s=16", "data.batch_s=16")  # so that what a model that has learned nothing reaches is no accident
    toy = [item for item in TOY if name != "spiral_tiny" or not item.startswith(("++encoder", "++mixer"))]
    more = [*family.overrides, *(family.fatal if collapsed else family.sound)]
    chosen = [f"experiment={name}", f"data.shards={shards}", f"runs={root}", *toy, *guard, *large, *words]
    chosen += [item.format(root=root) for item in more]
    if name in {"cpc_tiny", "wav2vec_tiny", "vq_wav2vec_tiny"}:
        chosen = [item for item in chosen if "ffn" not in item and "position" not in item]
    config = resolved(compose("pretrain", chosen))
    if config["data"].get("labels"):
        path = Path(config["data"]["labels"])
        label(path, shards, instantiate(config["frontend"])().clock, used=int(path.name))
    parts = experiment(config, root)
    system = build(parts)
    if collapsed:
        with torch.no_grad():
            family.sabotage(system)
    trainer = make_trainer(parts, run_dir=root, config=dict(config))
    assert isinstance(parts.data, LightningDataModule)
    trainer.fit(system, datamodule=parts.data)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_that_is_made_to_collapse_is_caught_by_its_own_sign(
    family: Family, synthetic_dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(CollapseError) as caught:
        train(family, synthetic_dataset, tmp_path, collapsed=True)
    assert f"step 2: {family.sign} ({family.metric} " in caught.value.problem


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_that_is_left_alone_has_no_such_sign(
    family: Family, synthetic_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="ossicle"):
        train(family, synthetic_dataset, tmp_path, "callback.collapse.action=warn", collapsed=False)
    assert f"step 2: {family.sign} ({family.metric} " not in caplog.text
