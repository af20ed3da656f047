import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from ossicle.callback.collapse import CollapseGuard
from ossicle.core.batch import EncoderOutput
from ossicle.core.errors import CollapseError
from ossicle.core.metrics import CodeUse
from tests.system.toys import ToyModel, ToyObjective, toy_run

GUARD = partial(CollapseGuard, start_step=4, patience=2, min_over_chance=None, min_output_perplexity=None)


class Poison(Callback):
    """Makes a loss that is no number from the third step on."""

    def __init__(self, **_: object) -> None:
        super().__init__()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if trainer.global_step == 2:
            with torch.no_grad():
                next(pl_module.parameters()).fill_(float("nan"))


class DeadModel(ToyModel):
    """An encoder that answers everything alike."""

    @override
    def encode(
        self, x_BTD: torch.Tensor, valid_BT: torch.Tensor | None = None, *, layers: bool = False
    ) -> EncoderOutput:
        return EncoderOutput(super().encode(x_BTD).last_BTD * 1e-6)


class OneClass(ToyObjective):
    """Classes that are all the same, as labels of a dead clustering are."""

    def __init__(self, **parts: object) -> None:
        super().__init__(**parts)  # type: ignore[arg-type]
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([50.0, 0.0, 0.0, 0.0]))


def test_a_model_whose_output_is_constant_is_warned_of_and_then_stopped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(CollapseError, match="nearly constant") as caught:
        toy_run(tmp_path, (GUARD,), model=DeadModel, max_steps=40)
    assert "step 6" in caught.value.problem  # first seen at step 4, again at 6
    assert "step 4" in caplog.text


def test_a_model_that_predicts_one_class_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(CollapseError, match="hardly any classes"):
        toy_run(tmp_path, (partial(GUARD, min_output_perplexity=1.5),), objective=OneClass, max_steps=40)


def test_a_loss_that_is_no_number_stops_the_run_at_the_first_reading(tmp_path: Path) -> None:
    guard = partial(CollapseGuard, start_step=1000, patience=100)
    with pytest.raises(CollapseError, match="step 4: the loss is not a finite number"):
        toy_run(tmp_path, (Poison, guard), max_steps=40)


def test_warning_only_lets_the_run_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        trainer, _ = toy_run(tmp_path, (partial(GUARD, action="warn"),), model=DeadModel, max_steps=20)
    assert isinstance(trainer, Trainer)
    assert trainer.global_step == 20
    assert sum("nearly constant" in record.message for record in caplog.records) == 2  # first sign, end of patience


def test_a_healthy_run_passes_all_guards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    guard = partial(CollapseGuard, start_step=80, patience=1, min_over_chance=1.0)
    with caplog.at_level(logging.WARNING, logger="ossicle"):
        trainer, _ = toy_run(tmp_path, (guard,), max_steps=120, log_every=40, accumulate=2)
    assert isinstance(trainer, Trainer)
    assert trainer.global_step == 120
    assert not [record for record in caplog.records if record.name.startswith("ossicle")]


def test_masked_accuracy_is_held_against_guessing_only_where_classes_are_predicted(tmp_path: Path) -> None:
    guard = CollapseGuard(run_dir=tmp_path, config={}, start_step=0)
    guessing = {"objective/accuracy_masked": 0.3, "target/codes_top": 0.3, "target/codes_perplexity": 9.0}
    assert not list(guard.signs(guessing, 1))
    predicting = {**guessing, "objective/codes_perplexity": 9.0}
    assert [sign for sign, _ in guard.signs(predicting, 1)] == ["the model guesses classes"]
    assert not list(guard.signs({**predicting, "objective/accuracy_masked": 0.4}, 1))


def test_one_among_negatives_and_the_classes_are_each_held_against_their_own_chance(tmp_path: Path) -> None:
    guard = CollapseGuard(run_dir=tmp_path, config={}, start_step=0)
    learning = {
        "objective/accuracy_contrastive": 0.2, "objective/chance": 0.01,
        "objective/accuracy_masked": 0.4, "objective/codes_perplexity": 9.0, "target/codes_top": 0.3,
    }  # fmt: skip
    assert not list(guard.signs(learning, 1))
    for name, chance, what in (("contrastive", 0.01, "among negatives"), ("masked", 0.3, "classes")):
        ((sign, reading),) = guard.signs({**learning, f"objective/accuracy_{name}": chance}, 1)
        assert sign == f"the model guesses {what}"
        assert name in reading


def test_a_layer_below_the_output_is_held_against_its_own_chance_and_its_sign_names_it(tmp_path: Path) -> None:
    guard = CollapseGuard(run_dir=tmp_path, config={}, start_step=0)
    learning = {
        f"objective/{layer}{name}": value
        for layer in ("", "layer_4/", "layer_12/")
        for name, value in (("accuracy_masked", 0.5), ("codes_perplexity", 9.0), ("wanted_top", 0.3))
    } | {"target/codes_top": 0.3}
    assert not list(guard.signs(learning, 1))
    ((sign, reading),) = guard.signs({**learning, "objective/layer_12/accuracy_masked": 0.3}, 1)
    assert (sign, "layer_12/accuracy_masked 0.3, by chance 0.3" in reading) == (
        "the model guesses classes at layer 12", True
    )  # fmt: skip
    ((sign, reading),) = guard.signs({**learning, "objective/layer_4/codes_perplexity": 1.0}, 1)
    assert sign == "the model predicts hardly any classes at layer 4"
    assert "objective/layer_4/codes_perplexity 1 < 1.5" in reading


def test_one_dead_codebook_of_several_is_a_sign_though_their_mean_is_healthy(tmp_path: Path) -> None:
    guard = CollapseGuard(run_dir=tmp_path, config={}, start_step=0)
    counts_GV = torch.ones(8, 256)
    assert not list(guard.signs(CodeUse(counts_GV).read("target/codes"), 1))
    counts_GV[1:] = 0
    counts_GV[1:, 0] = 256
    ((sign, reading),) = guard.signs(CodeUse(counts_GV).read("target/codes"), 1)
    assert sign == "a codebook of the target uses hardly any codes"
    assert "target/codes_least_perplexity 1 < 2" in reading
    signs = dict(guard.signs(CodeUse(counts_GV[[0, 0, 1]]).read("objective/codes"), 1))
    assert list(signs) == ["a head predicts hardly any classes"]


def test_readings_that_recover_start_the_count_anew(tmp_path: Path) -> None:
    guard = CollapseGuard(run_dir=tmp_path, config={}, start_step=0, patience=2)
    trainer, system = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False), LightningModule()
    for step, std in enumerate([0.0, 1.0, 0.0, 1.0, 0.0], start=1):
        guard.on_metrics(trainer, system, {"objective/output_std": std}, step)
    with pytest.raises(CollapseError):
        guard.on_metrics(trainer, system, {"objective/output_std": 0.0}, 6)


FLOORS = {
    "min_target_perplexity": ("target/codes_perplexity", "target/codes_least_perplexity"),
    "min_output_perplexity": ("objective/codes_perplexity", "objective/codes_least_perplexity"),
    "min_output_std": ("objective/output_std",),
    "min_target_std": ("target/std",),
    "min_prediction_std": ("objective/prediction_std",),
    "min_teacher_gap": ("target/teacher_gap",),
    "min_frame_std": ("target/frame_std",),
}
OFF = dict.fromkeys((*FLOORS, "max_teacher_gap", "min_over_chance"))


def guard_of(tmp_path: Path, **thresholds: float) -> CollapseGuard:
    """A guard that looks for what is stated alone."""
    return CollapseGuard(run_dir=tmp_path, config={}, start_step=5, **{**OFF, **thresholds})


@pytest.mark.parametrize("threshold", FLOORS)
def test_each_floor_is_that_of_its_own_metrics(threshold: str, tmp_path: Path) -> None:
    every = [name for names in FLOORS.values() for name in names]
    guard = guard_of(tmp_path, **{threshold: 0.5})
    assert len(list(guard.signs(dict.fromkeys(every, 0.4), 5))) == len(FLOORS[threshold])
    assert not list(guard.signs(dict.fromkeys(every, 0.5), 5))
    assert not list(guard.signs(dict.fromkeys(every, 0.4), 4))  # all begin so
    assert not list(guard_of(tmp_path).signs(dict.fromkeys(every, 0.0), 5))
    others = {name: 0.4 for name in every if name not in FLOORS[threshold]}
    assert not list(guard.signs(others, 5))


def test_a_teacher_that_is_left_behind_is_a_sign_and_one_at_the_bound_is_not(tmp_path: Path) -> None:
    guard = guard_of(tmp_path, max_teacher_gap=0.5)
    assert [sign for sign, _ in guard.signs({"target/teacher_gap": 0.6}, 5)] == [
        "the student has left its teacher behind"
    ]
    assert not list(guard.signs({"target/teacher_gap": 0.5}, 5))


def test_an_accuracy_just_above_chance_is_a_guess_too(tmp_path: Path) -> None:
    guard = guard_of(tmp_path, min_over_chance=1.02)
    for accuracy, signs in ((0.1015, 1), (0.1025, 0)):
        metrics = {"objective/accuracy_contrastive": accuracy, "objective/chance": 0.1}
        assert len(list(guard.signs(metrics, 5))) == signs


def test_a_reading_that_is_no_number_is_a_sign(tmp_path: Path) -> None:
    nothing = float("nan")
    for threshold, names in FLOORS.items():
        assert len(list(guard_of(tmp_path, **{threshold: 0.5}).signs(dict.fromkeys(names, nothing), 5))) == len(names)
    assert list(guard_of(tmp_path, max_teacher_gap=0.5).signs({"target/teacher_gap": nothing}, 5))
    metrics = {"objective/accuracy_contrastive": nothing, "objective/chance": 0.1}
    assert list(guard_of(tmp_path, min_over_chance=1.0).signs(metrics, 5))
    for loss in (nothing, float("inf")):
        assert list(guard_of(tmp_path).signs({"objective/loss": loss}, 0))
