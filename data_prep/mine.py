"""Mines pairs of overlapping views from videos or folders of frames into a pair dataset.

    python -m data_prep.mine --source=video --input=videos --output=pairs

A run that was stopped, by Ctrl-C or by a crash, carries on where it was when the same command is given again; new
scenes in the input are added to a finished dataset in the same way. What is written depends on the input and the
settings alone, never on workers, their order or how often the run was stopped.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2
from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from data_prep import dataset, matching
from data_prep.matching import Match, Reason
from data_prep.policies import POLICIES, Comparison, Frame
from data_prep.sources import SOURCES
from data_prep.sources.scene import Scene, SceneProblem
from data_prep.workers import cores, start_worker
from mimic_jax import command, records
from mimic_jax.command import InputError


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides which pairs a scene gives. `step` is in seconds for videos, in frames for folders of images.

    The band from min_overlap to max_overlap, fractions of a view's patches, includes both ends. `name` is the source
    dataset that records say they are from.
    """

    name: str
    source: str = "video"
    policy: str = "step"
    step: float = 1.0
    min_overlap: float = 0.5
    max_overlap: float = 0.75
    image_size: int = 224
    patch_size: int = 16
    quality: int = 95

    def __post_init__(self):
        """Raises InputError where a setting is impossible."""
        for key, known in (("source", SOURCES), ("policy", POLICIES)):
            if getattr(self, key) not in known:
                raise InputError(f"--{key}={getattr(self, key)}: not one of {', '.join(known)}")
        if not 0 < self.step < float("inf"):
            raise InputError(f"--step={self.step:g}: must be above 0")
        if not 0 <= self.min_overlap <= self.max_overlap <= 1:
            raise InputError(
                f"--min_overlap={self.min_overlap:g} --max_overlap={self.max_overlap:g}: "
                "must satisfy 0 ≤ min_overlap ≤ max_overlap ≤ 1"
            )
        if self.patch_size < 1 or self.image_size < 1 or self.image_size % self.patch_size:
            raise InputError(f"--image_size={self.image_size}: must be a multiple of --patch_size={self.patch_size}")
        if self.image_size > 4096:
            raise InputError(f"--image_size={self.image_size}: must be at most 4096")
        # The correspondence is int16, and its working memory grows with the square of the patches.
        if self.image_size > 64 * self.patch_size:
            raise InputError(
                f"--image_size={self.image_size} --patch_size={self.patch_size}: at most 64 × 64 patches; "
                "give a larger --patch_size or a smaller --image_size"
            )
        if not 1 <= self.quality <= 100:
            raise InputError(f"--quality={self.quality}: must be 1 to 100")


@dataclasses.dataclass(frozen=True)
class SceneResult:
    """What a scene gave: the pairs kept, in the policy's order, and the scene's entry in the manifest."""

    pairs: list[records.Pair]
    entry: dict[str, Any]


def mine_scene(scene: Scene, settings: Settings) -> SceneResult:
    """The pairs of one scene. A pure function of the scene and the settings; never raises for what it cannot read.

    The entry counts frames_read, pairs_tried, pairs_kept, `rejected` pairs by reason and `problems` by kind.
    """
    rejected, problems = collections.Counter(), collections.Counter()
    frames_read = tried = inside = 0

    def frames() -> Iterator[Frame]:
        nonlocal frames_read
        try:
            for sample in scene.samples():
                if sample.image is None:
                    problems["frame cannot be read"] += 1
                    continue
                frames_read += 1
                image = matching.resize(sample.image, settings.image_size)
                yield Frame(sample.number, sample.tick, image, matching.detect(image))
        except SceneProblem as problem:
            problems[str(problem)] += 1
        # One scene's disk or pictures must not end the run; what was yielded before stands.
        except OSError as error:
            problems[f"cannot be read ({error.strerror or type(error).__name__})"] += 1
        except cv2.error:
            problems["OpenCV failed on a frame"] += 1

    def compare(first: Frame, second: Frame) -> Comparison:
        nonlocal tried, inside
        tried += 1
        match = matching.match_features(
            first.features, second.features, image_size=settings.image_size, patch_size=settings.patch_size
        )
        if isinstance(match, Reason):
            match, reason = None, match
        elif match.overlap < settings.min_overlap:
            reason = Reason.BELOW_BAND
        elif match.overlap > settings.max_overlap:
            reason = Reason.ABOVE_BAND
        else:
            inside, reason = inside + 1, None
        if reason is not None:
            rejected[reason.value] += 1
        return Comparison(first, second, match, reason)

    jpegs: dict[int, bytes] = {}

    def jpeg(frame: Frame) -> bytes:
        if frame.number not in jpegs:
            jpegs[frame.number] = records.encode_image(frame.image, settings.quality)
        return jpegs[frame.number]

    def pair(first: Frame, second: Frame, match: Match) -> records.Pair:
        return records.Pair(
            view1=jpeg(first),
            view2=jpeg(second),
            correspondence=match.correspondence,
            homography=match.homography.astype("float32"),
            overlap=match.overlap,
            inliers=match.inliers,
            source=settings.name,
            scene=scene.name,
            frame1=first.number,
            frame2=second.number,
        )

    pairs = [pair(kept.first, kept.second, kept.match) for kept in POLICIES[settings.policy](frames(), compare)]
    if inside > len(pairs):
        rejected[Reason.NOT_CHOSEN.value] += inside - len(pairs)
    if frames_read == 1:
        problems["only one frame"] += 1
    elif frames_read == 0 and not problems:
        problems["no frames"] += 1
    entry = {
        "input_size": scene.input_size,
        "frames_read": frames_read,
        "pairs_tried": tried,
        "pairs_kept": len(pairs),
        "rejected": dict(sorted(rejected.items())),
        "problems": dict(sorted(problems.items())),
    }
    return SceneResult(pairs, entry)


def mine(
    input: Path, output: Path, settings: Settings, *, workers: int | None = None, shards: int | None = None
) -> dict[str, Any]:
    """Mines every scene of `input` that `output` does not hold yet, and returns the dataset's manifest.

    Args:
      input: what `settings.source` reads: a video, or a folder.
      output: the dataset folder; made where it is missing, carried on where it was begun with the same settings.
      workers: processes; None for one a core.
      shards: files of the dataset; None for one each 10 000 pairs.

    Raises:
      InputError: the input or output cannot be used, or no pair at all was kept (the manifest is then written).
      BrokenProcessPool: a worker was killed; finished scenes are kept.
    """
    if not input.exists():
        raise InputError(f"{input}: no such file or folder (--input)")
    scenes = SOURCES[settings.source](input, settings.step)
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    with dataset.opened(output, dataclasses.asdict(settings)):
        done = dataset.finished(output)
        todo = [scene for scene in scenes if done.get(scene.name, {}).get("input_size") != scene.input_size]
        gone = len(done.keys() - {scene.name for scene in scenes})
        if gone:
            console.print(f"{gone} scenes mined earlier are no longer in the input; they stay in the dataset")
        if todo:
            dataset.begin_parts(output, dataclasses.asdict(settings))
            _mine_all(todo, output, settings, workers or cores(), console)
        if todo or not dataset.is_whole(output, shards):
            patches = (settings.image_size // settings.patch_size) ** 2
            manifest = dataset.assemble(output, dataclasses.asdict(settings), patches, shards)
        else:
            manifest = dataset.read_manifest(output)
            console.print(f"{output}: already done, nothing new in the input")
    if not manifest["totals"]["pairs_kept"]:
        raise InputError(f"no pair was kept: {_reasons(manifest['totals']) or 'no pair was tried'} (see manifest.json)")
    return manifest


def _mine_all(todo: list[Scene], output: Path, settings: Settings, workers: int, console: Console) -> None:
    """Mines scenes into parts, in processes."""
    # Long scenes first, so that none is left over at the end for one worker alone.
    todo = sorted(todo, key=lambda scene: -scene.input_size)
    others = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(todo)), multiprocessing.get_context("spawn"), initializer=_start_quiet_worker
    )
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("scenes, {task.fields[kept]} pairs kept, {task.fields[rate]:.0f} pairs/s"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    try:
        with _interrupts_held():  # Workers inherit this: Ctrl-C is the parent's to handle.
            try:
                futures = [pool.submit(_mine_to_part, scene, output, settings) for scene in todo]
            except ValueError as error:  # a worker was killed while the pool was still starting others
                raise BrokenProcessPool(str(error)) from error
        with progress:
            task = progress.add_task("mining", total=len(todo), kept=0, rate=0.0)
            kept = tried = 0
            for future in concurrent.futures.as_completed(futures):
                name, entry = future.result()
                kept, tried = kept + entry["pairs_kept"], tried + entry["pairs_tried"]
                for problem, count in entry["problems"].items():
                    times = f" ({count} times)" if count > 1 else ""
                    console.print(f"warning: {name}: {problem}{times}")
                progress.update(task, advance=1, kept=kept, rate=tried / max(progress.tasks[task].elapsed or 0, 1e-3))
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _mine_to_part(scene: Scene, output: Path, settings: Settings) -> tuple[str, dict[str, Any]]:
    result = mine_scene(scene, settings)
    dataset.write_part(output, scene.name, result.entry, result.pairs)
    return scene.name, result.entry


def _start_quiet_worker() -> None:
    start_worker()
    # What cannot be read is counted, and reported in one line of our own.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reasons(totals: dict[str, Any]) -> str:
    return ", ".join(f"{reason} {count}" for key in ("rejected", "problems") for reason, count in totals[key].items())


def _summary(output: Path, totals: dict[str, Any]) -> Table:
    table = Table("pairs", str(output), title_justify="left")
    for label, key in (("scenes", "scenes"), ("frames read", "frames_read"), ("pairs tried", "pairs_tried")):
        table.add_row(label, str(totals[key]))
    for reason, count in totals["rejected"].items():
        table.add_row(f"  {reason}", str(count))
    table.add_row("pairs kept", str(totals["pairs_kept"]), style="bold")
    for problem, count in totals["problems"].items():
        table.add_row(f"problem: {problem}", str(count), style="yellow")
    return table


def define_flags() -> None:
    """The command's flags; not defined on import, so that other commands can use this module."""
    default = {field.name: field.default for field in dataclasses.fields(Settings)}
    flags.DEFINE_string("input", None, "A video or folder of videos; for frames, a folder of images or of such.")
    flags.DEFINE_string("output", None, "The dataset folder.")
    flags.DEFINE_enum("source", default["source"], list(SOURCES), "What the input is.")
    flags.DEFINE_enum("policy", default["policy"], list(POLICIES), "Which frames of a scene are compared.")
    flags.DEFINE_float("step", default["step"], "Between frames: seconds of a video, frames of a folder.")
    flags.DEFINE_float("min_overlap", default["min_overlap"], "Least overlap of a kept pair, 0 to 1.")
    flags.DEFINE_float("max_overlap", default["max_overlap"], "Greatest overlap of a kept pair, 0 to 1.")
    flags.DEFINE_integer("image_size", default["image_size"], "Views are resized to this many pixels a side.")
    flags.DEFINE_integer("patch_size", default["patch_size"], "Pixels a side of a patch.")
    flags.DEFINE_integer("quality", default["quality"], "JPEG quality of the stored views, 1 to 100.")
    flags.DEFINE_string("name", None, "Dataset name stored in the records. Default: the input's name.")
    flags.DEFINE_integer("workers", None, "Processes. Default: one a core.", lower_bound=1)
    flags.DEFINE_integer("shards", None, "Files of the dataset. Default: one each 10 000 pairs.", lower_bound=1)


def main() -> None:
    """Runs the command."""
    values = flags.FLAGS.flag_values_dict()
    if not values["input"] or not values["output"]:
        raise InputError(f"--{'output' if values['input'] else 'input'} is missing (--help lists the flags)")
    source = Path(values["input"])
    values["name"] = values["name"] or (source.stem if source.is_file() else source.resolve().name)
    settings = Settings(**{field.name: values[field.name] for field in dataclasses.fields(Settings)})
    output = Path(values["output"])
    try:
        manifest = mine(source, output, settings, workers=values["workers"], shards=values["shards"])
    except BrokenProcessPool:
        sys.exit("error: a worker was killed (memory?); no finished scene is lost: run the same command to carry on")
    Console().print(_summary(output, manifest["totals"]))


if __name__ == "__main__":
    define_flags()
    command.run(main)
