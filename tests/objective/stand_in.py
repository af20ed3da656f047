"""What stands for an encoder where a test says what comes out of it."""

from collections.abc import Callable

from torch import Tensor

from ossicle.core.batch import EncoderOutput
from ossicle.ops.masking import gather_frames


def encodes(make: Callable[[Tensor], Tensor], layers: tuple[Tensor, ...] = ()) -> Callable[..., EncoderOutput]:
    """An ``encode`` that makes this of embedded frames, and returns those that are read alone where it is told."""

    def encode(
        x_BTD: Tensor, valid_BT: Tensor | None = None, *, read_BM: Tensor | None = None, **_: object
    ) -> EncoderOutput:
        del valid_BT
        last_BTD = make(x_BTD)
        return EncoderOutput(last_BTD if read_BM is None else gather_frames(last_BTD, read_BM), layers)

    return encode
