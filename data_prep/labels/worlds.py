"""Films of our own worlds with their ground truth, as `data_prep.film --ground_truth` writes them."""

import functools
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from data_prep.labels import Example, Labelled, Scene, Settings
from data_prep.sources.scene import SceneProblem, walk
from data_prep.worlds import rooms, truth
from mimic_jax import files, records
from mimic_jax.command import InputError
from mimic_jax.records import dense

# Metres that view 2's surface may be nearer or farther than a pixel's point for the pixel to count as seen.
TOLERANCE = 0.02
NOTHING_SEEN = "nothing is seen"
TOO_LITTLE_SHARED = "the views share too little"


def read(input: Path, settings: Settings) -> Labelled:
    """The films of a folder, in natural order of their names.

    Raises:
      InputError: the folder has no films.
    """
    found: list[tuple[str, Path]] = []
    if not input.is_dir():
        raise InputError(f"{input}: a file; --input names a folder of films (python -m data_prep.film)")
    for folder, names, _ in walk(input, []):
        found += [(name.removesuffix(".npz"), folder) for name in names if name.endswith(".npz")]
    films = [folder / f"{name}.mp4" for name, folder in found]
    if not films:
        raise InputError(f"{input}: no films with .npz files in it; make some with `python -m data_prep.film`")
    classes = _classes(films)
    indices = {name: index for index, name in enumerate(classes)}
    scenes = [
        Scene(
            name=str(film.relative_to(input).with_suffix("")),
            input_size=sum(files.size(path) for path in (film, film.with_suffix(".npz")) if path.is_file()),
            examples=functools.partial(
                _examples, film, settings, indices, str(film.relative_to(input).with_suffix(""))
            ),
        )
        for film in films
    ]
    if settings.records == "stereo":
        return Labelled(records.stereo.schema(["flow"]), (), scenes)
    bits = 8 if len(classes) <= 255 else 16
    schema = records.images.schema(["depth", "normals", "classes"], class_bits=bits)
    return Labelled(schema, classes, scenes)


def kind_of_object(name: str) -> str:
    """The kind of an object by the name of its node: without the number at its end.

    "wall_3" is a wall, Blender's "Chair.001" a Chair; a name that is nothing but a number is an "object".
    """
    return re.sub(r"(?:[_.\-\s]*\d+)+$", "", name).strip() or "object"


def _classes(films: list[Path]) -> tuple[str, ...]:
    """The names of all classes: the kinds of things in rooms, in their fixed order, then other kinds by name."""
    kinds: set[str] = set()
    are_rooms = False
    for film in films:
        try:
            with np.load(film.with_suffix(".npz")) as record:
                names = record["names"].tolist()
                are_rooms |= json.loads(str(record["settings"]))["glb"] is None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            continue  # What is wrong is found, and counted, when the scene is read.
        kinds |= set(map(kind_of_object, names))
    first = rooms.KINDS if are_rooms else ()
    return (*first, *sorted(kinds - set(first)))


def _examples(film: Path, settings: Settings, classes: Mapping[str, int], scene: str) -> Iterator[Example]:
    record = _ground_truth(film.with_suffix(".npz"))
    frames, size = record["depth"].shape[:2]
    wanted = settings.image_size or size
    if wanted > size:
        raise SceneProblem(f"filmed at {size} pixels, less than --image_size={wanted}")
    common = {"source": settings.name, "scene": scene}
    firsts = range(0, frames, settings.every)
    if settings.records == "images":
        for number, image in _video(film, set(firsts), frames):
            yield _labelled_image(number, image, record, classes, wanted, settings, common)
        return
    # A first view is kept until its partner has been read.
    pairs = {first + settings.gap: first for first in firsts if first + settings.gap < frames}
    views: dict[int, UInt8[np.ndarray, "_ _ 3"]] = {}
    for number, image in _video(film, {*pairs, *pairs.values()}, frames):
        views[number] = image
        if number in pairs:
            first = pairs[number]
            yield _stereo(first, number, views[first], image, record, wanted, settings, common)
        for old in [old for old in views if old + settings.gap <= number]:
            del views[old]


def _ground_truth(path: Path) -> dict[str, Any]:
    try:
        with np.load(path) as record:
            if "depth" not in record:
                raise SceneProblem("filmed without --ground_truth")
            if "names" not in record:
                raise SceneProblem("filmed by an earlier version, without the names of objects: film it again")
            return {key: record[key] for key in record}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise SceneProblem("cannot be read (.npz)") from error


def _video(film: Path, wanted: set[int], frames: int) -> Iterator[tuple[int, UInt8[np.ndarray, "_ _ 3"]]]:
    """The numbers and RGB images of the frames that are wanted."""
    reader = cv2.VideoCapture(str(film))
    try:
        for number in range(min(frames, max(wanted, default=-1) + 1)):
            if not reader.grab():
                raise SceneProblem("cannot be read (.mp4)" if number == 0 else "the video ends early")
            if number in wanted:
                there, image = reader.retrieve()
                if not there:
                    raise SceneProblem("frame cannot be read")
                yield number, np.ascontiguousarray(image[..., ::-1])
    finally:
        reader.release()


def _labelled_image(
    number: int,
    image: UInt8[np.ndarray, "size size 3"],
    record: Mapping[str, Any],
    classes: Mapping[str, int],
    wanted: int,
    settings: Settings,
    common: Mapping[str, str],
) -> Example:
    depth = _sampled(record["depth"][number], wanted)
    if not (depth > 0).any():
        return Example((number,), reason=NOTHING_SEEN)
    indices = _class_of_instance(record["names"].tolist(), classes)
    png, metres_per_unit = dense.encode_depth(depth)
    labelled = records.LabelledImage(
        image=records.encode_image(records.resize(image, (wanted, wanted)), settings.quality),
        intrinsics=_scaled(record["intrinsics"], wanted / len(image)),
        frame=number,
        depth=png,
        metres_per_unit=metres_per_unit,
        normals=dense.encode_normals(_sampled(record["normal"][number], wanted)),
        classes=dense.encode_classes(
            indices[_sampled(record["instance"][number], wanted)], 8 if len(classes) <= 255 else 16
        ),
        **common,
    )
    return Example((number,), labelled)


def _class_of_instance(names: list[str], classes: Mapping[str, int]) -> Int64[np.ndarray, " instances"]:
    """The class index by instance id; where nothing is seen, id 0, the pixel is ignored."""
    return np.array([dense.IGNORED, *(classes[kind_of_object(name)] for name in names)], np.int64)


def _stereo(
    first: int,
    second: int,
    view1: UInt8[np.ndarray, "size size 3"],
    view2: UInt8[np.ndarray, "size size 3"],
    record: Mapping[str, Any],
    wanted: int,
    settings: Settings,
    common: Mapping[str, str],
) -> Example:
    (depth1, depth2), (pose1, pose2) = ((record[key][[first, second]]) for key in ("depth", "camera_to_world"))
    flow, seen = true_flow(depth1, pose1, depth2, pose2, record["intrinsics"])
    if seen.mean() < settings.min_overlap:
        return Example((first, second), reason=TOO_LITTLE_SHARED)
    scale = wanted / len(view1)
    png, unit = dense.encode_flow(_sampled(flow, wanted) * scale, _sampled(seen, wanted))
    intrinsics = _scaled(record["intrinsics"], scale)
    jpegs = [records.encode_image(records.resize(view, (wanted, wanted)), settings.quality) for view in (view1, view2)]
    stereo = records.Stereo(
        view1=jpegs[0],
        view2=jpegs[1],
        pose=(np.linalg.inv(pose2) @ pose1).astype(np.float32),
        intrinsics1=intrinsics,
        intrinsics2=intrinsics,
        frame1=first,
        frame2=second,
        flow=png,
        flow_unit=unit,
        **common,
    )
    return Example((first, second), stereo)


def true_flow(
    depth1: Float32[np.ndarray, "height width"],
    pose1: Float64[np.ndarray, "4 4"],
    depth2: Float32[np.ndarray, "height width"],
    pose2: Float64[np.ndarray, "4 4"],
    intrinsics: Float64[np.ndarray, "3 3"],
) -> tuple[np.ndarray, np.ndarray]:
    """Where every pixel of view 1 moves to in view 2, and whether it is seen there; arguments as for `warp_pixels`.

    Besides what `warp_pixels` sees, a pixel is seen where view 2's depth between pixels is that of its point: on a
    floor that is seen at a flat angle, the nearest pixel's depth differs by more than the tolerance.

    Returns:
      Flow (right, down) in pixels [height, width, 2], 0 where not seen, and where it is seen [height, width].
    """
    position, seen = truth.warp_pixels(depth1, pose1, depth2, pose2, intrinsics, TOLERANCE)
    x, y = np.nan_to_num(position, nan=-1e6).clip(-1e6, 1e6).astype(np.float32).transpose(2, 0, 1)
    # On a plane the inverse depth is linear in the picture.
    inverse2 = np.divide(1, depth2, out=np.zeros_like(depth2), where=depth2 > 0)
    between = cv2.remap(inverse2, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    point_depth = truth.points_in(depth1, pose1, pose2, intrinsics)[..., 2]
    inside = (x >= 0) & (x <= depth2.shape[1] - 1) & (y >= 0) & (y <= depth2.shape[0] - 1)
    seen |= inside & (np.abs(between * point_depth - 1) * point_depth <= TOLERANCE)
    row, column = np.indices(depth1.shape)
    return np.where(seen[..., None], position - np.stack([column, row], axis=2), 0), seen


def _sampled(values: np.ndarray, size: int) -> np.ndarray:
    """A square label at a smaller size: the value at the source pixel in which the middle of each pixel is."""
    if len(values) == size:
        return values
    index = ((np.arange(size) + 0.5) * (len(values) / size)).astype(int)
    return values[index[:, None], index]


def _scaled(intrinsics: Float64[np.ndarray, "3 3"], scale: float) -> Float32[np.ndarray, "3 3"]:
    """Intrinsics of the picture at another size, where the middle of the top left pixel stays at (0, 0)."""
    scaled = intrinsics.copy()
    scaled[:2] *= scale
    scaled[:2, 2] += (scale - 1) / 2
    return scaled.astype(np.float32)
