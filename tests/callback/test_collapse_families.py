"""Each family of objectives, trained for real, with a part of it made to collapse: the guard must say which."""

import math
from collections.abc import Callable
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
from tests.launch.toy import CLUSTERS, TOY


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


def nothing(system: Pretraining) -> None:
    del system


def one_teachers_layer_with_one_code(system: Pretraining) -> None:
    at(system.objective, "target.state_KVE")[0, 1:, :-1] = 1e3


KMEANS = ("layer/quantiser@frontend.quantiser=kmeans",)
AT_ONCE = ("target.momentum.start=0", "target.momentum.end=0", "optim.lr=1e-3")  # the student moves
ONE, MANY = (("stage=single", f"target.num_classes={CLUSTERS}", f"data.labels={{root}}/{n}") for n in (1, CLUSTERS))
LOWEST = ("objective.contrastive_layer=1",)  # of two
FAMILIES: dict[str, tuple[str, Callable[[Pretraining], None], str, tuple[str, ...]]] = {
    "contrastive, one code": ("wav2vec2_tiny", one_code, "the target uses hardly any codes", ()),
    "contrastive, one code in one group": (
        "wav2vec2_tiny",
        one_code_in_one_group,
        "a codebook of the target uses hardly any codes",
        (),
    ),
    "contrastive beside codes, one code": ("w2v_bert_tiny", one_code, "the target uses hardly any codes", LOWEST),
    "contrastive, blind": ("wav2vec2_tiny", blind_context, "the model guesses", ()),
    "contrastive beside codes, blind": ("w2v_bert_tiny", blind_context, "the model guesses", LOWEST),
    "contrastive, constant output": ("wav2vec2_tiny", constant_output, "output is nearly constant", ()),
    "foreseeing, constant frames": (
        "wav2vec_tiny",
        silent_frontend,
        "frames that are foreseen are nearly constant",
        (),
    ),
    "foreseeing by InfoNCE, blind": ("cpc_tiny", blind_predictions, "the model guesses", ()),
    "foreseeing, blind": ("wav2vec_tiny", blind_predictions, "the model guesses", ()),
    "foreseen codes, one": ("vq_wav2vec_tiny", one_code_in_the_frontend, "the target uses hardly any codes", ()),
    "foreseen clusters, one": ("vq_wav2vec_tiny", one_far_code_in_the_frontend, "hardly any codes", KMEANS),
    "masked prediction, one class": ("best_rq_tiny", one_class, "the model predicts hardly any classes", ()),
    "masked prediction of clusters, one class": ("hubert_tiny", one_class, "predicts hardly any classes", MANY),
    "masked prediction of clusters, one label": (
        "hubert_tiny",
        nothing,
        "the target uses hardly any codes",
        ONE,
    ),
    "masked prediction in layers, one class": ("fast_hubert_tiny", one_class, "predicts hardly any classes", MANY),
    "masked prediction in layers, one label": (
        "fast_hubert_tiny",
        nothing,
        "the target uses hardly any codes",
        ONE,
    ),
    "a teacher's codes, one in one layer": (
        "spidr_tiny",
        one_teachers_layer_with_one_code,
        "a codebook of the target uses hardly any codes",
        (),
    ),
    "a teacher's codes, of the student itself": (
        "dinosr_tiny",
        nothing,
        "the teacher is the student itself",
        AT_ONCE,
    ),
    "contrast with a teacher, the student itself": (
        "spiral_tiny",
        nothing,
        "the teacher is the student itself",
        AT_ONCE,
    ),
    "masked prediction, one target": ("best_rq_tiny", equal_codes, "the target uses hardly any codes", ()),
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


@pytest.mark.parametrize(("name", "sabotage", "sign", "overrides"), FAMILIES.values(), ids=FAMILIES)
def test_a_family_that_is_made_to_collapse_is_caught(
    *,
    name: str,
    sabotage: Callable[[Pretraining], None],
    sign: str,
    overrides: tuple[str, ...],
    synthetic_dataset: Path,
    tmp_path: Path,
) -> None:
    guard = ("callback.collapse.start_step=1", "callback.collapse.patience=2", "optim.lr=1e-9", "max_steps=6")
    toy = [item for item in TOY if name != "spiral_tiny" or not item.startswith(("++encoder", "++mixer"))]
    more = [item.format(root=tmp_path) for item in overrides]
    chosen = [f"experiment={name}", f"data.shards={synthetic_dataset}", f"runs={tmp_path}", *toy, *guard, *more]
    if name in {"cpc_tiny", "wav2vec_tiny", "vq_wav2vec_tiny"}:
        chosen = [item for item in chosen if "ffn" not in item and "position" not in item]
    config = resolved(compose("pretrain", chosen))
    if config["data"].get("labels"):
        path = Path(config["data"]["labels"])
        label(path, synthetic_dataset, instantiate(config["frontend"])().clock, used=int(path.name))
    parts = experiment(config, tmp_path)
    system = build(parts)
    with torch.no_grad():
        sabotage(system)
    trainer = make_trainer(parts, run_dir=tmp_path, config=dict(config))
    assert isinstance(parts.data, LightningDataModule)
    with pytest.raises(CollapseError, match=sign) as caught:
        trainer.fit(system, datamodule=parts.data)
    assert "step 2" in caught.value.problem
