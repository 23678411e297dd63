"""Categories by the number of epochs recorded, against maps made of the first epochs alone."""

import numpy as np
import pytest
from made_dynamics import make_epochs, write_epochs

import dataset_cartography
from datamap.cartography.categories import categorize_examples, category_thresholds
from datamap.cartography.metrics import compute_metrics
from datamap.cartography.settling import SETTLED, ByEpoch, unsettled
from datamap.core.files import read_table


def followed(epochs, **asked):
    by_epoch = ByEpoch(**asked)
    assert list(by_epoch.follow(epochs)) == epochs  # as they are
    return by_epoch.table()


@pytest.mark.parametrize("asked", [{}, {"method": "percentile", "variability_threshold": 80}])
def test_each_row_is_the_map_of_the_first_epochs(asked):
    epochs = list(make_epochs(50, epochs=6))
    for number in (1, 2, 4):  # some are not seen from the start, or not in every epoch
        keep = [row for row in range(50) if (row + number) % 7]
        epochs[number - 1] = {name: value if name == "epoch" else [value[row] for row in keep] if name == "id" else
                              value[keep] for name, value in epochs[number - 1].items()}
    table = followed(epochs, **asked).set_index("epochs")
    maps = {count: categorize_examples(compute_metrics(epochs[:count]), **asked)["category"] for count in range(2, 7)}
    assert list(table.index) == list(maps)
    for count, categories in maps.items():
        row = table.loc[count]
        assert {name: row[name] for name in ("easy", "ambiguous", "hard")} == {
            name: (categories == name).sum() for name in ("easy", "ambiguous", "hard")}
        assert row["examples"] == len(categories)
        cuts = category_thresholds(compute_metrics(epochs[:count]), **asked)
        assert (row["confidence_cut"], row["variability_cut"]) == pytest.approx(cuts)
        final = maps[6][categories.index]
        assert row["as_in_the_end"] == pytest.approx((categories == final).mean())
        if count > 2:
            before = maps[count - 1]
            assert row["changed"] == pytest.approx((categories[before.index] != before).mean())
    assert np.isnan(table.loc[2, "changed"])


def learned(changing, epochs=5):
    """Confidences that settle at once, but for a share of the examples that jumps in the last epoch."""
    rng = np.random.default_rng(0)
    levels, spread = rng.permutation(np.linspace(0.2, 0.8, 200)), rng.permutation(np.linspace(0.01, 0.1, 200))
    for epoch in range(1, epochs + 1):
        p = levels + spread * (-1) ** epoch
        if epoch == epochs:
            p = np.where(np.arange(200) < changing * 200, 1 - p, p)
        yield {"epoch": epoch, "id": [f"e{row}" for row in range(200)], "confidence": p, "correct": p > 0.5}


def test_a_map_has_settled_where_the_last_epoch_changes_little():
    assert unsettled(followed(list(learned(0)))) is None
    table = followed(list(learned(0.5)))
    assert table["changed"].iloc[-1] > SETTLED
    assert f"changed the category of {table['changed'].iloc[-1]:.0%} of the examples" in (unsettled(table) or "")
    assert unsettled(followed(list(learned(0.5, epochs=2)))) is None and followed(list(learned(0, epochs=1))) is None


def test_the_script_writes_table_and_picture_at_the_thresholds_asked_for(tmp_path, pictures, caplog):
    (tmp_path / "map").mkdir()
    epochs = list(make_epochs(40, epochs=4))
    write_epochs(tmp_path / "map", epochs)
    dataset_cartography.main(["--cartography_dir", str(tmp_path / "map"), "--output_dir", str(tmp_path / "again"),
                              "--method", "percentile"])
    written, slow = read_table(tmp_path / "again/categories_by_epoch.csv"), followed(epochs, method="percentile")
    for name in slow:
        assert written[name].to_numpy(dtype=float) == pytest.approx(slow[name].to_numpy(dtype=float), abs=1e-5,
                                                                    nan_ok=True)
    left, right = pictures["categories_by_epoch.png"].axes
    assert [line.get_ydata().tolist() for line in left.lines] == [
        slow[name].tolist() for name in ("easy", "ambiguous", "hard")]
    assert right.lines[0].get_ydata()[-1] == 100
