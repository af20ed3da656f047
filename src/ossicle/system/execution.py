"""How blocks are run: with products in float8, made again on the way back, compiled. What they compute stays."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import nn
from torch.compiler import config as limits

from ossicle.core.errors import ConfigError, MissingExtraError
from ossicle.encoder.block import Block

MODES: Final = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
FLOAT8_CAPABILITY: Final = (8, 9)
"""The first GPUs (Ada, Hopper) that multiply float8."""
FLOAT8_MULTIPLE: Final = 16
"""What the sides of a matrix must divide by for it."""
RUNS: Final = 4
"""Ways in which a block meets a shape: in training or not, with a mask or without."""


@dataclass(frozen=True, slots=True)
class Execution:
    """How the blocks of a system's encoders are run.

    Args:
        compile: Whether each block is compiled, in place.
        compile_mode: torch.compile's mode; ``reduce-overhead`` and ``max-autotune`` run CUDA graphs.
        backend: torch.compile's backend.
        recompute_blocks: The first so many blocks of the trained encoder keep nothing for their gradient but what goes
            in: less memory, for one forward pass more of these.
        recompute_frontend: The same for every layer of the trained encoder's convolutional frontend.
        float8: Whether linear layers of the trained encoder's blocks multiply in float8 with a scale for each tensor
            (arXiv 2209.05433; torchao's dynamic scaling).
        emulate_float8: Whether float8 is rounded to and multiplied in a wider type: as exact as the GPU's, and slow.
        num_shapes: Static shapes that batches come in at most, for each of which blocks are compiled.

    Raises:
        ConfigError: A mode is unknown, a number below zero, or a mode is given where nothing is compiled.
    """

    compile: bool = False
    compile_mode: str = "default"
    backend: str = "inductor"
    recompute_blocks: int = 0
    recompute_frontend: bool = False
    float8: bool = False
    emulate_float8: bool = False
    num_shapes: int = 32

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.compile_mode not in MODES:
            raise ConfigError(f"compile_mode={self.compile_mode} is unknown", f"choose from {', '.join(MODES)}")
        if self.compile_mode != "default" and not self.compile:
            raise ConfigError(
                f"compile_mode={self.compile_mode}, but nothing is compiled", "set compile=true or compile_mode=default"
            )
        if self.recompute_blocks < 0:
            raise ConfigError(f"recompute.blocks={self.recompute_blocks} is below zero", "give a number of blocks")

    def prepare(self, model: nn.Module, teachers: Iterable[nn.Module] = ()) -> None:
        """Make a model run so; keys of weights stay as they are.

        Args:
            model: The trained encoder.
            teachers: Encoders that are run beside it, which are compiled as well.

        Raises:
            ConfigError: The encoder or its frontend has no parts of that kind.
            MissingExtraError: torchao is not installed.
        """
        if self.float8:
            convert_to_float8(_blocks(model, "precision=float8"), emulate=self.emulate_float8)
        if self.recompute_blocks:
            recompute_blocks(model, self.recompute_blocks)
        if self.recompute_frontend:
            recompute_frontend(model)
        if self.compile:
            for each in (model, *teachers):
                compile_blocks(each, self.backend, self.compile_mode, num_shapes=self.num_shapes)

    def begin_step(self) -> None:
        """Tell CUDA graphs that what an earlier step made may be written over."""
        if self.compile and self.compile_mode in {"reduce-overhead", "max-autotune"}:
            torch.compiler.cudagraph_mark_step_begin()


def _blocks(model: nn.Module, wish: str) -> nn.ModuleList:
    """A model's blocks.

    Raises:
        ConfigError: It has no list of them.
    """
    blocks = getattr(getattr(model, "encoder", None), "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        key, _, value = wish.partition("=")
        raise ConfigError(f"{wish}, but the encoder has no list of blocks", f"leave {key} as it was, not {value}")
    return blocks


def compile_blocks(
    model: nn.Module, backend: str | Callable[..., object], mode: str = "default", *, num_shapes: int = 32
) -> None:
    """Compile each block of a model's encoder, its positions and the norms before it, in place: keys stay as they are.

    Every shape has a graph of its own for each kind of block, in training and in evaluation; blocks of one kind share
    it. Blocks whose sizes differ from call to call have a few for all sizes and shapes instead. torch counts graphs by
    the code of a class, over all its modules, and runs whatever comes after its limit uncompiled, with a warning: the
    limit is raised, for the whole process, to what ``num_shapes`` can need.

    Args:
        model: The model.
        backend: torch.compile's backend.
        mode: torch.compile's mode, for inductor.
        num_shapes: Static shapes that batches come in at most.

    Raises:
        ConfigError: The encoder has no list of blocks.
    """
    parts = list(_blocks(model, "compile=true"))
    single = (
        getattr(model.encoder, "position", None),
        getattr(model.encoder, "norm", None),
        getattr(model, "norm", None),
    )
    parts += [part for part in single if isinstance(part, nn.Module)]
    most = RUNS * len(parts) * num_shapes
    limits.recompile_limit = max(limits.recompile_limit, most)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, most)
    for part in parts:
        dynamic = None if getattr(part, "narrows", False) else False
        part.compile(backend=backend, dynamic=dynamic, **({"mode": mode} if backend == "inductor" else {}))


def recompute_blocks(model: nn.Module, number: int) -> None:
    """Let the first blocks of a model's encoder be made again on the way back.

    Raises:
        ConfigError: There are fewer, or they are of a kind that its encoder does not make again.
    """
    blocks = _blocks(model, f"recompute.blocks={number}")
    if number > len(blocks) or not all(isinstance(block, Block) for block in blocks):
        have = len(blocks) if all(isinstance(block, Block) for block in blocks) else 0
        raise ConfigError(
            f"recompute.blocks={number}, but the encoder has {have} that can be made again",
            f"set recompute.blocks={have} or fewer",
        )
    for block in blocks[:number]:
        cast("Block", block).recompute = True


def recompute_frontend(model: nn.Module) -> None:
    """Let the layers of a model's frontend be made again on the way back.

    Raises:
        ConfigError: It has none.
    """
    frontend = getattr(model, "frontend", None)
    if not hasattr(frontend, "recompute"):
        raise ConfigError(
            f"recompute.frontend=true, but {type(frontend).__name__} has no convolutions to make again",
            "set recompute.frontend=false",
        )
    frontend.recompute = True


def convert_to_float8(blocks: nn.ModuleList, *, emulate: bool) -> None:
    """Let linear layers multiply in float8, forward and backward; weights stay what they are.

    Args:
        blocks: Where they are. A layer whose sides do not divide by 16 is left.
        emulate: Whether to multiply in a wider type what is rounded to float8.

    Raises:
        MissingExtraError: torchao is not installed.
        ConfigError: No GPU here multiplies float8, or no layer can be converted.
    """
    try:
        # Only here: it is an extra, and slow to import.
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("torchao", "float8", "precision=float8") from error
    if not emulate and not (torch.cuda.is_available() and torch.cuda.get_device_capability() >= FLOAT8_CAPABILITY):
        raise ConfigError(
            "precision=float8 needs a GPU that multiplies it (compute capability 8.9 or more)", "set precision=auto"
        )
    fits = [name for name, layer in blocks.named_modules() if _fits(layer)]
    if not fits:
        raise ConfigError(
            f"precision=float8, but no linear layer of the blocks has sides that divide by {FLOAT8_MULTIPLE}",
            "set precision=auto",
        )
    convert_to_float8_training(
        blocks, module_filter_fn=lambda layer, _: _fits(layer), config=Float8LinearConfig(emulate=emulate)
    )


def _fits(layer: nn.Module) -> bool:
    """Whether a module is a linear layer that float8 products take."""
    return type(layer) is nn.Linear and all(size % FLOAT8_MULTIPLE == 0 for size in layer.weight.shape)
