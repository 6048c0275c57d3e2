"""Losses of dense predictions, row by row.

Each function takes (prediction, target, valid) and returns, for each row, the mean over its valid entries and their
number. Σ mean · number / Σ number over rows is then the published mean over a batch, however the batch is split. A row
without a valid entry has mean 0 and number 0. Sums are float32.

An entry is one channel of one pixel; `valid` holds for all channels of a pixel.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Values = Float[Array, "rows height width channels"]
Valid = Bool[Array, "rows height width"]
Rows = Float[Array, " rows"]

# berHu becomes quadratic at this share of the largest error, which is at least the second number.
BERHU_SHARE, BERHU_LEAST = 0.2, 1e-5
# SILog: the share of the squared mean that is subtracted (Eigen et al. 2014; 0.85: BTS, arXiv 1907.10326).
SILOG_SHARE = 0.85
LEAST_DEPTH = 1e-3
# Normals shorter than this are not lengthened to unit length, so that gradients stay bounded.
LEAST_LENGTH = 1e-3
_EPSILON = 1e-12


def masked_l1(prediction: Values, target: Values, valid: Valid) -> tuple[Rows, Rows]:
    """Mean |prediction − target| over the valid entries of each row, and their number."""
    return _mean(_absolute(_errors(prediction, target, valid)), valid)


def masked_mse(prediction: Values, target: Values, valid: Valid) -> tuple[Rows, Rows]:
    """Mean (prediction − target)² over the valid entries of each row, and their number."""
    return _mean(jnp.square(_errors(prediction, target, valid)), valid)


def berhu_threshold(prediction: Values, target: Values, valid: Valid) -> Rows:
    """berHu's threshold of each row: a fifth of its largest valid error, at least 1e-5. It has no gradient.

    Published programs take the maximum of these over the batch of one device, so their loss depends on how a batch is
    split.
    """
    largest = jnp.abs(_errors(prediction, target, valid)).max((1, 2, 3))
    return jax.lax.stop_gradient(jnp.maximum(BERHU_SHARE * largest, BERHU_LEAST))


def berhu(
    prediction: Values, target: Values, valid: Valid, threshold: Rows | Float[Array, ""] | None = None
) -> tuple[Rows, Rows]:
    """Reverse Huber loss: |e| below the threshold c, else (e² + c²)/(2c) (Laina et al., arXiv 1606.00373).

    Args:
      prediction, target, valid: of any rows.
      threshold: one for all rows or one a row. None: each row's own, so that the loss of a row depends on no other.

    Returns:
      The mean over the valid entries of each row, and their number.
    """
    if threshold is None:
        threshold = berhu_threshold(prediction, target, valid)
    threshold = jnp.broadcast_to(threshold, prediction.shape[:1])[:, None, None, None]
    errors = _absolute(_errors(prediction, target, valid))
    quadratic = (jnp.square(errors) + jnp.square(threshold)) / (2 * threshold)
    return _mean(jnp.where(errors < threshold, errors, quadratic), valid)


def silog(prediction: Values, target: Values, valid: Valid) -> tuple[Rows, Rows]:
    """Scale-invariant loss √(mean x² − 0.85 (mean x)²), x = ln prediction − ln target (Eigen et al., arXiv 1406.2283).

    The root is of each row's own means.

    Args:
      prediction: positive depths; smaller ones than 1e-3 count as 1e-3 and have no gradient, so a model needs an output
        that is positive.
      target: positive where valid.

    Returns:
      The loss of each row, and the number of its valid entries.
    """
    ratio = jnp.log(jnp.maximum(prediction.astype(jnp.float32), LEAST_DEPTH))
    ratio = jnp.where(valid[..., None], ratio - jnp.log(jnp.where(valid[..., None], target, 1)), 0)
    mean, number = _mean(ratio, valid)
    square, _ = _mean(jnp.square(ratio), valid)
    # Below ε the root has no gradient, where it would be infinite.
    return jnp.sqrt(jnp.maximum(square - SILOG_SHARE * jnp.square(mean), _EPSILON)) * (number > 0), number


def cosine(
    prediction: Float[Array, "rows height width 3"], target: Float[Array, "rows height width 3"], valid: Valid
) -> tuple[Rows, Rows]:
    """Mean of 1 − cos of the angle between predicted and true normals.

    Args:
      prediction: vectors of any length; one shorter than 1e-3 is divided by 1e-3, so length 0 counts as perpendicular.
      target: unit vectors where valid.

    Returns:
      The mean over the valid pixels of each row, and their number.
    """
    prediction = prediction.astype(jnp.float32)
    length = jax.lax.rsqrt(jnp.maximum(jnp.square(prediction).sum(-1, keepdims=True), LEAST_LENGTH**2))
    cosines = (prediction * length * target).sum(-1, keepdims=True)
    return _mean(jnp.where(valid[..., None], 1 - cosines, 0), valid)


def _errors(prediction: Values, target: Values, valid: Valid) -> Values:
    """Differences in float32, 0 where not valid."""
    return jnp.where(valid[..., None], prediction.astype(jnp.float32) - target, 0)


def _absolute(errors: Values) -> Values:
    """|e|, whose gradient at 0 is 0, as PyTorch's; that of `jnp.abs` is 1."""
    return errors * jax.lax.stop_gradient(jnp.sign(errors))


def _mean(values: Values, valid: Valid) -> tuple[Rows, Rows]:
    """The mean over the valid entries of each row, where the others are 0, and their number."""
    number = values.shape[-1] * valid.sum((1, 2), dtype=jnp.float32)
    return values.sum((1, 2, 3)) / jnp.maximum(number, 1), number
