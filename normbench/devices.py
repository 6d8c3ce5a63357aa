"""Which device a trial runs on, said in a configuration, and there or not."""

import torch


def device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` stands for here; a GPU always with its index.

    Raises:
        ValueError: it is not there; the message says what is.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    if not count:
        raise ValueError(f"execute.device {name}: there is no GPU that torch can use; auto or cpu will do")
    index = torch.device("cuda" if name == "auto" else name).index or 0
    if index >= count:
        there = ", ".join(f"cuda:{number}" for number in range(count))
        raise ValueError(f"execute.device {name}: there is no such GPU; there: {there}")
    return torch.device("cuda", index)


def of_processes(first: torch.device, processes: int) -> tuple[torch.device, ...]:
    """A device for each of the processes of a trial: the CPU for all, or GPUs from ``first`` on.

    Raises:
        ValueError: there are too few GPUs.
    """
    if first.type == "cpu":
        return (first,) * processes
    begin, count = first.index or 0, torch.cuda.device_count()
    if begin + processes > count:
        raise ValueError(
            f"execute.processes {processes}: one GPU each from {first} on, and there are {count - begin}; "
            f"take at most {count - begin}, or device cpu"
        )
    return tuple(torch.device("cuda", index) for index in range(begin, begin + processes))
