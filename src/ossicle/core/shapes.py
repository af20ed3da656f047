"""The legend of dimension letters used in shapes, annotations and local names.

====  =========================================================
B     rows of a batch: one cropped utterance each
S     waveform samples
T     frames
C     channels of a frontend (convolution or filter bank)
D     model width
H     attention heads
K     width of one head
F     width inside a feed-forward block
M     masked frames of a row (the same for every row of a batch)
N     negatives (distractors) a masked frame
V     codes of a codebook, classes
G     codebook groups of a product quantiser
L     layers
P     packed frames: utterances end to end in one row
====  =========================================================

A public tensor argument is annotated with these letters (``Float[Tensor, "B T D"]``); a local name takes them as a
suffix where its layout differs from its neighbours (``q_BTHK``). Masks have one polarity: True is real, or kept.
"""

from jaxtyping import Bool, Float, Int, Int64

__all__ = ["Bool", "Float", "Int", "Int64"]
