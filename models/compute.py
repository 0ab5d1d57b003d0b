"""Where and in which number format a network runs.

`auto` asks the hardware: bfloat16 pays where the processor has instructions for it, and is several times
slower where it has not (measured: 30 times on an AVX2 CPU). Channels-last memory pays for every network here
on every device we measured, so it is always used.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from ground.allocation import keep_freed_memory
from ground.errors import InvalidInput
from models.names import CALL_PRECISIONS, PRECISIONS


@dataclass(frozen=True, slots=True)
class Compute:
    """A device and a precision: "fp32", "bf16", or for a teacher's calls "fp16"."""

    device: torch.device
    precision: str

    @classmethod
    def choose(
        cls, device: str = "auto", precision: str = "auto", *, precisions: Sequence[str] = PRECISIONS
    ) -> Compute:
        """Resolve what the user asked for against what there is; on a CPU, see `keep_freed_memory`.

        Args:
            precisions: that can be used: by default those that train.

        Raises:
            InvalidInput: the device is not there, or the precision is none of these.
        """
        chosen = _device(device)
        if precision == "auto":
            precision = "bf16" if _bf16_is_fast(chosen) else "fp32"
        if precision not in precisions:
            if precision in CALL_PRECISIONS:
                raise InvalidInput(
                    f"{precision} is for a teacher's calls: training in it needs losses that are scaled, which they "
                    f"are not here; give --precision {' or '.join(precisions)}"
                )
            raise InvalidInput(f"no precision is called {precision!r}; known: auto, {', '.join(precisions)}")
        if chosen.type == "cpu":
            keep_freed_memory()
        return cls(chosen, precision)

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which a network's forward runs."""
        narrow = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, narrow, enabled=self.precision != "fp32")

    def exact(self) -> AbstractContextManager[object]:
        """Within it, a GPU repeats itself bit for bit and does not round float32 to TF32."""
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)

    def place(self, network: torch.nn.Module) -> None:
        """Put a network on the device, in the memory layout that is fast there."""
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def synchronise(self) -> None:
        """Return when the device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def describe(self) -> str:
        """The device's name, for the record."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return self.device.type

    def to_device(self, tensor: Tensor) -> Tensor:
        """The tensor on the device."""
        return tensor.to(self.device, non_blocking=True)


def num_gpus() -> int:
    """GPUs that this process sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unusable = InvalidInput(f"device {name!r} cannot be used here; pass --device cpu, or leave it at auto")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise unusable from error
    if device.type not in ("cpu", "cuda"):
        raise unusable
    return device


def _bf16_is_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False
