"""Time averages of a trajectory: correlations by FFT, displacements, means with error bars.

A correlation is unbiased: zeros are padded so that the end never meets the beginning, and every lag
is divided by its own number of pairs. Host numpy, float64; time is the first axis.
"""

import numpy as np

from jaxmlip.errors import DataError

CHUNK = 2**23  # numbers transformed at a time


def correlation(x, y=None, *, n_lags: int | None = None, weights=None) -> np.ndarray:
    """C(k) = sum over columns of w x(t) y(t + k), averaged over t; [n_lags].

    x, y: [n_frames, ...]; y is x by default. weights: broadcast to a frame. Means are not taken
    off. n_lags: lags 0 to n_lags - 1, all by default. Linear in y, quadratic in x alone.
    """
    x = columns(x)
    y = x if y is None else columns(y)
    if x.shape != y.shape:
        raise DataError(f"series of shapes {x.shape} and {y.shape} cannot be correlated")
    n_frames, n_columns = x.shape
    n_lags = _lags(n_lags, n_frames)
    weights = _weights(weights, n_columns)
    size = fast_length(n_frames + n_lags)
    total = np.zeros(size // 2 + 1, complex)
    for part in _parts(n_columns, size):
        a = np.fft.rfft(x[:, part].astype(np.float64), size, axis=0)
        b = a if y is x else np.fft.rfft(y[:, part].astype(np.float64), size, axis=0)
        total += (a.conj() * b) @ weights[part]
    return np.fft.irfft(total, size)[:n_lags] / (n_frames - np.arange(n_lags))


def square_displacements(positions, *, n_lags: int | None = None) -> np.ndarray:
    """<|r(t + k) - r(t)|²> averaged over t and atoms, [n_lags], Å² for Å.

    positions: [n_frames, n_atoms, 3], not wrapped. By FFT (Calandrini et al., 2011,
    10.1051/sfn/201112010), around the mean, so that little is lost in the difference.
    """
    r = np.asarray(positions, np.float64)
    if r.ndim != 3:
        raise DataError(f"positions have shape {r.shape}, not [n_frames, n_atoms, 3]")
    r = r - r.mean(0)
    n_frames, n_lags = len(r), _lags(n_lags, len(r))
    square = np.concatenate([[0.0], np.cumsum((r**2).sum((1, 2)))])
    k = np.arange(n_lags)
    ends = square[n_frames - k] + square[n_frames] - square[k]
    return (ends / (n_frames - k) - 2 * correlation(r, n_lags=n_lags)) / r.shape[1]


def block_average(x, *, n_blocks: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """(mean [...], its standard error [...]) of a series [n_frames, ...] from means of blocks.

    Right where blocks are much longer than `correlation_time`; what does not fill the last block
    counts in the mean alone.
    """
    x = np.asarray(x, np.float64)
    means = np.stack([part.mean(0) for part in blocks(x, n_blocks)])
    return x.mean(0), standard_error(means)


def standard_error(values) -> np.ndarray:
    """Of the mean of independent values [n, ...]; NaN for fewer than two."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    return values.std(0, ddof=1) / np.sqrt(len(values))


def blocks(x, n_blocks: int) -> list:
    """Equal, contiguous parts of a series; a remainder at the end is left out."""
    size = len(x) // n_blocks if n_blocks > 0 else 0
    if size < 1:
        raise DataError(f"{len(x)} frames cannot be cut into {n_blocks} blocks")
    return [x[i * size : (i + 1) * size] for i in range(n_blocks)]


def correlation_time(x, *, window: float = 6.0) -> float:
    """Frames per independent sample of a series [n_frames]: 1 + 2 x sum of its correlations.

    The sum ends at the first lag beyond `window` times half of itself (Sokal, 1997,
    10.1007/978-1-4899-0319-8_6). The error of the mean is sqrt(variance x this / n_frames).
    """
    x = columns(x)
    if x.shape[1] != 1:
        raise DataError(f"one series is needed, [n_frames], not shape {x.shape}")
    c = correlation(x - x.mean(0))
    if c[0] <= 0:
        return 1.0
    sums = 2 * np.cumsum(c / c[0]) - 1
    beyond = np.arange(len(c)) >= window * sums / 2
    return float(max(sums[np.argmax(beyond)] if beyond.any() else sums[-1], 1.0))


def columns(x) -> np.ndarray:
    """A finite series as [n_frames, n_columns]."""
    x = np.asarray(x)
    if x.ndim == 0 or len(x) < 2:
        raise DataError(f"a series needs at least two frames; this has shape {x.shape}")
    x = x.reshape(len(x), -1)
    bad = ~np.isfinite(x).all(1)
    if bad.any():
        raise DataError(f"values are not finite in {bad.sum()} frames, first {int(bad.argmax())}")
    return x


def fast_length(n: int) -> int:
    """The least 2^a 3^b 5^c that is not below n: FFTs of it are fast."""
    best = 1 << max(n - 1, 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            two = three << max(-(-n // three) - 1, 0).bit_length()
            best = min(best, two)
            three *= 3
        five *= 5
    return best


def _lags(n_lags, n_frames):
    n_lags = n_frames if n_lags is None else n_lags
    if not 1 <= n_lags <= n_frames:
        raise DataError(f"{n_lags} lags of {n_frames} frames; there are 1 to {n_frames}")
    return n_lags


def _weights(weights, n_columns):
    if weights is None:
        return np.ones(n_columns)
    weights = np.asarray(weights, np.float64).ravel()
    if weights.shape != (n_columns,):
        raise DataError(f"{weights.size} weights for {n_columns} columns")
    return weights


def _parts(n_columns, size):
    width = max(CHUNK // size, 1)
    return (slice(i, i + width) for i in range(0, n_columns, width))
