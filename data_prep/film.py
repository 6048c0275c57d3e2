"""Films rooms made from a seed, or any textured .glb, as videos with known camera poses.

python -m data_prep.film --output=films --scenes=4
python -m data_prep.film --output=films --glb=house.glb --scenes=20 --ground_truth

Writes NAME.mp4 (the film), NAME.npz (poses, intrinsics; with --ground_truth depth, normals and instance ids of every
frame, and the names of the objects) and, for rooms, NAME.glb. The same flags give the same films whatever the number of
workers. Interrupted, the same command carries on where it stopped.
"""

import contextlib
import fcntl
import functools
import os
import shutil
from pathlib import Path

from absl import flags
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data_prep.workers import cores, must_end, on_processes
from data_prep.worlds import glb
from data_prep.worlds.filming import DRAFTS, Settings, film_scene, is_filmed, scene_name
from mimic_jax import command
from mimic_jax.command import InputError

_OUTPUT = flags.DEFINE_string("output", None, "Folder for the films; made where absent.", required=True)
_SCENES = flags.DEFINE_integer("scenes", 4, "How many films: each of a room of its own, or along a path of its own.")
_FRAMES = flags.DEFINE_integer("frames", 96, "Frames per film.")
_SIZE = flags.DEFINE_integer("size", 256, "Height and width of the pictures, pixels; even.")
_SEED = flags.DEFINE_integer("seed", 0, "Another seed gives other rooms and paths.")
_WORKERS = flags.DEFINE_integer("workers", None, "Processes; by default one per core.")
_FPS = flags.DEFINE_float("fps", 20.0, "Frames per second; the camera's speed does not depend on it.")
_GROUND_TRUTH = flags.DEFINE_bool("ground_truth", False, "Also store depth, normals and instance ids in the .npz.")
_GLB = flags.DEFINE_string("glb", None, "Film this .glb (unit metre) instead of made-up rooms.")
_UP = flags.DEFINE_enum("up", "y", ["y", "z"], "Which axis of the --glb points up: y by its standard, z in many scans.")

for _name, _low, _high in (
    ("scenes", 1, 1_000_000),
    ("frames", 1, 100_000),
    ("size", 32, 4096),
    ("seed", 0, 2**63 - 1),
    ("workers", 1, 4096),
    ("fps", 1, 240),
):
    flags.register_validator(
        _name,
        lambda value, low=_low, high=_high: value is None or low <= value <= high,
        message=f"must be from {_low} to {_high}",
    )
flags.register_validator("size", lambda value: value % 2 == 0, message="must be even, for the video's sake")


def main() -> None:
    output = Path(_OUTPUT.value)
    settings = Settings(
        frames=_FRAMES.value,
        size=_SIZE.value,
        seed=_SEED.value,
        fps=_FPS.value,
        ground_truth=_GROUND_TRUTH.value,
        glb=_GLB.value,
        up=_UP.value,
    )
    film(output, _SCENES.value, settings, _WORKERS.value)


def film(output: Path, scenes: int, settings: Settings, workers: int | None = None) -> list[Path]:
    """Films scenes 0 to `scenes` − 1, those already there excepted. Returns the paths of all the .mp4 files, in order.

    workers: processes, one per core where None.
    Raises InputError where the output cannot be written or holds other films, or the .glb cannot be filmed.
    """
    if settings.glb:
        glb.check_readable(Path(settings.glb))
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output={output}: {error.strerror}") from error
    if not os.access(output, os.W_OK | os.X_OK):
        raise InputError(f"--output={output}: no permission to write there")
    with _sole_writer(output):
        missing = [index for index in range(scenes) if not is_filmed(output, index, settings)]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn()) as progress:
            bar = progress.add_task("filming", total=scenes, completed=scenes - len(missing))

            def filmed(index: int, result: object) -> None:
                must_end(index, result)
                progress.advance(bar)

            on_processes(functools.partial(film_scene, output, settings=settings), missing, workers or cores(), filmed)
        shutil.rmtree(output / DRAFTS, ignore_errors=True)
    return [output / f"{scene_name(settings, index)}.mp4" for index in range(scenes)]


@contextlib.contextmanager
def _sole_writer(output: Path):
    """Two runs in one folder would mix their half-written files. The lock goes when the process does."""
    folder = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        raise InputError(f"--output={output}: another run is filming into this folder") from error
    try:
        yield
    finally:
        os.close(folder)


if __name__ == "__main__":
    command.run(main)
