import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import nn

from ossicle.core.errors import ConfigError, MissingExtraError
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.transformer import Transformer
from ossicle.frontend.logmel import LogMel
from ossicle.frontend.wave import Wave
from ossicle.mixer.attention import Attention
from ossicle.mixer.reused_attention import ReusedAttentionStack
from ossicle.system.build import build
from ossicle.system.execution import Execution, compile_blocks, convert_to_float8, recompute_blocks
from ossicle.system.pretraining import Pretraining
from tests.encoder.test_contract import NAMES as ENCODERS
from tests.encoder.test_contract import encoder
from tests.system.toys import toy_experiment, toy_run

MIXERS = {
    "attention": partial(Attention, num_heads=2, dropout=0.2),
    "reused_attention": ReusedAttentionStack(num_heads=2, dropout=0.2),
}
MODEL: dict[str, Any] = {
    "frontend": partial(Wave, ((16, 10, 5), (16, 8, 8), (16, 8, 8))),
    "mixer": MIXERS["attention"],
    "encoder": partial(
        Transformer, dim=16, num_layers=4, ffn_dim=32, dropout=0.2, layer_drop=0.3, position_kernel=3, position_groups=2
    ),
    "model": Backbone,
}


def trained(run_dir: Path, **changes: object) -> dict[str, torch.Tensor]:
    trainer, system = toy_run(run_dir, max_steps=4, **(MODEL | changes))
    assert isinstance(trainer, Trainer)
    assert isinstance(system, Pretraining)
    assert trainer.global_step == 4
    return system.state_dict()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert list(first) == list(second)
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("mixer", MIXERS)
def test_recomputing_changes_no_weight(mixer: str, tmp_path: Path) -> None:
    plain = trained(tmp_path, mixer=MIXERS[mixer])
    for execution in (Execution(recompute_blocks=4, recompute_frontend=True), Execution(recompute_blocks=1)):
        assert same(plain, trained(tmp_path, mixer=MIXERS[mixer], execution=execution))


def test_compiled_blocks_may_be_recomputed(tmp_path: Path) -> None:
    # without dropout, of which a compiled graph draws another
    still: dict[str, Any] = {"encoder": partial(MODEL["encoder"], dropout=0.0)}
    still["mixer"] = partial(Attention, num_heads=2, dropout=0.0)
    plain = trained(tmp_path, **still)
    again = trained(tmp_path, execution=Execution(recompute_blocks=4, compile=True, backend="aot_eager"), **still)
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, msg=name)


def kept_bytes(execution: Execution) -> int:
    """What one forward pass of the model keeps for its gradient, besides weights."""
    model = build(toy_experiment(execution=execution, **MODEL)).model.train()
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.data_ptr() not in weights:
            sizes[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = model(torch.randn(2, 8000)).last_BTD
    assert out.requires_grad
    return sum(sizes.values())


def test_the_more_is_recomputed_the_less_is_kept() -> None:
    kept = [kept_bytes(Execution(recompute_blocks=number)) for number in (0, 2, 4)]
    kept.append(kept_bytes(Execution(recompute_blocks=4, recompute_frontend=True)))
    assert all(less < more for more, less in itertools.pairwise(kept))
    assert kept[3] < kept[0] / 2


@pytest.mark.parametrize(
    ("execution", "changes", "problem"),
    [
        (Execution(recompute_blocks=5), {}, "recompute.blocks=5, but the encoder has 4"),
        (Execution(recompute_frontend=True), {"frontend": LogMel}, "LogMel has no convolutions"),
    ],
)
def test_what_cannot_be_recomputed_is_refused(
    execution: Execution, changes: dict[str, Callable[[], nn.Module]], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        build(toy_experiment(execution=execution, **(MODEL | changes)))


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoders_blocks_are_made_again_to_the_same_gradients(name: str) -> None:
    mixer = partial(Attention, num_heads=2, dropout=0.2)
    rates = {} if name == "recurrent" else {"dropout": 0.2}
    made: list[list[torch.Tensor | None]] = []
    kept: list[int] = []
    for number in (0, 3):
        built = encoder(name, mixer, **rates).train()
        recompute_blocks(nn.ModuleDict({"encoder": built}), min(number, built.num_layers))
        x_BTD = torch.randn(2, 40, built.input_dim, generator=torch.Generator().manual_seed(0))
        held: dict[int, int] = {}

        def keep(x: torch.Tensor, held: dict[int, int] = held) -> torch.Tensor:
            held[x.data_ptr()] = x.untyped_storage().nbytes()
            return x

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out_BTD = built(x_BTD).last_BTD
        out_BTD.square().sum().backward()
        kept.append(sum(held.values()))
        made.append([parameter.grad for parameter in built.parameters()])
    assert kept[1] < kept[0]
    assert all(ours is not None and torch.equal(ours, theirs) for ours, theirs in zip(*made, strict=True))


def test_blocks_that_their_encoder_runs_itself_are_not_said_to_be_recomputed() -> None:
    with pytest.raises(ConfigError, match="the encoder has 0 that can be made again"):
        build(toy_experiment(execution=Execution(recompute_blocks=1)))


def test_modes_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="compile_mode=fast is unknown"):
        Execution(compile=True, compile_mode="fast")
    with pytest.raises(ConfigError, match="nothing is compiled"):
        Execution(compile_mode="reduce-overhead")
    with pytest.raises(ConfigError, match="below zero"):
        Execution(recompute_blocks=-1)


def test_compiling_in_place_changes_neither_keys_nor_outputs() -> None:
    plain, compiled = build(toy_experiment()), build(toy_experiment())
    compile_blocks(compiled.model, "aot_eager")
    assert list(plain.state_dict()) == list(compiled.state_dict())
    waveform = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain.eval().model(waveform).last_BTD
        torch.testing.assert_close(compiled.eval().model(waveform).last_BTD, expected)


def test_compiling_what_has_no_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="no list of blocks"):
        compile_blocks(nn.Linear(2, 2), "eager")


@pytest.mark.slow
def test_a_mode_of_cuda_graphs_trains_on_a_cpu_too_where_there_are_none(tmp_path: Path) -> None:
    # Inductor leaves graphs out on a CPU: that the mode is told, and that each step begins anew, is what can be seen.
    still: dict[str, Any] = {"encoder": partial(MODEL["encoder"], dropout=0.0, layer_drop=0.0, num_layers=1)}
    still["mixer"] = partial(Attention, num_heads=2, dropout=0.0)
    plain = trained(tmp_path, **still)
    graphs = trained(tmp_path, execution=Execution(compile=True, compile_mode="reduce-overhead"), **still)
    for name, value in plain.items():
        torch.testing.assert_close(graphs[name], value, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_train_to_the_same_weights(tmp_path: Path) -> None:
    still: dict[str, Any] = {"encoder": partial(MODEL["encoder"], dropout=0.0, layer_drop=0.3)}
    still |= {"mixer": partial(Attention, num_heads=2, dropout=0.0), "accelerator": "cuda", "precision": "32-true"}
    plain = trained(tmp_path, **still)
    graphs = trained(tmp_path, execution=Execution(compile=True, compile_mode="reduce-overhead"), **still)
    for name, value in plain.items():
        torch.testing.assert_close(graphs[name], value, atol=1e-3, rtol=1e-3, msg=name)


def test_float8_keeps_the_keys_and_nearly_the_loss(tmp_path: Path) -> None:
    losses = []
    states = []
    for execution in (Execution(), Execution(float8=True, emulate_float8=True)):
        _, system = toy_run(tmp_path, precision="bf16-mixed", execution=execution, max_steps=8, **MODEL)
        assert isinstance(system, Pretraining)
        losses.append(system.last_loss)
        states.append(system.state_dict())
    assert list(states[0]) == list(states[1])
    assert not torch.equal(*(state["model.encoder.blocks.0.feed_forward.expand.weight"] for state in states))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_float8_products_are_those_of_rounded_factors() -> None:
    # the largest magnitude of a tensor becomes float8's own, 448 with three bits of mantissa (arXiv 2209.05433)
    torch.manual_seed(0)
    linear = nn.Linear(32, 16, bias=False)
    blocks = nn.ModuleList([nn.Sequential(linear)])
    x = torch.randn(4, 32)

    def rounded(value: torch.Tensor) -> torch.Tensor:
        scale = 448 / value.abs().max().double()
        return (value.double() * scale).float().to(torch.float8_e4m3fn).double() / scale

    wanted = rounded(x) @ rounded(linear.weight.detach()).T
    convert_to_float8(blocks, emulate=True)
    torch.testing.assert_close(blocks[0](x).double(), wanted, atol=2e-3, rtol=1e-3)
    assert (wanted - x.double() @ linear.weight.detach().double().T).abs().max() > 0.01  # it is not the exact product


def test_float8_without_a_gpu_without_fitting_layers_or_without_torchao_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitting = nn.ModuleList([nn.Linear(16, 16)])
    with monkeypatch.context() as here:
        here.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ConfigError, match=r"compute capability 8\.9"):
            convert_to_float8(fitting, emulate=False)
    with pytest.raises(ConfigError, match="divide by 16"):
        convert_to_float8(nn.ModuleList([nn.Linear(12, 16)]), emulate=True)
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(MissingExtraError, match=r"ossicle\[float8\]"):
        convert_to_float8(fitting, emulate=True)
