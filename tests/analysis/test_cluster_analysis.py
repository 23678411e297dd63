"""cluster_analysis.py through its command line, on Gaussian blobs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

import cluster_analysis
from datamap.analysis import clusters
from datamap.core import plots
from datamap.core.files import read_json, read_table

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
    argv = ["--embedding_dir", str(embeddings), "--output_dir", str(output), "--visualization_method", "pca", *flags]
    cluster_analysis.main(argv)
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
        ({"ids": list(range(180))}, "one string per row"),
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
