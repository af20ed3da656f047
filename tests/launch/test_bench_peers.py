import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torchaudio.models import hubert_pretrain_base

from ossicle.core.errors import ConfigError
from ossicle.launch.bench.bare import BareStep
from ossicle.launch.bench.peers import minimal_hubert, ossicle, speechbrain, torchaudio, transformers
from ossicle.launch.bench.peers.shape import SHAPES, LogMelFrames, Shape
from ossicle.launch.bench.peers.torch_step import TorchStep
from ossicle.launch.bench.steps import StepWork
from ossicle.launch.bench_peers import shape_of, systems
from ossicle.launch.config import compose
from ossicle.launch.experiment import build_on_meta, resolved
from ossicle.meter.flops import count_macs
from tests.launch.toy import ossicle as run_ossicle
from tests.lazy import forget_lazy_modules

WORK = StepWork(batch=2, samples=16_000, rate_hz=16_000, device="cpu", threads=1, seed=3, warmup=0)
SMALL = {
    "dim": 32, "layers": 2, "heads": 2, "ffn_dim": 64, "conv_dim": 16, "classes": 20, "final_dim": 16,
    "position_kernel": 8, "position_groups": 4,
}  # fmt: skip
WAVE = Shape(**SMALL)
MEL = shape_of({"model": "hubert_tiny", "sizes": SMALL, "layer_drop": 0.0})
PEERS = [
    (transformers.hubert, WAVE), (transformers.hubert, MEL), (transformers.wav2vec2, WAVE), (torchaudio.hubert, WAVE),
    (torchaudio.hubert, MEL), (speechbrain.wav2vec2, WAVE), (ossicle.hubert, WAVE), (ossicle.hubert, MEL),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_lazy_modules_stay() -> Iterator[None]:
    yield
    forget_lazy_modules()


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(("build", "shape"), PEERS)
def test_every_parameter_of_every_system_is_trained(build, shape: Shape, bfloat16: bool) -> None:  # noqa: ANN001
    subject = build(shape, StepWork(2, 16_000, 16_000, "cpu", 1, 3, 0, bfloat16=bfloat16))
    loss = subject.step()
    assert torch.isfinite(loss)
    wanted = 1 if isinstance(subject, BareStep) else 0
    trained = subject.optimizer.state
    parameters = [p for group in subject.optimizer.param_groups for p in group["params"]]
    assert len(trained) == len(parameters) > 10
    still = [p for p in parameters if not trained[p]["exp_avg"].abs().sum() > 0]
    # biases before a normalisation, and of keys, whose gradients are nothing but rounding, may be exactly zero
    assert sum(p.numel() for p in still) <= max(wanted, 0.02 * sum(p.numel() for p in parameters))
    facts = subject.facts()
    assert facts.precision == ("bfloat16" if bfloat16 else "float32")
    assert facts.params == sum(p.numel() for p in parameters)
    assert facts.note


@pytest.mark.parametrize("shape", [WAVE, MEL])
def test_the_systems_have_the_same_parameters(shape: Shape) -> None:
    counts = {build.__module__: build(shape, WORK).facts().params for build in (
        transformers.hubert, torchaudio.hubert, ossicle.hubert)}  # fmt: skip
    assert len(set(counts.values())) == 1, counts


def test_the_base_model_is_that_of_torchaudio_and_of_the_experiment() -> None:
    shape = SHAPES["hubert_base"]
    with FakeTensorMode():  # torchaudio's initialisation goes through the host, which the meta device has none of
        built = torchaudio.model_of(shape).state_dict()
        wanted = hubert_pretrain_base(num_classes=500).state_dict()
    assert {key: x.shape for key, x in built.items()} == {key: x.shape for key, x in wanted.items()}
    own = resolved(compose("pretrain", ["experiment=hubert_base", "data.shards=null"]))
    told = resolved(compose("pretrain", ossicle.overrides(shape, WORK)))
    assert told["encoder"] == {**own["encoder"], "layer_drop": 0.0}
    for part in ("frontend", "mixer", "model"):
        assert told[part] == own[part]
    build_on_meta(told)


@pytest.mark.parametrize("seconds", [1, 15.6])
def test_multiplications_are_those_that_torch_counts_in_torchaudio(seconds: float) -> None:
    samples = round(16_000 * seconds)
    with FakeTensorMode():
        model = torchaudio.model_of(SHAPES["hubert_base"]).wav2vec2.eval()
        counted = count_macs(partial(model, torch.empty(1, samples)))
    # with an even kernel the position convolution makes a frame more, which is cut away
    assert counted == SHAPES["hubert_base"].macs(samples) + 768 * 48 * 128


@pytest.mark.parametrize("samples", [16_000, 16_159, 32_000, 249_600])
@pytest.mark.parametrize("shape", [WAVE, MEL])
def test_frames_are_those_of_the_clock(shape: Shape, samples: int) -> None:
    own = ossicle.hubert(shape, StepWork(1, 16_000, 16_000, "cpu", 1, 0, 0)).system.model.clock
    assert shape.frames(samples) == own.num_frames(samples)
    if not shape.wave:
        assert LogMelFrames(16_000)(torch.randn(1, samples)).shape == (1, shape.frames(samples), shape.feature_dim)


def test_every_row_has_the_masks_of_the_experiment() -> None:
    masked_BT = SHAPES["hubert_base"].masked_flags(4, 128_000, 0, "cpu")
    assert masked_BT.sum(1).tolist() == [round(399 * (1 - 0.92**10))] * 4


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="minimal-hubert runs here")
def test_minimal_hubert_says_which_python_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"3\.12"):
        minimal_hubert.hubert(SHAPES["hubert_base"], WORK)


def test_minimal_hubert_trains_where_it_is_installed() -> None:
    pytest.importorskip("minimal_hubert", exc_type=(ImportError, SyntaxError))
    subject = minimal_hubert.hubert(SHAPES["hubert_base"], StepWork(1, 8_000, 16_000, "cpu", 1, 0, 0))
    assert torch.isfinite(subject.step())
    assert subject.facts().params == torchaudio.hubert(SHAPES["hubert_base"], WORK).facts().params


def test_compiled_is_what_eager_is() -> None:
    eager = transformers.hubert(WAVE, WORK)
    model = eager.model.eval()
    wanted = eager.loss()
    model.compile(backend="aot_eager")
    torch.testing.assert_close(eager.loss(), wanted, atol=1e-4, rtol=1e-4)
    assert isinstance(eager, TorchStep)


def test_the_bench_writes_a_record_a_system_and_precision(tmp_path: Path) -> None:
    sizes = ", ".join(f"{key}: {value}" for key, value in SMALL.items())
    ran = run_ossicle(
        "bench", "peers", "systems=[ossicle,torchaudio,minimal_hubert]", f"sizes={{{sizes}}}", "batch=2", "crop_s=1",
        "steps=2", "rounds=2", "threads=1", "out=records.json", cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    records = json.loads((tmp_path / "records.json").read_text())
    assert [(r["system"], r["precision"]) for r in records] == [
        (name, precision)
        for precision in ("float32", "bfloat16")
        for name in ("ossicle", "torchaudio", "minimal_hubert")
    ]  # fmt: skip
    ours, peer, absent = records[:3]
    assert ours["params"] == peer["params"]
    assert ours["macs_per_audio_s"] == peer["macs_per_audio_s"]
    assert peer["ratio"] == pytest.approx(peer["audio_s_per_s"] / ours["audio_s_per_s"])
    assert absent["audio_s_per_s"] is None
    assert absent["absent"] in ran.stdout
    assert ours["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert ours["sizes"]["dim"] == 32


def test_words_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean layers"):
        shape_of({"model": "hubert_base", "sizes": {"layer": 2}, "layer_drop": 0.0})
    with pytest.raises(ConfigError, match="hubert_base"):
        shape_of({"model": "hubert_bas", "sizes": None, "layer_drop": 0.0})
    ran = run_ossicle("bench", "peers", "systems=[torchaudo]", cwd=tmp_path)
    assert ran.returncode == 2
    assert "did you mean torchaudio" in ran.stderr
    assert "minimal_hubert" in systems()
