"""Runs before any test module, and so before JAX is imported."""

import os

# These programs need PyTorch, which the tests do not.
collect_ignore = ["experiments/pytorch_logits.py", "experiments/timm_logits.py"]

DEVICES = "--xla_force_host_platform_device_count"

# Eight virtual CPU devices, for the tests of replication and sharding.
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()
