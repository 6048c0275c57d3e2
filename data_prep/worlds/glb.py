"""Any textured .glb as a world to film: triangles with colours and an instance id each."""

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from jaxtyping import Bool, Float32, Float64, Int32, UInt16

from data_prep.worlds import texels
from data_prep.worlds.rays import Rays
from mimic_jax.command import InputError

# Extensions of glTF that this reader cannot undo, and what they are.
_COMPRESSED = {
    "KHR_texture_basisu": "Basis-compressed textures",
    "KHR_draco_mesh_compression": "Draco-compressed meshes",
    "EXT_meshopt_compression": "meshopt-compressed meshes",
    "KHR_meshopt_compression": "meshopt-compressed meshes",
}
# No scene is larger; what lies farther out is a damaged number. Metres.
_FARTHEST = 1e6


@dataclasses.dataclass(frozen=True)
class World:
    """What a film needs of a scene; per triangle unless said otherwise. Metres, the axes of the file.

    corners: the three corners. normal: unit, of no particular side.
    uv: texture coordinates at the corners, from the image's top left. texture: number of its image, 0 is plain white.
    density: texels per metre on the full-size image. tint: display-coded RGB at the corners, multiplies the texture.
    instance: 1 for the first object in the file, and so on. names: of objects, by instance id − 1.
    low, high: the corners of the bounding box.
    """

    rays: Rays
    corners: Float32[np.ndarray, "triangles 3 3"]
    normal: Float32[np.ndarray, "triangles 3"]
    uv: Float32[np.ndarray, "triangles 3 2"]
    texture: Int32[np.ndarray, " triangles"]
    density: Float32[np.ndarray, " triangles"]
    tint: Float32[np.ndarray, "triangles 3 3"]
    instance: UInt16[np.ndarray, " triangles"]
    images: texels.Texels
    names: tuple[str, ...]
    low: Float64[np.ndarray, "3"]
    high: Float64[np.ndarray, "3"]


def read_world(path: Path) -> World:
    """Reads a .glb with its node transforms, textures, colour factors and vertex colours.

    Textured and vertex-coloured surfaces are shown as they are: scans and the rooms of this package have their light in
    their textures. Surfaces of one plain colour are shaded by their slope, so that their shape can be seen.

    Raises InputError where the file is absent, is no readable .glb, or holds no triangles.
    """
    check_readable(path)
    try:
        # process=False keeps every vertex as written: merging would join seams of the texture.
        scene = trimesh.load_scene(path, file_type="glb", process=False)
        with np.errstate(all="ignore"):  # numbers that are none, or far too large, are left out or set to 0
            return _assemble(path, scene)
    except InputError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as the reader has lines
        raise InputError(f"{path}: a damaged .glb ({type(error).__name__}: {error})") from error


def _assemble(path: Path, scene: trimesh.Scene) -> World:
    """The world of a scene that trimesh has read."""
    corners, uv, tint, texture, instance, names = [], [], [], [], [], []
    images: list[np.ndarray] = [np.full((1, 1, 3), 255, np.uint8)]
    numbers: dict[int, int] = {}
    for node in sorted(scene.graph.nodes_geometry):
        transform, key = scene.graph[node]
        mesh = scene.geometry[key]
        if not isinstance(mesh, trimesh.Trimesh) or len(mesh.faces) == 0:
            continue
        placed = trimesh.transform_points(mesh.vertices, transform)[mesh.faces]
        names.append(str(node))
        coordinates, picture = _texture_of(mesh)
        if picture is not None and id(picture) not in numbers:
            numbers[id(picture)] = len(images)
            images.append(np.array(picture.convert("RGB")))
        corners.append(placed)
        uv.append(coordinates)
        tint.append(_tint(mesh, placed, textured=picture is not None))
        texture.append(np.full(len(placed), 0 if picture is None else numbers[id(picture)]))
        instance.append(np.full(len(placed), len(names)))
    if not corners:
        raise InputError(f"{path}: holds no triangles")
    if len(names) > np.iinfo(np.uint16).max:
        raise InputError(f"{path}: {len(names)} objects, more than instance ids can number; join some")
    corners = np.concatenate(corners)
    whole = _sound(corners)
    if not whole.any():
        raise InputError(f"{path}: holds no triangle with an area")
    corners = corners[whole]
    uv, tint, texture, instance = (np.concatenate(part)[whole] for part in (uv, tint, texture, instance))
    uv = np.nan_to_num(uv.astype(np.float32), posinf=0, neginf=0)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(cross, axis=1, keepdims=True)
    size = np.array([image.shape[1::-1] for image in images])[texture]
    on_image = (uv - uv[:, :1]) * size[:, None]
    texel_area = np.abs(on_image[:, 1, 0] * on_image[:, 2, 1] - on_image[:, 1, 1] * on_image[:, 2, 0])
    return World(
        rays=Rays(corners),
        corners=corners.astype(np.float32),
        normal=(cross / area).astype(np.float32),
        uv=uv,
        texture=texture.astype(np.int32),
        density=np.nan_to_num(np.sqrt(texel_area / area[:, 0])).astype(np.float32),
        tint=np.nan_to_num(tint).astype(np.float32),
        instance=instance.astype(np.uint16),
        images=texels.pack(images),
        names=tuple(names),
        low=corners.min((0, 1)),
        high=corners.max((0, 1)),
    )


def read_header(path: Path) -> dict[str, Any]:
    """What a .glb says about itself, its first chunk. Reads no more than that.

    Raises InputError where the file is absent, no .glb, or cut short.
    """
    try:
        with path.open("rb") as file:
            head = file.read(20)
            size = file.seek(0, 2)
            if not head.startswith(b"glTF"):
                raise InputError(f"{path}: not a .glb file (binary glTF begins with 'glTF')")
            if len(head) < 20:
                raise InputError(f"{path}: a damaged .glb (cut short)")
            _, version, length, text_length, kind = struct.unpack("<4sIII4s", head)
            if version != 2:
                raise InputError(f"{path}: binary glTF {version}; only version 2 can be read")
            if kind != b"JSON":
                raise InputError(f"{path}: a damaged .glb (its first part is not JSON)")
            if size < max(length, 20 + text_length):
                raise InputError(f"{path}: a damaged .glb (cut short)")
            file.seek(20)
            header = json.loads(file.read(text_length))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: a damaged .glb (its JSON cannot be read)") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: a damaged .glb (its JSON is no object)")
    return header


def check_readable(path: Path) -> None:
    """Raises InputError where the file is absent, no .glb, cut short, or compressed as this reader cannot undo."""
    header = read_header(path)
    try:
        needed = set(header.get("extensionsRequired", ()))
        for texture in header.get("textures", ()):
            # Said not to be required, though there is no other picture.
            if "source" not in texture:
                needed |= texture.get("extensions", {}).keys()
        claimed = max((accessor.get("count", 0) for accessor in header.get("accessors", ())), default=0)
        with path.open("rb") as file:
            damaged = claimed > file.seek(0, 2)
    except (TypeError, AttributeError) as error:
        raise InputError(f"{path}: a damaged .glb (its JSON is not glTF's)") from error
    for extension, words in _COMPRESSED.items():
        if extension in needed:
            raise InputError(f"{path}: {words} ({extension}) cannot be read; use the uncompressed .glb")
    # The reader would make room for as many numbers as are claimed.
    if damaged:
        raise InputError(f"{path}: a damaged .glb (claims more numbers than it has bytes)")


def _texture_of(mesh: trimesh.Trimesh):
    """Texture coordinates per corner (from the top left), and the image or None."""
    visual = mesh.visual
    if isinstance(visual, trimesh.visual.TextureVisuals) and visual.uv is not None:
        picture = getattr(visual.material, "baseColorTexture", None)
        if picture is not None and len(visual.uv) == len(mesh.vertices):
            # trimesh measures v from the bottom.
            return (visual.uv * (1, -1) + (0, 1))[mesh.faces], picture
    return np.zeros((len(mesh.faces), 3, 2)), None


def _tint(mesh: trimesh.Trimesh, placed: np.ndarray, textured: bool) -> np.ndarray:
    """Display-coded RGB 0–1 per corner: colour factor × vertex colours, and shade for plain surfaces."""
    visual = mesh.visual
    tint = np.ones((len(mesh.faces), 3, 3))
    colours = None
    if isinstance(visual, trimesh.visual.TextureVisuals):
        factor = getattr(visual.material, "baseColorFactor", None)
        if factor is not None:
            # glTF colour factors are linear.
            tint *= (np.asarray(factor, float)[:3] / 255) ** (1 / 2.2)
        colours = visual.vertex_attributes.get("color")
    elif visual.kind == "vertex":
        colours = visual.vertex_colors
    if colours is not None and len(colours) == len(mesh.vertices):
        colours = np.asarray(colours)
        largest = 1.0 if colours.dtype.kind == "f" else float(np.iinfo(colours.dtype).max)
        # Exporters of scans write display values here, whatever the standard says.
        tint *= (colours[:, :3] / largest)[mesh.faces]
    elif not textured:
        cross = np.cross(placed[:, 1] - placed[:, 0], placed[:, 2] - placed[:, 0])
        slope = np.abs(cross) / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-30)
        tint *= (slope**2 @ (0.7, 1.0, 0.5))[:, None, None] * 0.8
    return tint


def _sound(corners: np.ndarray) -> Bool[np.ndarray, " triangles"]:
    """Triangles with corners within reach and an area; the others cannot be hit and have no normal."""
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    return (np.abs(corners) < _FARTHEST).all((1, 2)) & (area > 0)
