"""Runs before any test module, and so before JAX is imported."""

import atexit
import os
import shutil
import tempfile

# These programs need PyTorch, which the tests do not.
collect_ignore = ["experiments/pytorch_logits.py", "experiments/timm_logits.py"]

DEVICES = "--xla_force_host_platform_device_count"

# Eight virtual CPU devices, for the tests of replication and sharding.
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()

# What takes long to compile is compiled once, also for the processes that tests start.
CACHE = "JAX_COMPILATION_CACHE_DIR"
if CACHE not in os.environ:
    os.environ[CACHE] = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ[CACHE], ignore_errors=True)
