"""Device, precision, processes and reading workers, decided once from the settings."""

import os
from dataclasses import dataclass

import torch

from maest.config.settings import Precision, TrainerSettings
from maest.helpers.errors import InputError
from maest.helpers.work.parallel import cores
from maest.models.engines import best_device

_MOST_WORKERS = 12


@dataclass(frozen=True)
class Devices:
    """The device that computes, its precision, and the number of processes."""

    device: torch.device
    precision: Precision
    local: int  # processes on each machine
    processes: int  # on all machines

    def workers(self, wanted: int | None, fewest: int = 0, sharing: int = 1) -> int:
        """Return the number of reading workers per computing process; None takes as many as pay.

        That is ``fewest`` on a CPU, whose cores the network needs; else one per core, at most 12.
        So many processes, ``sharing``, share the cores that this one may use.
        """
        if wanted is not None:
            return wanted
        # Training on MPS would wait for workers to start.
        if self.device.type == "cpu" or (self.device.type == "mps" and not fewest):
            return fewest
        return max(1, min(cores() // sharing, (os.cpu_count() or 1) // self.local, _MOST_WORKERS))


def find_devices(settings: TrainerSettings) -> Devices:
    """Return the devices that section ``trainer`` names, or the best. InputError: not here."""
    device = find_device(settings.accelerator, "trainer.accelerator")
    if device.type == "cpu" and settings.precision == "16-mixed":
        raise _unsupported("trainer.precision", "a CPU computes in 32-true, not in fp16")
    if device.type == "cpu" and settings.devices == -1:
        raise _unsupported("trainer.devices", "there is no GPU here, of which -1 would take all")
    local = settings.devices if settings.devices > 0 else torch.cuda.device_count() or 1
    usual: Precision = "16-mixed" if device.type == "cuda" else "32-true"
    return Devices(device, settings.precision or usual, local, local * settings.num_nodes)


def find_device(accelerator: str, setting: str) -> torch.device:
    """Return the device of "auto", "gpu", "cuda", "mps" or "cpu". InputError: it is not here."""
    best = best_device()
    device = best if accelerator in ("auto", "gpu") else accelerator
    if device not in ("cpu", best) or (accelerator, device) == ("gpu", "cpu"):
        raise _unsupported(setting, f"there is no {accelerator!r} here")
    return torch.device(device)


def _unsupported(setting: str, message: str) -> InputError:
    hint = "Leave it out to take what suits this machine."
    return InputError(message, kind="unsupported", setting=setting, hint=hint)
