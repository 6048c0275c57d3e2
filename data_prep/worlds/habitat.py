"""The same as `stage`, with habitat-sim for renderer and navigation mesh, where that is installed.

Written from habitat-sim's documentation (0.3: Simulator, PathFinder, CameraSensorSpec, StageAttributes) and NOT RUN: no
machine of this project has habitat-sim. The rays of `stage` are what is tested.
"""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from data_prep.worlds.stage import CLEARANCE, LEAST_RADIUS, Camera, Rendered
from mimic_jax.command import InputError

# habitat's world has y up, and its cameras look along −z with y up: rows as in free_space.level_axes("y").
_AXES = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
_FROM_OPENCV = np.diag([1.0, -1, -1])
# The axes of the file: which points up, and which forward.
_ORIENTATION = {"y": ((0, 1, 0), (0, 0, -1)), "z": ((0, 0, 1), (0, 1, 0))}


@dataclasses.dataclass(frozen=True)
class HabitatStage:
    """What `stage.Stage` is: the same methods, arguments and results; positions in habitat's world, y up.

    triangles: of the navigation mesh, those that are stood on. height: of the eyes above it.
    """

    simulator: Any
    triangles: Float64[np.ndarray, "triangles 3 3"]
    height: float
    camera: Camera

    @property
    def axes(self) -> Float64[np.ndarray, "3 3"]:
        return _AXES

    def place(self, rng: np.random.Generator) -> Float64[np.ndarray, "3"] | None:
        # Not PathFinder.get_random_navigable_point, whose random numbers cannot be repeated.
        first, second, third = self.triangles.transpose(1, 0, 2)
        area = np.linalg.norm(np.cross(second - first, third - first), axis=1)
        corners = self.triangles[rng.choice(len(area), p=area / area.sum())]
        u, v = rng.random(2)
        if u + v > 1:
            u, v = 1 - u, 1 - v
        return np.array([1 - u - v, u, v]) @ corners + self.height * _AXES[2]

    def step(
        self, eye: Float64[np.ndarray, "3"], direction: Float64[np.ndarray, "3"], length: float
    ) -> Float64[np.ndarray, "3"] | None:
        start = eye - self.height * _AXES[2]
        end = start + length * direction
        reached = np.array(self.simulator.pathfinder.try_step_no_sliding(start, end), float)
        # Stairs and sills may lift the walker; a wall may not stop them.
        if np.isnan(reached).any() or np.linalg.norm((reached - end)[[0, 2]]) > 0.01:
            return None
        return reached + self.height * _AXES[2]

    def snap(self, start: Float64[np.ndarray, "3"], target: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "3"]:
        floor = self.simulator.pathfinder.snap_point(target - self.height * _AXES[2])
        floor = np.array(floor, float)
        return start if np.isnan(floor).any() else floor + self.height * _AXES[2]

    def render(self, pose: Float64[np.ndarray, "4 4"]) -> Rendered:
        import habitat_sim
        import quaternion  # a dependency of habitat-sim

        state = habitat_sim.AgentState()
        state.position = pose[:3, 3]
        state.rotation = quaternion.from_rotation_matrix(pose[:3, :3] @ _FROM_OPENCV)
        self.simulator.get_agent(0).set_state(state)
        seen = self.simulator.get_sensor_observations()
        return np.ascontiguousarray(seen["color"][..., :3]), np.asarray(seen["depth"], np.float32)


def check_installed() -> None:
    """Raises InputError where habitat-sim cannot be imported."""
    if importlib.util.find_spec("habitat_sim") is None:
        raise InputError(
            "--renderer=habitat: needs the package habitat-sim, which is not installed; install it, or use "
            "--renderer=rays"
        )


def open_stage(path: Path, height: float, up: str, camera: Camera) -> HabitatStage:
    """`stage.open_stage`, with habitat-sim.

    Raises InputError where the file has no place to stand.
    """
    import habitat_sim

    mediator = habitat_sim.metadata.MetadataMediator()
    templates = mediator.stage_template_manager
    template = templates.create_new_template(handle="scene")
    template.render_asset_handle = str(path)
    template.orient_up, template.orient_front = (np.array(axis, np.float32) for axis in _ORIENTATION[up])
    templates.register_template(template=template, specified_handle="scene")

    sensors = []
    for name, kind in (("color", habitat_sim.SensorType.COLOR), ("depth", habitat_sim.SensorType.DEPTH)):
        sensor = habitat_sim.CameraSensorSpec()
        sensor.uuid, sensor.sensor_type = name, kind
        sensor.resolution = [camera.size, camera.size]
        sensor.hfov = float(np.degrees(2 * np.arctan(camera.size / 2 / camera.focal)))
        sensor.position = np.zeros(3, np.float32)  # at the agent, which is put where the eyes are
        sensors.append(sensor)
    backend = habitat_sim.SimulatorConfiguration()
    backend.scene_id = "scene"
    backend.enable_physics = False
    agent = habitat_sim.agent.AgentConfiguration()
    agent.sensor_specifications = sensors
    simulator = habitat_sim.Simulator(habitat_sim.Configuration(backend, [agent], mediator))

    mesh = habitat_sim.NavMeshSettings()
    mesh.set_defaults()
    mesh.agent_radius, mesh.agent_height = CLEARANCE, height
    if not simulator.recompute_navmesh(simulator.pathfinder, mesh):
        simulator.close()
        raise InputError(f"{path}: no free place: habitat-sim finds no navigable area; does {up} point up?")
    vertices = np.array(simulator.pathfinder.build_navmesh_vertices(), float)
    triangles = vertices[np.array(simulator.pathfinder.build_navmesh_vertex_indices(), int).reshape(-1, 3)]
    radius = np.array([simulator.pathfinder.island_radius(middle) for middle in triangles.mean(axis=1)])
    # As in `stage`: where no island is large enough, the largest.
    return HabitatStage(simulator, triangles[radius >= min(LEAST_RADIUS, radius.max())], height, camera)
