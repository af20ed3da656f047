"""Each family of objectives, trained for real, with a part of it made to collapse: the guard must say which."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import LightningDataModule
from torch import Tensor, nn

from ossicle.core.errors import CollapseError
from ossicle.launch.config import compose
from ossicle.launch.experiment import experiment, resolved
from ossicle.system.build import build
from ossicle.system.pretraining import Pretraining
from ossicle.system.trainer import make_trainer
from tests.launch.toy import TOY


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


KMEANS = ("layer/quantiser@frontend.quantiser=kmeans",)
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
    "masked prediction, one target": ("best_rq_tiny", equal_codes, "the target uses hardly any codes", ()),
}


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
    chosen = [f"experiment={name}", f"data.shards={synthetic_dataset}", f"runs={tmp_path}", *TOY, *overrides, *guard]
    if name in {"cpc_tiny", "wav2vec_tiny", "vq_wav2vec_tiny"}:
        chosen = [item for item in chosen if "ffn" not in item and "position" not in item]
    config = resolved(compose("pretrain", chosen))
    parts = experiment(config, tmp_path)
    system = build(parts)
    with torch.no_grad():
        sabotage(system)
    trainer = make_trainer(parts, run_dir=tmp_path, config=dict(config))
    assert isinstance(parts.data, LightningDataModule)
    with pytest.raises(CollapseError, match=sign) as caught:
        trainer.fit(system, datamodule=parts.data)
    assert "step 2" in caught.value.problem
