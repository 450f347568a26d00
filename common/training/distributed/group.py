"""Ranks that compute together: sums over all of them, and one network with everyone's gradients.

A process that is alone has a group of one, for which nothing is sent and torch is not imported here. PyTorch's gloo
moves the numbers; ``DistributedDataParallel`` adds up gradients while the backward pass is still running.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.training.distributed import last_words
from common.training.distributed.world import ONE, World

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PATIENCE_SECONDS = 600
"""For how long a rank waits for the others before it takes them for lost: while one of them writes or validates, the
others wait. One that has died is noticed at once, because the kernel closes its connections, and one whose machine or
network is gone after ``connections.SILENT_SECONDS``; only one that is alive and does nothing takes so long."""
_LOST = (
    "gloo/transport",
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "timed out after",
    "Socket Timeout",
    "Connection timed out",
    "No route to host",
    "Network is unreachable",
    "failed to recv",
    "failed to send",
)
"""Parts of the messages by which gloo and the launcher's store say that another process is gone."""


class LostRank(RuntimeError):
    """Another rank has ended, or does not answer; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks of a training, of which this process is one.

    All ranks must call the same methods in the same order. Each raises ``LostRank`` if another rank has ended.

    Examples
    --------
    >>> alone = Group()
    >>> alone.all_of({"a": 1}), alone.of_leader([2])
    ([{'a': 1}], [2])
    """

    world: World = ONE

    @property
    def leads(self) -> bool:
        """True for the rank that writes and speaks."""
        return self.world.leads

    @property
    def several(self) -> bool:
        """True if there are other ranks."""
        return self.world.size > 1

    def share(self, samples: int) -> range:
        """Return which of ``samples`` samples or rows are this rank's."""
        return self.world.share(samples)

    def summed(self, *numbers: "Tensor") -> "tuple[Tensor, ...]":
        """Add scalars over all ranks, in float64; each keeps its type."""
        if not self.several:
            return numbers
        import torch

        together = torch.stack([number.detach().double() for number in numbers])
        self._reduce(together)
        return tuple(total.to(number.dtype) for total, number in zip(together, numbers, strict=True))

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """Add numbers over all ranks."""
        if not self.several:
            return list(numbers)
        import torch

        together = torch.tensor(numbers, dtype=torch.float64)
        self._reduce(together)
        return [float(number) for number in together]

    def added(self, values: "Tensor") -> "Tensor":
        """Add a tensor over all ranks, in place."""
        if self.several:
            self._reduce(values)
        return values

    def _reduce(self, values: "Tensor") -> None:
        import torch.distributed as dist

        with watched():
            dist.all_reduce(values)

    def rows(self, tensors: "Sequence[Tensor]") -> "tuple[slice, tuple[Tensor, ...]]":
        """Join tensors along axis 0, in the order of ranks.

        Parameters
        ----------
        tensors
            As many on each rank, each with this rank's samples along axis 0.

        Returns
        -------
        slice, tuple
            Which rows are this rank's, and the rows of all ranks.
        """
        if not self.several:
            return slice(0, len(tensors[0]) if tensors else 0), tuple(tensors)
        import torch
        import torch.distributed as dist

        sizes = self.all_of(len(tensors[0]) if tensors else 0)
        most, joined = max(sizes), []
        for tensor in tensors:
            padded = tensor.new_zeros(most, *tensor.shape[1:])
            padded[: len(tensor)] = tensor.detach()
            every = [torch.empty_like(padded) for _ in sizes]
            with watched():
                dist.all_gather(every, padded)
            joined.append(torch.cat([rows[:size] for rows, size in zip(every, sizes, strict=True)]))
        first = sum(sizes[: self.world.rank])
        return slice(first, first + sizes[self.world.rank]), tuple(joined)

    def all_of(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of ranks; values that JSON can represent."""
        if not self.several:
            return [value]
        import torch
        import torch.distributed as dist

        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world.size)]
        with watched():
            dist.all_gather(sizes, torch.tensor([len(text)]))
            most = max(int(size) for size in sizes)
            padded = torch.zeros(most, dtype=torch.uint8)
            padded[: len(text)] = text
            every = [torch.empty_like(padded) for _ in sizes]
            dist.all_gather(every, padded)
        return [json.loads(bytes(one[: int(size)].numpy())) for one, size in zip(every, sizes, strict=True)]

    def of_leader(self, value: Any) -> Any:
        """Return the leader's value, which JSON can represent; the others' are not looked at."""
        if not self.several:
            return value
        import torch
        import torch.distributed as dist

        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        size = torch.tensor([len(text)])
        with watched():
            dist.broadcast(size, 0)
            sent = text if self.leads else torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(sent, 0)
        return json.loads(bytes(sent.numpy()))

    def tensors_of_leader(self, tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Return the leader's tensors by name; the others' are not looked at."""
        if not self.several:
            return dict(tensors)
        import torch
        import torch.distributed as dist

        kinds = {name: (list(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()}
        received: dict[str, Tensor] = {}
        for name, (shape, dtype) in self.of_leader(kinds).items():
            kind = getattr(torch, dtype.removeprefix("torch."))
            tensor = tensors[name].contiguous() if self.leads else torch.empty(shape, dtype=kind)
            if tensor.numel():
                with watched():  # as bytes: gloo does not know every type
                    dist.broadcast(tensor.reshape(-1).view(torch.uint8), 0)
            received[name] = tensor
        return received

    def replicated(self, network: "torch.nn.Module") -> "torch.nn.Module":
        """Return a network that computes as ``network`` does, and adds up all ranks' gradients in its backward pass.

        The parameters become those of the leader. The network itself is returned if this process is alone, if its
        parameters are shared out (``sharding``), or if there are none (``added`` is for gradients of other tensors).
        """
        if not self.several or hasattr(network, "reshard") or next(network.parameters(), None) is None:
            return network
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        with watched():
            # Running averages are each rank's own; the training step warns of layers that have any.
            parallel = DistributedDataParallel(network, gradient_as_bucket_view=True, forward_sync_buffers=False)

        def added(bucket: Any) -> Any:
            work = dist.all_reduce(bucket.buffer(), async_op=True)
            assert work is not None
            return work.get_future().then(lambda future: future.value()[0])

        # By itself it would average; the training step divides by the whole batch's denominators.
        parallel.register_comm_hook(None, lambda _, bucket: added(bucket))
        return parallel

    def adding(self, network: "torch.nn.Module", *, last: bool) -> AbstractContextManager[Any]:
        """Context of a forward and backward pass of a ``replicated`` network.

        Parameters
        ----------
        last
            True for the last pass of a step, in which gradients are added over the ranks; all before are not sent.
        """
        if not self.several or last or not hasattr(network, "no_sync"):
            return nullcontext()
        parallel: Any = network
        context: AbstractContextManager[Any] = parallel.no_sync()
        return context

    def close(self) -> None:
        """Leave the group; nothing can be added up afterwards. No replicated network may be referred to any more."""
        if self.several:
            _close()


ALONE = Group()
"""The group of a process that is alone."""


@contextmanager
def watched() -> Iterator[None]:
    """A block in which the end of another rank is told as such.

    Raises
    ------
    LostRank
        Another rank has ended or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, LostRank) or not any(part in str(error) for part in _LOST):
            raise
        raise LostRank(last_words.heard() or "another rank has ended") from None


def rehearse() -> None:
    """Do once, in a group of one, what ranks do together: it loads the code that a warm-up must have loaded."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    _rehearse_steps()
    _close()


def _rehearse_steps() -> None:
    import torch
    import torch.distributed as dist

    network = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4), gradient_as_bucket_view=True)
    for _ in range(2):
        with network.no_sync():
            network(torch.ones(2, 4)).sum().backward()
        network(torch.ones(2, 4)).sum().backward()
    one = torch.ones(1)
    dist.all_gather([torch.zeros(1)], one)
    dist.broadcast(one, 0)


def _close() -> None:
    """Destroy the group of processes.

    A replicated network keeps the group. If that network is the last to go, it destroys the group while it holds
    Python's lock, for which gloo's thread may be waiting: both then wait for ever (1 in 100 times, PyTorch 2.13).
    """
    import gc

    import torch.distributed as dist

    gc.collect()
    dist.destroy_process_group()
