"""One process or several: torchrun's world, hidden behind a few verbs. gloo on the CPU, NCCL on GPUs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


class Processes:
    """The processes of a run; alone unless torchrun started this one."""

    def __init__(self) -> None:
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        has_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_gpu else torch.device("cpu")
        if self.world_size > 1 and not distributed.is_initialized():
            if has_gpu:
                torch.cuda.set_device(self.device)
            distributed.init_process_group("nccl" if has_gpu else "gloo")

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return the network's forward pass; in company its gradients become the mean over all processes."""
        if self.world_size == 1:
            return network
        if self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
            return DistributedDataParallel(network, device_ids=[self.device.index], find_unused_parameters=True)
        return DistributedDataParallel(network, find_unused_parameters=True)

    def agreed(self, is_wanted: bool) -> bool:
        """Return what the first process wants, so that all do the same."""
        if self.world_size == 1:
            return is_wanted
        wanted = torch.tensor([is_wanted], dtype=torch.uint8, device=self.device)
        distributed.broadcast(wanted, 0)
        return bool(wanted.item())

    def summed(self, numbers: np.ndarray) -> np.ndarray:
        """Return the sum over all processes."""
        if self.world_size == 1:
            return numbers
        total = torch.from_numpy(numbers.copy()).to(self.device)
        distributed.all_reduce(total)
        return total.cpu().numpy()

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the values of the first, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def gathered(self, mine: range, row_NL: Tensor) -> Tensor:
        """Return all processes' rows in order; `mine` says which rows these are."""
        if self.world_size == 1:
            return row_NL
        parts: list[tuple[range, Tensor] | None] = [None] * self.world_size
        distributed.all_gather_object(parts, (mine, row_NL))
        known = [part for part in parts if part is not None]
        result = torch.empty(sum(len(rows) for rows, _ in known), row_NL.shape[1])
        for rows, part_NL in known:
            result[list(rows)] = part_NL
        return result

    def random_states(self) -> list[Tensor]:
        """Return the state of every process's random numbers, CPU then GPU, by rank."""
        mine = [torch.get_rng_state(), *([torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else [])]
        if self.world_size == 1:
            return mine
        parts: list[list[Tensor] | None] = [None] * self.world_size
        distributed.all_gather_object(parts, mine)
        return [state for part in parts if part is not None for state in part]

    def set_random_state(self, states: list[Tensor]) -> None:
        """Take this process's part of what `random_states` gave."""
        each = len(states) // self.world_size
        mine = states[self.rank * each : (self.rank + 1) * each]
        torch.set_rng_state(mine[0])
        if self.device.type == "cuda" and each > 1:
            torch.cuda.set_rng_state(mine[1], self.device)

    def close(self) -> None:
        """Leave the others."""
        if self.world_size > 1:
            distributed.destroy_process_group()
