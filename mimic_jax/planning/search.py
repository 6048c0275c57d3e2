"""Which mesh, rematerialisation and accumulation let a config's step fit, and which of those is fastest.

A compile takes minutes. So what is tried, in which order, and what need not be tried follow by rules from what is known
of the others; those rules are plain functions of it.
"""

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
from jaxtyping import PyTree

from mimic_jax import files
from mimic_jax.chips import chip_of
from mimic_jax.command import InputError
from mimic_jax.nn.compute import DEFAULT, REMAT
from mimic_jax.nn.layout import axes_of
from mimic_jax.planning.plan import Memory, Plan, make_plan
from mimic_jax.planning.roofline import Roofline
from mimic_jax.task import Task
from mimic_jax.training.config import Settings
from mimic_jax.training.state import Abstract

AXES = ("data", "fsdp", "tensor")
# From what keeps most for the backward pass to what keeps least. "none" is not tried: it needs more memory than "dots",
# and what it keeps takes longer to write and read than to compute again.
REMATS = tuple(each for each in REMAT if each != "none")
# More would split products into pieces that no longer fill a chip.
MOST_TENSOR = 8
NOT_NEEDED = "not needed: the mesh has room without so much computed again, or in so many parts"
TOO_LARGE = "too large: what needs no more memory does not fit"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """data, fsdp, tensor: sizes of config.run.mesh. remat, accumulate: config.run.remat and accumulation_steps."""

    data: int
    fsdp: int
    tensor: int
    remat: str
    accumulate: int

    @property
    def mesh(self) -> tuple[int, int, int]:
        return self.data, self.fsdp, self.tensor

    def apply(self, settings: Settings) -> Settings:
        """The settings with this mesh, rematerialisation and accumulation."""
        mesh = dict(zip(AXES, self.mesh, strict=True))
        run = dataclasses.replace(settings.run, mesh=mesh, remat=self.remat, accumulation_steps=self.accumulate)
        return dataclasses.replace(settings, run=run)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the compiler made of a candidate.

    fits: taken as true where neither compiler nor published numbers say otherwise.
    needed: bytes on one device; None where it does not fit and nothing said how much it would need.
    state: bytes of that which parameters and optimizer take.
    bound: None where it does not fit, or without published rates. The batch is the same for all, so it ranks them by
      time per example too.
    seconds_to_compile: on this machine.
    """

    fits: bool
    needed: float | None
    state: float
    bound: Roofline | None
    seconds_to_compile: float


def candidates(
    sides: Sequence[int], batch_size: int, heads: int, batch_axes: Sequence[str] = AXES[:2]
) -> list[Candidate]:
    """All that might be tried, plausible ones first: little split, little computed again, axes along whole sides.

    Of those alike the one that splits most comes first: if it does not fit, the others do not.

    Args:
      sides: of the torus of devices; one number where a switch joins all.
      heads: what the tensor axis must divide, besides the number of devices.
      batch_axes: of the mesh, over which a batch is split.
    """
    count, found = math.prod(sides), []
    for tensor in _divisors(math.gcd(count, heads)):
        for fsdp in _divisors(count // tensor) if tensor <= MOST_TENSOR else ():
            mesh = dict(zip(AXES, (count // tensor // fsdp, fsdp, tensor), strict=True))
            rows = batch_size // math.prod(mesh[axis] for axis in batch_axes)
            parts = [2**power for power in range(rows.bit_length()) if rows % 2**power == 0] or [1]
            found += [Candidate(*mesh.values(), remat, each) for each in parts for remat in REMATS]
    return sorted(
        found,
        key=lambda each: (
            each.tensor,
            each.accumulate,
            REMATS.index(each.remat),
            not _along(sides, each.mesh),
            -each.fsdp,
        ),
    )


def left_out(candidate: Candidate, known: Mapping[Candidate, Outcome], room: float | None = None) -> str | None:
    """Why a candidate need not be tried, by what is known of others; None if it has to be.

    Args:
      room: bytes of a device's memory, if known.
    """
    for other, outcome in known.items():
        saves = other.mesh == candidate.mesh and _saves(candidate, other)
        if saves and outcome.fits and not _limited_by_traffic(outcome):
            return NOT_NEEDED
        if outcome.fits or other.tensor != candidate.tensor or other.fsdp < candidate.fsdp:
            continue
        if _saves(other, candidate):
            return TOO_LARGE
        # In twice the parts a batch needs the same state, and no less than half of the rest.
        least = outcome.state + max(0, (outcome.needed or 0) - outcome.state) * other.accumulate / candidate.accumulate
        if room and least > room and REMATS.index(other.remat) >= REMATS.index(candidate.remat):
            return TOO_LARGE
    return None


def ranked(known: Mapping[Candidate, Outcome]) -> list[tuple[Candidate, Outcome]]:
    """Those that fit, by the bound on a step, then by what else takes time, then by memory; then those that do not."""

    def key(item: tuple[Candidate, Outcome]) -> tuple:
        outcome, bound = item[1], item[1].bound
        times = sorted((bound.compute, bound.memory, bound.links), reverse=True) if bound else [0.0] * 3
        return not outcome.fits, *times, outcome.needed or math.inf

    return sorted(known.items(), key=key)


def flags(candidate: Candidate, settings: Settings) -> list[str]:
    """The flags that give a config the fields of a candidate, without those it has already."""

    def fields(run) -> dict[str, int | str]:
        sizes = {f"mesh.{axis}": size for axis, size in run.mesh.items()}
        return sizes | {"remat": run.remat, "accumulation_steps": run.accumulation_steps}

    wanted, has = fields(candidate.apply(settings).run), fields(settings.run)
    if has["mesh.data"] == -1:  # takes the devices that the other axes leave
        del wanted["mesh.data"]
    return [f"--config.run.{field}={value}" for field, value in wanted.items() if has[field] != value]


def candidates_of(task: Task, settings: Settings, devices: Sequence[jax.Device]) -> list[Candidate]:
    """All candidates that might be tried for a task on devices.

    Raises:
      InputError: the config's mesh has other axes.
    """
    if set(settings.run.mesh) != set(AXES):
        raise InputError(f"config.run.mesh={settings.run.mesh}: --search needs the axes {', '.join(AXES)} and no other")
    coordinates = [getattr(device, "coords", None) or (device.id,) for device in devices]
    sides = [len(set(along)) for along in zip(*coordinates, strict=True)]
    return candidates(sides, settings.experiment.batch_size, _divided_by_tensor(task, settings), _batch_axes(settings))


def batch_of_a_chip(candidate: Candidate, settings: Settings) -> int:
    """Examples that a device computes at once: its share of the global batch, in `accumulate` parts."""
    mesh = dict(zip(AXES, candidate.mesh, strict=True))
    shards = math.prod(mesh[axis] for axis in _batch_axes(settings))
    return settings.experiment.batch_size // shards // candidate.accumulate


def search(
    task: Task,
    settings: Settings,
    described: PyTree,
    wanted: Iterable[Candidate],
    devices: Sequence[jax.Device],
    topology: str,
    cache: Path,
    limit: int,
) -> Iterator[tuple[Candidate, Outcome | str | None]]:
    """Tries candidates in order.

    Args:
      described: the config as JSON has it.
      topology: what the devices are called; outcomes are kept in the file `cache` by it, the config and versions.
      limit: how many are compiled; those that the cache has do not count.

    Yields:
      Each candidate with its outcome, or the reason why it was left out; and with None before it is compiled.

    Raises:
      InputError: the cache is no file of this kind, or cannot be written.
    """
    kept, versions = _read(cache), _versions()
    known: dict[Candidate, Outcome] = {}
    refused: dict[tuple[int, int, int], str] = {}
    chip = chip_of(devices[0].device_kind)
    # In a thread, as an interrupt is not heard while the compiler runs.
    compiler = ThreadPoolExecutor(1)
    for candidate in wanted:
        key = _key(candidate, described, topology, versions)
        reason = refused.get(candidate.mesh) or left_out(candidate, known, chip and chip.memory)
        if not reason and key not in kept:
            if not limit:
                reason = "not tried: --search_limit is reached"
            else:
                yield candidate, None
                try:
                    plan = compiler.submit(make_plan, task, candidate.apply(settings), devices).result()
                except InputError as error:
                    if not (refusal := _refusal(error)):
                        raise
                    reason = refused[candidate.mesh] = refusal
                else:
                    limit -= 1
                    kept[key] = _outcome(plan)
                    _write(cache, kept)
        if not reason:
            known[candidate] = kept[key]
        yield candidate, reason or kept[key]
    compiler.shutdown()


def _divided_by_tensor(task: Task, settings: Settings) -> int:
    """The greatest number of shards that every parameter's axes on `tensor` divide into."""
    rules, lengths = settings.run.axis_rules, [0]
    for parameter in Abstract.of(lambda rngs: task.model(rngs, DEFAULT)).params.values():
        for length, axis in zip(parameter.get_value().shape, axes_of(parameter), strict=True):
            targets = rules.get(axis) or ()
            if "tensor" in ((targets,) if isinstance(targets, str) else targets):
                lengths.append(length)
    return math.gcd(*lengths) or 1


def _batch_axes(settings: Settings) -> tuple[str, ...]:
    axes = settings.run.axis_rules.get("batch")
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _along(sides: Sequence[int], mesh: tuple[int, ...]) -> bool:
    """Whether each axis of a mesh takes whole sides of the torus, and so shares no link with another."""
    for taken in itertools.product(range(len(mesh)), repeat=len(sides)):
        lengths = [math.prod(side for side, by in zip(sides, taken, strict=True) if by == axis) for axis in range(3)]
        if tuple(lengths) == mesh:
            return True
    return False


def _saves(one: Candidate, other: Candidate) -> bool:
    """Whether one keeps no more at a time than the other, on meshes that are alike."""
    return one.accumulate >= other.accumulate and REMATS.index(one.remat) >= REMATS.index(other.remat)


def _limited_by_traffic(outcome: Outcome) -> bool:
    """Whether smaller parts, or fewer arrays kept, may be faster: what stays on the chip need not be moved."""
    return outcome.bound is not None and outcome.bound.limit == "memory"


def _refusal(error: InputError) -> str | None:
    """What a mesh does not go with; None for a mistake that has nothing to do with it."""
    field = re.split("[=:]", str(error))[0]
    of_mesh = field.startswith(
        ("config.run.mesh", "config.run.axis_rules.", "config.batch_size", "config.run.accumulation_steps")
    )
    return f"refused: {field} does not go with the mesh" if of_mesh else None


def _outcome(plan: Plan) -> Outcome:
    state = plan.memory.parameters + plan.memory.optimizer
    return Outcome(plan.fits is not False, _needed(plan.memory), state, plan.bound, plan.seconds_to_compile)


def _needed(memory: Memory) -> float | None:
    if memory.peak is not None:
        return memory.peak
    found = re.match(r"(?:Used|total memory required)\D*([\d.]+)([KMG])", memory.said)
    return float(found[1]) * 1024 ** ("KMG".index(found[2]) + 1) if found else None


def _versions() -> list[str]:
    """Of all that decides what is compiled: packages, XLA's flags, and those modules of ours that are in use."""
    packages = {each.name: each.version for each in importlib.metadata.distributions()}
    ours = sorted(module.__file__ for name, module in sys.modules.items() if name.startswith("mimic_jax."))
    code = hashlib.sha256(b"".join(Path(path).read_bytes() for path in ours))
    return [
        *(f"{name} {packages.get(name)}" for name in ("jax", "jaxlib", "libtpu", "flax", "optax")),
        os.environ.get("XLA_FLAGS", ""),
        code.hexdigest(),
    ]


def _key(candidate: Candidate, described: PyTree, topology: str, versions: list[str]) -> str:
    of_candidate = dataclasses.asdict(candidate)
    # What the candidate replaces does not tell one config from another.
    run = {
        name: value for name, value in described["run"].items() if name not in ("mesh", "remat", "accumulation_steps")
    }
    text = json.dumps([of_candidate, {**described, "run": run}, topology, versions], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(cache: Path) -> dict[str, Outcome]:
    try:
        kept = {key: Outcome(**fields) for key, fields in json.loads(cache.read_text()).items()}
        return {
            key: dataclasses.replace(each, bound=each.bound and Roofline(**each.bound)) for key, each in kept.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"--cache={cache}: this is no file that --search has written ({error}); give another"
        ) from error


def _write(cache: Path, kept: Mapping[str, Outcome]) -> None:
    text = json.dumps({key: dataclasses.asdict(outcome) for key, outcome in kept.items()}, indent=1)
    try:
        files.write(cache, text.encode())
    except OSError as error:
        raise InputError(f"--cache={cache}: cannot be written ({error}); give another") from error
