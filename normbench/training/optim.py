"""The optimizers, their schedule, and the learning rate as a function of the batch size."""

import inspect
import math
from typing import TypeVar

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


OptimizerClass = TypeVar("OptimizerClass", bound=type[torch.optim.Optimizer])


def undecorated(optimizer: OptimizerClass) -> OptimizerClass:
    """Take the decorators off that load torch's compiler, which takes 2 s and 150 MiB."""
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        setattr(optimizer, name, inspect.unwrap(getattr(optimizer, name)))
    optimizer.step = torch.no_grad()(inspect.unwrap(optimizer.step))  # type: ignore[method-assign]
    return optimizer


@undecorated
class SGD(torch.optim.SGD):
    """SGD of torch."""


@undecorated
class Adam(torch.optim.Adam):
    """Adam and AdamW of torch."""


def optimizer(trial: Trial, model: nn.Module) -> SGD | Adam:
    """Return the trial's optimizer of all parameters; by the trial, those of the norms have no decay."""
    settings = trial.optimizer
    norm: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    of_norms = norm_parameters(model)
    for parameter in model.parameters():
        (norm if parameter in of_norms else other).append(parameter)
    candidates = [
        {"params": other, "weight_decay": settings.weight_decay},
        {"params": norm, "weight_decay": settings.weight_decay if settings.weight_decay_on_norm else 0.0},
    ]
    groups = [group for group in candidates if group["params"]]
    lr = base_learning_rate(trial)
    if settings.name == "sgd":
        return SGD(groups, lr=lr, momentum=settings.momentum, nesterov=settings.nesterov, fused=True)
    return Adam(
        groups,
        lr=lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
        capturable=any(parameter.is_cuda for parameter in model.parameters()),  # or no graph takes it
        decoupled_weight_decay=settings.name == "adamw",
    )


def buffers(of: SGD | Adam) -> list[Tensor]:
    """Return the state of all parameters; what does not exist yet begins at 0, which is equivalent."""
    tensors: list[Tensor] = []
    names = state_names(of)
    for group in of.param_groups:
        for parameter in group["params"] if names else ():
            state = of.state[parameter]
            for name in names:
                if state.get(name) is None:
                    is_step = name == "step"  # a number, which the fused kernel takes in fp32
                    state[name] = parameter.new_zeros(()).float() if is_step else torch.zeros_like(parameter)
                tensors.append(state[name])
    return tensors


def state_names(of: SGD | Adam) -> tuple[str, ...]:
    """Return what an optimizer keeps of every parameter."""
    if isinstance(of, Adam):
        return "step", "exp_avg", "exp_avg_sq"
    return ("momentum_buffer",) if of.defaults["momentum"] else ()


def check_state(of: SGD | Adam) -> None:
    """Refuse a state that was loaded and is not of these parameters.

    Raises:
        ValueError: a tensor is missing or of another shape.
    """
    for parameter, state in of.state.items():
        if state.keys() != set(state_names(of)):
            raise ValueError(f"the optimizer keeps {', '.join(state_names(of)) or 'nothing'} of a parameter")
        for name, tensor in state.items():
            if tensor.shape != (() if name == "step" else parameter.shape):
                raise ValueError(f"{name} of the optimizer is not of its parameter's shape")
