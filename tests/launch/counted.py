"""launch.pretrain, whose last line counts the programs read from JAX's compilation cache and written to it."""

import atexit
import collections
import os
import runpy

import jax

# The suite's own limit, which a user does not have.
os.environ.pop("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", None)

EVENTS = {"/jax/compilation_cache/cache_hits": "read", "/jax/compilation_cache/cache_misses": "written"}

if __name__ == "__main__":
    counts = collections.Counter()
    jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))
    atexit.register(lambda: print(*(f"{name} {counts[event]}" for event, name in EVENTS.items())))
    runpy.run_module("launch.pretrain", run_name="__main__", alter_sys=True)
