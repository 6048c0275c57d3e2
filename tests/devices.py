"""Functions of test modules in a process of their own, with any number of virtual devices."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

CALL = """
import importlib, json, sys
module, function, arguments = sys.argv[1:]
found = getattr(importlib.import_module(module), function)(*json.loads(arguments))
print("\\nRESULT " + json.dumps(found))
"""


def on_devices(count: int, function: Callable, *arguments: Any, flags: str = "") -> Any:
    """What a function of a module returns where there are `count` CPU devices; arguments and result as JSON.

    Args:
      flags: more of XLA's.
    """
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count} {flags}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", CALL, function.__module__, function.__name__, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = (line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(result)
