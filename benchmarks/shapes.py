"""How much audio an epoch leaves unheard, by the number of static shapes and how they are chosen.

    python benchmarks/shapes.py max_crop_s=15.6 max_cut=0.1 out=shapes.json

LibriSpeech's lengths are modelled (benchmarks/lengths.py). ``optimal`` is what training uses; ``even`` are lengths of
even distance, ``quantiles`` those that hold equally many utterances each.
"""

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.lengths import RATE_HZ, librispeech_lengths
from ossicle.data.buckets import Shapes, choose_shapes

QUANTUM = 320
MIN_CROP_S = 2.0


def listed(lengths: NDArray[np.floating], like: Shapes) -> Shapes:
    """Shapes of a list of lengths, with the rule of pieces of other shapes."""
    whole = np.unique(lengths.astype(np.int64) // QUANTUM * QUANTUM).tolist()
    return Shapes(tuple(whole), (1,) * len(whole), like.pieces)


def alternatives(samples_N: NDArray[np.int64], num_shapes: int, max_crop_s: float, max_cut: float) -> dict[str, Shapes]:
    """Shapes chosen in three ways."""
    best = choose_shapes(
        samples_N, max_crop_s=max_crop_s, min_crop_s=MIN_CROP_S, num_shapes=num_shapes, batch_s=87.5, max_cut=max_cut
    )
    shortest, longest = MIN_CROP_S * RATE_HZ, max_crop_s * RATE_HZ
    kept_N = np.minimum(samples_N[samples_N >= shortest], longest)
    return {
        "optimal": best,
        "even": listed(np.linspace(shortest, longest, num_shapes), best),
        "quantiles": listed(np.quantile(kept_N, np.arange(num_shapes) / num_shapes), best),
    }


def main(arguments: list[str]) -> None:
    """Print a table, and write the records where ``out`` is given."""
    given = dict(argument.split("=", 1) for argument in arguments)
    max_crop_s, max_cut = float(given.get("max_crop_s", "15.6")), float(given.get("max_cut", "0.1"))
    samples_N = librispeech_lengths()
    records = []
    print(f"{samples_N.mean() / RATE_HZ:.2f} s in the mean, {samples_N.sum() / RATE_HZ / 3600:.1f} h")
    print("| shapes | chosen | unheard of what a crop can hold | unheard of all | mean crop |\n|---|---|---|---|---|")
    for num_shapes in (2, 4, 6, 8, 12, 16, 18, 24):
        for how, shapes in alternatives(samples_N, num_shapes, max_crop_s, max_cut).items():
            within = shapes.unused_fraction(samples_N, int(max_crop_s * RATE_HZ))
            overall = shapes.unused_fraction(samples_N)
            crops_N = np.asarray((*shapes.lengths, 0))[shapes.assign(samples_N)]
            pieces_N = shapes.num_pieces(samples_N) * (crops_N > 0)
            mean_s = float((crops_N * pieces_N).sum() / pieces_N.sum() / RATE_HZ)
            print(f"| {num_shapes} | {how} | {within:.2%} | {overall:.2%} | {mean_s:.2f} s |")
            records.append(
                {"shapes": num_shapes, "chosen": how, "within": within, "overall": overall, "lengths": shapes.lengths}
            )
    if "out" in given:
        Path(given["out"]).write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
