"""diversity.py: k-center, herding and k-means against slow forms, on ties, copies and constants, and their memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from datamap.core.errors import UserError
from datamap.selection import diversity
from datamap.selection.diversity import check_finite, herding, k_center, kmeans

ROOT = Path(__file__).resolve().parents[2]
# Small whole numbers: many ties and copies, and sums that are exact.
GRIDS = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12).flatmap(
    lambda shape: hnp.arrays(np.float64, shape, elements=st.integers(-3, 3).map(float))
)


def plain_k_center(vectors, k, first, bonus=None, scale=1.0):
    """One pick after the other, distances from differences in float64."""
    vectors = vectors.astype(np.float64)
    near, picks, distances = np.full(len(vectors), np.inf), [first], []
    for count in range(1, k + 1):
        near = np.minimum(near, np.square(vectors - vectors[picks[-1]]).sum(axis=1))
        if count == 1:
            distances.append(np.sqrt(near.max()))
        if count == k:
            return np.array(picks), np.array(distances), np.sqrt(near.max())
        values = np.sqrt(near) if bonus is None else np.sqrt(near) / scale + bonus
        values[picks] = -np.inf
        picks.append(int(values.argmax()))
        distances.append(np.sqrt(near[picks[-1]]))


def plain_herding(vectors, k):
    """Squared misses, times (n (t + 1))^2 so that those of whole numbers are exact."""
    n, vectors = len(vectors), vectors.astype(np.float64)
    total, sums = vectors.sum(axis=0), np.zeros(vectors.shape[1])
    picks: list[int] = []
    errors: list[float] = []
    for count in range(1, k + 1):
        misses = np.square(count * total - n * (sums + vectors)).sum(axis=1)
        misses[picks] = np.inf
        picks.append(int(misses.argmin()))
        sums = sums + vectors[picks[-1]]
        errors.append(float(np.linalg.norm(sums / count - total / n)))
    return np.array(picks), np.array(errors)


def clustered(rng, n, d, groups, spread=0.1, shift=0.0):
    return rng.normal(size=(groups, d))[rng.integers(groups, size=n)] + spread * rng.normal(size=(n, d)) + shift


def same(found, expected, tolerance=1e-12):
    assert found[0].dtype == np.int64
    np.testing.assert_array_equal(found[0], expected[0])
    for one, other in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.fixture
def small_pools(monkeypatch):
    """Pools and chunks small enough that small data need many of them."""
    monkeypatch.setattr(diversity, "POOL_LEAST", 2)
    monkeypatch.setattr(diversity, "POOL_MOST", 16)
    monkeypatch.setattr(diversity, "CPU_ROWS", 7)


# --- k-center ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("groups", [1, 5, 300])
@pytest.mark.parametrize("small", [False, True])
def test_k_center_picks_what_the_plain_form_picks(groups, shift, small, request):
    if small:
        request.getfixturevalue("small_pools")
    vectors = clustered(np.random.default_rng(groups), 700, 16, groups, shift=shift)
    same(k_center(vectors, 300, 11, device="cpu"), plain_k_center(vectors, 300, 11))


@settings(deadline=None, max_examples=150)
@given(GRIDS, st.data())
def test_k_center_of_ties_takes_the_lowest_row(vectors, data):
    k = data.draw(st.integers(1, len(vectors)))
    first = data.draw(st.integers(0, len(vectors) - 1))
    expected = plain_k_center(vectors, k, first)
    for least in (2, 32):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(diversity, "POOL_LEAST", least)
            same(k_center(vectors, k, first, device="cpu"), expected)
            found = k_center(vectors.astype(np.float32), k, first, device="cpu")
        assert len(set(found[0])) == k
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-3)


@settings(deadline=None, max_examples=100)
@given(GRIDS, st.data())
def test_k_center_with_a_bonus(vectors, data):
    n = len(vectors)
    bonus = data.draw(hnp.arrays(np.float64, n, elements=st.integers(0, 4).map(lambda each: each / 4)))
    k, scale = data.draw(st.integers(1, n)), data.draw(st.sampled_from([0.5, 1.0, 4.0]))
    same(
        k_center(vectors, k, 0, bonus=bonus, scale=scale, device="cpu"),
        plain_k_center(vectors, k, 0, bonus, scale),
    )


def test_k_center_with_a_bonus_in_many_small_pools(small_pools):
    rng = np.random.default_rng(4)
    vectors, bonus = clustered(rng, 500, 12, 9), rng.random(500)
    same(
        k_center(vectors, 500, 3, bonus=bonus, scale=2.0, device="cpu"), plain_k_center(vectors, 500, 3, bonus, 2.0)
    )


def test_k_center_of_as_many_equal_distances_as_there_are_rows(small_pools):
    vectors = np.eye(60)
    same(k_center(vectors, 60, 5, device="cpu"), plain_k_center(vectors, 60, 5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_k_center_of_copies_takes_every_distinct_row_first(dtype):
    rng = np.random.default_rng(1)
    distinct = rng.normal(size=(50, 20)).astype(dtype) + 10
    vectors = distinct[rng.permutation(np.repeat(np.arange(50), 20))]
    picks, distances, radius = k_center(vectors, 1000, 0, device="cpu")
    assert len(np.unique(vectors[picks[:50]], axis=0)) == 50 and len(set(picks)) == 1000
    assert (distances[:50] > 1).all() and (distances[50:] == 0).all() and radius == 0
    assert (np.diff(picks[50:]) > 0).all()


def test_k_center_counts_products_by_the_hundred(monkeypatch):
    """What makes it fast: a few products of matrices, no column of which is for nothing."""
    columns: list[int] = []
    update = diversity._bring_up_to_date

    def counted(matrix, picks, *rest):
        columns.append(len(picks))
        update(matrix, picks, *rest)

    monkeypatch.setattr(diversity, "_bring_up_to_date", counted)
    vectors = np.random.default_rng(0).normal(size=(5000, 32)).astype(np.float32)
    picks, _, radius = k_center(vectors, 400, 0, device="cpu")
    assert sum(columns) == 400 and len(columns) < 25
    assert radius == pytest.approx(plain_k_center(vectors, 400, 0)[2], rel=1e-5)


def test_k_center_of_float32_far_from_the_origin():
    vectors = clustered(np.random.default_rng(5), 2000, 32, 40, shift=50.0).astype(np.float32)
    picks, distances, radius = k_center(vectors, 200, 0, device="cpu")
    expected = plain_k_center(vectors, 200, 0)
    np.testing.assert_allclose(distances, expected[1], rtol=1e-5)
    assert radius == pytest.approx(expected[2], rel=1e-5)


def test_k_center_of_a_read_only_memory_map(tmp_path, recwarn):
    vectors = np.random.default_rng(2).normal(size=(300, 8))
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    same(k_center(mapped, 40, 7, device="cpu"), plain_k_center(vectors, 40, 7))
    same(herding(mapped, 40, device="cpu"), plain_herding(vectors, 40), 1e-9)
    assert len(kmeans(mapped, 4, np.random.default_rng(0), device="cpu")[0]) == 300
    assert not recwarn.list


@pytest.mark.parametrize("k, first", [(0, 0), (6, 0), (1, 5), (1, -1)])
def test_k_center_refuses_what_cannot_be(k, first):
    with pytest.raises(ValueError, match="expected 1 <= k"):
        k_center(np.zeros((5, 2)), k, first)


@pytest.mark.parametrize("vectors", [np.zeros((3, 2), dtype=np.float16), np.zeros(3), np.zeros((0, 2))])
def test_other_arrays_are_refused(vectors):
    with pytest.raises(ValueError, match="expected float32 or float64"):
        kmeans(vectors, 2, np.random.default_rng(0))


# --- herding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("groups, shift", [(1, 0.0), (6, 0.0), (400, 20.0)])
def test_herding_picks_what_the_plain_form_picks(groups, shift, dtype):
    vectors = clustered(np.random.default_rng(groups), 500, 24, groups, 0.5, shift).astype(dtype)
    same(herding(vectors, 200, device="cpu"), plain_herding(vectors, 200), 1e-9)


@settings(deadline=None, max_examples=150)
@given(GRIDS, st.data())
def test_herding_of_ties_takes_the_lowest_row(vectors, data):
    k = data.draw(st.integers(1, len(vectors)))
    same(herding(vectors, k, device="cpu"), plain_herding(vectors, k), 1e-9)


def test_herding_of_all_rows_ends_at_their_mean():
    vectors = np.random.default_rng(3).normal(size=(120, 5)) + 7
    picks, errors = herding(vectors, 120, device="cpu")
    assert sorted(picks) == list(range(120)) and errors[-1] < 1e-12 < errors[-2]


def test_herding_matches_the_mean_five_times_better_than_random():
    rng = np.random.default_rng(6)
    for vectors in (rng.normal(size=(10_000, 64)), clustered(rng, 10_000, 64, 30)):
        vectors = vectors.astype(np.float32)
        picks, errors = herding(vectors, 1000, device="cpu")
        mean = vectors.mean(axis=0, dtype=np.float64)
        random = [
            np.linalg.norm(vectors[rng.choice(10_000, 1000, replace=False)].mean(axis=0) - mean) for _ in range(20)
        ]
        assert errors[-1] == pytest.approx(np.linalg.norm(vectors[picks].mean(axis=0, dtype=np.float64) - mean))
        assert errors[-1] < np.mean(random) / 5


def test_herding_refuses_what_cannot_be():
    for k in (0, 6):
        with pytest.raises(ValueError, match="expected 1 <= k"):
            herding(np.zeros((5, 2)), k)


# --- k-means -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kmeans_is_a_fixed_point_and_its_distances_are_to_its_centres(dtype, monkeypatch):
    monkeypatch.setattr(diversity, "TOLERANCE", 1e-9)
    vectors = clustered(np.random.default_rng(0), 3000, 16, 8, shift=5.0).astype(dtype)
    labels, distances, inertia = kmeans(vectors, 8, np.random.default_rng(0), device="cpu")
    centres = np.stack([vectors[labels == label].mean(axis=0, dtype=np.float64) for label in range(8)])
    table = np.linalg.norm(vectors[:, None] - centres, axis=2)
    np.testing.assert_array_equal(labels, table.argmin(axis=1))
    np.testing.assert_allclose(distances, table.min(axis=1), rtol=1e-4)
    assert inertia == pytest.approx(np.square(table.min(axis=1)).sum(), rel=1e-5)


def test_kmeans_finds_planted_clusters_as_well_as_scikit_learn():
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(1)
    planted = np.repeat(np.arange(12), 100)
    vectors = rng.normal(size=(12, 20))[planted] + 0.05 * rng.normal(size=(1200, 20))
    labels, _, inertia = kmeans(vectors, 12, np.random.default_rng(2), device="cpu")
    assert len(set(zip(labels, planted, strict=True))) == 12
    assert inertia == pytest.approx(KMeans(12, n_init=3, random_state=0).fit(vectors).inertia_, rel=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_kmeans_keeps_clusters_of_few_rows(seed):
    """Ten clusters of 600 rows and 90 of ten, far apart: the rows of each of the 90 stay together, by themselves."""
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(seed)
    planted = np.repeat(np.arange(100), [600] * 10 + [10] * 90)
    vectors = (20 * rng.normal(size=(100, 16))[planted] + rng.normal(size=(len(planted), 16))).astype(np.float32)

    def kept(labels):
        return sum(len(set(labels[planted == one])) == 1 == len(set(planted[labels == labels[planted == one][0]]))
                   for one in range(10, 100))

    labels, _, inertia = kmeans(vectors, 100, np.random.default_rng(seed), device="cpu")
    peer = KMeans(100, n_init=1, random_state=seed).fit(vectors)
    assert kept(labels) >= max(80, kept(peer.labels_) - 3)
    assert inertia <= 1.1 * peer.inertia_


def test_kmeans_of_rows_on_very_different_scales():
    """One row far beyond all others takes every chance of the first rounds; there are centres for the others still."""
    vectors = np.random.default_rng(5).normal(size=(300, 3))
    vectors[:5] *= 10.0 ** np.arange(2, 7)[:, None]
    labels, _, _ = kmeans(vectors, 40, np.random.default_rng(0), device="cpu")
    assert len(set(labels)) >= 30 and len(set(labels[:5])) == 5 and not set(labels[:5]) & set(labels[5:])


def test_kmeans_of_noise_is_as_good_as_minibatch():
    from sklearn.cluster import MiniBatchKMeans

    vectors = np.random.default_rng(2).normal(size=(6000, 32)).astype(np.float32)
    peer = np.median([MiniBatchKMeans(32, random_state=seed).fit(vectors).inertia_ for seed in range(3)])
    assert np.median([kmeans(vectors, 32, np.random.default_rng(seed))[2] for seed in range(3)]) <= peer


def test_kmeans_is_seeded():
    vectors = np.random.default_rng(3).normal(size=(500, 8))
    one, again, other = (kmeans(vectors, 20, np.random.default_rng(seed), device="cpu") for seed in (1, 1, 2))
    np.testing.assert_array_equal(one[0], again[0])
    assert one[2] == again[2] and not np.array_equal(one[0], other[0])


@settings(deadline=None, max_examples=60)
@given(GRIDS, st.integers(1, 20))
def test_kmeans_of_copies_and_of_more_clusters_than_rows(vectors, n_clusters):
    labels, distances, inertia = kmeans(vectors, n_clusters, np.random.default_rng(0), device="cpu")
    assert labels.dtype == np.int64 and labels.min() >= 0 and labels.max() < n_clusters
    assert np.isfinite(distances).all() and inertia == pytest.approx(np.square(distances).sum())
    mean = np.square(vectors - vectors.mean(axis=0)).sum()
    assert inertia <= mean + 1e-9  # no worse than one cluster
    if n_clusters == 1:
        assert inertia == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_features(dtype):
    vectors = np.full((40, 6), 0.1, dtype=dtype)
    picks, distances, radius = k_center(vectors, 10, 7, device="cpu")
    assert picks.tolist() == [7, 0, 1, 2, 3, 4, 5, 6, 8, 9] and not distances.any() and radius == 0
    assert herding(vectors, 10, device="cpu")[0].tolist() == list(range(10))
    labels, distances, inertia = kmeans(vectors, 5, np.random.default_rng(0), device="cpu")
    assert len(labels) == 40 and inertia < 1e-9


def test_kmeans_refuses_no_clusters():
    with pytest.raises(ValueError, match="n_clusters is 0"):
        kmeans(np.zeros((5, 2)), 0, np.random.default_rng(0))


# --- NaN, memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 2047, 2048, 4999])
def test_check_finite_names_the_first_bad_row(value, row):
    vectors = np.zeros((5000, 3), dtype=np.float32)
    ids = [f"r{number}" for number in range(5000)]
    check_finite(vectors, ids)
    vectors[row, 1] = vectors[4999, 0] = value
    with pytest.raises(UserError, match=rf"example 'r{row}' holds"):
        check_finite(vectors, ids)


MEMORY = """
import sys
import numpy as np
import torch
from datamap.selection.diversity import check_finite, herding, k_center, kmeans

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

vectors = np.random.default_rng(0).random((20, 4), dtype=np.float32)
calls = {
    "k_center": lambda vectors, k: k_center(vectors, k, 0, device="cpu"),
    "herding": lambda vectors, k: herding(vectors, k, device="cpu"),
    "kmeans": lambda vectors, k: kmeans(vectors, 16, np.random.default_rng(0), device="cpu"),
    "check_finite": lambda vectors, k: check_finite(vectors, range(len(vectors))),
}
call = calls[sys.argv[2]]
call(vectors, 5)  # loads the libraries
vectors = np.load(sys.argv[1], mmap_mode="r")
before = status("VmRSS")
call(vectors, 30)
print((status("VmHWM") - before) / vectors.nbytes)
"""


@pytest.fixture(scope="module")
def big_file(tmp_path_factory) -> Path:
    """154 MB of features."""
    file = tmp_path_factory.mktemp("features") / "vectors.npy"
    vectors = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(150_000, 256))
    rng = np.random.default_rng(0)
    for start in range(0, len(vectors), 10_000):
        rng.random(out=vectors[start : start + 10_000], dtype=np.float32)
    return file


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", ["k_center", "herding", "kmeans", "check_finite"])
def test_peak_memory_is_at_most_one_and_a_half_times_the_features(name, big_file):
    """The features themselves, mapped from their file, are the first of the one and a half."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(big_file), name], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 0.9 < float(done.stdout) < 1.5
