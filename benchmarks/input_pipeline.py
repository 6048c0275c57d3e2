"""How much of the time of bare JPEG decoding the whole input pipeline reaches, on the same cores.

    python -m benchmarks.input_pipeline

Makes a dataset of pairs, and prints pairs per second

- of `cv2.imdecode` alone, on the same JPEG bytes held in memory: as many processes as workers, each of one thread;
- of `mimic_jax.data.source.batches`, from the shards to uint8 batches in the process that trains, read by workers;
- of the same, read by as many threads of that process.

They take turns; the fastest of the repeats counts. The target is 0.7 of bare decoding or more, with a worker a core.

Prints also how long it takes to compute which examples are in a batch of 4096 of 4.2 million, without and with weights,
and how long Grain's own shuffle and mixture take, which compute one example at a time in the same order.
"""

import functools
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import grain
import numpy as np
from absl import flags
from jaxtyping import UInt8
from rich.console import Console
from rich.table import Table

from data_prep import dataset
from data_prep.workers import cores
from mimic_jax import command, records
from mimic_jax.data.mixture import all_examples, open_mixture
from mimic_jax.data.order import examples_in_step
from mimic_jax.data.pairs import pairs_source, read_pairs
from mimic_jax.data.source import batches, spread

SHARDS = 4
# Images; pairs are made of any two of them.
DISTINCT = 100
# Of the data whose order is computed.
LENGTHS = (2_300_000, 700_000, 1_200_000)
WEIGHTS = (2.0, 1.0, 0.5)
BATCH = 4096


def natural_image(size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Mostly grey noise, smooth to a degree that makes its JPEG as long as those of photographs: 30 kB at 256×256."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij"))
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(4, size, size))) / frequency**1.5, s=(size, size))
    noise = np.moveaxis(noise / noise.std((1, 2), keepdims=True), 0, -1)
    return np.clip(128 + 50 * noise[..., :1] + 12 * noise[..., 1:], 0, 255).astype(np.uint8)


def make_dataset(folder: Path, pairs: int, size: int) -> None:
    """A finished dataset of pairs of square views, as mine writes it."""
    rng = np.random.default_rng(0)
    views = [records.encode_image(natural_image(size, rng)) for _ in range(min(DISTINCT, 2 * pairs))]
    patches = (size // 16) ** 2
    settings = {"name": "benchmark"}
    made = [
        records.Pair(
            view1=views[rng.integers(len(views))],
            view2=views[rng.integers(len(views))],
            correspondence=rng.integers(-1, patches, patches).astype(np.int16),
            homography=np.eye(3, dtype=np.float32),
            overlap=0.5,
            inliers=100,
            source="benchmark",
            scene="noise",
            frame1=number,
            frame2=number + 1,
        )
        for number in range(pairs)
    ]
    with dataset.opened(folder, settings):
        dataset.begin_parts(folder, settings)
        entry = {"frames_read": pairs, "pairs_tried": pairs, "pairs_kept": pairs, "rejected": {}, "problems": {}}
        dataset.write_part(folder, "noise", made, entry)
        dataset.assemble(
            folder, settings, records.pairs.schema(patches), SHARDS, lambda write, shards: [*map(write, shards)]
        )


@functools.cache
def jpegs(folder: str) -> list[UInt8[np.ndarray, " bytes"]]:
    """The bytes of views of a dataset; of all that differ."""
    cv2.setNumThreads(1)
    examples = all_examples(open_mixture(folder, "--pairs"))
    pairs = read_pairs(examples, spread(examples, 5 * DISTINCT))
    return [np.frombuffer(view, np.uint8) for pair in pairs for view in (pair.view1, pair.view2)]


def decode_alone(folder: str, seconds: float) -> float:
    """Pairs per second of one process that does nothing else, for so many seconds."""
    views, count = jpegs(folder), 0
    begin = time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds:
        cv2.imdecode(views[count % len(views)], cv2.IMREAD_COLOR_RGB)
        count += 1
    return count / 2 / passed


def read_all(data: Iterator, ahead: int, seconds: float) -> float:
    """Pairs per second of an endless pipeline, without the batches that it read ahead while it waited."""
    for _ in range(ahead):
        next(data)
    begin, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - begin) < seconds:
        count += len(next(data)["view1"])
    return count / passed


def order_seconds(repeats: int, weights: tuple[float, ...] | None) -> tuple[float, float]:
    """Seconds for the indices of a batch, computed at once, and by Grain; the fastest of the repeats."""
    if weights is None:
        sequence = grain.MapDataset.range(sum(LENGTHS)).shuffle(seed=0).repeat()
    else:
        datasets = [grain.MapDataset.range(length).shuffle(seed=0).repeat() for length in LENGTHS]
        sequence = grain.MapDataset.mix(datasets, weights)
    at_once, by_grain = [], []
    for step in range(repeats):
        begin = time.perf_counter()
        examples_in_step(step, lengths=LENGTHS, weights=weights, batch_size=BATCH, seed=0)
        at_once.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        np.array([sequence[step * BATCH + row] for row in range(BATCH)])
        by_grain.append(time.perf_counter() - begin)
    return min(at_once), min(by_grain)


def main() -> None:
    """Runs the command."""
    workers, seconds = flags.FLAGS.workers or cores(), flags.FLAGS.seconds
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder), flags.FLAGS.pairs, flags.FLAGS.size)
        examples = all_examples(open_mixture(folder, "--pairs"))
        size = (flags.FLAGS.size, flags.FLAGS.size)
        read = functools.partial(batches, pairs_source(examples, size=size), batch_size=flags.FLAGS.batch, seed=0)
        by_workers, by_threads = read(workers=workers, threads=1), read(threads=workers)
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            alone, through, threaded = [], [], []
            pool.starmap(decode_alone, [(folder, 0.5)] * workers)  # start-up
            for _ in range(flags.FLAGS.repeats):
                alone.append(sum(pool.starmap(decode_alone, [(folder, seconds)] * workers, chunksize=1)))
                through.append(read_all(by_workers, 3 * workers, seconds))
                threaded.append(read_all(by_threads, 4, seconds))
        by_workers.close()
        by_threads.close()
        kilobytes = np.mean([view.nbytes for view in jpegs(folder)]) / 1000
    table = Table(f"{size[0]}×{size[1]}, {kilobytes:.0f} kB a view", "pairs/s", "of bare decoding")
    table.add_row(f"cv2.imdecode, {workers} processes", f"{max(alone):.0f}", "1")
    table.add_row(f"batches, {workers} workers", f"{max(through):.0f}", f"{max(through) / max(alone):.2f}")
    table.add_row(f"batches, {workers} threads", f"{max(threaded):.0f}", f"{max(threaded) / max(alone):.2f}")
    Console().print(table)
    table = Table(f"indices of {BATCH} examples", "ms", "ms by Grain")
    for name, weights in (("every example equally likely", None), ("weighted datasets", WEIGHTS)):
        at_once, by_grain = order_seconds(flags.FLAGS.repeats, weights)
        table.add_row(name, f"{1e3 * at_once:.1f}", f"{1e3 * by_grain:.1f}")
    Console().print(table)


if __name__ == "__main__":
    flags.DEFINE_integer("pairs", 4000, "Pairs of the dataset.", lower_bound=1)
    flags.DEFINE_integer("size", 256, "Height and width of the views, in pixels.", lower_bound=16)
    flags.DEFINE_integer("batch", 64, "Pairs of a batch.", lower_bound=1)
    flags.DEFINE_integer("workers", None, "Processes, and threads. Default: the cores.", lower_bound=1)
    flags.DEFINE_float("seconds", 3.0, "Of each measurement.", lower_bound=0.1)
    flags.DEFINE_integer("repeats", 5, "Of each; the fastest counts.", lower_bound=1)
    command.run(main)
