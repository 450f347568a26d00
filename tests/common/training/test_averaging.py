"""The moving average of weights."""

import torch

from apps.imaging.models.networks import registry
from common.training.averaging import WeightAverage


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def averaged(net: torch.nn.Module, decay: float) -> WeightAverage:
    return WeightAverage(registry.weights(net), decay)


def test_it_is_that_of_torchs_averaged_model() -> None:
    """``swa_utils.AveragedModel`` with the same decay at each step, and all steps counted from the second."""
    net = network()
    average = averaged(net, decay=0.5)  # below what the rising decay reaches after eight steps
    steps = 0

    def fold(old: torch.Tensor, new: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        decay = min(0.5, (1 + steps) / (10 + steps))
        return decay * old + (1 - decay) * new

    theirs = torch.optim.swa_utils.AveragedModel(net, avg_fn=fold, use_buffers=True)
    theirs.update_parameters(net)  # the first call copies
    for steps in range(1, 21):  # noqa: B007 -- read by fold
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.data.add_(torch.randn_like(tensor))
        average.update()
        theirs.update_parameters(net)
    for name, tensor in theirs.module.named_parameters():
        torch.testing.assert_close(average.tensors[name], tensor.data, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(average.tensors["1.running_mean"], theirs.module[1].running_mean)


def test_weights_return_after_the_context() -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    average = averaged(net, decay=0.9)
    net[0].weight.data.fill_(7.0)
    with average.applied():
        assert torch.equal(net[0].weight, before["0.weight"])
    assert (net[0].weight == 7).all() and torch.equal(average.tensors["0.weight"], before["0.weight"])


def test_a_continued_average_is_the_undisturbed_one() -> None:
    net = network()
    average = averaged(net, decay=0.99)
    other = network()
    for _ in range(3):
        net[0].weight.data.add_(1.0)
        average.update()
    continued = averaged(other, decay=0.99)
    continued.load({name: tensor.clone() for name, tensor in average.tensors.items()}, average.steps)
    for one, each in ((net, average), (other, continued)):
        one[0].weight.data.fill_(5.0)
        each.update()
    assert torch.equal(average.tensors["0.weight"], continued.tensors["0.weight"])
