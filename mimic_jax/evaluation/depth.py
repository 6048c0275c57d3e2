"""How good predicted depth is: the standard metrics, and those of MultiMAE's program.

A measure returns sums for each row. They are added over every row, batch, device and host, and `finish` makes the
metrics of the totals: nothing depends on how the data were split into batches.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Depth = Float[Array, "rows height width"]
Valid = Bool[Array, "rows height width"]
Sums = dict[str, Float[Array, " rows"]]
Number = Float[Array, "*shape"] | Float[np.ndarray, "*shape"] | np.float64

# The field's range for NYUv2, in metres.
CAP = (1e-3, 10.0)
LEAST_DEPTH = 1e-3
# Rows and columns of a 480×640 image that Eigen et al. (arXiv 1406.2283) compare, half-open.
EIGEN = (45, 471, 41, 601)
# MultiMAE's NYUv2: units of a stored PNG per metre; mean and deviation by which targets are standardised.
STORED_PER_METRE, STORED_MEAN, STORED_STD = 6553.6, 2070.7764, 777.5723
_LEAST_STORED = 1e-6
_DELTA = 1.25


def eigen_mask(height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
    """True inside the Eigen crop. For another size than 480×640 its borders are scaled and rounded."""
    top, bottom, left, right = EIGEN
    mask = np.zeros((height, width), bool)
    mask[
        round(top * height / 480) : round(bottom * height / 480), round(left * width / 640) : round(right * width / 640)
    ] = True
    return mask


def measure(
    prediction: Depth, truth: Depth, valid: Valid, *, cap: tuple[float, float] | None = None, eigen: bool = False
) -> Sums:
    """Sums of the standard metrics for each image.

    Args:
      prediction: metres; smaller depths than 1e-3 count as 1e-3.
      truth: metres; compared where positive and valid.
      valid: where the truth is known.
      cap: lowest and highest depth in metres. Truth outside is not compared, predictions are clipped. None: no cap.
      eigen: whether only the Eigen crop is compared.

    Returns:
      For `finish`, to be added over rows: sums over pixels, and under `per_image/` the metrics of the image, 0 for an
      image without a compared pixel.
    """
    least, most = (LEAST_DEPTH, jnp.inf) if cap is None else cap
    valid = valid & (truth > 0)
    if cap is not None:
        valid &= (truth >= least) & (truth <= most)
    if eigen:
        valid &= eigen_mask(*truth.shape[1:])
    # Where not compared both are 1, so that every sum gets 0.
    predicted = jnp.where(valid, jnp.clip(prediction.astype(jnp.float32), least, most), 1)
    truth = jnp.where(valid, truth, 1)
    difference, log_ratio = predicted - truth, jnp.log(predicted) - jnp.log(truth)
    sums = {
        **_within(predicted, truth, valid),
        "absrel": _sum(jnp.abs(difference) / truth),
        "sqrel": _sum(jnp.square(difference) / truth),
        "squared": _sum(jnp.square(difference)),
        "log": _sum(log_ratio),
        "log_absolute": _sum(jnp.abs(log_ratio)),
        "log_squared": _sum(jnp.square(log_ratio)),
        "pixels": _sum(valid),
    }
    compared = sums["pixels"] > 0
    per_image = {f"per_image/{name}": jnp.where(compared, value, 0) for name, value in metrics(sums).items()}
    return sums | per_image | {"images": compared.astype(jnp.float32)}


def metrics(sums: Mapping[str, Number]) -> dict[str, Number]:
    """The standard metrics over the pixels that were summed; of each image where the sums are of rows.

    Returns:
      delta1, delta2, delta3, absrel, sqrel (metres), rmse (metres), rmse_log, log10, silog (×100).
    """
    pixels = sums["pixels"].clip(1)
    mean = {name: value / pixels for name, value in sums.items() if name != "pixels"}
    return {
        **{name: mean[name] for name in ("delta1", "delta2", "delta3", "absrel", "sqrel")},
        "rmse": mean["squared"] ** 0.5,
        "rmse_log": mean["log_squared"] ** 0.5,
        "log10": mean["log_absolute"] / np.log(10),
        "silog": 100 * (mean["log_squared"] - mean["log"] ** 2).clip(0) ** 0.5,
    }


def finish(totals: Mapping[str, Number]) -> dict[str, float]:
    """Metrics from the sums of `measure`, added over every row.

    Returns:
      `pooled/…`: over the pixels of all images. `per_image/…`: the mean over images, which is the field's custom. NaN
      where nothing was compared.
    """
    totals = {name: np.float64(value) for name, value in totals.items()}
    empty = not totals["images"]
    pooled = metrics({name: value for name, value in totals.items() if "/" not in name})
    numbers = {f"pooled/{name}": float(value) for name, value in pooled.items()}
    for name in pooled:
        numbers[f"per_image/{name}"] = float(totals[f"per_image/{name}"] / max(totals["images"], 1))
    return dict.fromkeys(numbers, float("nan")) if empty else numbers


def standardize(metres: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Metres → MultiMAE's standardised NYUv2 target. The constants do not fit the unit: targets average about 20."""
    return (metres * STORED_PER_METRE - STORED_MEAN) / STORED_STD


def to_metres(standardized: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The inverse of `standardize`."""
    return (standardized * STORED_STD + STORED_MEAN) / STORED_PER_METRE


def published_measure(prediction: Depth, truth: Depth, valid: Valid) -> Sums:
    """Sums of MultiMAE's metrics for each image.

    Args:
      prediction, truth: in metres; errors are summed in the units of stored PNGs, as published.
      valid: where the truth is known.

    Returns:
      For `published_metrics`, to be added over the rows of a batch.
    """
    predicted, truth = (
        jnp.where(valid, each.astype(jnp.float32) * STORED_PER_METRE, 1) for each in (prediction, truth)
    )
    difference, least = predicted - truth, jnp.maximum(truth, _LEAST_STORED)
    log_ratio = jnp.log(jnp.maximum(predicted, _LEAST_STORED)) - jnp.log(least)
    return {
        **_within(predicted, truth, valid),
        "rel": _sum(jnp.abs(difference) / least),
        "srel": _sum(jnp.square(difference) / least),
        "squared": _sum(jnp.square(difference)),
        "log_squared": _sum(jnp.square(log_ratio)),
        "pixels": _sum(valid),
    }


def published_metrics(sums: Mapping[str, Number]) -> dict[str, Number]:
    """MultiMAE's metrics over the pixels that were summed.

    The published program takes them over each batch, and then the plain mean over batches: add the rows of one batch,
    finish, and average to reproduce that.

    Returns:
      rmse and srel in stored units (6553.6 per metre), rel, delta_1, delta_2, delta_3, and "log10", which is the root
      mean square of natural logarithms.
    """
    pixels = sums["pixels"].clip(1)
    mean = {name: value / pixels for name, value in sums.items() if name != "pixels"}
    return {
        "rmse": mean["squared"] ** 0.5,
        "rel": mean["rel"],
        "srel": mean["srel"],
        "log10": mean["log_squared"] ** 0.5,
        **{f"delta_{power}": mean[f"delta{power}"] for power in (1, 2, 3)},
    }


def _within(predicted: Depth, truth: Depth, valid: Valid) -> Sums:
    least = _LEAST_STORED
    ratio = jnp.maximum(predicted / jnp.maximum(truth, least), truth / jnp.maximum(predicted, least))
    return {f"delta{power}": _sum(valid & (ratio < _DELTA**power)) for power in (1, 2, 3)}


def _sum(values: Float[Array, "rows height width"] | Valid) -> Float[Array, " rows"]:
    return values.sum((1, 2), dtype=jnp.float32)
