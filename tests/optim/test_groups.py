import torch
from torch import nn

from ossicle.encoder.recurrent import RecurrentBlock
from ossicle.layer.grouped import GroupedLinear
from ossicle.layer.recurrence import LightRecurrence
from ossicle.optim.groups import decay_groups


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.narrow = nn.Linear(4, 1)
        self.conv = nn.Conv1d(6, 6, 3, groups=6)
        self.position = nn.utils.parametrizations.weight_norm(nn.Conv1d(6, 6, 5, groups=2), dim=2)
        self.norm = nn.LayerNorm(6)
        self.group_norm = nn.GroupNorm(2, 6)
        self.embedding = nn.Embedding(5, 6)
        self.codebook = nn.Parameter(torch.zeros(2, 5, 3))
        self.mask = nn.Parameter(torch.zeros(6))
        self.tied = self.linear
        self.frozen = nn.Linear(3, 3).requires_grad_(requires_grad=False)


def test_weights_of_layers_decay_and_everything_else_does_not() -> None:
    module = Everything()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = decay_groups(module)
    assert {names[id(p)] for p in groups.decayed} == {
        "linear.weight", "narrow.weight", "conv.weight", "position.parametrizations.weight.original1",
    }  # fmt: skip
    assert {"codebook", "mask", "embedding.weight", "norm.weight", "linear.bias"} <= {
        names[id(p)] for p in groups.plain
    }


def test_every_trained_parameter_is_in_exactly_one_group() -> None:
    module = Everything()
    groups = decay_groups(module)
    grouped = [id(p) for p in (*groups.decayed, *groups.plain)]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in module.parameters() if p.requires_grad}


def test_matrices_of_layers_that_torch_does_not_know_decay() -> None:
    grouped, light, gru = GroupedLinear(6, 6, 2), LightRecurrence(6, 4, momentum=0.1, epsilon=1e-5), RecurrentBlock(6)
    assert {id(p) for p in decay_groups(grouped).decayed} == {id(grouped.weight)}
    assert id(light.recurrent) in {id(p) for p in decay_groups(light).decayed}
    assert {id(p) for p in decay_groups(gru).decayed} == {id(p) for p in gru.parameters() if p.ndim == 2}
