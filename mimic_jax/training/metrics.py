"""The metrics of a run: `metrics.jsonl`, each step once however often the run was interrupted, TensorBoard, and W&B."""

import hashlib
import json
import math
import time
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from mimic_jax import files
from mimic_jax.command import InputError, one_line
from mimic_jax.metrics_file import METRICS, read_metrics

TENSORBOARD = "tensorboard"
PICTURES = "pictures"


class Metrics:
    """Writes metrics and pictures of one run, after dropping what a lost run wrote beyond the step that is resumed.

    project: of Weights & Biases, which gets the numbers too; empty for none.

    Raises:
      InputError: the package for `project` is not installed, or Weights & Biases refuses.
    """

    def __init__(self, workdir: Path, resumed_step: int, *, project: str = "", config: dict | None = None):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._workdir, path = workdir, workdir / METRICS
        kept = [line for line in read_metrics(path) if line["step"] <= resumed_step] if path.exists() else []
        files.write(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a", buffering=1)
        (workdir / TENSORBOARD).mkdir(exist_ok=True)
        # Not SummaryWriter: it writes in a thread, for which it waits for ever once that has met a full disk.
        self._board = EventsWriter(str(workdir / TENSORBOARD / "events"))
        started = SessionLog(status=SessionLog.START)  # TensorBoard drops what it has from this step on
        self._board.write_event(Event(wall_time=time.time(), step=resumed_step + 1, session_log=started))
        self._wandb = _start_wandb(project, workdir, config or {}) if project else None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line of numbers about training at `step`."""
        self._file.write(json.dumps({"step": step} | metrics) + "\n")
        self._add(step, "train", metrics)

    def write_evaluation(self, step: int, results: dict[str, float]) -> None:
        """One line of what an evaluation after `step` updates found."""
        self._file.write(json.dumps({"step": step, "evaluation": results}) + "\n")
        self._add(step, "evaluation", results)

    def add_picture(self, step: int, name: str, picture: UInt8[np.ndarray, "height width 3"]) -> None:
        """A picture for TensorBoard; the newest of each name is a PNG in the workdir too."""
        from tensorboardX import summary

        self._show(step, summary.image(name, picture, dataformats="HWC"))
        self._board.flush()
        (self._workdir / PICTURES).mkdir(exist_ok=True)
        _, png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        files.write(self._workdir / PICTURES / f"{name}.png", png.tobytes())

    def close(self) -> None:
        self._file.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish()

    def _show(self, step: int, summary) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._board.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def _add(self, step: int, group: str, values: dict[str, float]) -> None:
        from tensorboardX import summary

        named = {f"{group}/{name}": value for name, value in values.items()}
        for name, value in named.items():
            if math.isfinite(value):  # TensorBoard has no place for what is not
                self._show(step, summary.scalar(name, value))
        self._board.flush()
        if self._wandb:
            self._wandb.log(named, step=step)


def _start_wandb(project: str, workdir: Path, config: dict):
    try:
        import wandb
    except ImportError as error:
        raise InputError(f"--wandb={project} needs a package: pip install 'mimic_jax[wandb]'") from error
    # The same workdir is the same run there, however often it is started.
    name = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]
    try:
        return wandb.init(project=project, name=workdir.name, id=name, resume="allow", dir=str(workdir), config=config)
    except wandb.errors.Error as error:
        raise InputError(
            f"--wandb={project}: {one_line(error)} Mend that, or leave the flag out: the same command carries on"
        ) from error
