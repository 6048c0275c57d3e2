"""Where a patch is: sine-cosine or learned rows added to tokens (CroCo v1, MAE, timm), or rotary angles (CroCo v2)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def grid_positions(rows: int, columns: int) -> Int[np.ndarray, "patches 2"]:
    """The (y, x) of every patch of a grid, row-major."""
    return np.stack(np.mgrid[:rows, :columns], -1).reshape(-1, 2)


def sincos_2d(
    width: int, rows: int, columns: int, *, trained_on: tuple[int, int] | None = None
) -> Float[np.ndarray, "patches {width}"]:
    """Fixed 2-D sine-cosine positions (MAE, appendix A; base 10000), float32.

    The first half of the channels encodes x, the second y; each half is sines, then cosines.

    Args:
      trained_on: rows and columns of the grid that a model knows. Another grid is laid over the same field, so that
        the model sees positions between those it knows; None: patches are one unit apart.

    Raises:
      ValueError: the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, not {width}")
    # float64 keeps the angles exact; the table is made once, while tracing.
    frequencies = 1 / 10000.0 ** (np.arange(width // 4) / (width // 4))
    positions = grid_positions(rows, columns).astype(np.float64)
    if trained_on not in (None, (rows, columns)):
        positions = (positions + 0.5) * np.divide(trained_on, (rows, columns)) - 0.5
    y, x = positions.T[:, :, None] * frequencies
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], -1).astype(np.float32)


def resize_table(
    table: Float[Array, "patches width"], trained_on: tuple[int, int], rows: int, columns: int
) -> Float[Array, "{rows}*{columns} width"]:
    """A learned table of one row a patch, for another grid: bicubic, with antialiasing where it shrinks (as timm's)."""
    if (rows, columns) == trained_on:
        return table
    resized = jax.image.resize(table.reshape(*trained_on, -1), (rows, columns, table.shape[-1]), "bicubic")
    return resized.reshape(rows * columns, -1)


def resize_table_published(
    table: Float[Array | np.ndarray, "patches width"], trained_on: tuple[int, int], rows: int, columns: int
) -> Float[Array, "{rows}*{columns} width"]:
    """A position table for another grid: half-pixel bicubic, a = −0.75, without antialiasing.

    The published programs of MAE, MultiMAE, ViTPose and CroCo (cosine) resize their tables so when they load weights.
    `resize_table` follows timm, which antialiases and has a = −0.5: the two differ on every other grid.

    Args:
      table: one row a patch, row-major, without the row of a class token.
      trained_on: rows and columns of the grid of `table`.
    """
    if (rows, columns) == trained_on:
        return jnp.asarray(table)
    weights = (_cubic_weights(*lengths) for lengths in zip(trained_on, (rows, columns), strict=True))
    # float32 products throughout: accelerators would round the operands.
    resized = jnp.einsum(
        "ar,bc,rcw->abw", *weights, table.reshape(*trained_on, -1), precision=jax.lax.Precision.HIGHEST
    )
    return resized.reshape(rows * columns, -1)


def _cubic_weights(length_in: int, length_out: int) -> Float[np.ndarray, "{length_out} {length_in}"]:
    """The matrix of cubic convolution (Keys 1981, a = −0.75) at half-pixel centres; taps outside repeat the edge."""
    a = -0.75
    sources = (np.arange(length_out) + 0.5) * length_in / length_out - 0.5
    taps = np.floor(sources)[:, None] + np.arange(-1, 3)
    distance = np.abs(sources[:, None] - taps)
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    weights = np.zeros((length_out, length_in))
    rows = np.arange(length_out)[:, None]
    np.add.at(weights, (rows, taps.clip(0, length_in - 1).astype(int)), np.where(distance <= 1, near, far))
    return weights.astype(np.float32)


def rotation_2d(
    positions: Int[Array | np.ndarray, "*#batch length 2"], dim: int, base: float
) -> Float[Array, "2 *#batch length 1 2 {dim}//4"]:
    """Cosines and sines of the angles by which `rope_2d` turns heads of `dim` channels, which is a multiple of 4.

    Args:
      positions: integer (y, x) of every token.
      base: 100 for RoPE100.
    """
    quarter = dim // 4
    frequencies = base ** -(np.arange(quarter) / quarter)
    angles = positions[..., None, :, None] * frequencies.astype(np.float32)
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])


def rope_2d(
    tokens: Float[Array, "batch length heads dim"], rotation: Float[Array, "2 *#batch length 1 2 quarter"]
) -> Float[Array, "batch length heads dim"]:
    """Rotary positions in two dimensions (CroCo v2, section 3.1; RoPE100 has base 100).

    The first half of each head turns with y, the second with x; within a half, channel i pairs with channel i + dim/4.

    Args:
      tokens: queries or keys.
      rotation: of the tokens' positions, from `rotation_2d`.
    """
    cos, sin = rotation
    halves = tokens.reshape(*tokens.shape[:-1], 2, 2, -1)  # y or x, paired channels
    first, second = halves[..., 0, :], halves[..., 1, :]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], -2)
    return turned.reshape(tokens.shape).astype(tokens.dtype)
