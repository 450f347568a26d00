"""The peak memory of one PyTorch training or inference step on the CPU, before it runs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.api import step_trace
from common.api.command import budget_of
from common.api.step_trace import Moment
from common.errors import DoesNotFit, UsageError
from common.memory.costs import baseline, operators
from common.memory.costs.operators import Call, Cost, OperatorCosts
from common.memory.costs.probes import Probe, ProbeFailed
from common.memory.costs.store import CostStore
from common.memory.costs.trace import unseen
from common.memory.footprint import Term
from common.memory.process.budget import format_size
from common.memory.process.guard import SUPERVISOR_BYTES
from common.memory.process.meter import anonymous

if TYPE_CHECKING:
    import torch

    Step = (
        Callable[[Any], object]
        | torch.nn.Module
        | tuple[torch.nn.Module, Callable[..., torch.Tensor], torch.optim.Optimizer]
    )

NOTHING = Cost(0, 0)
TRAINING = "common.api.estimate:load_training"
"""The warm-up of a process that trains."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Predicted peak of a step, term by term.

    Attributes
    ----------
    terms
        Memory that is alive at the peak, by purpose, the largest first; the bytes add up to ``peak_bytes``.
    baseline_bytes
        Memory of a process that has loaded PyTorch and run small operators, and an optimiser if the step has one;
        measured in a process of its own.
    unmeasured
        Operators whose workspace could not be measured within the memory there is; they count as having none, so the
        peak may be larger.
    """

    terms: tuple[Term, ...]
    baseline_bytes: int
    unmeasured: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """The step's peak above the baseline: its parameters, its batch and all it makes."""
        return sum(term.bytes for term in self.terms)

    @property
    def process_bytes(self) -> int:
        """The peak of a process that does nothing else: baseline and step."""
        return self.baseline_bytes + self.peak_bytes

    def __getitem__(self, name: str) -> int:
        """Bytes of the term with this name; 0 if there is none."""
        return next((term.bytes for term in self.terms if term.name == name), 0)

    def __str__(self) -> str:
        rows = [(term.name, term.bytes) for term in self.terms]
        rows += [("peak of the step", self.peak_bytes), ("with the process itself", self.process_bytes)]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {format_size(size):>12}" for name, size in rows]
        return "\n".join([*lines, *(f"not measured: {name}" for name in self.unmeasured)])


def estimate(step: "Step", batch: Any, *, memory: str | int = "auto", threads: int | None = None) -> Estimate:
    """Predict the peak memory of a training or inference step on the CPU, term by term, without running it.

    The step runs twice in this process on tensors that have shapes and no data, to see what it allocates and when.
    The workspace of an operator's kernel is measured in another process, which runs each distinct operator
    once, alone; the numbers are kept in ``$XDG_CACHE_HOME/peakline/costs``. Modules and optimisers are left as they
    were, and nothing of their size is allocated here. Effects of the step's own Python code happen (it may append to
    a list); a value that it reads with ``item`` is 1.

    Parameters
    ----------
    step
        A function of the batch that does one step, with the module and the optimiser that it refers to; or
        ``(module, loss, optimizer)``, which stands for ``loss(module(inputs), targets)``, its backward pass and a step
        of the optimiser; or a module, which stands for its forward pass under ``no_grad``. Modules and optimisers may
        hold tensors on ``meta``, which take no memory.
    batch
        A tensor, or tensors in tuples, lists and dictionaries; of any device, ``meta`` too, since only layouts are
        read. For ``(module, loss, optimizer)``: ``(inputs, targets)``.
    memory
        Ceiling of the process that measures operators, as ``--memory`` takes it.
    threads
        Threads that the step will run on; default: PyTorch's present number.

    Returns
    -------
    Estimate
        The peak of the steady state: the second step, in which gradients and states of the optimiser exist. It holds
        for a process whose allocator returns what is freed (see ``docs/api.md``).

    Raises
    ------
    UsageError
        If the step is none of these, cannot run without data, or computes elsewhere than on the CPU.
    DoesNotFit
        If ``memory`` is too little to load PyTorch and measure anything.

    Examples
    --------
    >>> import torch
    >>> from common import estimate
    >>> network = torch.nn.Sequential(torch.nn.Linear(1024, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 10))
    >>> optimizer = torch.optim.Adam(network.parameters())
    >>> def step(batch):
    ...     images, classes = batch
    ...     optimizer.zero_grad()
    ...     torch.nn.functional.cross_entropy(network(images), classes).backward()
    ...     optimizer.step()
    >>> estimated = estimate(step, (torch.zeros(256, 1024), torch.zeros(256, dtype=torch.int64)))
    >>> sizes = {term.name: round(term.bytes / 2**20) for term in estimated.terms}
    >>> sizes["parameters"], sizes["gradients"], sizes["optimizer states"]
    (16, 16, 32)
    """
    import torch

    threads = torch.get_num_threads() if threads is None else threads
    # This process's own memory is not what measuring takes.
    ceiling = budget_of(memory).host_bytes + anonymous() + SUPERVISOR_BYTES
    history, trains = step_trace.trace(_function(step), batch)
    libraries = baseline.probe(TRAINING if trains else operators.WARM_UP, libraries=("torch",), threads=threads)
    costs, unmeasured, before = _measured(history, libraries, threads, ceiling)
    kinds, workspace = _peak(history, costs)
    terms = [Term(kind, kinds[kind], "analytic") for kind in step_trace.KINDS]
    terms += [
        Term("operator workspace", workspace, "replayed"),
        Term("operator code", sum(cost.kept for cost in costs.values()), "replayed"),
        Term("small blocks", unseen(), "estimated"),
    ]
    ordered = sorted((term for term in terms if term.bytes), key=lambda term: -term.bytes)
    return Estimate(tuple(ordered), before, unmeasured)


def load_training() -> None:
    """Load PyTorch as a training does: the first optimiser loads another 65 MiB of code."""
    import torch

    operators.warm_up()
    weights = torch.zeros(4, requires_grad=True)
    for optimizer in (torch.optim.SGD([weights], 0.1, momentum=0.9), torch.optim.Adam([weights])):
        weights.square().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()


def _function(step: "Step") -> Callable[[Any], object]:
    """One function of the batch, of whatever a step was given as."""
    import torch

    if isinstance(step, torch.nn.Module):
        return _inference(step)
    if isinstance(step, tuple) and len(step) == 3:
        module, loss, optimizer = step
        if isinstance(module, torch.nn.Module) and callable(loss) and isinstance(optimizer, torch.optim.Optimizer):
            return _training(module, loss, optimizer)
    if not isinstance(step, tuple) and callable(step):
        return step
    raise UsageError(
        f"step: a {type(step).__name__} is no step; pass a function of the batch, a module, or a tuple"
        " (module, loss, optimizer)"
    )


def _inference(module: "torch.nn.Module") -> Callable[[Any], object]:
    import torch

    def step(batch: Any) -> None:
        with torch.no_grad():
            module(*batch) if isinstance(batch, (tuple, list)) else module(batch)

    return step


def _training(
    module: "torch.nn.Module", loss: Callable[..., "torch.Tensor"], optimizer: "torch.optim.Optimizer"
) -> Callable[[Any], object]:
    def step(batch: Any) -> None:
        inputs, targets = batch
        optimizer.zero_grad()
        loss(module(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _measured(
    history: Sequence[Moment], libraries: Probe, threads: int, ceiling: int
) -> tuple[dict[Call, Cost], tuple[str, ...], int]:
    """Return the costs of the distinct operators, the names of those that could not be measured, and the baseline."""
    calls = list(dict.fromkeys(call for _, call in history if call is not None))
    stored = OperatorCosts(operators.default_file(threads))
    costs = {call: stored[call] for call in calls if call in stored}
    probes = {call: probe for call in calls if call not in costs and (probe := call.probe_on(threads)) is not None}
    answers = dict(_answers([libraries, *probes.values()], ceiling))
    for call, probe in probes.items():
        if probe in answers:
            costs[call] = Cost(**{name: int(size) for name, size in answers[probe].items()})
    if libraries not in answers:
        raise DoesNotFit(
            f"{format_size(ceiling)} is too little to load PyTorch and measure an operator", ceiling=ceiling
        )
    unmeasured = [str(call.function) for call in calls if call not in costs]
    return costs, tuple(dict.fromkeys(unmeasured)), int(answers[libraries]["bytes"])


def _answers(probes: Sequence[Probe], ceiling: int) -> Iterator[tuple[Probe, Any]]:
    """Yield each probe with its measurement; probes that need more than the ceiling are left out."""
    store, left = CostStore(), list(probes)
    while left:
        try:
            measured = dict(store.collect(left, ceiling=ceiling))
        except ProbeFailed:
            measured = store.cached(left)
        yield from measured.items()
        # Probes are measured in order: the first without an answer is the one that failed.
        left = [probe for probe in left if probe not in measured][1:]


def _peak(history: Sequence[Moment], costs: dict[Call, Cost]) -> tuple[dict[str, int], int]:
    """Bytes by kind at the peak, and the workspace of the operator that runs then."""

    def workspace(call: Call | None) -> int:
        return costs.get(call, NOTHING).workspace if call is not None else 0

    if not history:
        raise UsageError("step: it makes no tensor, so there is nothing to predict")
    kinds, call = max(history, key=lambda moment: sum(moment[0].values()) + workspace(moment[1]))
    return {kind: kinds[kind] for kind in step_trace.KINDS}, workspace(call)
