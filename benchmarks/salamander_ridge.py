"""The ridge decoder on the salamander retina: the figures that a reconstruction has to beat.

python -m benchmarks.salamander_ridge --data FOLDER

FOLDER holds spikecounts_177x36000_u8.npy and stim_crop80x80_bits_36000x800.npy. Spikes in frames t .. t + 15
decode frame t of the 80 x 80 checkers pooled 4 x 4. Fitted on frames 0..26,999; penalty and pixels chosen on
27,100..29,979; scored on 30,100..35,979. Two decoders: `reference` with the penalty at which the figures that
come with the recording (0.040, 0.090, 0.187) come out, `validated` with the one that validation chooses.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.decodable import decodable_mask, smoothed_correlation
from neurorecon.evaluation.linear_decoder import LinearDecoder, fit_linear_decoder
from neurorecon.evaluation.movie_metrics import movie_correlation

TRAIN, VALIDATION, TEST = slice(0, 27_000), slice(27_100, 29_980), slice(30_100, 35_980)
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
# Validation chooses a larger one, better without smoothing and worse with it.
REFERENCE_PENALTY = 1e5 / 27_000


def read(folder: Path, pooling: int) -> tuple[np.ndarray, np.ndarray]:
    """(responses (time, neuron), movie (time, height, width) in 0..255), both float32."""
    try:
        spikes = np.load(folder / "spikecounts_177x36000_u8.npy")
        bits = np.load(folder / "stim_crop80x80_bits_36000x800.npy")
    except (OSError, ValueError) as error:
        raise NeuroreconError(f"{folder}: expected the recording's two .npy files ({error})") from error
    # On disk the board is [frame, x, y]; a movie is (time, height, width).
    board = np.unpackbits(bits, axis=1).reshape(len(bits), 80, 80).transpose(0, 2, 1)
    size = 80 // pooling
    movie = board.reshape(len(board), size, pooling, size, pooling).mean(axis=(2, 4), dtype=np.float32)
    return spikes.T.astype(np.float32), movie * 255


def fit(responses: np.ndarray, movie: np.ndarray, penalties: Sequence[float]) -> LinearDecoder:
    """The decoder, fitted on `TRAIN`, its penalty chosen on `VALIDATION`."""
    return fit_linear_decoder(
        [responses[TRAIN]],
        [movie[TRAIN]],
        [responses[VALIDATION]],
        [movie[VALIDATION]],
        num_lags=16,
        penalties=penalties,
        backgrounds=("level",),
    )


def scores(decoder: LinearDecoder, responses: np.ndarray, movie: np.ndarray) -> dict[str, float]:
    """The three figures on `TEST`; the pixels chosen on `VALIDATION`."""
    mask = decodable_mask([movie[VALIDATION]], [decoder.predict(responses[VALIDATION])])
    decoded = decoder.predict(responses[TEST])
    return {
        "everywhere": movie_correlation(movie[TEST], decoded, None),
        "best_quarter": movie_correlation(movie[TEST], decoded, mask),
        "best_quarter_smoothed": smoothed_correlation(movie[TEST], decoded, mask, sigma=2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the recording")
    parser.add_argument("--pooling", type=int, default=4, help="checkers pooled along each side (default 4)")
    arguments = parser.parse_args()
    try:
        start = time.perf_counter()
        responses, movie = read(arguments.data, arguments.pooling)
        for name, penalties in {"reference": (REFERENCE_PENALTY,), "validated": PENALTIES}.items():
            decoder = fit(responses, movie, penalties)
            print(f"{name}: penalty {decoder.penalty:.3g} a frame")
            for penalty, value in decoder.validation_correlations.items():
                print(f"  validation at {penalty:<8.3g} {value:.4f}")
            for key, value in scores(decoder, responses, movie).items():
                print(f"  {key:22} {value:.4f}")
        print(f"{time.perf_counter() - start:.1f} s")
    except NeuroreconError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
