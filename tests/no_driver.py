"""A GPU that is not there, for which Triton compiles all the same."""

from triton.backends.compiler import GPUTarget


class NoDriver:
    """Of a GPU that is not there, as Triton asks for it before it compiles; a number that no GPU has."""

    def get_current_device(self) -> int:
        return 99

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)
