import torch
from torch import nn

from ossicle.optim.adamw import adamw


def test_a_step_equals_adamw_written_out_in_float64() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    before = {name: p.detach().double().clone() for name, p in layer.named_parameters()}
    optimizer = adamw(layer, lr=0.1, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.5)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in before.items()}
    for step in (1, 2, 3):
        for name, parameter in layer.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            gradient = parameter.grad.double()
            first, second = moments[name]
            first = 0.9 * first + 0.1 * gradient
            second = 0.98 * second + 0.02 * gradient**2
            moments[name] = (first, second)
            decay = 0.5 if name == "weight" else 0.0
            update = first / (1 - 0.9**step) / ((second / (1 - 0.98**step)).sqrt() + 1e-6)
            before[name] = before[name] - 0.1 * decay * before[name] - 0.1 * update
        optimizer.step()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), before[name], atol=1e-6, rtol=1e-5)


def test_it_builds_on_the_meta_device() -> None:
    optimizer = adamw(nn.Linear(3, 2, device="meta"), lr=0.1)
    assert not optimizer.defaults["fused"]
