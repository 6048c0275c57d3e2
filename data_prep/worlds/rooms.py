"""A furnished, lit room, different for every seed, as a textured scene that saves to .glb."""

import io
import math

import cv2
import numpy as np
import trimesh
from PIL import Image
from trimesh.visual.material import PBRMaterial

from data_prep.worlds import furniture, layout, lighting, shapes, textures
from data_prep.worlds.rays import Rays
from data_prep.worlds.shapes import Chart
from data_prep.worlds.textures import Material

TEXELS_PER_METRE = 140.0
# Texels repeated around each chart in its object's image, so that blurred levels do not mix neighbours.
GUTTER = 4
PANEL_HEIGHT = 0.03
# glTF's up is y; rooms are built with z up.
TO_GLTF = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])

# The kinds of things that are in rooms. An object is named by its kind and a number. Indices are stored in datasets of
# labelled images: add new kinds at the end.
KINDS = (
    "wall", "floor", "ceiling", "panel", "rug", "picture", "lamp", "crate", "cabinet", "bookcase", "table", "chair",
    "stool", "drum", "cone", "ball", "ring", "pot", "open_box", "steps", "arch", "tower", "small_box", "small_ball",
    "can", "bowl",
)  # fmt: skip

_WALLS = "bricks planks glyphs camouflage stones confetti mosaic chevrons stripes terrazzo"
_FLOORS = "bricks planks terrazzo stones mosaic checks"
_CEILINGS = "planks camouflage terrazzo stones checks"


def build_room(seed: int, index: int) -> trimesh.Scene:
    """The room number `index` of `seed`: y up, metres, light baked into the textures; one geometry per object."""
    rng = np.random.default_rng([seed, index])
    width, depth, height = rng.uniform((5.2, 4.8, 2.5), (8.0, 7.0, 3.1))
    panels = _panels(rng, width, depth, height)
    bodies = _shell(rng, width, depth, height)
    lit = [_placed(panel) for panel in panels]
    bodies += [_dressed(rng, placed) for placed in layout.furnish(rng, width, depth, height, lit)]
    bodies += [("panel", [(chart, None) for charts, _ in placed.parts for chart in charts]) for placed in lit]

    charts = [chart for _, faces in bodies for chart, _ in faces]
    rays = Rays(np.concatenate([_triangles(chart) for chart in charts]))
    ambient = tuple(rng.uniform(0.3, 0.42) * (1 + rng.normal(0, 0.04, 3)))
    lights = lighting.bake(charts, rays, panels, ambient, rng)
    # Exposure: a texture in middling light shows about as it was painted.
    exposure = 0.6 / np.median(np.concatenate([light.reshape(-1) for light in lights]))

    scene = trimesh.Scene()
    used: dict[str, int] = {}
    remaining = iter(lights)
    for name, faces in bodies:
        number = used[name] = used.get(name, 0) + 1
        pictures = [_lit_picture(rng, chart, material, exposure * next(remaining)) for chart, material in faces]
        mesh = _mesh([chart for chart, _ in faces], pictures, f"{name}_{number}")
        scene.add_geometry(mesh, node_name=f"{name}_{number}", geom_name=f"{name}_{number}")
    return scene


def _panels(rng: np.random.Generator, width: float, depth: float, height: float) -> list[lighting.Panel]:
    """Two or three lit ceiling panels, warm or cold, one brighter than the rest, so that shadows have a side."""
    panels: list[lighting.Panel] = []
    strength = rng.permutation([1.0, 0.5, 0.35])
    # Light falls off with distance squared: more for a larger, higher room.
    power = 0.2 * (width * depth + (width + depth) * height)
    for share in strength[: int(rng.integers(2, 4))]:
        size = tuple(rng.uniform(0.4, 0.9, 2))
        for _ in range(50):
            x, y = rng.uniform(-0.5, 0.5, 2) * (width - 1.6, depth - 1.6)
            if all(np.hypot(x - other.centre[0], y - other.centre[1]) > 1.5 for other in panels):
                tint = 1 + rng.uniform(-1, 1) * np.array([0.12, 0.0, -0.14])
                # Light leaves a centimetre below the lower face.
                panels.append(lighting.Panel((x, y, height - PANEL_HEIGHT - 0.01), size, tuple(power * share * tint)))
                break
    return panels


def _placed(panel: lighting.Panel) -> layout.Placed:
    """The panel as a thing to be seen."""
    x, y, z = panel.centre
    return layout.Placed(furniture.slab("panel", *panel.size, PANEL_HEIGHT), (x, y, z + 0.01), 0.0)


def _shell(rng: np.random.Generator, width: float, depth: float, height: float) -> list:
    faces = shapes.inside_out(shapes.box(width, depth, height))
    names = ("wall", "wall", "wall", "wall", "ceiling", "floor")
    kinds = (_WALLS, _WALLS, _WALLS, _WALLS, _CEILINGS, _FLOORS)
    return [
        (name, [(face, textures.new_material(rng, kind))]) for name, face, kind in zip(names, faces, kinds, strict=True)
    ]


def _dressed(rng: np.random.Generator, placed: layout.Placed) -> tuple[str, list[tuple[Chart, Material]]]:
    if placed.item.name == "picture":
        materials = [textures.new_material(rng, "poster")]
    else:
        everything = " ".join(name for name in textures.PAINTERS if name != "poster")
        materials = [textures.new_material(rng, everything) for _ in range(3)]
    return placed.item.name, [(chart, materials[slot]) for charts, slot in placed.parts for chart in charts]


def _lit_picture(rng: np.random.Generator, chart: Chart, material: Material | None, light: np.ndarray) -> np.ndarray:
    """The chart's texture times its light, RGB uint8. No material: a lamp, white and unshaded."""
    height, width = (max(4, math.ceil(side * TEXELS_PER_METRE)) for side in chart.extent)
    if material is None:
        return np.full((height, width, 3), 250, np.uint8)
    painted = textures.paint(material, rng, height, width, TEXELS_PER_METRE)
    # (texture^2.2 × light)^(1/2.2) = texture × light^(1/2.2): linear light on a display-coded texture.
    gain = cv2.resize(np.power(light, 1 / 2.2), (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.multiply(painted, gain, dtype=cv2.CV_8U)


def _triangles(chart: Chart) -> np.ndarray:
    points = chart.points.reshape(-1, 3)
    return points[_faces(*chart.points.shape[:2])]


def _faces(rows: int, columns: int) -> np.ndarray:
    """Two triangles per cell of the grid, counter-clockwise seen from outside."""
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    right, below, across = corner + 1, corner + columns, corner + columns + 1
    return np.concatenate([np.stack([corner, below, right], 1), np.stack([right, below, across], 1)])


def _mesh(charts: list[Chart], pictures: list[np.ndarray], name: str) -> trimesh.Trimesh:
    """One mesh with one image that holds every chart's picture."""
    corners, image = _shelves(pictures)
    vertices, uvs, faces, count = [], [], [], 0
    for chart, picture, (top, left) in zip(charts, pictures, corners, strict=True):
        rows, columns = chart.points.shape[:2]
        height, width = picture.shape[:2]
        v, u = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j]
        # trimesh measures v from the bottom of the image.
        u, v = (left + u * width) / image.shape[1], 1 - (top + v * height) / image.shape[0]
        vertices.append(chart.points.reshape(-1, 3))
        uvs.append(np.stack([u.ravel(), v.ravel()], axis=1))
        faces.append(_faces(rows, columns) + count)
        count += rows * columns
    material = PBRMaterial(name=name, baseColorTexture=_jpeg(image), metallicFactor=0.0, roughnessFactor=1.0)
    return trimesh.Trimesh(
        np.concatenate(vertices) @ TO_GLTF.T,
        np.concatenate(faces),
        visual=trimesh.visual.TextureVisuals(np.concatenate(uvs), material=material),
        process=False,
    )


def _shelves(pictures: list[np.ndarray]) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Sets pictures side by side in rows, tallest first. Returns each one's top left corner, and the filled image."""
    area = sum((p.shape[0] + 2 * GUTTER) * (p.shape[1] + 2 * GUTTER) for p in pictures)
    page = max(math.isqrt(area), *(p.shape[1] + 2 * GUTTER for p in pictures), 1)
    corners, x, y, shelf, widest = {}, 0, 0, 0, 0
    for number in sorted(range(len(pictures)), key=lambda n: -pictures[n].shape[0]):
        height, width = (side + 2 * GUTTER for side in pictures[number].shape[:2])
        if x + width > page:
            x, y, shelf = 0, y + shelf, 0
        corners[number] = (y + GUTTER, x + GUTTER)
        x, shelf = x + width, max(shelf, height)
        widest = max(widest, x)
    image = np.full((y + shelf, widest, 3), 128, np.uint8)
    for number, (top, left) in corners.items():
        picture = cv2.copyMakeBorder(pictures[number], GUTTER, GUTTER, GUTTER, GUTTER, cv2.BORDER_REPLICATE)
        image[top - GUTTER :, left - GUTTER :][: picture.shape[0], : picture.shape[1]] = picture
    return [corners[number] for number in range(len(pictures))], image


def _jpeg(image: np.ndarray) -> Image.Image:
    """trimesh embeds an image that says it is a JPEG as one: a tenth of a PNG's size, and much quicker."""
    picture = Image.open(
        io.BytesIO(cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
    )
    picture.load()
    return picture
