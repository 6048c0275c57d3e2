"""The DPT head: token maps of four depths become one dense map (arXiv 2103.13413).

As MultiMAE's and CroCo's programs have it, without normalisation. Maps are channels-last: [batch, height, width,
channels].
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from mimic_jax.nn.compute import DEFAULT, Compute

Map = Float[Array, "batch height width channels"]
Doubled = Float[Array, "batch 2*height 2*width channels"]


@dataclasses.dataclass(frozen=True)
class DPTSizes:
    """Widths of a DPT head; the defaults are the published ones.

    stages: channels of the four reassembled maps, from the shallowest hook to the deepest.
    features: channels of the fusion stages.
    tail: channels before the last convolution.
    """

    stages: tuple[int, ...] = (96, 192, 384, 768)
    features: int = 256
    tail: int = 32

    def __post_init__(self):
        if len(self.stages) != 4 or min(*self.stages, self.tail) < 1:
            raise ValueError(f"stages={self.stages} must be four widths, and tail={self.tail} one, each at least 1")
        if self.features < 2 or self.features % 2:
            raise ValueError(f"features={self.features} must be an even number: the tail halves it")


PUBLISHED = DPTSizes()


class DPT(nnx.Module):
    """Four token maps of one size → a map with `channels` values for each pixel.

    The published deepest fusion stage also has a first residual unit that it never uses; there is none here.
    """

    def __init__(
        self,
        widths: Sequence[int],
        channels: int,
        *,
        patch_size: int = 16,
        sizes: DPTSizes = PUBLISHED,
        rngs: nnx.Rngs,
        compute: Compute = DEFAULT,
    ):
        """Parameters are float32, with PyTorch's default initial values.

        Args:
          widths: channels of the four token maps, from the shallowest hook to the deepest.
          channels: of the result.
          patch_size: pixels a side of one token.
        """
        self.patch_size, self.compute = patch_size, compute
        options = {"rngs": rngs, "compute": compute}
        scales = (4.0, 2.0, 1.0, 0.5)
        self.reassemble1, self.reassemble2, self.reassemble3, self.reassemble4 = (
            Reassemble(width, stage, sizes.features, scale, **options)
            for width, stage, scale in zip(widths, sizes.stages, scales, strict=True)
        )
        self.fuse1, self.fuse2, self.fuse3, self.fuse4 = (
            Fusion(sizes.features, takes_deeper=takes_deeper, **options) for takes_deeper in (True, True, True, False)
        )
        self.tail = Tail(sizes.features, sizes.tail, channels, **options)

    def __call__(
        self, maps: Sequence[Float[Array, "batch rows columns _"]]
    ) -> Float[Array, "batch height width channels"]:
        """Predicts one value per channel and pixel, without a final activation.

        Args:
          maps: four token maps with even numbers of rows and columns, from the shallowest hook to the deepest.

        Returns:
          float32; height = rows · patch_size, width = columns · patch_size.

        Raises:
          ValueError: the number of rows or columns is odd.
        """
        rows, columns = maps[0].shape[1:3]
        if rows % 2 or columns % 2:
            raise ValueError(f"a DPT head needs even numbers of patches, not {rows}×{columns}")
        constrain = self.compute.constrain
        fused = self.fuse4(constrain(self.reassemble4(maps[3])))
        fused = self.fuse3(constrain(self.reassemble3(maps[2])), fused)
        fused = self.fuse2(constrain(self.reassemble2(maps[1])), fused)
        fused = self.fuse1(constrain(self.reassemble1(maps[0])), fused)
        return constrain(self.tail(fused, (rows * self.patch_size, columns * self.patch_size)).astype(jnp.float32))


class Reassemble(nnx.Module):
    """A token map → a map of another scale with the channels of the fusion stages."""

    def __init__(self, width: int, stage: int, features: int, scale: float, *, rngs: nnx.Rngs, compute: Compute):
        """`scale`: result per token: 4 or 2 (transposed convolution), 1, or 1/2 (strided convolution)."""
        options = {"rngs": rngs, "compute": compute}
        self.project = conv(width, stage, 1, **options)
        if scale > 1:
            self.resample = transposed_conv(stage, stage, int(scale), **options)
        elif scale < 1:
            self.resample = conv(stage, stage, 3, stride=2, **options)
        else:
            self.resample = None
        self.to_features = conv(stage, features, 3, use_bias=False, **options)

    def __call__(self, tokens: Map) -> Float[Array, "batch _ _ features"]:
        """Maps [batch, rows, columns, width] to [batch, scale · rows, scale · columns, features]."""
        stage = self.project(tokens)
        return self.to_features(stage if self.resample is None else self.resample(stage))


class ResidualUnit(nnx.Module):
    """x + conv(ReLU(conv(ReLU(x))))."""

    def __init__(self, features: int, *, rngs: nnx.Rngs, compute: Compute):
        self.conv1 = conv(features, features, 3, rngs=rngs, compute=compute)
        self.conv2 = conv(features, features, 3, rngs=rngs, compute=compute)

    def __call__(self, x: Map) -> Map:
        """Keeps the shape."""
        return x + self.conv2(jax.nn.relu(self.conv1(jax.nn.relu(x))))


class Fusion(nnx.Module):
    """Adds a stage to the result of the deeper stages and doubles height and width."""

    def __init__(self, features: int, *, takes_deeper: bool, rngs: nnx.Rngs, compute: Compute):
        options = {"rngs": rngs, "compute": compute}
        self.unit1 = ResidualUnit(features, **options) if takes_deeper else None
        self.unit2 = ResidualUnit(features, **options)
        self.out = conv(features, features, 1, **options)

    def __call__(self, stage: Map, deeper: Map | None = None) -> Doubled:
        """`deeper`: the result of the next deeper stage, of the shape of `stage`; None for the deepest."""
        x = stage if deeper is None else deeper + self.unit1(stage)
        # The published program interpolates first. A 1×1 convolution commutes with interpolation, whose weights sum to
        # 1, and costs a quarter on the smaller map.
        return double(self.out(self.unit2(x)))


class Tail(nnx.Module):
    """The fused map → values for each pixel."""

    def __init__(self, features: int, width: int, channels: int, *, rngs: nnx.Rngs, compute: Compute):
        options = {"rngs": rngs, "compute": compute}
        self.conv1 = conv(features, features // 2, 3, **options)
        self.conv2 = conv(features // 2, width, 3, **options)
        self.conv3 = conv(width, channels, 1, **options)

    def __call__(self, fused: Map, size: tuple[int, int]) -> Float[Array, "batch {size[0]} {size[1]} values"]:
        """`size`: height and width of the result; with patches of 16 pixels twice those of `fused`."""
        return self.conv3(jax.nn.relu(self.conv2(resize_corners(self.conv1(fused), size))))


def double(images: Map) -> Doubled:
    """Twice the height and width, corner-aligned bilinear."""
    _, height, width, _ = images.shape
    return resize_corners(images, (2 * height, 2 * width))


def resize_corners(images: Map, size: tuple[int, int]) -> Float[Array, "batch {size[0]} {size[1]} channels"]:
    """Corner-aligned bilinear resizing to `size` (height, width): source coordinate i · (in − 1)/(out − 1).

    Two matrix products, which accelerators compute faster than gathers; operands have the type of `images`.
    """
    _, height, width, _ = images.shape
    rows, columns = (
        jnp.asarray(_bilinear_weights(*lengths), images.dtype) for lengths in zip((height, width), size, strict=True)
    )
    return jnp.einsum("qc,brcf->brqf", columns, jnp.einsum("pr,brcf->bpcf", rows, images))


def _bilinear_weights(length_in: int, length_out: int) -> Float[np.ndarray, "{length_out} {length_in}"]:
    sources = np.arange(length_out) * (length_in - 1) / max(length_out - 1, 1)
    return np.maximum(0, 1 - np.abs(sources[:, None] - np.arange(length_in))).astype(np.float32)


def conv(
    channels_in: int,
    channels_out: int,
    size: int,
    *,
    stride: int = 1,
    use_bias: bool = True,
    rngs: nnx.Rngs,
    compute: Compute,
) -> nnx.Conv:
    """A convolution of size×size, padded by (size − 1)/2, with PyTorch's default initial values."""
    padding = (size - 1) // 2
    return nnx.Conv(
        channels_in,
        channels_out,
        (size, size),
        stride,
        padding=[(padding, padding)] * 2,
        use_bias=use_bias,
        dtype=compute.dtype,
        rngs=rngs,
        **_initial(channels_in * size**2),
    )


def transposed_conv(
    channels_in: int, channels_out: int, stride: int, *, rngs: nnx.Rngs, compute: Compute
) -> nnx.ConvTranspose:
    """A transposed convolution of stride×stride with that stride: each pixel becomes a square.

    Its kernel is [rows, columns, out, in], as PyTorch's but for the order of the axes.
    """
    return nnx.ConvTranspose(
        channels_in,
        channels_out,
        (stride, stride),
        stride,
        padding="VALID",
        transpose_kernel=True,
        dtype=compute.dtype,
        rngs=rngs,
        # PyTorch takes the second axis of [in, out, rows, columns] for the fan in.
        **_initial(channels_out * stride**2),
    )


def _initial(fan_in: int) -> dict[str, nnx.Initializer]:
    """PyTorch's defaults for convolutions: weight and bias uniform in ±1/√(fan in)."""
    bound = 1 / math.sqrt(fan_in)

    def uniform(key, shape, dtype=jnp.float32, **_):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return {"kernel_init": uniform, "bias_init": uniform}
