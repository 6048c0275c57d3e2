"""How good predicted surface normals are: angles, and the published L1.

A measure returns sums for each row, which are added over every row, batch, device and host; `finish` makes the metrics
of the totals.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Normals = Float[Array, "rows height width 3"]
Valid = Bool[Array, "rows height width"]

THRESHOLDS = (5.0, 7.5, 11.25, 22.5, 30.0)
# The pooled median comes from a histogram with bins of 0.02 degrees and is off by at most that.
BINS, LARGEST = 9000, 180.0


def angles(prediction: Normals, truth: Normals) -> Float[Array, "rows height width"]:
    """Angles in degrees between predicted normals of any length and unit normals; 90 for a prediction of length 0.

    By the arctangent of sine and cosine: the arccosine in float32 is off by 0.02 degrees where vectors agree.
    """
    prediction = prediction.astype(jnp.float32)
    cosine = (prediction * truth).sum(-1)
    sine = jnp.linalg.norm(jnp.cross(prediction, truth), axis=-1)
    return jnp.degrees(jnp.where((cosine == 0) & (sine == 0), jnp.pi / 2, jnp.arctan2(sine, cosine)))


def measure(prediction: Normals, truth: Normals, valid: Valid) -> dict[str, Float[Array, "rows *bins"]]:
    """Sums of the metrics for each image.

    Args:
      prediction: normals of any length, in the scale of unit vectors: of a network that predicts encodings v in [0, 1],
        2v − 1.
      truth: unit normals.
      valid: where the truth is known.

    Returns:
      For `finish`, to be added over rows: sums over pixels, under `per_image/` the metrics of the image (0 for an image
      without a valid pixel), and `histogram` [rows, 9000], the counts of angles in bins of 0.02 degrees.
    """
    degrees = jnp.where(valid, angles(prediction, truth), 0)
    pixels = valid.sum((1, 2), dtype=jnp.float32)
    total = lambda values: jnp.where(valid, values, 0).sum((1, 2), dtype=jnp.float32)  # noqa: E731
    sums = {
        "mean": total(degrees),
        "squared": total(jnp.square(degrees)),
        **{f"within_{threshold:g}": total(degrees < threshold) for threshold in THRESHOLDS},
        # Encodings (n + 1)/2 differ by half of what vectors do.
        "l1": total(jnp.abs(prediction.astype(jnp.float32) - truth).mean(-1) / 2),
        "pixels": pixels,
    }
    ascending = jnp.sort(jnp.where(valid, degrees, jnp.inf).reshape(len(degrees), -1), axis=1)
    means = _metrics(sums) | {"median": _median(ascending, pixels.astype(int))}
    per_image = {f"per_image/{name}": jnp.where(pixels > 0, value, 0) for name, value in means.items()}
    return sums | per_image | {"images": (pixels > 0).astype(jnp.float32), "histogram": _histogram(ascending)}


def finish(totals: Mapping[str, Array | np.ndarray]) -> dict[str, float]:
    """Metrics from the sums of `measure`, added over every row.

    Returns:
      `pooled/…`: over the pixels of all images; the median is off by at most 0.02 degrees. `per_image/…`: the mean over
      images; the median is the mean of the images' exact medians. In both: mean, median and rmse (degrees), within_5 …
      within_30 (percent), l1_x1000 (the published error of [0, 1] encodings, times 1000; the published program averages
      it over batches). NaN where nothing was compared.
    """
    totals = {name: np.asarray(value, np.float64) for name, value in totals.items()}
    images = float(totals["images"])
    pooled = _metrics({name: value for name, value in totals.items() if "/" not in name})
    pooled["median"] = _median_of(totals["histogram"])
    numbers = {f"pooled/{name}": float(value) for name, value in pooled.items()}
    numbers |= {f"per_image/{name}": float(totals[f"per_image/{name}"]) / max(images, 1) for name in pooled}
    return numbers if images else dict.fromkeys(numbers, float("nan"))


def _metrics(sums):
    """The metrics over the pixels that were summed, without the median."""
    pixels = sums["pixels"].clip(1)
    return {
        "mean": sums["mean"] / pixels,
        "rmse": (sums["squared"] / pixels) ** 0.5,
        **{name: 100 * value / pixels for name, value in sums.items() if name.startswith("within_")},
        "l1_x1000": 1000 * sums["l1"] / pixels,
    }


def _median(ascending, numbers):
    """The median of the first `numbers` values of each row."""
    middle = jnp.stack([(numbers - 1) // 2, numbers // 2], axis=1).clip(0, ascending.shape[1] - 1)
    return jnp.take_along_axis(ascending, middle, axis=1).mean(1)


def _histogram(ascending: Float[Array, "rows pixels"]) -> Float[Array, "rows bins"]:
    """Counts of finite values, by their ranks: scatters are slow on TPUs. The last bin includes its upper edge."""
    edges = jnp.linspace(0, LARGEST, BINS + 1).at[-1].set(jnp.finfo(jnp.float32).max)
    ranks = jax.vmap(lambda row: jnp.searchsorted(row, edges))(ascending)
    return jnp.diff(ranks, axis=1).astype(jnp.float32)


def _median_of(histogram: Float[np.ndarray, " bins"]) -> float:
    """Where half of the counts are below, as if each bin's were spread evenly."""
    cumulated = np.concatenate([[0], np.cumsum(histogram)])
    half = cumulated[-1] / 2
    index = max(np.searchsorted(cumulated, half) - 1, 0)
    share = (half - cumulated[index]) / max(histogram[index], 1)
    return (index + share) * LARGEST / len(histogram)
