"""Which device a trial runs on, said in a configuration, and there or not."""

import torch

CONTEXT_BYTES = 3 * 2**28  # of a process on a GPU, beside its tensors: CUDA and its libraries


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


def memories(name: str) -> dict[int, int]:
    """Bytes of the GPUs that ``auto``, ``cuda`` (both: all) or ``cuda:N`` stands for here, by index."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = None if name == "auto" else torch.device(name).index
    chosen = range(count) if index is None else range(index, min(index + 1, count))
    return {number: torch.cuda.get_device_properties(number).total_memory for number in chosen}


def settle_on(where: torch.device, sharing: int) -> None:
    """Let this process use one GPU and, of its memory, an equal share: others lose nothing by it.

    Does nothing on a CPU.
    """
    if where.type != "cuda":
        return
    torch.cuda.set_device(where)
    whole = torch.cuda.get_device_properties(where).total_memory
    share = 1.0 if sharing == 1 else max(1 / sharing - CONTEXT_BYTES / whole, 0.5 / sharing)
    torch.cuda.set_per_process_memory_fraction(share, where)
