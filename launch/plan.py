"""Tells what a config would need and take on accelerators that are not here, from the compiler's own program for them.

python -m launch.plan --config=configs/croco_v2_vitl_base.py --topology=v5e:16x16 --examples=7000000
python -m launch.plan --config=configs/croco_tiny.py --topology=cpu:8
python -m launch.plan --config=configs/mae_vitl.py --topology=local
python -m launch.plan --config=configs/finetune/depth.py:vit_b --topology=v5e:2x2
python -m launch.plan --config=configs/mae_vitl.py --topology=v5e:4x4 --search

Compiles the real train step for the slice, in minutes and on a CPU; no data is opened and no array is made. Times are
bounds from published rates, not measurements. --search compiles it for one mesh after the other, with as much
rematerialisation and accumulation as it takes to fit, and ranks them, whatever the config says of these. Results are
kept in --cache: the same command resumes after a stop.
"""

import collections
import os
import sys

from absl import flags
from ml_collections import config_flags
from rich import box
from rich.console import Console
from rich.table import Table

from mimic_jax import command, files
from mimic_jax.planning import topology as topologies

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment; fields change with --config.a.b=VALUE.")
TOPOLOGY = flags.DEFINE_string("topology", None, "v5e:16x16, v5p:4x4x4, v6e:4x4, cpu:8, or local for what is here.")
EXAMPLES = flags.DEFINE_integer("examples", None, "Records of the training set, for a run in epochs.", lower_bound=1)
PRICE = flags.DEFINE_float("price_per_chip_hour", None, "For what the whole run costs, in any currency.", lower_bound=0)
SEARCH = flags.DEFINE_bool("search", False, "Try meshes, remat and accumulate, and rank those that fit.")
LIMIT = flags.DEFINE_integer("search_limit", 12, "How many are compiled, besides what is in --cache.", lower_bound=0)
CACHE = flags.DEFINE_string("cache", "plan_search.json", "Where outcomes of --search are kept.")
flags.mark_flags_as_required(["config", "topology"])

BOUND = (
    "Times are lower bounds, not measurements: each resource at its published peak, all overlapping. "
    "FLOPs are those of matrix products; bytes are operands and results of each kernel."
)


def main() -> None:
    wanted = topologies.environment(TOPOLOGY.value, os.environ.get("XLA_FLAGS", ""))
    if "jax" in sys.modules:
        raise RuntimeError("jax was imported before the devices to plan for were chosen")
    os.environ.update(wanted)
    # Imported here, as jax reads the environment once.
    from mimic_jax.planning.plan import make_plan
    from mimic_jax.tasks import make_task
    from mimic_jax.training import config

    settings = config.read(CONFIG.value)
    known = None
    if settings.experiment.init:  # sizes that the config leaves open
        from mimic_jax.interop.load import load

        known = load(settings.experiment.init).sizes
    task = make_task(CONFIG.value, known)
    devices = topologies.devices_of(TOPOLOGY.value)
    if SEARCH.value:
        _search(task, settings, devices)
        return
    plan = make_plan(task, settings, devices, EXAMPLES.value)
    name = plan.chip.name if plan.chip else plan.device_kind
    table = Table(show_header=False, title=f"{TOPOLOGY.value}: {plan.devices} × {name}")
    for name, value in [*_memory(plan), ("", ""), *_work(plan), ("", ""), *_time(plan, PRICE.value)]:
        table.add_row(name, value)
    console = Console()
    console.print(table, highlight=False)
    for what, times in plan.counts.unknown.items() if plan.counts else ():
        console.print(f"not counted, {times}×: {what}", highlight=False, markup=False, soft_wrap=True)
    if plan.bound:
        console.print(BOUND, highlight=False, soft_wrap=True)


def _search(task, settings, devices):
    from mimic_jax.planning import search

    console, aside = Console(), Console(stderr=True)
    wanted = search.candidates_of(task, settings, devices)
    known, reasons = {}, collections.Counter()
    cache = files.as_path(CACHE.value)
    described = CONFIG.value.to_dict()
    results = search.search(task, settings, described, wanted, devices, TOPOLOGY.value, cache, LIMIT.value)
    try:
        with aside.status(f"{len(wanted)} candidates"):
            for candidate, result in results:
                if result is None:
                    name = f"{_mesh(candidate)}; remat {candidate.remat}, accumulate {candidate.accumulate}"
                    aside.print(f"compiling {name}", highlight=False, soft_wrap=True)
                elif isinstance(result, str):
                    reasons[result] += 1
                else:
                    known[candidate] = result
    finally:  # after an interrupt, what is known by then
        if untried := len(wanted) - len(known) - reasons.total():
            reasons["not tried: interrupted"] += untried
        _print_ranking(console, settings, search.ranked(known), reasons)
        if known:
            best, outcome = search.ranked(known)[0]
            if outcome.fits:
                given = " ".join(search.flags(best, settings)) or "nothing: it is what the config has"
                console.print(f"for the first: {given}", highlight=False, soft_wrap=True)


def _print_ranking(console, settings, ranking, reasons):
    from mimic_jax.planning import search

    columns = ("mesh", "remat", "accu-\nmulate", "batch\na chip", "peak\nmemory", "step ≥", "limited\nby", "MFU ≤")
    title = f"{TOPOLOGY.value}: {CONFIG.value.batch_size} examples a step; meshes are data × fsdp × tensor"
    within_80_columns = {"box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
    table = Table(*columns, "compiled\nin", title=title, **within_80_columns)
    for candidate, outcome in ranking:
        needed = "" if outcome.needed is None else _bytes(outcome.needed)
        bound = outcome.bound
        if not outcome.fits:
            row = (needed, "no room", "", "")
        elif bound:
            row = (needed, _duration(bound.seconds), bound.limit, f"{bound.utilisation:.0%}")
        else:
            row = (needed, "", "", "")
        tried = "×".join(map(str, candidate.mesh)), candidate.remat, str(candidate.accumulate)
        batch = str(search.batch_of_a_chip(candidate, settings))
        table.add_row(*tried, batch, *row, _duration(outcome.seconds_to_compile))
    console.print(table, highlight=False)
    for reason, count in reasons.items():
        console.print(f"left out, {count}×: {reason}", highlight=False, markup=False, soft_wrap=True)
    fitting = [outcome for _, outcome in ranking if outcome.fits]
    if any(outcome.bound for outcome in fitting):
        console.print(BOUND, highlight=False, soft_wrap=True)
    elif fitting:
        console.print("No published rates of these devices are known here: ranked by memory.", highlight=False)


def _mesh(candidate) -> str:
    return ", ".join(f"{name} {size}" for name, size in zip(("data", "fsdp", "tensor"), candidate.mesh, strict=True))


def _memory(plan):
    memory = plan.memory
    yield "mesh", ", ".join(f"{name} {size}" for name, size in plan.mesh.items())
    yield "parameters, a chip", _bytes(memory.parameters)
    yield "optimizer", _bytes(memory.optimizer)
    yield "batch", _bytes(memory.batch)
    if memory.peak is None:
        yield "fits", f"NO: {memory.said}"
        return
    yield "activations, gradients, temporaries", _bytes(memory.temporaries)
    yield "peak", _bytes(memory.peak)
    if plan.chip:
        yield (
            "fits",
            f"{'yes' if plan.fits else 'NO'}: {memory.peak / plan.chip.memory:.0%} of {_bytes(plan.chip.memory)}",
        )


def _work(plan):
    total = plan.model_flops + plan.augmentation_flops
    if plan.model_flops:
        yield "FLOPs of the model, a step", _flops(plan.model_flops)
    if plan.counts is None:
        return
    done = sum(plan.counts.flops.values()) * plan.devices
    ratio = f" ({done / total:.3f} of the closed form)" if plan.model_flops else ""
    yield "FLOPs compiled, all chips", f"{_flops(done)}{ratio}"
    yield "memory traffic, a chip", _bytes(plan.counts.bytes)
    for key, sent in sorted(plan.counts.sent.items(), key=lambda item: -item[1]):
        yield f"{key.kind} over {', '.join(key.axes)}, sent by a chip", _bytes(sent)


def _time(plan, price):
    bound = plan.bound
    if bound is None:
        if plan.counts:
            yield "step time", f"not estimated: no published rates of {plan.device_kind!r} are known here"
        return
    peaks = (bound.compute, bound.memory, bound.links)
    yield "at peak: compute, memory, links", " · ".join(map(_duration, peaks))
    yield "step time", f"at least {_duration(bound.seconds)}, limited by {bound.limit}"
    yield "examples a second", f"at most {plan.examples_per_step / bound.seconds:,.0f}"
    if plan.model_flops:
        yield "model-FLOPs utilisation (MFU)", f"at most {bound.utilisation:.0%}"
    if plan.steps is None:
        yield "whole run", "give --examples=N, the pairs of the training set"
        return
    seconds = plan.steps * bound.seconds
    chip_hours = seconds / 3600 * plan.devices
    yield "whole run", f"{plan.steps:,} steps, at least {_duration(seconds)}, {chip_hours:,.2f} chip-hours"
    if price is not None:
        yield "cost of the run", f"at least {chip_hours * price:,.2f}"


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds * 1e6:.1f} µs"


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f} B"


def _flops(value: float) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if value >= size:
            return f"{value / size:.3f} {unit}"
    return f"{value:.0f} FLOP"


if __name__ == "__main__":
    command.run(main)
