"""What a model's layers make of a batch: the outputs of its blocks, or of the feed-forward networks in them."""

from collections.abc import Callable
from typing import Literal, final

from torch import Tensor, nn

from ossicle.core.batch import EncoderOutput
from ossicle.core.errors import ConfigError
from ossicle.layer.feed_forward import FeedForward
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.ops.pooling import repeat_frames

Read = Literal["blocks", "feed_forward"]


class Recorder:
    """A forward hook that keeps what its modules return, in the order of their calls."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def __call__(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep one output."""
        self.outputs.append(output)


@final
class LayerReader:
    """Reads one tensor of frames from each of a model's layers.

    ``feed_forward`` reads the last feed-forward network of each block before its residual sum: the best target that
    data2vec found (arXiv 2202.03555, section 5.4 and table 6). What a layer makes at a lower rate is repeated to the
    encoder's own clock, as encoders do with their blocks' outputs.

    Args:
        model: The model that is read from; its feed-forward networks get a hook each.
        read: What is read of each block.

    Raises:
        ConfigError: Feed-forward networks are to be read, and not every block has one.
    """

    def __init__(self, model: SpeechEncoder, read: Read) -> None:
        self.num_layers = model.num_layers
        self.factors = tuple(model.layer_factor(layer + 1) for layer in range(model.num_layers))
        self.recorder: Recorder | None = None
        self.networks = 1
        if read == "blocks":
            return
        found = [module for module in model.modules() if isinstance(module, FeedForward)]
        if not found or len(found) % model.num_layers:
            raise ConfigError(
                f"target.read=feed_forward, but the encoder has {len(found)} feed-forward networks in"
                f" {model.num_layers} blocks",
                "set target.read=blocks",
            )
        self.networks = len(found) // model.num_layers
        self.recorder = Recorder()
        for module in found:
            module.register_forward_hook(self.recorder)

    def __call__(self, encode: Callable[[bool], EncoderOutput]) -> tuple[Tensor, ...]:
        """Outputs of all layers, from the first to the last, L tensors (B, T, D).

        Args:
            encode: Runs the model; told whether the blocks' outputs are asked for.
        """
        if self.recorder is None:
            return encode(True).layers[1:]
        self.recorder.outputs.clear()
        num_frames = encode(False).last_BTD.shape[1]
        outputs = self.recorder.outputs[self.networks - 1 :: self.networks]
        self.recorder.outputs.clear()  # the list above is another one
        return tuple(
            output if factor == 1 else repeat_frames(output, factor, num_frames)
            for output, factor in zip(outputs, self.factors, strict=True)
        )
