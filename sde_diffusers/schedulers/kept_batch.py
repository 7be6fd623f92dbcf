"""What a sampler keeps of a batch from step to step, and whether the caller has changed it meanwhile."""

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor, equal


class LeftState:
    """What `step` returned as the next state: callers may replace it between the steps, or change it in place.

    Args:
        state: that tensor itself, which the caller has as well.
    """

    def __init__(self, state: Tensor):
        self.counted = not state.is_inference()  # tensors of inference mode do not count how often they are changed
        self.state = state if self.counted else state.clone()
        self.version = state._version if self.counted else 0

    def is_now(self, x: Tensor) -> bool:
        """Whether x is that state, unchanged. Where it is the same tensor, nothing waits for a GPU."""
        if self.counted and self.state._version != self.version:
            return False  # whatever x is: nobody knows any more what the state was
        if self.counted and x is self.state:
            return True
        return x.shape == self.state.shape and equal(x, self.state)


class KeptBatchMixin:
    """Of samplers: what is kept is theirs, and goes when the sampling ends."""

    _given: tuple[Tensor, ...]  # by the caller, to the step that is under way
    _forget: Callable[[], None]

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """A block after which nothing of a batch is kept, however it ends."""
        try:
            yield
        finally:
            self._forget()

    def _own(self, tensor: Tensor) -> Tensor:
        """A tensor that may be kept for the next steps: a copy of one that the caller may write to meanwhile."""
        return tensor.clone() if any(tensor is given for given in self._given) else tensor
