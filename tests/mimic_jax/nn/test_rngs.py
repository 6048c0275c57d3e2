"""Keys of fresh parameters, against Flax's own."""

import jax
import numpy as np
from flax import nnx

from mimic_jax.models.kinds import build
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn.rngs import make_rngs

SIZES = Sizes(8, 2, 2, 8, 2, 2, patch_size=4)


def test_a_model_has_the_parameters_that_flax_gives_it():
    """Bit for bit, whether it is traced or not."""
    of = lambda rngs: nnx.to_pure_dict(nnx.state(build("croco", SIZES, rngs)))  # noqa: E731
    for apply in (lambda function, key: function(key), lambda function, key: jax.jit(function)(key)):
        expected = apply(lambda key: of(nnx.Rngs(key)), jax.random.key(3))
        found = apply(lambda key: of(make_rngs(key)), jax.random.key(3))
        jax.tree.map(np.testing.assert_array_equal, found, expected)
