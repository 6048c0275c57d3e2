"""The error of a stack's output by the types of its products and of its residual stream, against all float32.

    python -m benchmarks.residual_dtype

Prints one row per pair of types: the relative error ‖output − reference‖ / ‖output of the reference‖ after random
pre-norm encoder blocks, for each seed, with mean and range. Blocks are as EncoderBlock initialises them; tokens are
standard normal. The reference computes the same weights in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from rich.console import Console
from rich.table import Table

from mimic_jax import command
from mimic_jax.nn.blocks import EncoderBlock, scan_blocks, stack_blocks
from mimic_jax.nn.compute import Compute
from mimic_jax.nn.rngs import make_rngs

TYPES = [("bfloat16", "bfloat16"), ("bfloat16", "float32")]
PRECISION = "float32"  # of products whose operands are float32, also on accelerators with faster ones


def output(seed: int, dtype: str, residual_dtype: str) -> np.ndarray:
    """Output of the stack in float32."""
    given = flags.FLAGS
    rngs = make_rngs(seed)
    compute = Compute(jnp.dtype(dtype), residual_dtype=jnp.dtype(residual_dtype))
    blocks = stack_blocks(lambda: EncoderBlock(given.width, given.heads, rngs=rngs, compute=compute), given.depth)
    tokens = jax.random.normal(jax.random.key(seed), (given.batch, given.length, given.width))
    graph, params = nnx.split(blocks)
    with jax.default_matmul_precision(PRECISION):
        result = jax.jit(lambda params, tokens: scan_blocks(nnx.merge(graph, params), tokens)[0])(params, tokens)
    return np.asarray(result, np.float32)


def main() -> None:
    """Runs the command."""
    given = flags.FLAGS
    references = [output(seed, "float32", "float32") for seed in range(given.seeds)]
    title = f"{given.depth} blocks of width {given.width}, {given.seeds} seeds, {jax.devices()[0].device_kind}"
    table = Table("products", "residual stream", "relative error: mean", "lowest", "highest", title=title)
    for dtype, residual_dtype in TYPES:
        errors = [
            float(np.linalg.norm(output(seed, dtype, residual_dtype) - reference) / np.linalg.norm(reference))
            for seed, reference in enumerate(references)
        ]
        numbers = [f"{value:.3e}" for value in (np.mean(errors), min(errors), max(errors))]
        table.add_row(dtype, residual_dtype, *numbers)
    Console().print(table)


if __name__ == "__main__":
    flags.DEFINE_integer("depth", 24, "Blocks.", lower_bound=1)
    flags.DEFINE_integer("width", 1024, "Width of the tokens.", lower_bound=1)
    flags.DEFINE_integer("heads", 16, "Heads of attention.", lower_bound=1)
    flags.DEFINE_integer("batch", 2, "Rows.", lower_bound=1)
    flags.DEFINE_integer("length", 196, "Tokens per row.", lower_bound=1)
    flags.DEFINE_integer("seeds", 3, "Seeds.", lower_bound=1)
    command.run(main)
