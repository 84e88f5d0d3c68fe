"""A weight is used in three ways, and one made for few rows gives what the array gives."""

import numpy as np
import pytest
from helpers import normal

from minibule.machine.matrix import FEW, FewRows, for_few_rows


@pytest.mark.parametrize("rows", [1, 2, FEW, FEW + 1])
def test_few_rows_multiply_as_the_array(rows):
    W, x, dy = normal((7, 5), (rows, 5), (rows, 7))
    few = FewRows(W)
    y = x @ few.T
    np.testing.assert_allclose(y, x @ W.T, rtol=1e-12)
    assert y.flags.c_contiguous
    np.testing.assert_array_equal(dy @ few, dy @ W)
    np.testing.assert_array_equal(few[[6, 0, 6]], W[[6, 0, 6]])
    np.testing.assert_array_equal(few[:], W)
    assert (len(few), few.shape, few.size, few.dtype) == (7, (7, 5), 35, W.dtype)


def test_only_matrices_are_made_for_few_rows():
    W, w = normal((7, 5), (5,))
    assert isinstance(for_few_rows(W), FewRows)
    assert for_few_rows(w) is w
