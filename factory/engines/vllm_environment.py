"""Before vLLM is imported: is it there and for what machine, what it reads from the environment, are options right."""

from __future__ import annotations

import logging
import os
from importlib import metadata
from importlib.util import find_spec
from typing import Literal, get_args

from factory.engines.transformers import default_dtype
from factory.faults import ConfigError, FactoryError

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[str, ...] = get_args(DTypeName)

EVERYWHERE = {
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout belongs to results
}
ON_A_CPU = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # with it, vLLM ties threads to cores that other work may hold
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}


def check_options(dtype: str, gpu_memory_utilization: float, max_loras: int | None, **counts: int | None) -> None:
    """ConfigError: options out of their range, all of them."""
    faults = [f"{name}: must be at least 1, not {n}" for name, n in counts.items() if n is not None and n < 1]
    if dtype not in DTYPES:
        faults.append(f"dtype: must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if not 0 < gpu_memory_utilization <= 1:
        faults.append(f"gpu_memory_utilization: must be above 0 and at most 1, not {gpu_memory_utilization}")
    if max_loras is not None and max_loras < 0:
        faults.append(f"max_loras: must be at least 0, not {max_loras}")
    if faults:
        raise ConfigError(faults, where="the vllm engine's options")


def cpu_build() -> bool:
    """Is the installed vLLM one for CPUs? FactoryError: none is installed."""
    if find_spec("vllm") is None:
        raise FactoryError(
            "vLLM is not installed",
            todo="pip install 'preference-factory[gpu]', or 'preference-factory[cpu-serving]' on a machine without a "
            "GPU; or use the transformers engine",
        )
    names = {distribution.name for distribution in metadata.distributions(name="vllm-cpu")}
    return bool(names) or "cpu" in metadata.version("vllm")


def prepare_environment(on_cpu: bool, threads: int) -> None:
    """Set what vLLM reads from the environment, where the user has not: no usage statistics, quiet, and on a CPU all in
    this process with `threads` threads."""
    settings = EVERYWHERE | (ON_A_CPU | {"OMP_NUM_THREADS": str(threads)} if on_cpu else {})
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def import_vllm() -> None:
    """Import it, once the environment is prepared. FactoryError: it does not fit what is installed beside it."""
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # a CPU has no Triton, and needs none
    try:
        import vllm  # noqa: F401 - what its import does is the point
    except ImportError as error:
        raise FactoryError(
            f"vLLM is installed but cannot be imported: {error}",
            todo="install it anew; beside a CPU's torch, pip uninstall torchvision torchaudio torchcodec triton",
        ) from error


def auto_dtype(on_cpu: bool) -> str:
    """The dtype that the machine multiplies fast."""
    if on_cpu:
        return default_dtype("cpu")
    from vllm.platforms import current_platform

    return "bfloat16" if current_platform.has_device_capability(80) else "float16"
