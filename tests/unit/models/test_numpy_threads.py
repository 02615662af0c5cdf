"""Threads for numpy: results in order, no warnings, and the matrix library held to one thread meanwhile."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from rbee.models.numpy_threads import numpy_threads


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_the_matrix_library_has_one_thread_meanwhile_and_its_own_number_after() -> None:
    before = blas_threads()
    with numpy_threads() as each:
        assert set(blas_threads()) <= {1}
        assert [set(found) <= {1} for found in each(lambda _: blas_threads(), range(4))] == [True] * 4
    assert blas_threads() == before


def test_results_come_in_order_from_other_threads() -> None:
    with numpy_threads() as each:
        found = list(each(lambda item: (item, threading.get_ident()), range(50)))
    assert [item for item, _ in found] == list(range(50))
    assert threading.get_ident() not in {ident for _, ident in found}


def test_an_overflow_is_no_warning_in_any_thread() -> None:
    largest = np.finfo(np.float32).max
    with warnings.catch_warnings(), numpy_threads() as each:
        warnings.simplefilter("error")
        assert all(np.isinf(each_of) for each_of in each(lambda _: np.float32(largest) * largest, range(4)))
        assert np.isinf(np.float32(largest) * largest)


def test_a_failure_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError), numpy_threads() as each:
        list(each(lambda item: 1 / item, [1, 0]))
