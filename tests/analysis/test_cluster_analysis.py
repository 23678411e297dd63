"""cluster_analysis.py through its command line, on Gaussian blobs."""

from __future__ import annotations

import json
from pathlib import Path

import hdbscan
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from read_pictures import caption, scatters, seen, upright
from sklearn.metrics import adjusted_rand_score

import cluster_analysis
from datamap.analysis import clusters
from datamap.core import plots
from datamap.core.files import read_json, read_table, write_csv

FILES = {
    "cluster_assignments.csv", "cluster_statistics.csv", "cluster_samples.json", "cluster_metadata.json",
    "cluster_map.png", "cluster_sizes.png", "run_meta.json",
}
SIZES = (60, 50, 40, 30)


def blobs(sizes=SIZES, outliers: int = 0, dims: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Well separated Gaussians in shuffled order and which one each row comes from (-1: a far outlier)."""
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(len(sizes), dims)) * 20
    truth = np.repeat([*range(len(sizes)), -1], [*sizes, outliers])
    values = rng.normal(size=(len(truth), dims))
    values[truth >= 0] += centres[truth[truth >= 0]]
    values[truth < 0] *= 60
    order = rng.permutation(len(truth))
    return values[order].astype(np.float32), truth[order]


def write_embeddings(directory: Path, values: np.ndarray, **changes) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    np.save(directory / "embeddings.npy", values)
    ids = [f"{row:03d}" for row in range(len(values))]
    metadata = {
        "model": "m", "pooling": "p", "split": "train", "ids": ids,
        "texts": {"question": [f"question {row}" for row in ids], "answer": [f"answer {row}" for row in ids]},
    }
    text = json.dumps({key: value for key, value in {**metadata, **changes}.items() if value is not None})
    (directory / "embeddings_metadata.json").write_text(text, encoding="utf-8")
    return directory


def run(embeddings: Path, output: Path, *flags: str) -> pd.DataFrame:
    cluster_analysis.main(["--embedding_dir", str(embeddings), "--output_dir", str(output), *flags])
    return read_table(output / "cluster_assignments.csv", ["id", "cluster"])


def refused(capsys, embeddings: Path, output: Path, *flags: str) -> str:
    with pytest.raises(SystemExit) as stop:
        run(embeddings, output, *flags)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert not output.exists(), "nothing may be written for bad input"
    assert ": error: " in lines[-1]
    return lines[-1]


def test_blobs_are_recovered_and_every_file_is_written(tmp_path, capsys, caplog):
    values, truth = blobs(outliers=6)
    table = run(write_embeddings(tmp_path / "in", values), tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    assert list(table) == ["id", "cluster", "dim1", "dim2", "cluster_probability", "outlier_score"]
    assert table["id"].tolist() == [f"{row:03d}" for row in range(len(values))]
    assert adjusted_rand_score(truth, table["cluster"]) > 0.98
    sizes = table["cluster"].value_counts().drop(-1).sort_index()
    assert sizes.index.tolist() == [0, 1, 2, 3] and sizes.is_monotonic_decreasing, "0 is the largest"
    assert table["cluster_probability"].between(0, 1).all()
    assert (table["cluster_probability"][table["cluster"] == -1] == 0).all()
    inside = table["outlier_score"][truth >= 0].median()
    assert table["outlier_score"][truth < 0].min() > inside, "planted outliers score above a usual row"

    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].split()[:4] == ["cluster", "size", "fraction", "persistence"]
    assert captured.out.splitlines()[1].split()[0] == "noise"
    assert captured.out.splitlines()[-1].startswith("wrote ") and str(tmp_path / "out") in captured.out
    assert "lowered to 12" in caplog.text  # --reduction_dim 50 of 12 dimensions

    statistics = read_table(tmp_path / "out" / "cluster_statistics.csv")
    assert statistics["cluster"].tolist() == [-1, 0, 1, 2, 3]
    for row in statistics.itertuples():
        members = table[table["cluster"] == row.cluster]
        assert row.size == len(members) and row.fraction == pytest.approx(len(members) / len(table))
        assert row.mean_probability == pytest.approx(members["cluster_probability"].mean())
        assert row.mean_outlier_score == pytest.approx(members["outlier_score"].mean())
    assert np.isnan(statistics["persistence"][0]) and statistics["persistence"][1:].between(0.05, 1).all()

    metadata = read_json(tmp_path / "out" / "cluster_metadata.json")
    assert metadata["settings"]["visualization_method"] == "pca", "nobody waits for a compiler unasked"
    assert metadata["num_rows"] == metadata["num_clustered"] == len(values) and metadata["num_assigned"] == 0
    assert metadata["num_clusters"] == 4 and metadata["num_noise"] == (table["cluster"] == -1).sum()
    assert metadata["noise_fraction"] == pytest.approx((table["cluster"] == -1).mean())
    assert metadata["settings"]["reduction_dim"] == 12 and metadata["settings"]["seed"] == 42
    assert metadata["embeddings"] == {"model": "m", "pooling": "p", "split": "train"}
    assert read_json(tmp_path / "out" / "run_meta.json")["status"] == "finished"


def test_samples_are_the_firmest_members_with_their_text(tmp_path):
    values, _ = blobs(outliers=6)
    table = run(write_embeddings(tmp_path / "in", values), tmp_path / "out").set_index("id")
    chosen = read_json(tmp_path / "out" / "cluster_samples.json")
    assert list(chosen) == ["-1", "0", "1", "2", "3"]
    for label, examples in chosen.items():
        members = table[table["cluster"] == int(label)]
        rank = "outlier_score" if label == "-1" else "cluster_probability"
        assert len(examples) == min(5, len(members))
        expected = sorted(members[rank], reverse=True)[: len(examples)]
        assert [example[rank] for example in examples] == expected
        for example in examples:
            assert members.loc[example["id"], rank] == example[rank]
            assert example["question"] == f"question {example['id']}"
            assert example["answer"] == f"answer {example['id']}"


def test_persistence_and_probability_follow_the_renumbered_clusters():
    found = clusters.Clustering(
        labels=np.array([0, 1, 1, -1, 2, 2, 2]), probabilities=np.linspace(0, 1, 7), outlier_scores=np.zeros(7),
        persistence=np.array([0.1, 0.2, 0.3]), num_fitted=7,
    )
    new = clusters.number_by_size(found)
    assert new.labels.tolist() == [2, 1, 1, -1, 0, 0, 0]
    assert new.persistence.tolist() == [0.3, 0.2, 0.1]
    assert new.probabilities is found.probabilities


def test_same_seed_same_files(tmp_path):
    values, _ = blobs(outliers=10)
    source = write_embeddings(tmp_path / "in", values)
    flags = ("--max_cluster_points", "120", "--min_cluster_size", "8")
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run(source, tmp_path / name, *flags, "--seed", seed)
    for file in FILES - {"run_meta.json"}:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    assignments = [(tmp_path / name / "cluster_assignments.csv").read_bytes() for name in "ac"]
    assert assignments[0] != assignments[1], "another seed draws another sample"


def test_above_max_cluster_points_a_sample_is_clustered_and_the_rest_assigned(tmp_path, capsys, caplog):
    values, truth = blobs(outliers=6)
    source = write_embeddings(tmp_path / "in", values)
    table = run(source, tmp_path / "out", "--max_cluster_points", "100", "--min_cluster_size", "8")
    assert len(table) == len(values) and adjusted_rand_score(truth, table["cluster"]) > 0.97
    assert table["cluster_probability"].between(0, 1).all() and table["outlier_score"].between(0, 1).all()
    metadata = read_json(tmp_path / "out" / "cluster_metadata.json")
    assert (metadata["num_clustered"], metadata["num_assigned"]) == (100, len(values) - 100)
    captured = capsys.readouterr()
    assert f"{len(values) - 100} rows assigned after clustering 100" in captured.out.splitlines()[-1]
    assert "--max_cluster_points" in caplog.text


@pytest.mark.parametrize("metric", ["euclidean", "manhattan", "chebyshev"])
@pytest.mark.parametrize(("dims", "kind"), [(3, np.float64), (40, np.float64), (40, np.float32)])
def test_the_rest_is_assigned_as_by_hdbscan_itself(dims, kind, metric, monkeypatch):
    monkeypatch.setattr(clusters, "ASSIGNED_AT_ONCE", 90)
    rng = np.random.default_rng(dims)
    centres = rng.normal(scale=4, size=(6, dims))
    values = centres[rng.integers(6, size=900)] + rng.normal(size=(900, dims))
    values[:90] = rng.normal(scale=8, size=(90, dims))
    values[100:160] = values[700]  # twins, so many that they lie at no distance of their neighbours
    values = values.astype(kind)
    found = clusters.cluster(values, 12, 6, metric, 600, 5)
    fitted = np.sort(np.random.default_rng(5).choice(900, 600, replace=False))
    others = np.setdiff1d(np.arange(900), fitted)
    expected = hdbscan.HDBSCAN(min_cluster_size=12, min_samples=6, metric=metric, prediction_data=True)
    expected.fit(values[fitted])
    labels, probabilities = hdbscan.approximate_predict(expected, values[others])
    scores = np.maximum(hdbscan.approximate_predict_scores(expected, values[others]), 0)
    assert len(set(labels)) > 4 and clusters.NOISE in labels
    pairs = set(zip(found.labels[others], labels, strict=True))  # numbered otherwise
    assert len(pairs) == len(set(labels)) == len(set(found.labels[others]))
    np.testing.assert_allclose(found.probabilities[others], probabilities, rtol=1e-9)
    np.testing.assert_allclose(found.outlier_scores[others], scores, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("metric", ["manhattan", "chebyshev", "cosine"])
def test_other_metrics(tmp_path, metric):
    values, truth = blobs()
    table = run(write_embeddings(tmp_path / "in", values), tmp_path / "out", "--metric", metric)
    assert adjusted_rand_score(truth, table["cluster"]) > 0.95


def test_cosine_ignores_length():
    rows = np.array([[3.0, 4.0], [6.0, 8.0], [0.0, 0.0]])
    assert clusters.unit_length(rows).tolist() == [[0.6, 0.8], [0.6, 0.8], [0.0, 0.0]]


def test_scale_of_a_dimension_does_not_matter(tmp_path):
    """Standardised: one loud, meaningless dimension must not drown the others."""
    values, truth = blobs()
    loud = np.random.default_rng(0).uniform(-1e6, 1e6, size=(len(values), 1)).astype(np.float32)
    constant = np.full((len(values), 1), 5, dtype=np.float32)
    source = write_embeddings(tmp_path / "in", np.hstack([values, loud, constant]))
    assert adjusted_rand_score(truth, run(source, tmp_path / "out")["cluster"]) > 0.9


def test_exact_duplicates(tmp_path):
    values = np.repeat(np.random.default_rng(0).normal(size=(3, 6)), 30, axis=0).astype(np.float32)
    table = run(write_embeddings(tmp_path / "in", values), tmp_path / "out", "--min_cluster_size", "5")
    assert adjusted_rand_score(np.repeat(range(3), 30), table["cluster"]) == 1
    read_json(tmp_path / "out" / "cluster_samples.json")


def test_all_noise_is_said(tmp_path, capsys, caplog):
    values = np.random.default_rng(3).normal(size=(40, 20)).astype(np.float32)
    source = write_embeddings(tmp_path / "in", values)
    table = run(source, tmp_path / "out", "--min_cluster_size", "21")
    assert (table["cluster"] == -1).all()
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and "no clusters" in warnings[0] and "--min_cluster_size 21" in warnings[0]
    assert "n = 40, 0 clusters, 100.0% noise" in capsys.readouterr().out
    statistics = read_table(tmp_path / "out" / "cluster_statistics.csv")
    assert statistics["cluster"].tolist() == [-1] and statistics["size"].tolist() == [40]


def test_mostly_noise_is_said(tmp_path, caplog):
    values, _ = blobs(sizes=(15, 15), outliers=60)
    run(write_embeddings(tmp_path / "in", values), tmp_path / "out", "--min_cluster_size", "10")
    assert "of the rows are noise" in caplog.text


def test_one_cluster_of_nearly_everything_is_said(tmp_path, caplog):
    values, _ = blobs(sizes=(300, 15))
    run(write_embeddings(tmp_path / "in", values), tmp_path / "out", "--min_cluster_size", "10")
    assert "one cluster holds 95" in caplog.text and "hardly divided" in caplog.text


def test_no_noise_keeps_its_row():
    found = clusters.Clustering(
        np.array([0, 0, 1]), np.ones(3), np.array([np.nan, 0.5, 0.5]), np.array([0.2, 0.4]), 3
    )
    table = clusters.statistics(found)
    assert table["cluster"].tolist() == [-1, 0, 1] and table["size"].tolist() == [0, 2, 1]
    assert np.isnan(table["mean_probability"][0]) and table["mean_outlier_score"].tolist()[1:] == [0.5, 0.5]


def test_files_made_elsewhere_without_texts(tmp_path, caplog):
    values, _ = blobs()
    run(write_embeddings(tmp_path / "in", values, texts=None), tmp_path / "out")
    assert "carries no texts" in caplog.text
    chosen = read_json(tmp_path / "out" / "cluster_samples.json")
    assert set(chosen["0"][0]) == {"id", "cluster_probability", "outlier_score"}


def test_many_clusters_use_every_colour_and_keep_equal_ones_apart():
    rng = np.random.default_rng(0)
    centres = np.array([(x, y) for x in range(5) for y in range(5)]) * 10.0
    labels = np.repeat(range(25), 4)
    found = clusters.Clustering(labels, np.ones(100), np.zeros(100), np.ones(25), 100)
    colours = clusters.choose_colours(found, centres[labels] + rng.normal(size=(100, 2)) * 0.1)
    assert set(colours) == set(plots.COLORS)
    apart = [
        np.linalg.norm(centres[a] - centres[b]) for a in range(25) for b in range(a) if colours[a] == colours[b]
    ]
    assert min(apart) > 10.5, "no two neighbours share a colour"


def made(sizes: list[int], noise: int, seed: int = 0) -> tuple[clusters.Clustering, np.ndarray]:
    """Clusters 0, 1, ... of these sizes in a row, the odd ones packed into a spot, and their places."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([-1, *range(len(sizes))], [noise, *sizes]))
    width = np.where(labels % 2, 0.01, 2.0)[:, None]
    dims = np.stack([10.0 * labels, np.zeros(len(labels))], axis=1) + rng.normal(size=(len(labels), 2)) * width
    persistence = rng.random(len(sizes))
    return clusters.Clustering(labels, np.ones(len(labels)), np.zeros(len(labels)), persistence, len(labels)), dims


@pytest.mark.parametrize("count", [3, 32])
def test_the_pictures_show_the_tables_beside_them(tmp_path, pictures, count):
    found, dims = made(sorted(range(20, 20 + count), reverse=True), noise=7)
    ids = [f"{row:03d}" for row in range(len(dims))]
    write_csv(tmp_path / "cluster_assignments.csv", clusters.assignments(ids, found, dims))
    table = clusters.statistics(found)
    write_csv(tmp_path / "cluster_statistics.csv", table)
    colours = clusters.choose_colours(found, dims)
    clusters.plot_map(tmp_path / "cluster_map.png", found, dims, colours, ["UMAP dimension 1", "2"], 42)
    clusters.plot_sizes(tmp_path / "cluster_sizes.png", found, table, colours)
    rows = read_table(tmp_path / "cluster_assignments.csv")
    n = f"n = {len(rows):,}, {count} clusters, {100 * 7 / len(rows):.1f}% noise"

    (axis,) = pictures["cluster_map.png"].axes
    (label, grey, greys), *others = scatters(axis)
    points, colors = ([each for scatter in others for each in scatter[part]] for part in (1, 2))
    places = rows[["dim1", "dim2"]].to_numpy()
    assert label == "noise" and grey == places[rows["cluster"] == -1].tolist() and set(greys) == {plots.LIGHT_GREY}
    of_point = {tuple(place): cluster for place, cluster in zip(places.tolist(), rows["cluster"], strict=True)}
    assert [colours[of_point[tuple(point)]].lower() for point in points] == colors
    assert sorted(points) == sorted(places[rows["cluster"] >= 0].tolist())
    drawn_labels = [of_point[tuple(point)] for point in points]
    assert drawn_labels != sorted(drawn_labels), "no cluster over all of another"
    look = {of_point[tuple(point)]: (colour, number) for number, (_, part, colours_of) in enumerate(others)
            for point, colour in zip(part, colours_of, strict=True)}
    assert len({look[label] for label in range(min(count, 30))}) == min(count, 30), "a colour and shape of its own"
    assert {look[label][0] for label in range(30, count)} <= {plots.GREY}
    assert [text.get_text() for text in axis.texts] == [str(label) for label in range(min(count, 30))]
    for label, text in enumerate(axis.texts):
        members = places[rows["cluster"] == label]
        assert text.xy == pytest.approx(np.median(members, axis=0))
        # Of a spot the number stands above it.
        assert text.xyann[1] >= (8 if label % 2 and count == 3 else -300) and (count > 3 or text.xyann[0] == 0)
    axis.figure.draw_without_rendering()  # in one resolution
    boxes = [Text.get_window_extent(text) for text in axis.texts]
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("UMAP dimension 1", "2")
    told = caption(pictures["cluster_map.png"])
    assert told.startswith(n) and ("colours repeat" in told) == (count > 6)
    assert f"numbers name {'the 30 largest' if count > 30 else 'the'} clusters, 0 is the largest" in told

    statistics = read_table(tmp_path / "cluster_statistics.csv").head(31)
    upper, lower = pictures["cluster_sizes.png"].axes
    fills = [plots.LIGHT_GREY, *(colour.lower() for colour in colours)]
    assert upright(upper) == [(place, 0, row.size, fills[place]) for place, row in enumerate(statistics.itertuples())]
    assert upright(lower) == [(place, 0, persistence, fills[place])
                              for place, persistence in enumerate(statistics["persistence"]) if place]
    assert [bar[2] for bar in upright(upper)] == [7, *range(19 + count, 19 + count - min(count, 30), -1)]
    assert seen(lower, "x") == {place: "noise" if place == 0 else str(place - 1) for place in range(len(statistics))}
    left_out = "; the 2 smallest clusters are not shown" if count == 32 else ""
    assert caption(pictures["cluster_sizes.png"]) == n + left_out


@pytest.mark.parametrize("count", [6, 7, 30, 31])
def test_captions_say_what_repeats_and_what_has_no_number(tmp_path, pictures, count):
    found, dims = made([5] * count, noise=2)
    colours = clusters.choose_colours(found, dims)
    clusters.plot_map(tmp_path / "map.png", found, dims, colours, ["1", "2"], 0)
    clusters.plot_sizes(tmp_path / "sizes.png", found, clusters.statistics(found), colours)
    told = caption(pictures["map.png"])
    assert ("colours repeat" in told) == (len(set(colours)) < count) == (count > 6)
    assert ("the 30 largest clusters" in told) == (len(pictures["map.png"].axes[0].texts) < count) == (count > 30)
    assert ("not shown" in caption(pictures["sizes.png"])) == (count > 30)


def test_numbers_of_clusters_in_one_place_do_not_lie_on_each_other(tmp_path, pictures):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 10)
    dims = rng.normal(size=(300, 2)) + 0.1 * labels[:, None]
    dims[0] = 60, 60  # all others lie in a corner
    found = clusters.Clustering(labels, np.ones(300), np.zeros(300), np.ones(30), 300)
    colours = clusters.choose_colours(found, dims)
    clusters.plot_map(tmp_path / "map.png", found, dims, colours, ["1", "2"], 0)
    axis = pictures["map.png"].axes[0]
    axis.figure.draw_without_rendering()  # in one resolution
    boxes = [Text.get_window_extent(text) for text in axis.texts]
    assert len(boxes) == 30
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
    assert len(set(zip(colours, clusters.choose_shapes(colours), strict=True))) == 30


def test_no_clusters_have_no_numbers(tmp_path, pictures):
    found, dims = made([], noise=9)
    clusters.plot_map(tmp_path / "map.png", found, dims, [], ["1", "2"], 0)
    clusters.plot_sizes(tmp_path / "sizes.png", found, clusters.statistics(found), [])
    assert caption(pictures["map.png"]) == "n = 9, 0 clusters, 100.0% noise noise is light grey"
    assert upright(pictures["sizes.png"].axes[0]) == [(0, 0, 9, plots.LIGHT_GREY)]


@pytest.mark.parametrize(("shares", "explained", "expected"), [
    (None, 0.5, ["UMAP dimension 1", "UMAP dimension 2"]),
    ([0.5, 0.25], None, [f"principal component {n} ({share}% of the variance of what is clustered)"
                         for n, share in ((1, "50.0"), (2, "25.0"))]),
    ([0.5, 0.25], 0.8, ["principal component 1 (40.0% of variance)", "principal component 2 (20.0% of variance)"]),
])
def test_axes_of_the_picture_name_their_variance(shares, explained, expected):
    assert clusters.axis_labels(shares, explained) == expected


def test_pictures_for_papers_and_what_their_axes_are(tmp_path):
    values, _ = blobs()
    source = write_embeddings(tmp_path / "in", values)
    run(source, tmp_path / "out", "--plot_format", "pdf", "svg")
    more = {f"{name}.{kind}" for name in ("cluster_map", "cluster_sizes") for kind in ("pdf", "svg")}
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES | more
    axes = read_json(tmp_path / "out" / "cluster_metadata.json")["axes"]
    assert clusters.axes_of(tmp_path / "out") == axes and "of variance)" in axes[0]
    (tmp_path / "out" / "cluster_metadata.json").unlink()
    assert clusters.axes_of(tmp_path / "out") == ["dimension 1 (no unit)", "dimension 2 (no unit)"]
    run(source, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES


def test_old_artifacts_go(tmp_path):
    values, _ = blobs()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cluster_map.png").write_bytes(b"old")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    run(write_embeddings(tmp_path / "in", values), tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES | {"notes.txt"}


# --- bad input ---------------------------------------------------------------------------------------------------


def test_nan_rows_are_named(tmp_path, capsys):
    values, _ = blobs()
    values[[3, 17]] = np.nan
    values[20, 1] = np.inf
    message = refused(capsys, write_embeddings(tmp_path / "in", values), tmp_path / "out")
    assert "3 rows hold NaN" in message and "'003', '017', '020'" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ids": ["a", "b"]}, "lists 2 ids, but embeddings.npy has 180 rows"),
        ({"ids": None}, "'ids'"),
        ({"ids": list(range(180))}, "item 1 of ids is 0"),
        ({"ids": ["001"] * 180}, "1 ids occur more than once ('001')"),
        ({"texts": {"question": ["a"]}}, "each column of 'texts'"),
    ],
)
def test_metadata_that_does_not_fit(tmp_path, capsys, changes, expected):
    values, _ = blobs()
    assert expected in refused(capsys, write_embeddings(tmp_path / "in", values, **changes), tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.zeros((5, 3, 2), np.float32), "rows x dimensions (2 or more), found float32 (5, 3, 2)"),
        (np.zeros((20, 1), np.float32), "found float32 (20, 1)"),
        (np.zeros((20, 4), np.int64), "found int64 (20, 4)"),
        (np.ones((20, 4), np.float32), "all 20 embeddings are the same vector"),
        (np.eye(8, dtype=np.float32), "--min_cluster_size 15 is more than 8 rows"),
    ],
)
def test_arrays_that_cannot_be_clustered(tmp_path, capsys, values, expected):
    assert expected in refused(capsys, write_embeddings(tmp_path / "in", values), tmp_path / "out")


def test_broken_files(tmp_path, capsys):
    values, _ = blobs()
    source = write_embeddings(tmp_path / "in", values)
    whole = (source / "embeddings.npy").read_bytes()
    (source / "embeddings.npy").write_bytes(whole[:1000])
    assert "not a whole .npy file" in refused(capsys, source, tmp_path / "out")
    (source / "embeddings.npy").write_bytes(whole)
    (source / "embeddings_metadata.json").write_text('{"ids": [\n"a",')
    assert "line 2: malformed JSON" in refused(capsys, source, tmp_path / "out")
    for content, words in (('{"ids": ["a", 3]}', "item 2 of ids is 3"), ('{"ids": ["a"], "seed": NaN}', "it holds "
        "NaN"),
                           ("[]", "it is []")):
        (source / "embeddings_metadata.json").write_text(content)
        told = refused(capsys, source, tmp_path / "out")
        assert f"embeddings_metadata.json is not as extract_embeddings.py writes it ({words}" in told
    (source / "embeddings_metadata.json").write_text(json.dumps({"ids": [str(n) for n in range(len(values))],
                                                                 "texts": {"a": 3}}))
    assert "each column of 'texts' must have one entry" in refused(capsys, source, tmp_path / "out")
    (source / "embeddings_metadata.json").unlink()
    assert "holds no embeddings_metadata.json; extract_embeddings.py" in refused(capsys, source, tmp_path / "out")
    assert "no such file" in refused(capsys, tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--min_cluster_size", "200"), "--min_cluster_size 200 is more than 180 rows"),
        (("--min_cluster_size", "1"), "at least 2, found '1'"),
        (("--min_samples", "180"), "--min_samples 180 must be less than 180 rows"),
        (("--max_cluster_points", "20", "--min_cluster_size", "15"), "needs 30 neighbours"),
        (("--max_cluster_points", "10"), "more than the sample of --max_cluster_points 10 rows"),
        (("--reduction_dim", "1"), "at least 2, found '1'"),
        (("--metric", "hamming"), "invalid choice: 'hamming'"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, capsys, flags, expected):
    values, _ = blobs()
    assert expected in refused(capsys, write_embeddings(tmp_path / "in", values), tmp_path / "out", *flags)


def test_umap_of_three_rows_is_refused(tmp_path, capsys):
    source = write_embeddings(tmp_path / "in", np.eye(3, dtype=np.float32))
    flags = ("--min_cluster_size", "2", "--visualization_method", "umap")
    assert "UMAP needs at least 4 rows, found 3" in refused(capsys, source, tmp_path / "out", *flags)


def test_output_into_the_embeddings_is_refused(tmp_path, capsys):
    values, _ = blobs()
    source = write_embeddings(tmp_path / "in", values)
    with pytest.raises(SystemExit):
        run(source, tmp_path / "in")
    assert "name another directory" in capsys.readouterr().err
    assert {file.name for file in source.iterdir()} == {"embeddings.npy", "embeddings_metadata.json"}


def test_a_killed_extraction_is_refused(tmp_path, capsys):
    values, _ = blobs()
    source = write_embeddings(tmp_path / "in", values)
    (source / "run_meta.json").write_text('{"status": "running"}')
    assert "extract_embeddings.py again" in refused(capsys, source, tmp_path / "out")


@pytest.mark.slow  # UMAP compiles for half a minute
def test_umap_picture_and_reduction(tmp_path):
    values, truth = blobs()
    source = write_embeddings(tmp_path / "in", values)
    flags = ("--visualization_method", "umap")
    first = run(source, tmp_path / "a", *flags)
    pd.testing.assert_frame_equal(first, run(source, tmp_path / "b", *flags))
    dims = first[["dim1", "dim2"]].to_numpy()
    centres = np.array([dims[truth == blob].mean(axis=0) for blob in range(4)])
    nearest = np.linalg.norm(dims[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == truth).all(), "the picture keeps the blobs apart"
    reduced = run(source, tmp_path / "c", "--reduction_method", "umap", "--reduction_dim", "5")
    assert adjusted_rand_score(truth, reduced["cluster"]) > 0.95
