import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from ossicle.core.batch import Batch
from ossicle.core.errors import ConfigError
from ossicle.launch.bench.bare import BareStep, RandomData, experiment_of
from ossicle.launch.bench.records import record
from ossicle.launch.bench.rounds import Round
from ossicle.launch.bench.steps import Facts, Measured, Start, StepWork, Subject, Turn, alone, take_turns
from ossicle.launch.bench_step import check_parts, notes
from ossicle.launch.config import compose, groups
from ossicle.launch.experiment import execution, resolved
from ossicle.system.build import build
from tests.launch.toy import TOY, on, ossicle, shrunk

WORK = StepWork(batch=2, samples=16_000, rate_hz=16_000, device="cpu", threads=1, seed=3, warmup=0)
TINY = [name for name in groups()["experiment"] if name.endswith("_tiny")]
SIZES = [item for item in TOY if not item.startswith(("precision", "batch_s", "data.", "wandb", "log_every"))]
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::masked_select", "aten::is_nonzero"}


def toy(experiment: str, *overrides: str) -> dict[str, object]:
    data = on("null", experiment)[:1]  # of one dataset or of a mixture; none is read
    return shrunk(resolved(compose("pretrain", [f"experiment={experiment}", *data, *SIZES, *overrides])))


class Slow(Subject):
    def __init__(self, _work: StepWork, loss: float = 1.0) -> None:
        self.loss = loss

    def step(self) -> Tensor:
        return torch.tensor(self.loss)

    def facts(self) -> Facts:
        return Facts(7, 1e9, "float32", compiled=False, note="nothing")


def refusing(_work: StepWork) -> Subject:
    raise ConfigError("it has no such size", "take another")


def breaking(_work: StepWork) -> Subject:
    raise RuntimeError("no kernel\nsecond line")


def test_in_one_process_a_system_is_measured_or_says_why_not() -> None:
    threads: list[int] = []

    def noting(work: StepWork) -> Subject:
        threads.append(torch.get_num_threads())
        return Slow(work)

    before = torch.get_num_threads()
    found = alone(noting, WORK, steps=3, rounds=2)
    assert (threads, torch.get_num_threads()) == ([WORK.threads], before)
    assert found.start is not None
    assert [turn.round.batches for turn in found.turns] == [3, 3]
    assert record("slow", found, WORK)["audio_s_per_s"] > 0
    reasons = [
        alone(build, WORK, steps=1, rounds=1).absent for build in (refusing, breaking, partial(Slow, loss=1e400))
    ]
    assert reasons == [
        "it has no such size: take another", "RuntimeError: no kernel", "its loss is not a number",
    ]  # fmt: skip


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("experiment", ["hubert_tiny", "wav2vec2_tiny", "wav2vec2_large_tiny"])
def test_two_bare_steps_leave_the_weights_that_two_steps_of_the_trainer_leave(experiment: str, precision: str) -> None:
    config = toy(experiment, f"precision={precision}", "max_steps=2")
    bare = BareStep(config, WORK)

    class Data(RandomData, lightning.LightningDataModule):
        def __init__(self) -> None:
            lightning.LightningDataModule.__init__(self)
            RandomData.__init__(self)

        def train_dataloader(self) -> DataLoader[Batch]:
            batches = [
                Batch(bare.batch.waveform_BS, n, *([bare.batch.ids_B] * 2), bare.batch.labels_BT) for n in (0, 1)
            ]
            return DataLoader(batches, batch_size=None)  # ty: ignore[invalid-argument-type]

    data = Data()
    system = build(experiment_of(config, data, WORK))
    lightning.Trainer(
        max_steps=2, accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(system, datamodule=data)  # fmt: skip
    for _ in range(2):
        bare.step()
    assert data.position == bare.loop.datamodule.position == 2
    wanted = dict(system.named_parameters())
    for name, value in bare.system.named_parameters():
        torch.testing.assert_close(value, wanted[name], atol=0, rtol=0, msg=name)


def test_how_blocks_are_run_is_told_by_the_config() -> None:
    losses = {}
    for how in ("recompute.blocks=0", "recompute.blocks=1 recompute.frontend=true", "precision=float8-emulated"):
        bare = BareStep(toy("hubert_large_tiny", "precision=bf16-mixed", *how.split()), WORK)
        losses[how] = [bare.step().item() for _ in range(2)]
    plain, again, float8 = losses.values()
    assert plain == again
    assert plain != float8
    assert float8 == pytest.approx(plain, rel=0.05)


def test_blocks_are_compiled_for_as_many_shapes_as_the_data_has() -> None:
    assert execution(toy("hubert_base")).num_shapes == 18
    assert execution(toy("hubert_base", "data.num_shapes=5")).num_shapes == 5


def test_what_cannot_be_run_so_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"recompute\.blocks=9, but the encoder has"):
        check_parts(toy("hubert_tiny", "recompute.blocks=9"), "hubert_tiny", 16_000)
    with pytest.raises(ConfigError, match="LogMel has no convolutions"):
        check_parts(toy("hubert_tiny", "recompute.frontend=true"), "hubert_tiny", 16_000)
    with pytest.raises(ConfigError, match="compile_mode=quick is unknown"):
        check_parts(toy("hubert_tiny", "compile=true", "compile_mode=quick"), "hubert_tiny", 16_000)


@pytest.mark.parametrize("experiment", TINY)
def test_a_step_never_reads_a_tensor(experiment: str) -> None:
    bare = BareStep(toy(experiment), WORK)
    bare.step()

    class Watch(TorchDispatchMode):
        seen: ClassVar[set[str]] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> object:  # noqa: ANN001
            self.seen.add(func._schema.name)
            return func(*args, **(kwargs or {}))

    with Watch() as watch:
        bare.step()
    assert "aten::mm" in watch.seen or "aten::addmm" in watch.seen
    assert not watch.seen & WAITS


@pytest.fixture
def _no_waiting() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("experiment", TINY)
def test_a_step_on_a_gpu_never_makes_the_host_wait(experiment: str) -> None:
    work = StepWork(batch=2, samples=16_000, rate_hz=16_000, device="cuda", threads=1, seed=0, warmup=0)
    bare = BareStep(toy(experiment, "cluster.accelerator=cuda"), work)
    for _ in range(2):
        bare.step()
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(3):
        bare.step()


def test_classes_are_those_of_the_last_run_of_the_chain() -> None:
    thin = ("frontend.convolutions=[[8,10,5],[8,64,64]]", "data.shards=null", *SIZES)
    bare = BareStep(resolved(compose("pretrain", ["experiment=hubert_base", *thin])), WORK)
    labels = bare.batch.labels_BT
    assert labels is not None
    assert bare.system.objective.target.num_classes == 500
    assert 400 < int(labels.max()) < 500 or labels.numel() < 200


def test_systems_that_fail_are_named_with_the_reason_and_the_others_are_measured() -> None:
    builders = {"whole": Slow, "refusing": refusing, "breaking": breaking, "nan": partial(Slow, loss=float("nan"))}
    found = take_turns(builders, WORK, steps=3, rounds=2)
    assert found["refusing"].absent == "it has no such size: take another"
    assert found["breaking"].absent == "RuntimeError: no kernel"
    assert found["nan"].absent == "its loss is not a number"
    assert found["whole"].absent is None
    assert [turn.round.batches for turn in found["whole"].turns] == [3, 3]
    assert [turn.round.audio_s for turn in found["whole"].turns] == [6.0, 6.0]
    assert found["whole"].peak_memory_bytes
    assert found["whole"].peak_memory_bytes > 10e6


def test_figures_are_those_of_the_formulas() -> None:
    turns = [Turn(Round(100.0, 10, 2.0, 4.0), 300.0, finite=True), Turn(Round(100.0, 10, 4.0, 5.0), 100.0, finite=True)]
    start = Start(Facts(9, 5e9, "bfloat16", compiled=True, note=""), "NVIDIA H100 80GB HBM3", 30.0)
    found = record("ossicle", Measured(None, start, turns, 5), WORK)
    assert found["audio_s_per_s"] == pytest.approx((50 + 25) / 2)
    assert found["audio_s_per_cpu_s"] == pytest.approx((25 + 20) / 2)
    assert found["step_ms"] == pytest.approx(300)
    assert found["flops_per_s"] == pytest.approx(2 * 3 * 5e9 * 37.5)
    assert found["mfu"] == pytest.approx(6 * 5e9 * 37.5 / 989.4e12)
    assert found["compile_s"] == pytest.approx(30 - 0.3)
    assert found["energy_kwh_per_audio_h"] == pytest.approx(400 / 3.6e6 / (200 / 3600))
    unknown = Start(Facts(9, "a reason", "float32", compiled=False, note=""), "a CPU", 30.0, "no counter")
    found = record("ossicle", Measured(None, unknown, [Turn(turns[0].round, None, finite=True)], 5), WORK)
    assert [found[key] for key in ("mfu", "flops_per_s", "energy_kwh_per_audio_h", "compile_s")] == [None] * 4
    assert found["macs_reason"] == found["mfu_reason"] == "a reason"
    assert found["energy_reason"] == "no counter"
    slow = Start(Facts(9, 5e9, "float32", compiled=False, note=""), "a CPU", 30.0, "no counter")
    found = record("ossicle", Measured(None, slow, [Turn(turns[0].round, None, finite=True)], 5), WORK)
    assert found["mfu_reason"] == "nothing here knows the peak of a CPU"
    told = notes([{**found, "versions": {"torch": "2.14", "triton": None}}] * 2)
    assert told == ["torch 2.14", f"MFU is unknown: {found['mfu_reason']}", "energy is unknown: no counter"]


def test_parts_that_do_not_fit_are_refused_before_a_process_starts() -> None:
    with pytest.raises(ConfigError, match="mine: mixer"):
        check_parts(
            {**toy("hubert_tiny"), "mixer": {"_target_": "ossicle.mixer.attention.Attention", "no": 1}}, "mine", 16_000
        )


def test_the_bench_measures_compositions_beside_each_other(tmp_path: Path) -> None:
    ran = ossicle(
        "bench", "step", 'experiments=[hubert_tiny,"best_rq_tiny mixer=rotary",xlsr_tiny]', *SIZES[:-1],
        "batch=2", "crop_s=1", "steps=2", "rounds=2", "precision=32-true", "out=records.json", cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    first, second, on_a_mixture = json.loads((tmp_path / "records.json").read_text())
    assert [first["experiment"], second["experiment"]] == ["hubert_tiny", "best_rq_tiny mixer=rotary"]
    assert first["ratio"] == 1
    assert on_a_mixture["audio_s_per_s"] > 0
    assert second["ratio"] == pytest.approx(second["audio_s_per_s"] / first["audio_s_per_s"])
    assert len(first["rounds"]) == 2
    assert first["precision"] == "float32"
    assert first["macs_per_audio_s"] > 1e6
    assert "best_rq_tiny mixer=rotary" in ran.stdout


def test_what_is_misspelt_or_not_there_is_refused(tmp_path: Path) -> None:
    for arguments, mend in (
        (["experiments=[hubert_tinny]"], "did you mean hubert_tiny"),
        (["mixer=atention"], "did you mean attention"),
        (["batch=0"], "give 1 or more"),
        *([] if torch.cuda.is_available() else [(["device=cuda"], "set device=cpu")]),
    ):
        ran = ossicle("bench", "step", *arguments, cwd=tmp_path)
        assert ran.returncode == 2, ran.stderr
        assert mend in ran.stderr
