"""An encoder and a head that predicts values for each pixel: depth, normals, classes."""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from mimic_jax.models.heads.dpt import DPT, PUBLISHED, DPTSizes
from mimic_jax.models.heads.linear import LinearHead
from mimic_jax.models.sizes import Sizes
from mimic_jax.models.vit import Images, ViT
from mimic_jax.nn.compute import DEFAULT, Compute
from mimic_jax.nn.dropout import Keys
from mimic_jax.nn.patches import grid_of

HEADS = ("dpt", "linear")


def default_hooks(head: str, depth: int) -> tuple[int, ...]:
    """The blocks whose outputs a head takes, 0-based, for an encoder of `depth` blocks.

    A linear head takes the last block. A DPT head takes four, D//4 apart, up to the last: 2, 5, 8, 11 of 12 and
    5, 11, 17, 23 of 24 (MultiMAE, CroCo). In an encoder of fewer than four blocks the first one is taken repeatedly.
    """
    if head == "linear":
        return (depth - 1,)
    return tuple(max(0, depth - 1 - steps * max(1, depth // 4)) for steps in (3, 2, 1, 0))


class Dense(nnx.Module):
    """`encoder`, a ViT with the parameter paths that it has in CroCo, MAE and timm's models, and `head`."""

    def __init__(
        self,
        sizes: Sizes,
        channels: int,
        *,
        head: str = "dpt",
        hooks: Sequence[int] | None = None,
        normalise_last: bool = True,
        dpt: DPTSizes = PUBLISHED,
        drop_path: float = 0.0,
        rngs: nnx.Rngs,
        compute: Compute = DEFAULT,
    ):
        """Fresh parameters, float32.

        Args:
          sizes: of the encoder; a decoder's are ignored.
          channels: values predicted for each pixel.
          head: "dpt" or "linear".
          hooks: blocks whose outputs the head takes, 0-based: four for "dpt", one for "linear"; `default_hooks` by
            default.
          normalise_last: whether the encoder's final norm is applied to the output of the last block where it is
            hooked (CroCo: yes; MultiMAE: no). The outputs of other blocks are taken as they are.
          dpt: widths of a DPT head.
          drop_path: drop-path rate of the encoder's last block, as in `ViT`; it applies where a call gets `keys`.

        Raises:
          ValueError: the head is unknown, or the hooks do not fit the head or the encoder's depth.
        """
        if head not in HEADS:
            raise ValueError(f"head={head!r} must be one of {', '.join(HEADS)}")
        depth, width = sizes.encoder_depth, sizes.encoder_width
        self.hooks = default_hooks(head, depth) if hooks is None else tuple(int(hook) for hook in hooks)
        needed = 4 if head == "dpt" else 1
        if len(self.hooks) != needed or not all(0 <= hook < depth for hook in self.hooks):
            raise ValueError(
                f"hooks={self.hooks} must be {needed} of the encoder's blocks 0 … {depth - 1} for {head!r}"
            )
        self.sizes, self.head_name, self.normalise_last, self.channels = sizes, head, normalise_last, channels
        self.encoder = ViT(sizes, rngs=rngs, compute=compute, drop_path=drop_path)
        options = {"patch_size": sizes.patch_size, "rngs": rngs, "compute": compute}
        if head == "dpt":
            self.head = DPT((width,) * 4, channels, sizes=dpt, **options)
        else:
            self.head = LinearHead(width, channels, **options)

    def __call__(self, images: Images, keys: Keys | None = None) -> Float[Array, "batch height width channels"]:
        """Predicts values for each pixel of normalised images, without a final activation.

        Args:
          images: RGB, normalised; the patch size divides height and width. For "dpt" the numbers of patches are even.
          keys: one random key per image, for drop path; None: nothing is dropped.

        Returns:
          float32, of the images' height and width.

        Raises:
          ValueError: the height or width does not fit.
        """
        maps = self.token_maps(images, keys)
        return self.head(maps) if self.head_name == "dpt" else self.head(maps[0])

    def token_maps(self, images: Images, keys: Keys | None = None) -> list[Float[Array, "batch rows columns embed"]]:
        """The hooked blocks' patch tokens as maps, without the class token."""
        rows, columns = grid_of(images, self.sizes.patch_size)
        outputs = self.encoder.block_outputs(images, keys)
        last = self.sizes.encoder_depth - 1
        maps = []
        for hook in self.hooks:
            tokens = self.encoder.norm(outputs[hook]) if self.normalise_last and hook == last else outputs[hook]
            maps.append(tokens[:, self.sizes.class_token :].reshape(len(images), rows, columns, -1))
        return maps
