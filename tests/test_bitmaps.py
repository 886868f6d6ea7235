"""Bits of words: the places that numpy finds, in their order."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from jaxmlip.bitmaps import WORD, nth_bits, packed


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_set_bits_are_listed_in_their_order_and_counted(share):
    bits = np.random.default_rng(0).random((3, WORD, 5)) < share  # words, bits, rows
    chosen, counts = jax.jit(lambda x: nth_bits(packed(x), 20))(bits)
    rows = bits.reshape(-1, 5).T
    assert_array_equal(counts, rows.sum(1))
    for row, found in zip(rows, np.asarray(chosen).T, strict=True):
        places = np.flatnonzero(row)[:20]
        assert_array_equal(found[: len(places)], places)
        assert (found[len(places) :] == -1).all()
