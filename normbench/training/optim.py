"""SGD, its schedule, and the learning rate as a function of the batch size."""

import inspect
import math

import torch
from torch import Tensor, nn

from normbench.config.trial import Trial
from normbench.models.layers import norm_parameters


def base_learning_rate(trial: Trial) -> float:
    """Return lr · batch_size / lr_reference_batch (linear scaling, Goyal et al. 2017, arXiv 1706.02677)."""
    scale = trial.batch_size / trial.lr_reference_batch if trial.lr_reference_batch else 1.0
    return trial.optimizer.lr * scale


def learning_rate(trial: Trial, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of update ``step``, counted from 0 over the whole training.

    Linear warm-up from 0 over the first epochs, then by schedule: cosine to 0 over what is left (Loshchilov &
    Hutter 2017, arXiv 1608.03983, without restarts); divided by 10 at 50 % and 75 % of the epochs (He et al.
    2016); constant.
    """
    base, total = base_learning_rate(trial), trial.epochs * steps_per_epoch
    warmup = round(trial.schedule.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return base * (step + 1) / warmup
    match trial.schedule.name:
        case "cosine":
            return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
        case "step":
            return base * 0.1 ** ((step >= total / 2) + (step >= total * 3 / 4))
        case "constant":
            return base


class SGD(torch.optim.SGD):
    """SGD of torch without the decorators that load its compiler, which takes 2 s and 150 MiB."""

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.SGD.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.SGD.state_dict)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


def optimizer(trial: Trial, model: nn.Module) -> torch.optim.SGD:
    """Return SGD over all parameters; by the trial, those of the norms have no weight decay."""
    settings = trial.optimizer
    norm: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    of_norms = norm_parameters(model)
    for parameter in model.parameters():
        (norm if parameter in of_norms else other).append(parameter)
    groups = [
        {"params": other, "weight_decay": settings.weight_decay},
        {"params": norm, "weight_decay": settings.weight_decay if settings.weight_decay_on_norm else 0.0},
    ]
    return SGD(
        [group for group in groups if group["params"]],
        lr=base_learning_rate(trial),
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        fused=True,
    )


def momenta(sgd: torch.optim.SGD) -> list[Tensor]:
    """Return the momenta of all parameters; those that do not exist yet begin at 0, which is equivalent."""
    buffers = []
    for group in sgd.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            state = sgd.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffers.append(state["momentum_buffer"])
    return buffers
