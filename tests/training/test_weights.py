"""Soft weights leave the learning rate what it is: their mean is 1 over the windows that the loss is a mean of."""

import numpy as np
import pytest

from datamap.training.trainer import weights_of

WINDOWS = np.repeat([1, 12], 50)


@pytest.mark.parametrize("short, long", [(0.02, 0.3), (0.3, 0.02), (0.1, 0.1)])
def test_the_mean_over_windows_is_1_where_long_texts_vary_more_or_less(short, long):
    variability = np.repeat([short, long], 50)
    weights = weights_of(variability, 0.1, 10.0, WINDOWS)
    assert np.repeat(weights, WINDOWS).mean() == pytest.approx(1)
    assert weights[0] / weights[-1] == pytest.approx(short / long)  # who weighs more than whom stays


def test_examples_without_metrics_weigh_1_and_the_others_1_on_average():
    variability = np.repeat([0.02, 0.3], 50)
    variability[40:60] = np.nan
    weights = weights_of(variability, 0.1, 10.0, WINDOWS)
    assert (weights[40:60] == 1).all()
    known = np.repeat(~np.isnan(variability), WINDOWS)
    assert np.repeat(weights, WINDOWS)[known].mean() == pytest.approx(1)


def test_clipped_weights_have_mean_1_too():
    variability = np.concatenate([np.full(99, 0.001), [0.5]])
    windows = np.concatenate([np.full(99, 1), [12]])
    weights = weights_of(variability, 0.5, 2.0, windows)
    assert weights[-1] / weights[0] == pytest.approx(4)
    assert np.average(weights, weights=windows) == pytest.approx(1)


def test_one_window_each_is_a_mean_over_examples():
    variability = np.random.default_rng(0).random(30) / 2
    weights = weights_of(variability, 0.1, 10.0)
    assert weights.mean() == pytest.approx(1)
    np.testing.assert_allclose(weights, weights_of(variability, 0.1, 10.0, np.ones(30, dtype=int)))


def test_where_no_example_varies_all_weights_are_1():
    np.testing.assert_array_equal(weights_of(np.array([0.0, 0.0, np.nan]), 0.1, 10.0), [1, 1, 1])
