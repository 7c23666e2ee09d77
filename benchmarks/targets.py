"""The accelerators that programs are compiled for, none of which need be there."""

from typing import Any

import jax
from jax.experimental import topologies

TARGETS = {"tpu": "TPU v5e", "cuda": "NVIDIA H100 SXM", "cpu": "the CPU of this machine"}

# The description of the absent GPU that XLA needs, from NVIDIA's data sheets.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  name: "H100"
  runtime_version: "12.8.0"
  driver_version: "12.8.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
"""


def devices_of(target: str, count: int) -> list[Any]:
    """Devices of the target, at most 4, which exist only in its compiler."""
    if target == "cpu":
        return jax.devices("cpu")[:count]
    if target == "tpu":
        return topologies.get_topology_desc("v5e:2x2", platform="tpu").devices[:count]
    return topologies.get_topology_desc(
        "h100", platform="cuda", topology=f"1x1x{count}", target_config=H100
    ).devices
