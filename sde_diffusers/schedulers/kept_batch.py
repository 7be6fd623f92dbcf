"""What a sampler keeps of a batch from step to step, and whether the caller has changed it meanwhile.

Images of a batch have nothing to do with one another: where some were changed, the others go on as they would alone.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


def equal_images(x: Tensor, y: Tensor) -> Tensor | bool:
    """Which images of two batches (N, ...) are equal, (N,) booleans; True or False if all are, or none is."""
    if x.shape != y.shape or torch.equal(x, y):
        return x.shape == y.shape
    each = (x == y).reshape(len(x), -1).all(1)
    return each if each.any() else False


def chosen_images(which: Tensor | bool, these: Tensor, others: Tensor) -> Tensor:
    """`these` where `equal_images` says so, and the `others`; both are (N, ...)."""
    if isinstance(which, bool):
        return these if which else others
    return torch.where(which.reshape(-1, *[1] * (these.ndim - 1)), these, others)


class LeftState:
    """What `step` returned as the next state: callers may replace it between the steps, or change it in place.

    Args:
        state: that tensor itself, which the caller has as well.
    """

    def __init__(self, state: Tensor):
        self.counted = not state.is_inference()  # tensors of inference mode do not count how often they are changed
        self.state, self.values = state, state.clone()  # to see which images were changed, and not only that some were
        self.version = state._version if self.counted else 0

    def is_still(self, x: Tensor) -> Tensor | bool:
        """Which images of x are as they were; see `equal_images`. Nothing waits for a GPU if it is the same tensor."""
        if self.counted and x is self.state and x._version == self.version:
            return True
        return equal_images(x, self.values)


class History:
    """What a multistep sampler keeps of images that have come the same way.

    Args:
        rows: (M,) their numbers in the batch; None of all images.
        estimates: the last ones, each {"data": (M, ...)} or {"noise": (M, ...)} or both.
        start: (M, ...) where their last step began, if it will be corrected.
    """

    def __init__(self, rows: Tensor | None = None, estimates: Sequence = (), start: Tensor | None = None):
        self.rows, self.estimates, self.start = rows, list(estimates), start

    def kept(self, still: Tensor) -> "History | None":
        """Of its images that are `still` as they were, (N,) booleans of the batch; None if there is none."""
        rows = torch.arange(len(still), device=still.device) if self.rows is None else self.rows
        here = still[rows]
        if here.all():
            return self
        estimates = [{form: values[here] for form, values in estimate.items()} for estimate in self.estimates]
        return History(rows[here], estimates, None if self.start is None else self.start[here]) if here.any() else None


def histories_of(still: Tensor | bool, histories: list[History]) -> list[History]:
    """The histories of a batch of which only those images are `still` as they were; see `equal_images`.

    Another state than the last step's has come another way, of which the estimates say nothing: its history begins
    anew.
    """
    if isinstance(still, bool):
        return histories if still else [History()]
    kept = [part for history in histories if (part := history.kept(still)) is not None]
    return [*kept, History((~still).nonzero()[:, 0])]


class KeptBatchMixin:
    """Of samplers: what is kept is theirs, and goes when the sampling ends."""

    _given: tuple[Tensor, ...]  # by the caller, to the step that is under way
    _state: Tensor | None  # that the last step left, if the caller has it in fewer bits
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

    def _unrounded(self, sample: Tensor, dtype: torch.dtype) -> Tensor:
        """The state that the last step left, where `sample` is its rounding to fewer bits; else the sample itself."""
        left = self._state
        if left is None or left.shape != sample.shape:
            return sample.to(dtype)
        return chosen_images(equal_images(left.to(sample), sample), left, sample.to(dtype))
