"""What XLA must know of a GPU to compile for it on a machine without one.

Numbers of the chips: NVIDIA's architecture white papers of Hopper and Ampere, and the
data sheets of the products. Without a GPU nothing is autotuned, so a program's memory,
products, collectives and custom calls are real, and its speed is not.
"""

from dataclasses import dataclass

KIB, MIB = 1024, 1024**2
GPUS_A_HOST = 8  # of DGX and HGX machines


@dataclass(frozen=True)
class Target:
    """A chip as XLA's `GpuTargetConfigProto` describes it."""

    name: str
    capability: tuple[int, int]
    num_cores: int  # streaming multiprocessors
    float_units_a_core: int
    shared_memory_a_core: int  # bytes
    l2_cache: int  # bytes
    clock: float  # GHz
    memory: int  # bytes
    bandwidth: float  # bytes/s

    def text(self) -> str:
        """In protobuf's text format."""
        # A block can use all of a core's shared memory but 1 KiB.
        largest_block = self.shared_memory_a_core - KIB
        major, minor = self.capability
        fields = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 48 * KIB,
            "shared_memory_per_core": self.shared_memory_a_core,
            "shared_memory_per_block_optin": largest_block,
            "threads_per_core_limit": 2048,
            "core_count": self.num_cores,
            "fpus_per_core": self.float_units_a_core,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "memory_bandwidth": int(self.bandwidth),
            "l2_cache_size": self.l2_cache,
            "clock_rate_ghz": self.clock,
            "device_memory_size": self.memory,
            "registers_per_core_limit": 2**16,
            "registers_per_block_limit": 2**16,
        }
        lines = [f"  {name}: {value}" for name, value in fields.items()]
        return "\n".join(
            [
                "gpu_device_info {",
                *lines,
                f"  cuda_compute_capability {{ major: {major} minor: {minor} }}",
                "}",
                'platform_name: "CUDA"',
                # cuDNN's: it decides which attention the compiler accepts.
                "dnn_version_info { major: 9 minor: 20 }",
                "runtime_version { major: 13 minor: 0 patch: 0 }",
                f'device_description_str: "{self.name}"',
            ]
        )


_HOPPER = {
    "capability": (9, 0),
    "num_cores": 132,
    "float_units_a_core": 128,
    "shared_memory_a_core": 228 * KIB,
    "clock": 1.98,
}
TARGETS = {
    "h200": Target(
        name="NVIDIA H200",
        l2_cache=60 * MIB,
        memory=150_754_820_096,
        bandwidth=4.8e12,
        **_HOPPER,
    ),
    "h100": Target(
        name="NVIDIA H100 80GB HBM3",
        l2_cache=50 * MIB,
        memory=84_929_347_584,
        bandwidth=3.35e12,
        **_HOPPER,
    ),
    "a100": Target(
        name="NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        num_cores=108,
        float_units_a_core=64,
        shared_memory_a_core=164 * KIB,
        l2_cache=40 * MIB,
        clock=1.41,
        memory=84_929_347_584,
        bandwidth=2.04e12,
    ),
}
