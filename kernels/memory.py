"""A batch that does not fit into memory is solved in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "CUDA_ERROR_OUT_OF_MEMORY")


def in_parts[T](work: Callable[[slice], T], count: int, *, unit: str) -> Iterator[T]:
    """work(slice(0, count)), or of smaller slices once memory runs out; yields the results in order.

    Raises:
        MemoryError: a single one does not fit; `unit` says what that is.
    """
    start, size = 0, count
    while start < count:
        part = slice(start, min(start + size, count))
        result = _attempt(work, part)
        if result is None:
            if size == 1:
                raise MemoryError(
                    f"{unit} do not fit into memory at once, and cannot be split: free memory that other work holds, "
                    f'solve smaller grids, or use backend="cpu", which needs least'
                )
            size = (size + 1) // 2
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            continue
        yield result[0]
        start = part.stop


def _attempt[T](work: Callable[[slice], T], part: slice) -> tuple[T] | None:
    """The result in a tuple; None when memory ran out.  A function, so that the failed attempt's tensors are free."""
    try:
        return (work(part),)
    except Exception as error:  # cuda-core's errors are of types of its own
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS):
            return None
        raise
