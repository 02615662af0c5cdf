"""Threads for numpy that share the work by whole blocks, in place of those of its matrix library.

Where other programs use the processors too, the library's threads wait for each other in every product: a
calibration of the embedded model took 24 s of processor time with them and 11 s with these, at a load of 7 on
two cores. Blocks that do not wait for each other take what processors there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

T = TypeVar("T")
R = TypeVar("R")

_THREADS = min(4, os.cpu_count() or 1)


class Each(Protocol):
    """Applies a function to every item; the results come in the order of the items."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterable[R]: ...


@contextmanager
def numpy_threads() -> Iterator[Each]:
    """A map over threads, with the matrix library held to the thread that calls it.

    Overflows and invalid values are not warned of, here and in the threads: results are looked at.
    """

    def be_quiet() -> None:
        np.seterr(over="ignore", invalid="ignore")

    with (
        np.errstate(over="ignore", invalid="ignore"),
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(_THREADS, "numpy", initializer=be_quiet) as pool,
    ):
        yield pool.map
