"""What was measured on: its name, its measured peaks, and how near to them a piece of work comes."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from SAM2AssistLib.engine.device import computes_in_bfloat16

if TYPE_CHECKING:
    from torch import Tensor

GEMM_SIDE = {"cpu": 2048, "cuda": 8192, "mps": 4096}
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30, "mps": 1 << 28}
ROUNDS = 5


@dataclass(frozen=True)
class Machine:
    """A machine, as a result should name it.

    Attributes
    ----------
    processor, accelerator : names; no accelerator is None.
    cores, threads : logical cores this process may use, and threads torch uses.
    device : where it was computed.
    float32_gflops, bfloat16_gflops : measured with one large matrix product.
    bandwidth_gb_per_s : measured with one large copy, counting what is read and what is written.
    """

    processor: str
    accelerator: str | None
    cores: int
    threads: int
    system: str
    python: str
    torch: str
    device: str
    bfloat16: bool
    float32_gflops: float
    bfloat16_gflops: float
    bandwidth_gb_per_s: float


def describe(device: torch.device) -> Machine:
    """Describe this machine and measure its peaks, which takes a few seconds."""
    return Machine(
        processor=_processor(),
        accelerator=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        cores=_cores(),
        threads=torch.get_num_threads(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        device=str(device),
        bfloat16=computes_in_bfloat16(device),
        float32_gflops=_gemm_gflops(device, torch.float32),
        bfloat16_gflops=_gemm_gflops(device, torch.bfloat16),
        bandwidth_gb_per_s=_bandwidth(device),
    )


def count_gflop(work: Callable[[], object]) -> float:
    """Count the floating point operations of matrix products, convolutions and attentions in a piece of work; 1e9."""
    # The fused attention of CPUs is unknown to torch's counter; the plain one has the same products in it.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops() / 1e9


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gemm_gflops(device: torch.device, dtype: torch.dtype) -> float:
    side = GEMM_SIDE[device.type]
    factor = torch.ones(side, side, device=device, dtype=dtype)
    return 2 * side**3 / _fastest(lambda: factor @ factor, device) / 1e9


def _bandwidth(device: torch.device) -> float:
    source = torch.zeros(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), device) / 1e9


def _fastest(action: Callable[[], Tensor], device: torch.device) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return best
