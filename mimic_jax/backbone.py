"""A trained model as a library: load it by path, encode images to grids of features.

from mimic_jax import backbone

model = backbone.load("run")
features = model.encode(images)  # [batch, rows, columns, width]
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped

from mimic_jax.data.augment import normalize
from mimic_jax.interop.load import load as load_weights
from mimic_jax.interop.weights import Weights
from mimic_jax.models.description import Seen
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn.patches import grid_of

Images = Shaped[Array | np.ndarray, "batch _ _ 3"]
Grid = Float[Array, "batch rows columns features"]
Grids = Float[Array, "layers batch rows columns features"]


def load(path: str | Path, step: int | None = None) -> "Backbone":
    """The model at a path, on the default device.

    Args:
      path: a workdir of `launch.pretrain`, a folder that `launch.import_weights` or `launch.export` made, or a .pth or
        .safetensors file of any system that `launch.import_weights` reads.
      step: which checkpoint of a workdir; the newest by default.

    Raises:
      InputError: there is nothing at the path that can be read.
    """
    return Backbone(load_weights(path, step))


class Backbone:
    """Features of images, from weights.

    Images are RGB, [batch, height, width, 3], uint8 or floats in [0, 1], of any size that the patch divides; they are
    normalised here. Each new image size is compiled once; batches of any size are filled up to a power of two, so that
    few are.
    """

    def __init__(self, weights: Weights):
        self.weights = weights
        model = weights.model()
        graph, self._params = nnx.split(model)
        first = int(weights.sizes.class_token)

        def compiled(features: Callable[..., Float[Array, "..."]]):
            def apply(params, *images):
                model = nnx.merge(graph, params)
                rows, columns = grid_of(images[0], self.sizes.patch_size)
                tokens = features(model, *(normalize(_to_unit(image)) for image in images))[..., first:, :]
                return tokens.reshape(*tokens.shape[:-2], rows, columns, tokens.shape[-1])

            return jax.jit(apply)

        self._encode = compiled(lambda model, images: model.encode(images))
        self._encode_layers = compiled(lambda model, images: model.encoder.layers(images))
        self._decode = compiled(
            lambda model, *views: model.decode(
                *(model.encode(view) for view in views), grid_of(views[0], self.sizes.patch_size)
            )
        )
        self._decode_layers = compiled(lambda model, *views: model.decoder_layers(*views))

    @property
    def sizes(self) -> Sizes:
        """What the model is made of: width, depth, patch size and so on."""
        return self.weights.sizes

    @property
    def seen(self) -> Seen | None:
        """The image sizes of the model's training: None where the weights do not record them."""
        return self.weights.seen

    def encode(self, images: Images) -> Grid:
        """The encoder's features, after its final norm; a class token is left out.

        Raises:
          ValueError: the images are no batch of RGB images, or the patch size does not divide them.
        """
        return self._apply(self._encode, 0, images)

    def encode_layers(self, images: Images) -> Grids:
        """What each layer of the encoder makes of images; the last after the final norm, as `encode` gives it.

        Raises:
          ValueError: as for `encode`.
        """
        return self._apply(self._encode_layers, 1, images)

    def decode(self, view1: Images, view2: Images) -> Grid:
        """The decoder's features of view 1 looking at view 2, nothing hidden, after the decoder's final norm.

        Raises:
          ValueError: as for `encode`, the views differ in size, or the model has no decoder for two views.
        """
        return self._apply(self._decode, 0, *self._checked_pair(view1, view2))

    def decode_layers(self, view1: Images, view2: Images) -> Grids:
        """What each layer of the decoder makes of view 1 looking at view 2; the last as `decode` gives it.

        Raises:
          ValueError: as for `decode`.
        """
        return self._apply(self._decode_layers, 1, *self._checked_pair(view1, view2))

    def _checked_pair(self, view1, view2):
        if self.weights.kind != "croco":
            raise ValueError(f"a model of kind {self.weights.kind!r} has no decoder for two views; CroCo has")
        if np.shape(view1) != np.shape(view2):
            raise ValueError(f"the views differ in size: {np.shape(view1)} and {np.shape(view2)}")
        return view1, view2

    def _apply(self, compiled, batch_axis, *images):
        images = [image if isinstance(image, jax.Array) else np.asarray(image) for image in images]
        for image in images:
            if np.ndim(image) != 4 or image.shape[-1] != 3 or not len(image):
                raise ValueError(f"images must be [batch, height, width, 3], not {list(np.shape(image))}")
            # Both mistakes would otherwise give features that merely look bad.
            if image.dtype != np.uint8 and not jnp.issubdtype(image.dtype, jnp.floating):
                raise ValueError(f"images must be uint8 or floats in [0, 1], not {image.dtype}")
            if image.dtype != np.uint8 and not isinstance(image, jax.core.Tracer):
                low, high = float(image.min()), float(image.max())
                if low < -1 or high > 2:  # a little beyond is what resampling makes
                    raise ValueError(
                        f"float images must be in [0, 1], neither 0 to 255 nor normalised: these are in "
                        f"[{low:.3g}, {high:.3g}]"
                    )
        batch = len(images[0])
        filled = 1 << (batch - 1).bit_length()
        images = [jnp.pad(jnp.asarray(image), ((0, filled - batch), (0, 0), (0, 0), (0, 0))) for image in images]
        return jax.lax.slice_in_dim(compiled(self._params, *images), 0, batch, axis=batch_axis)


def _to_unit(images: Array) -> Float[Array, "batch height width 3"]:
    return images.astype(jnp.float32) / (255 if images.dtype == jnp.uint8 else 1)
