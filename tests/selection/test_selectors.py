"""selectors.py: what every selector must do, over the registry, and each one against a slow version."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datamap.core.errors import UserError
from datamap.selection.base import (
    HIGHEST,
    LOWEST,
    MIDDLE,
    SELECTORS,
    SETTINGS,
    Features,
    Settings,
    count_of,
    interleaved,
    largest_remainder,
    needed,
    rank_normalised,
    settings_of,
)
from datamap.selection.selectors import described, parse_members, rejected, select

pytestmark = pytest.mark.usefixtures("one_thread")

N = 60
MANY = settings(max_examples=100, deadline=None)
FEW = settings(max_examples=5, deadline=None)

EMBEDDINGS, LABELS, POSITION = "embeddings", "label", "position"
KEEPS_MASKED = ("lexical_diversity", "stratified")  # a short text counts as the middle, or is a stratum of its own
NOT_NESTED = ("kmeans", "stratified", "loss_trajectory", "pipeline")  # their quotas depend on k
ALL_EQUAL = ("consistency", "llm_judge")  # survivors are equals: the seed alone orders them


# --- data that selectors can read ---------------------------------------------------------------------------------


def made(name: str, n: int, seed: int = 0) -> np.ndarray:
    """A feature of n examples as its owner makes it; one that is not known here is a float per example."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    match name:
        case "embeddings":
            return rng.normal(size=(n, 5)).astype(np.float32)
        case "losses":
            return rng.random((n, 6))
        case "label":
            return np.array(["bad", "good", "so-so"], dtype=object)[rng.integers(3, size=n)]
        case "position":
            return rng.permutation(n)
        case "perplexity" | "pseudo_perplexity":
            return np.exp(rng.normal(3, 1, size=n))
        case "flip_rate":
            return np.zeros(n)
        case "judge_flags":
            return np.zeros(n, dtype=np.int64)
        case "judge_estimates":
            return np.stack([3 * rng.random(n), np.zeros(n)], axis=1)
        case "token_count":
            return rng.integers(1, 40, size=n).astype(float)
    return rng.random(n)


def ids_of(n: int) -> list[str]:
    return [f"x{row:03d}" for row in range(n)]


EVERYBODY = Settings(p_low=0.0, p_high=1.0, n_clusters=7)  # so that no selector drops any
MEMBERS = {
    "pipeline": (("el2n", 0.8), ("kcenter", 0.6), ("aum", 0.1)),
    "fusion": (("el2n", 1.0), ("confidence", 0.5371), ("variability", 2.0213)),  # so that ranks add up to no ties
}
CASES = {name: (name, EVERYBODY.replace(members=MEMBERS.get(name, ()))) for name in SELECTORS}
CASES |= {
    "perplexity by mattr": ("perplexity", EVERYBODY.replace(rank_by="mattr")),
    "perplexity by lowest mattr": ("perplexity", EVERYBODY.replace(rank_by="mattr", keep=LOWEST)),
    "kmeans of 128": ("kmeans", Settings()),
    "loss_trajectory of 128": ("loss_trajectory", Settings()),
    "lexical_diversity of words alone": ("lexical_diversity", Settings(lexical_weights=(0.0, 1.0, 0.5))),
    "lexical_diversity of distance alone": ("lexical_diversity", Settings(lexical_weights=(2.0, 0.0, 0.0))),
    "stratified by label": ("stratified", Settings(strata=("label",))),
    "stratified by many": ("stratified", Settings(strata=("mattr", "token_count", "label", "flesch"), bins=4)),
    "pipeline to random": ("pipeline", Settings(members=(("kmeans", 0.9), ("random", 0.2)))),
    "pipeline to kmeans": ("pipeline", Settings(members=(("self_filter", 0.9), ("kmeans", 0.2)))),
    "pipeline to stratified": ("pipeline", Settings(members=(("label_issues", 0.9), ("stratified", 0.2)))),
    "pipeline of one": ("pipeline", Settings(members=(("herding", 0.3),))),
    "fusion of one": ("fusion", Settings(members=(("pseudo_perplexity", 3.0),))),
    "fusion with distance": ("fusion", Settings(members=(("el2n", 0.4), ("kcenter", 0.6), ("confidence", 0.31)))),
    "judge of a share": ("llm_judge", Settings(judge_fraction=0.5)),
}


def values_for(case: str, n: int = N, seed: int = 0) -> dict[str, np.ndarray]:
    return {name: made(name, n, seed) for name in needed(*CASES[case])}


def choose(case, values, k, seed=1, ids=None, fill=False, **more):
    name, its_settings = CASES[case]
    its_settings = its_settings.replace(fill=fill)
    n = len(next(iter(values.values()))) if values else N
    return select(Features(ids or ids_of(n), values), name, k, seed, its_settings, **more)


def is_a_choice(chosen: pd.DataFrame, k: int, ids) -> None:
    assert list(chosen.columns) == ["id", "rank", "score", "reason"]
    assert chosen["rank"].tolist() == list(range(1, k + 1))
    assert chosen["id"].nunique() == len(chosen) == k
    assert set(chosen["id"]) <= set(ids)
    assert all(type(each) is str for each in chosen["id"])
    assert chosen["score"].dtype == np.float64
    assert all(isinstance(each, str) and each and "\n" not in each for each in chosen["reason"])


def one_line(caught) -> str:
    text = str(caught.value)
    assert text
    assert "\n" not in text, text
    return text


def can_be_masked(name: str) -> bool:
    return name not in (EMBEDDINGS, LABELS, POSITION)


def masked(values: np.ndarray, rows, under: float) -> np.ma.MaskedArray:
    """``values`` without those of ``rows``, under whose mask stands a number that must not be read."""
    plain = np.array(values, dtype=float)
    plain[rows] = under
    mask = np.zeros(plain.shape, dtype=bool)
    mask[rows] = True
    return np.ma.MaskedArray(plain, mask=mask)


every_case = pytest.mark.parametrize("case", CASES)


# --- every selector -----------------------------------------------------------------------------------------------


@every_case
def test_exactly_k_unique_rows_with_ranks(case):
    for k in (1, 2, 13, N - 1, N):
        is_a_choice(choose(case, values_for(case), k), k, ids_of(N))


@every_case
def test_other_k_are_refused(case):
    for k in (0, -1, N + 1, 10**9):
        for fill in (False, True):
            with pytest.raises(UserError) as caught:
                choose(case, values_for(case), k, fill=fill)
            assert f"{k:,} of {N} " in one_line(caught)


@every_case
def test_one_seed_one_choice(case):
    values = values_for(case)
    before = {name: np.copy(each) for name, each in values.items()}
    first = choose(case, values, 13)
    np.random.seed(0)  # noqa: NPY002  nothing may read or move the global state
    pd.testing.assert_frame_equal(choose(case, values, 13), first, check_exact=True)
    for name, each in values.items():
        assert (each == before[name]).all(), name


@every_case
def test_the_seed_decides_where_it_should_and_nowhere_else(case):
    name, its_settings = CASES[case]
    members = [SELECTORS[member] for member, _ in its_settings.members]
    values = values_for(case)
    choices = [choose(case, values, 13, seed) for seed in range(4)]
    sets = {frozenset(each["id"]) for each in choices}
    if case in ALL_EQUAL or any(each.seeded for each in (SELECTORS[name], *members)):
        assert len(sets) > 1
    else:
        for each in choices[1:]:
            pd.testing.assert_frame_equal(each, choices[0], check_exact=True)


@every_case
@FEW
@given(order=st.permutations(range(N)), k=st.sampled_from([1, 13, N]), stratify=st.booleans())
def test_the_order_of_ids_and_rows_does_not_matter(case, order, k, stratify):
    values = {**values_for(case), "group": np.array(list("aabbbccccc") * 6)}
    more = {"stratify": "group"} if stratify else {}
    shuffled = {name: each[order] for name, each in values.items()}
    ids = ids_of(N)
    pd.testing.assert_frame_equal(
        choose(case, shuffled, k, ids=[ids[row] for row in order], **more), choose(case, values, k, **more),
        check_exact=True,
    )


@pytest.mark.parametrize("shift", [0.0, 30.0])
@pytest.mark.parametrize("case", ["kcenter", "herding", "kmeans of 128", "lexical_diversity"])
def test_the_order_does_not_matter_for_several_blocks_of_float32(case, shift, tmp_path):
    n = 5000
    rng = np.random.default_rng(3)
    values = {**values_for(case, n), EMBEDDINGS: (rng.normal(size=(n, 19)) + shift).astype(np.float32)}
    ids = [f"x{row:05d}" for row in range(n)]
    chosen = choose(case, values, 250, ids=ids)
    order = rng.permutation(n)
    shuffled = {name: each[order] for name, each in values.items()}
    again = choose(case, shuffled, 250, ids=[ids[row] for row in order])
    pd.testing.assert_frame_equal(again, chosen, check_exact=True)
    np.save(tmp_path / "vectors.npy", values[EMBEDDINGS])
    values[EMBEDDINGS] = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    pd.testing.assert_frame_equal(choose(case, values, 250, ids=ids), chosen, check_exact=True)


@every_case
def test_constant_features(case):
    values = {
        name: made(name, N) if name == POSITION else np.repeat(made(name, 1), N, axis=0)
        for name in needed(*CASES[case])
    }
    strata = np.array(["a", "b"] * (N // 2))
    for k in (1, 11, N):
        is_a_choice(choose(case, values, k), k, ids_of(N))
        is_a_choice(choose(case, {**values, "group": strata}, k, stratify="group"), k, ids_of(N))


@every_case
def test_duplicate_rows(case):
    values = {
        name: made(name, N) if name == POSITION else np.concatenate([made(name, 4)] * (N // 4))
        for name in needed(*CASES[case])
    }
    for k in (1, 4, 31, N):
        is_a_choice(choose(case, values, k), k, ids_of(N))


@every_case
@pytest.mark.parametrize("shuffled", [False, True])
def test_what_is_no_finite_number_is_an_error_that_names_the_example(case, shuffled):
    values = values_for(case)
    order = np.random.default_rng(5).permutation(N) if shuffled else np.arange(N)
    ids = [ids_of(N)[row] for row in order]
    for name in values:
        if values[name].dtype.kind != "f":
            continue
        for row, bad in ((0, math.nan), (17, math.inf), (N - 1, -math.inf)):
            broken = {**values, name: values[name].copy()}
            broken[name][row] = bad if broken[name].ndim == 1 else [*broken[name][row][:-1], bad]
            if row:  # with a mask that does not hide it
                broken[name] = masked(broken[name], [0], 0.0) if can_be_masked(name) else broken[name]
            with pytest.raises(UserError) as caught:
                choose(case, {each: array[order] for each, array in broken.items()}, 5, ids=ids)
            assert set(re.findall(r"x\d{3}", one_line(caught))) == {ids_of(N)[row]}, name


def test_the_error_of_many_epochs_is_one_line():
    losses = np.ma.array(np.random.default_rng(0).random((N, 40)))
    losses[3, 7] = np.nan
    with pytest.raises(UserError) as caught:
        choose("loss_trajectory", {"losses": losses}, 5)
    assert "x003" in one_line(caught)


MASKABLE = [
    (case, name) for case in CASES for name in needed(*CASES[case])
    if can_be_masked(name) and CASES[case][0] not in (*KEEPS_MASKED, "pipeline")
]


@pytest.mark.parametrize(("case", "name"), MASKABLE)
def test_masked_examples_are_never_chosen(case, name):
    values, hidden = values_for(case), [0, 5, 6, 7, 44, N - 1]
    values[name] = masked(values[name], hidden, 1.0)
    for row, under in zip(hidden, (math.nan, 1e9, -1e9, 0.0), strict=False):
        np.ma.getdata(values[name])[row] = under
    ids, left = ids_of(N), N - len(hidden)
    out = {ids[row] for row in hidden}
    for k in (1, left):
        is_a_choice(choose(case, values, k), k, set(ids) - out)
    for k in (left + 1, N):
        with pytest.raises(UserError) as caught:
            choose(case, values, k)
        message = one_line(caught)
        assert f"{left} of {N} " in message
        assert f"{k} were asked for" in message
        filled = choose(case, values, k, fill=True)
        is_a_choice(filled, k, ids)
        assert set(filled["id"][:left]) == set(ids) - out
        pd.testing.assert_frame_equal(filled[:left], choose(case, values, left), check_exact=True)
        assert filled["reason"].str.startswith("random fill").tolist() == [False] * left + [True] * (k - left)
        assert filled["score"][left:].isna().all()
    pd.testing.assert_frame_equal(choose(case, values, 20, fill=True), choose(case, values, 20), check_exact=True)


@pytest.mark.parametrize(("case", "name"), MASKABLE)
def test_where_every_example_is_masked(case, name):
    values = values_for(case)
    values[name] = masked(values[name], list(range(N)), math.nan)
    with pytest.raises(UserError) as caught:
        choose(case, values, 3)
    assert f"0 of {N} " in one_line(caught)
    is_a_choice(choose(case, values, 3, fill=True), 3, ids_of(N))


def test_fill_is_drawn_by_the_seed():
    values = {"el2n": masked(made("el2n", N), list(range(10, N)), math.nan)}
    first, again, other = (choose("el2n", values, 30, seed, fill=True) for seed in (1, 1, 2))
    assert first.equals(again)
    assert set(first["id"]) != set(other["id"])
    counts: Counter[str] = Counter()
    for seed in range(300):
        counts.update(choose("el2n", values, 11, seed, fill=True)["id"][10:])
    assert len(counts) == 50  # each of those that are left can come; on average six times
    assert max(counts.values()) < 20


def test_values_that_only_whole_numbers_hold_may_be_masked():
    """llm_judge.flags gives masked int64, with a mask also where every example has a verdict."""
    flags = np.ma.MaskedArray([0, 1, 0, 2, 0, 0], mask=np.arange(6) == 5)
    ids = ids_of(6)
    chosen = select(Features(ids, {"judge_flags": flags}), "llm_judge", 3, 0)
    is_a_choice(chosen, 3, {ids[0], ids[2], ids[4]})
    assert chosen["score"].tolist() == [0, 0, 0]
    counts = np.ma.MaskedArray([3, 1, 2, 5, 4, 9], mask=np.arange(6) == 5)
    assert select(Features(ids, {"forgetting": counts}), "forgetting", 2, 0)["id"].tolist() == [ids[3], ids[4]]


@pytest.mark.parametrize("case", [case for case, (name, _) in CASES.items() if name not in NOT_NESTED])
def test_a_smaller_choice_is_the_start_of_a_larger_one(case):
    values = values_for(case)
    whole = choose(case, values, N)
    for k in (1, 7, 30):
        pd.testing.assert_frame_equal(choose(case, values, k), whole[:k], check_exact=True)


@every_case
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_small_grids_with_masks_and_groups(case, data):
    """Exactly k of any features, or a line that says why not; with fill never that."""
    name, its_settings = CASES[case]
    n = data.draw(st.integers(1, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    values = {}
    for each in needed(name, its_settings):
        values[each] = made(each, n, int(rng.integers(100)))
        if values[each].dtype.kind == "f":
            values[each] = rng.integers(1, 4, size=values[each].shape).astype(values[each].dtype)
            if can_be_masked(each) and rng.random() < 0.5:
                values[each] = masked(values[each], np.flatnonzero(rng.random(n) < 0.3), math.nan)
    may_drop = any(isinstance(array, np.ma.MaskedArray) for array in values.values()) or name in ALL_EQUAL
    values["group"] = rng.integers(3, size=n)
    k = data.draw(st.integers(1, n))
    more = {"stratify": "group"} if data.draw(st.booleans()) else {}
    try:
        is_a_choice(choose(case, values, k, **more), k, ids_of(n))
    except UserError as error:
        assert may_drop, error
        assert "\n" not in str(error)
    if name != "pipeline":
        is_a_choice(choose(case, values, k, fill=True, **more), k, ids_of(n))


# --- ranking by one number ----------------------------------------------------------------------------------------

SCORED = [name for name, each in SELECTORS.items() if each.score and not each.reason and each.kind != "hybrid"]


@pytest.mark.parametrize("keep", [None, HIGHEST, LOWEST])
@pytest.mark.parametrize("name", SCORED)
def test_scored_selectors_take_one_end(name, keep):
    (feature,) = needed(name, Settings())
    values = made(feature, N)
    end = keep or SELECTORS[name].keep
    chosen = select(Features(ids_of(N), {feature: values}), name, 20, 0, Settings(keep=keep))
    expected = sorted(zip(values.tolist(), ids_of(N), strict=True), reverse=end == HIGHEST)[:20]
    assert list(zip(chosen["score"], chosen["id"], strict=True)) == expected
    told = [f"{name} {score:.4g}, {1 + sum(is_before(each, score, end) for each in values.tolist()):,} of {N:,} from "
            f"the {end}" for score in chosen["score"]]
    assert chosen["reason"].tolist() == told
    rest = rejected(Features(ids_of(N), {feature: values}), name, chosen, Settings(keep=keep))
    assert sorted([*rest["id"], *chosen["id"]]) == ids_of(N) and list(rest) == ["id", "score", "reason"]
    of_all = dict(zip(ids_of(N), values.tolist(), strict=True))
    assert rest["score"].tolist() == [of_all[each] for each in rest["id"]]
    assert rest["reason"].str.startswith(f"{name} ").all() and rest["reason"].str.endswith(f"from the {end}").all()


def is_before(one: float, other: float, end: str) -> bool:
    return one > other if end == HIGHEST else one < other


def test_which_end_each_takes():
    assert {name for name in SCORED if SELECTORS[name].keep == LOWEST} == {"pseudo_perplexity", "confidence"}


@given(values=st.lists(st.integers(0, 9), min_size=1, max_size=25), k=st.integers(1, 25), data=st.data())
@MANY
def test_the_middle_is_the_middle_of_the_distribution(values, k, data):
    """Against a slow version: those whose mean rank is nearest to that of the median; a masked one is never chosen."""
    hidden = data.draw(st.sets(st.integers(0, len(values) - 1), max_size=len(values) - 1))
    known = [row for row in range(len(values)) if row not in hidden]
    k = min(k, len(known))
    ranks = {row: Fraction(sum(values[other] < values[row] for other in known))
             + Fraction(sum(values[other] == values[row] for other in known) - 1, 2) for row in known}
    away = {f"x{row:03d}": abs(rank - Fraction(len(known) - 1, 2)) for row, rank in ranks.items()}
    features = Features(ids_of(len(values)), {"wordpiece_ratio": masked(np.array(values, float), sorted(hidden), 7.0)})
    chosen = select(features, "wordpiece_ratio", k, 3, Settings(keep=MIDDLE))
    assert [away[each] for each in chosen["id"]] == sorted(away.values())[:k]
    for name, reason in zip(chosen["id"], chosen["reason"], strict=True):
        place = 1 + sum(other < away[name] for other in away.values())
        assert reason.endswith(f", {place:,} of {len(known):,} from the middle")


def test_the_middle_share_lies_between_two_quantiles():
    values = np.exp(made("wordpiece_ratio", N))
    chosen = select(Features(ids_of(N), {"wordpiece_ratio": values}), "wordpiece_ratio", N // 2, 0,
                    Settings(keep=MIDDLE))
    low, high = np.quantile(values, [0.25, 0.75])
    inside = {f"x{row:03d}" for row in np.flatnonzero((values > low) & (values < high))}
    assert set(chosen["id"]) == inside and len(inside) == N // 2


@pytest.mark.parametrize("judged_first", [True, False])
def test_of_a_share_the_judges_objections_go_and_the_students_expectations_rank(judged_first):
    estimates = np.array([[0, 1], [2, 1], [0.4, 0], [0.1, 0], [0, 1], [1.7, 0]] if judged_first else
                         [[1.5, 0], [0.2, 0], [1, 1], [0.3, 0], [3, 1], [0.05, 0]])
    features = Features(ids_of(6), {"judge_estimates": estimates})
    told = Settings(judge_fraction=0.5)
    dropped = {f"x{row:03d}" for row in np.flatnonzero((estimates[:, 1] == 1) & (estimates[:, 0] > 0))}
    k = 6 - len(dropped)
    chosen = select(features, "llm_judge", k, 0, told)
    assert not set(chosen["id"]) & dropped
    assert chosen["score"].tolist() == sorted(estimates[[int(each[1:]) for each in chosen["id"]], 0])
    for name, reason, score in zip(chosen["id"], chosen["reason"], chosen["score"], strict=True):
        judged = estimates[int(name[1:]), 1] == 1
        assert reason == ("no objection of the judge" if judged else
                          f"the student expects {score:.2g} objections of the judge")
    with pytest.raises(UserError, match=f"llm_judge leaves {k} of 6"):
        select(features, "llm_judge", k + 1, 0, told)


@given(values=st.lists(st.integers(0, 3), min_size=1, max_size=30), seed=st.integers(0, 99), data=st.data())
@MANY
def test_ties_are_ordered_within_equal_scores_only(values, seed, data):
    k = data.draw(st.integers(1, len(values)))
    scores = np.array(values, dtype=float)
    chosen = select(Features(ids_of(len(values)), {"el2n": scores}), "el2n", k, seed)
    assert chosen["score"].tolist() == sorted(values, reverse=True)[:k]
    assert chosen["score"].tolist() == [values[int(each[1:])] for each in chosen["id"]]


@pytest.mark.parametrize(("name", "feature"), [("el2n", "el2n"), ("random", ""), ("consistency", "flip_rate"),
                                               ("loss_trajectory", "losses")])
def test_of_equals_each_is_chosen_as_often(name, feature):
    values = {feature: np.zeros((10, 3) if name == "loss_trajectory" else 10)} if feature else {}
    features = Features(ids_of(10), values)
    counts: Counter[str] = Counter()
    for seed in range(150):
        counts.update(select(features, name, 3, seed, Settings(n_clusters=2))["id"])
    assert len(counts) == 10
    assert max(abs(count - 45) for count in counts.values()) < 28  # 5 standard deviations


def test_label_issues_ranks_as_cleanlab_does():
    rank = pytest.importorskip("cleanlab.rank")
    from cleanlab.filter import find_label_issues

    from datamap.detection.label_quality import label_quality

    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), size=200)
    labels = rng.integers(4, size=200)
    features = Features(ids_of(200), {"label_quality": label_quality(labels, probabilities)})
    chosen = select(features, "label_issues", 200, 0)
    worst_first = [int(each[1:]) for each in chosen["id"]][::-1]
    scores = rank.get_label_quality_scores(labels, probabilities)
    assert worst_first == np.argsort(scores, kind="stable").tolist()
    assert chosen["score"].tolist() == np.sort(scores)[::-1].tolist()
    issues = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    assert len(issues) > 10
    assert [row for row in worst_first if row in set(issues.tolist())] == issues.tolist()


# --- survivors and the band of perplexity -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "feature"), [("consistency", "flip_rate"), ("llm_judge", "judge_flags")])
def test_survivors_are_those_at_zero(name, feature):
    values = np.array([0, 1, 0, 2, 0, 0, 1, 3], dtype=float)
    values[1] = 1e-9  # one flip of very many
    features, alive = Features(ids_of(8), {feature: values}), {"x000", "x002", "x004", "x005"}
    assert {frozenset(select(features, name, 4, seed)["id"]) for seed in range(9)} == {frozenset(alive)}
    assert len({tuple(select(features, name, 4, seed)["id"]) for seed in range(9)}) > 1
    with pytest.raises(UserError, match=rf"^{name} leaves 4 of 8 examples, 5 were asked for"):
        select(features, name, 5, 0)
    filled = select(features, name, 6, 0, Settings(fill=True))
    assert set(filled["id"][:4]) == alive
    assert filled["reason"].str.startswith(f"random fill, not chosen by {name}").sum() == 2


def test_fill_and_its_error_under_stratify():
    groups = np.array(["a"] * 10 + ["b"] * 30)
    flips = np.where(np.arange(40) < 9, 1.0, 0.0)  # one of group a survives
    features = Features(ids_of(40), {"flip_rate": flips, "group": groups})
    with pytest.raises(UserError) as caught:
        select(features, "consistency", 20, 0, stratify="group")  # 5 of a, 15 of b
    assert "leaves 1 of 10 examples of group a, 5 were asked for" in one_line(caught)
    filled = select(features, "consistency", 20, 0, Settings(fill=True), stratify="group")
    is_a_choice(filled, 20, ids_of(40))
    drawn = filled[filled["reason"].str.startswith("random fill")]
    assert len(drawn) == 4
    assert set(drawn["id"]) <= set(ids_of(9))
    assert filled["id"].isin(ids_of(10)).sum() == 5


def test_the_band_includes_its_edges():
    """Quantiles of 1..11 at .3 and .7 are 4 and 8 themselves."""
    features = Features(ids_of(11), {"perplexity": np.arange(1.0, 12)})
    chosen = select(features, "perplexity", 5, 0)
    best = sorted([4, 5, 6, 7, 8], key=lambda value: abs(math.log(value / 6)))
    assert chosen["id"].tolist() == [f"x{value - 1:03d}" for value in best]
    assert chosen["score"].tolist() == pytest.approx([-abs(math.log(value / 6)) for value in best])
    with pytest.raises(UserError, match="leaves 5 of 11 examples, 6 were asked for"):
        select(features, "perplexity", 6, 0)
    tied = Features(ids_of(11), {"perplexity": np.array([1, 2, 4, 4, 4, 5, 6, 8, 8, 8, 8.0])})
    assert sorted(select(tied, "perplexity", 9, 0)["id"]) == ids_of(11)[2:]


@MANY
@given(
    values=st.lists(st.floats(1, 1e6), min_size=1, max_size=25), seed=st.integers(0, 99),
    quantiles=st.lists(st.sampled_from([0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 1]), min_size=2, max_size=2, unique=True),
    keep=st.sampled_from([None, HIGHEST, LOWEST]), data=st.data(),
)
def test_the_band_against_a_slow_version(values, quantiles, keep, seed, data):
    low, high = sorted(quantiles)
    hidden = data.draw(st.sets(st.integers(0, len(values) - 1)))
    rng = np.random.default_rng(seed)
    metric = rng.permutation(len(values)) / 7
    perplexity = masked(np.array(values), sorted(hidden), math.nan)
    known = [value for row, value in enumerate(values) if row not in hidden]
    features = Features(ids_of(len(values)), {"perplexity": perplexity, "mtld": metric})
    if known:
        edges = np.quantile(known, [low, high])
        inside = [row for row in range(len(values)) if row not in hidden and edges[0] <= values[row] <= edges[1]]
    else:
        inside = []
    by_metric = Settings(p_low=low, p_high=high, rank_by="mtld", keep=keep)
    if not inside:
        with pytest.raises(UserError, match="leaves 0 of"):
            select(features, "perplexity", 1, 0, by_metric)
        return
    chosen = select(features, "perplexity", len(inside), 0, by_metric)
    expected = sorted(inside, key=lambda row: metric[row], reverse=keep != LOWEST)
    assert chosen["id"].tolist() == [f"x{row:03d}" for row in expected]
    nearest = select(features, "perplexity", len(inside), 0, Settings(p_low=low, p_high=high))
    assert sorted(nearest["id"]) == sorted(chosen["id"])
    middle = np.quantile(known, (low + high) / 2)
    away = [abs(math.log(values[int(name[1:])]) - math.log(middle)) for name in nearest["id"]]
    assert (np.diff(away) >= -1e-12).all()
    assert nearest["score"].tolist() == pytest.approx([-each for each in away], abs=1e-12)


def test_rank_by_leaves_out_those_without_the_metric():
    metric = masked(np.arange(11.0), [5], math.nan)
    features = Features(ids_of(11), {"perplexity": np.arange(1.0, 12), "mattr": metric})
    chosen = select(features, "perplexity", 4, 0, Settings(rank_by="mattr"))
    assert chosen["id"].tolist() == ["x007", "x006", "x004", "x003"]
    with pytest.raises(UserError, match="leaves 4 of 11"):
        select(features, "perplexity", 5, 0, Settings(rank_by="mattr"))


def test_full_is_the_start_of_the_dataset():
    position = np.random.default_rng(0).permutation(N)
    chosen = select(Features(ids_of(N), {"position": position}), "full", 9, 0)
    assert [position[int(each[1:])] for each in chosen["id"]] == list(range(9))


# --- quotas -------------------------------------------------------------------------------------------------------


def slow_quotas(sizes, total: int) -> list[int]:
    """Hamilton's method in fractions; of equal remainders the larger group, then the earlier."""
    whole = sum(sizes)
    exact = [Fraction(size * total, whole) if whole else Fraction(0) for size in sizes]
    quotas = [math.floor(each) for each in exact]
    order = sorted(range(len(sizes)), key=lambda row: (-(exact[row] - quotas[row]), -sizes[row], row))
    for row in order[: total - sum(quotas)]:
        quotas[row] += 1
    return quotas


SIZES = st.lists(st.one_of(st.integers(0, 5), st.integers(0, 10**6)), min_size=1, max_size=30)


@MANY
@given(sizes=SIZES.filter(any), data=st.data())
@example(sizes=[1, 1, 1], data=None)
def test_largest_remainder_against_fractions(sizes, data):
    totals = [0, 1, sum(sizes)] if data is None else [data.draw(st.integers(0, sum(sizes)))]
    for total in totals:
        quotas = largest_remainder(np.array(sizes), total)
        assert quotas.tolist() == slow_quotas(sizes, total)
        assert quotas.sum() == total
        assert (quotas <= sizes).all()
        assert (quotas >= 0).all()
        assert (np.abs(quotas - np.array(sizes) * total / sum(sizes)) < 1).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sizes", [[0], [0, 0, 0], []])
def test_largest_remainder_of_nothing(sizes):
    assert largest_remainder(np.array(sizes, dtype=np.int64), 0).tolist() == [0] * len(sizes)


GROUPINGS = {
    "text": np.array(["a"] * 33 + ["b"] * 20 + ["c"] * 5 + ["d"] + ["e"]),
    "odd text": np.array(["", " ", "é\n", "a,b", "'"] * 12, dtype=object),
    "whole numbers": np.arange(N) % 7,
    "booleans": np.arange(N) < 11,
    "numbers": np.where(np.arange(N) % 3 == 0, 0.1, -2.5e300),
    "nothing and others": np.array([None, "x", 3, True, 2.5, None] * 10, dtype=object),
    "one": np.zeros(N),
    "all different": np.array(ids_of(N)[::-1]),
}


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("k", [1, 4, 23, N])
@pytest.mark.parametrize("case", ["random", "kcenter", "pipeline to kmeans"])
def test_stratify_keeps_proportions(case, k, grouping):
    groups = GROUPINGS[grouping]
    chosen = choose(case, {**values_for(case), "group": groups}, k, stratify="group")
    is_a_choice(chosen, k, ids_of(N))
    names = sorted({str(each) for each in groups.tolist()})
    sizes = Counter(str(each) for each in groups.tolist())
    quotas = dict(zip(names, slow_quotas([sizes[name] for name in names], k), strict=True))
    found = Counter(str(groups[int(each[1:])]) for each in chosen["id"])
    assert found == {name: quota for name, quota in quotas.items() if quota}
    for count in range(1, k + 1):  # every part from the start on is about in proportion too
        part = Counter(str(groups[int(each[1:])]) for each in chosen["id"][:count])
        for name, quota in quotas.items():
            assert abs(part[name] - quota * count / k) <= 0.5 + len(names) / 2 * quota / k + 1e-9


@every_case
def test_stratify_by_a_group_of_all_changes_nothing(case):
    values = values_for(case)
    together = choose(case, {**values, "group": np.zeros(N)}, 13, stratify="group")
    pd.testing.assert_frame_equal(together, choose(case, values, 13), check_exact=True)


def test_stratify_takes_the_best_of_each_group():
    scores, groups = made("el2n", N), np.arange(N) % 3
    chosen = select(Features(ids_of(N), {"el2n": scores, "group": groups}), "el2n", 12, 0, stratify="group")
    for group in range(3):
        best = sorted(np.flatnonzero(groups == group), key=lambda row: -scores[row])[:4]
        assert [each for each in chosen["id"] if int(each[1:]) % 3 == group] == [f"x{row:03d}" for row in best]
    scores_of = dict(zip(chosen["id"], chosen["score"], strict=True))
    assert all(scores_of[each] == scores[int(each[1:])] for each in chosen["id"])


def test_strata_draw_each_for_itself():
    groups = np.arange(40) % 2
    chosen = select(Features(ids_of(40), {"group": groups}), "random", 20, 0, stratify="group")
    places = [{int(each[1:]) // 2 for each in chosen["id"] if int(each[1:]) % 2 == group} for group in (0, 1)]
    assert places[0] != places[1]


@pytest.mark.parametrize(("share", "n", "expected"), [
    (0.1, 10, 1), (0.1, 15, 2), (0.1, 25, 3), (0.1, 67349, 6735), (0.3, 5, 2), (0.7, 5, 4), (0.15, 10, 2),
    (0.35, 10, 4), (0.145, 100, 15), (1.005, 100, 101), (0.5, 1, 1), (0.5, 3, 2), (0.2, 67349, 13470), (1.0, 7, 7),
    (1e-9, 5, 1), (1e-05, 150_000, 2), (np.float64(0.35), 10, 4), (np.float32(0.25), 10, 3), (1, 9, 9),
])
def test_count_of_a_share(share, n, expected):
    assert count_of(share, n) == expected


@MANY
@given(thousandths=st.integers(1, 1000), n=st.integers(1, 10**7))
def test_count_of_rounds_halves_up(thousandths, n):
    exact = Fraction(thousandths, 1000) * n
    below = math.floor(exact)
    expected = below + (exact - below >= Fraction(1, 2))
    assert count_of(thousandths / 1000, n) == max(1, expected) <= n


# --- pieces -------------------------------------------------------------------------------------------------------


@MANY
@given(values=st.lists(st.one_of(st.integers(-3, 3).map(float), st.floats(-1e9, 1e9)), min_size=1, max_size=20),
       data=st.data())
def test_rank_normalised_against_a_slow_version(values, data):
    hidden = data.draw(st.sets(st.integers(0, len(values) - 1)))
    known = [value for row, value in enumerate(values) if row not in hidden]
    result = rank_normalised(masked(np.array(values), sorted(hidden), math.nan))
    for row, value in enumerate(values):
        if row in hidden:
            assert result[row] is np.ma.masked
        elif len(known) == 1:
            assert result[row] == 0.5
        else:
            below, same = sum(each < value for each in known), sum(each == value for each in known)
            assert result[row] == pytest.approx((below + (same - 1) / 2) / (len(known) - 1), abs=1e-12)


def test_rank_normalised_of_equals_is_the_middle():
    assert rank_normalised(np.ma.ones(5)).tolist() == [0.5] * 5
    assert rank_normalised(np.ma.array([3.0, 1, 2])).tolist() == [1, 0, 0.5]


def slow_interleaved(sizes) -> list[int]:
    """Member i of m stands at (i + 1/2) / m; of equals the earlier first."""
    positions = [Fraction(2 * place + 1, 2 * size) for size in sizes for place in range(size)]
    return sorted(range(len(positions)), key=lambda place: (positions[place], place))


@MANY
@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=8))
def test_interleaved_against_fractions(sizes):
    order = interleaved([np.arange(size) for size in sizes])
    assert order.tolist() == slow_interleaved(sizes)
    groups = np.repeat(np.arange(len(sizes)), sizes)[order]
    for count in range(1, sum(sizes) + 1):
        share = np.array(sizes) * count / sum(sizes)
        found = np.bincount(groups[:count], minlength=len(sizes))
        bound = 0.5 + sum(size > 0 for size in sizes) / 2 * np.array(sizes) / sum(sizes)
        assert (np.abs(found - share) <= bound + 1e-9).all()
    for number, size in enumerate(sizes):  # within a group the order stays
        members = [place for place in order.tolist() if groups[order.tolist().index(place)] == number]
        assert members == sorted(members)
        assert len(members) == size


# --- diversity ----------------------------------------------------------------------------------------------------


def slow_greedy(vectors: np.ndarray, k: int, bonus: np.ndarray, weight: float) -> list[int]:
    """From the row nearest to the mean on, the row of the largest weight * distance / spread + bonus."""
    vectors = vectors.astype(np.float64)
    apart = np.linalg.norm(vectors[:, None] - vectors, axis=2)
    away = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
    spread = np.sqrt(np.mean(away**2)) or 1.0
    picks = [int(away.argmin())]
    while len(picks) < k:
        best, place = -math.inf, -1
        for row in range(len(vectors)):
            if row not in picks:
                distance = min(apart[row, pick] for pick in picks)
                value = weight * distance / spread + bonus[row]
                if value > best:
                    best, place = value, row
        picks.append(place)
    return picks


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("seed", range(3))
def test_kcenter_is_the_plain_greedy(seed, dtype):
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(5, 6))[rng.integers(5, size=200)] * 3 + rng.normal(size=(200, 6))).astype(dtype)
    features = Features(ids_of(200), {EMBEDDINGS: vectors})
    chosen = select(features, "kcenter", 30, 0)
    picks = slow_greedy(vectors, 30, np.zeros(200), 1.0)
    assert [int(each[1:]) for each in chosen["id"]] == picks
    exact = vectors.astype(np.float64)
    near = [min(math.dist(exact[pick], exact[other]) for other in picks[:place])
            for place, pick in enumerate(picks) if place]
    assert chosen["score"][1:].tolist() == pytest.approx(near, rel=1e-6)
    assert (np.diff(chosen["score"]) <= 1e-9).all()
    rows = [int(each[1:]) for each in chosen["id"]]
    radius = max(min(math.dist(row, exact[pick]) for pick in rows) for row in exact)
    assert radius == pytest.approx(max(min(math.dist(row, exact[pick]) for pick in picks) for row in exact), rel=1e-12)
    assert radius <= chosen["score"].iloc[-1] + 1e-9
    told = [f"{distance:.4g} from the nearest before it" for distance in chosen["score"][1:]]
    assert chosen["reason"].tolist() == ["nearest to the mean", *told]
    rest = rejected(features, "kcenter", chosen, Settings())
    assert set(rest["id"]) == set(features.ids) - set(chosen["id"]) and rest["score"].isna().all()
    assert set(rest["reason"]) == {"not among the 30 that kcenter picks"}


@pytest.mark.parametrize("weights", [(1.0, 0.5, 0.5), (0.0, 1.0, 2.0), (3.0, 0.0, 0.1), (1.0, 0.0, 0.0)])
@pytest.mark.parametrize("seed", range(2))
def test_lexical_diversity_is_the_plain_greedy(weights, seed):
    rng, n, k = np.random.default_rng(seed), 120, 30
    vectors = rng.normal(size=(n, 4))
    lexical = {
        "mattr": masked(rng.random(n), rng.choice(n, 9, replace=False), math.nan),
        "mtld": masked(rng.random(n) * 90, rng.choice(n, 30, replace=False), 1e9),
    }
    bonus = np.zeros(n)
    for weight, values in zip(weights[1:], lexical.values(), strict=True):
        known = np.flatnonzero(~np.ma.getmaskarray(values))
        for row in range(n):
            below = sum(values.data[other] < values.data[row] for other in known)
            bonus[row] += weight * (below / (len(known) - 1) if row in known else 0.5)
    features = Features(ids_of(n), {EMBEDDINGS: vectors, **lexical})
    chosen = select(features, "lexical_diversity", k, 0, Settings(lexical_weights=weights))
    rows = [int(each[1:]) for each in chosen["id"]]
    assert rows == slow_greedy(vectors, k, bonus, weights[0])
    for row, reason in zip(rows, chosen["reason"], strict=True):
        too_short = any(np.ma.getmaskarray(values)[row] for values in lexical.values())
        assert ("too short" in reason) == too_short
        for name, values in lexical.items():
            if not np.ma.getmaskarray(values)[row]:
                assert f"{name.upper()} {values[row]:.3g}" in reason


def test_lexical_diversity_where_no_text_is_long_enough():
    vectors, nothing = made(EMBEDDINGS, N), np.ma.masked_all(N)
    features = Features(ids_of(N), {EMBEDDINGS: vectors, "mattr": nothing, "mtld": nothing})
    chosen = select(features, "lexical_diversity", 20, 0)
    assert chosen["id"].tolist() == select(features, "kcenter", 20, 0)["id"].tolist()
    assert chosen["reason"].str.contains("too short").all()


def test_herding_matches_the_mean_five_times_better_than_random():
    n, k = 10_000, 1000
    vectors = np.random.default_rng(0).normal(size=(n, 32)).astype(np.float32)
    features = Features([f"x{row:05d}" for row in range(n)], {EMBEDDINGS: vectors})

    def error(name: str, seed: int) -> float:
        rows = [int(each[1:]) for each in select(features, name, k, seed)["id"]]
        return float(np.linalg.norm(vectors[rows].mean(axis=0, dtype=float) - vectors.mean(axis=0, dtype=float)))

    assert 5 * error("herding", 0) < np.mean([error("random", seed) for seed in range(10)])


@pytest.mark.parametrize("k", [1, 6, 50, 299, 300])
@pytest.mark.parametrize("n_clusters", [1, 7, 128])
def test_kmeans_takes_the_nearest_of_each_cluster_in_proportion(n_clusters, k):
    rng = np.random.default_rng(8)
    vectors = rng.normal(size=(6, 4))[rng.choice(6, p=[0.5, 0.2, 0.1, 0.1, 0.06, 0.04], size=300)] * 5
    features = Features(ids_of(300), {EMBEDDINGS: vectors + 0.2 * rng.normal(size=(300, 4))})
    told = Settings(n_clusters=n_clusters)
    everyone = select(features, "kmeans", 300, 3, told)  # the same seed finds the same clusters
    everyone["cluster"] = everyone["reason"].str.extract(r"cluster (\d+)$").astype(int)
    assert everyone["cluster"].nunique() <= n_clusters
    clusters = [part.sort_values("score") for _, part in everyone.groupby("cluster")]
    quotas = slow_quotas([len(each) for each in clusters], k)
    expected = [row for part, quota in zip(clusters, quotas, strict=True) for row in part["id"][:quota]]
    chosen = select(features, "kmeans", k, 3, told)
    assert set(chosen["id"]) == set(expected)
    assert chosen["id"].tolist() == [expected[place] for place in slow_interleaved(quotas)]
    distances = dict(zip(everyone["id"], everyone["score"], strict=True))
    assert chosen["score"].tolist() == [distances[each] for each in chosen["id"]]


@pytest.mark.parametrize("k", [1, 5, 40, 150])
@pytest.mark.parametrize("bins", [1, 3, 4])
@pytest.mark.parametrize("strata", [("token_count", "flesch", "label"), ("label",), ("mtld",), ("label", "mtld")])
def test_stratified_against_a_slow_version(strata, bins, k):
    n = 150
    values = {name: made(name, n) for name in strata}
    if "mtld" in values:
        values["mtld"] = masked(values["mtld"], list(range(20, 45)), math.nan)
    cells: dict[tuple[str, ...], list[int]] = {}
    for row in range(n):
        parts = []
        for name in strata:
            if name == "label":
                parts.append(f"label {values[name][row]}")
            elif values[name][row] is np.ma.masked:
                parts.append(f"no {name}")
            else:
                edges = np.quantile(np.ma.compressed(values[name]), np.arange(1, bins) / bins)
                parts.append(f"{name} {1 + sum(edge < values[name][row] for edge in edges)} of {bins}")
        cells.setdefault(tuple(parts), []).append(row)

    def place(row: int) -> tuple:
        numbers = [math.inf if values[name][row] is np.ma.masked else values[name][row]
                   for name in strata if name != "label"]
        return (*numbers, row)

    ordered = sorted(cells, key=lambda cell: ["" if part.startswith("no ") else part for part in cell])
    quotas = slow_quotas([len(cells[cell]) for cell in ordered], k)
    rows, reasons = [], []
    for cell, quota in zip(ordered, quotas, strict=True):
        members = sorted(cells[cell], key=place)
        for number in range(quota):
            rows.append(members[math.floor(Fraction(2 * number + 1, 2) * len(members) / quota)])
            reasons.append("stratum: " + ", ".join(cell))
    order = slow_interleaved(quotas)
    chosen = select(Features(ids_of(n), values), "stratified", k, 0, Settings(strata=strata, bins=bins))
    assert chosen["id"].tolist() == [f"x{rows[each]:03d}" for each in order]
    assert chosen["reason"].tolist() == [reasons[each] for each in order]


def test_stratified_keeps_the_distribution_of_its_attributes():
    n = 2000
    values = {name: made(name, n) for name in ("token_count", "flesch", "label")}
    chosen = select(Features([f"x{row:05d}" for row in range(n)], values), "stratified", 200, 0)
    rows = [int(each[1:]) for each in chosen["id"]]
    for name in ("token_count", "flesch"):
        spread = values[name].std()
        assert abs(values[name][rows].mean() - values[name].mean()) < 0.05 * spread
    for label in set(values["label"]):
        assert abs(np.mean(values["label"][rows] == label) - np.mean(values["label"] == label)) < 0.03


# --- loss trajectories --------------------------------------------------------------------------------------------


def slow_s2l(sizes: list[int], k: int) -> list[int]:
    """S2L's allocation: from the smallest cluster on an equal share of what is left, at most the cluster."""
    quotas, left = [0] * len(sizes), k
    order = sorted(range(len(sizes)), key=lambda number: sizes[number])
    for place, number in enumerate(order):
        quotas[number] = min(sizes[number], left // (len(sizes) - place))
        left -= quotas[number]
    return quotas


@pytest.mark.parametrize("k", [1, 8, 9, 40, 111, 199, 200])
@pytest.mark.parametrize("n_clusters", [1, 6, 40])
def test_loss_trajectory_shares_as_s2l_does(n_clusters, k):
    rng = np.random.default_rng(2)
    kinds = rng.choice(5, p=[0.6, 0.25, 0.1, 0.03, 0.02], size=220)
    losses = 3 * rng.random((5, 8))[kinds] + 0.05 * rng.random((220, 8))
    values = np.ma.array(losses, mask=np.zeros_like(losses, dtype=bool))
    values[200:, 3] = np.ma.masked  # one epoch is lacking
    features, told = Features(ids_of(220), {"losses": values}), Settings(n_clusters=min(n_clusters, k))
    everyone = select(features, "loss_trajectory", 200, 4, told)
    clusters = dict(zip(everyone["id"], everyone["reason"].str.extract(r"cluster (\d+) ")[0].astype(int), strict=True))
    assert sorted(clusters) == ids_of(200)
    sizes = [list(clusters.values()).count(number) for number in range(max(clusters.values()) + 1)]
    chosen = select(features, "loss_trajectory", k, 4, told)
    found = Counter(clusters[each] for each in chosen["id"])
    assert sorted(found[number] for number in range(len(sizes))) == sorted(slow_s2l(sizes, k))
    level = max(found.values())
    for number, size in enumerate(sizes):  # clusters that are not taken wholly have equal shares, within one
        assert found[number] == size or found[number] >= level - 1 or found[number] == 0 and k < len(sizes)
    with pytest.raises(UserError, match="leaves 200 of 220 examples, 201 were asked for"):
        select(features, "loss_trajectory", 201, 4, told)


# --- hybrids ------------------------------------------------------------------------------------------------------


def test_pipeline_shares_are_of_all_examples():
    values = {name: made(name, N) for name in ("el2n", "confidence", "aum")}
    told = Settings(members=(("el2n", 0.5), ("confidence", 0.35), ("aum", 0.1)))
    chosen = select(Features(ids_of(N), values), "pipeline", 6, 0, told)
    half = sorted(range(N), key=lambda row: -values["el2n"][row])[:30]
    third = sorted(half, key=lambda row: values["confidence"][row])[:21]
    last = sorted(third, key=lambda row: -values["aum"][row])[:6]
    assert chosen["id"].tolist() == [f"x{row:03d}" for row in last]
    assert chosen["score"].tolist() == [values["aum"][row] for row in last]
    more = select(Features(ids_of(N), values), "pipeline", 25, 0, told)  # more than a share: no member goes below k
    assert set(more["id"]) == {f"x{row:03d}" for row in sorted(half, key=lambda row: values["confidence"][row])[:25]}


def test_pipeline_of_one_is_that_selector():
    for name in SELECTORS:
        if SELECTORS[name].kind != "hybrid":
            told = EVERYBODY.replace(members=((name, 0.2),))
            features = Features(ids_of(N), {each: made(each, N) for each in needed(name, told)})
            pd.testing.assert_frame_equal(
                select(features, "pipeline", 12, 5, told), select(features, name, 12, 5, told), check_exact=True
            )


def test_pipeline_under_stratify_shares_each_group():
    values = {name: made(name, N) for name in ("el2n", "aum")}
    values["group"] = np.arange(N) % 3
    told = Settings(members=(("el2n", 0.5), ("aum", 0.2)))
    chosen = select(Features(ids_of(N), values), "pipeline", 12, 0, told, stratify="group")
    for group in range(3):
        rows = [row for row in range(N) if row % 3 == group]
        half = sorted(rows, key=lambda row: -values["el2n"][row])[:10]
        best = sorted(half, key=lambda row: -values["aum"][row])[:4]
        assert [each for each in chosen["id"] if int(each[1:]) in rows] == [f"x{row:03d}" for row in best]


def test_a_member_that_leaves_less_than_its_share_is_named():
    flips = np.where(np.arange(N) < 20, 0.0, 1.0)
    features = Features(ids_of(N), {"flip_rate": flips, "el2n": made("el2n", N)})
    told = Settings(members=(("consistency", 0.5), ("el2n", 0.1)))
    with pytest.raises(UserError, match="^consistency leaves 20 of 60 examples, its share 0.5 asks for 30"):
        select(features, "pipeline", 6, 0, told)
    with pytest.raises(UserError, match="^consistency leaves 20 of 60"):  # nobody would see what was drawn
        select(features, "pipeline", 6, 0, told.replace(fill=True))
    last = Settings(members=(("el2n", 0.5), ("consistency", 0.4)))
    survivors = sum(flips[row] == 0 for row in sorted(range(N), key=lambda row: -features["el2n"][row])[:30])
    with pytest.raises(UserError, match=f"^pipeline leaves {survivors} of 60 examples, 24 were asked for"):
        select(features, "pipeline", 24, 0, last)
    filled = select(features, "pipeline", 24, 0, last.replace(fill=True))
    assert filled["reason"].str.startswith("random fill").sum() == 24 - survivors


@MANY
@given(
    columns=st.integers(2, 9).flatmap(lambda n: st.lists(
        st.lists(st.integers(0, 4), min_size=n, max_size=n), min_size=3, max_size=3)),
    weights=st.lists(st.sampled_from([0.1, 0.5, 1, 3, 10]), min_size=3, max_size=3), data=st.data(),
)
def test_fusion_against_a_slow_version(columns, weights, data):
    n, names = len(columns[0]), ("el2n", "confidence", "pseudo_perplexity")  # the latter two take the lowest
    hidden = data.draw(st.sets(st.integers(0, n - 1), max_size=n - 1))
    values = {name: np.array(column, dtype=float) for name, column in zip(names, columns, strict=True)}
    values["el2n"] = masked(values["el2n"], sorted(hidden), 7.0)
    expected = {}
    for row in sorted(set(range(n)) - hidden):
        score = Fraction(0)
        for name, column, weight in zip(names, columns, weights, strict=True):
            known = [each for other, each in enumerate(column) if name != "el2n" or other not in hidden]
            below = Fraction(sum(each < column[row] for each in known))
            below += Fraction(sum(each == column[row] for each in known) - 1, 2)
            share = below / (len(known) - 1) if len(known) > 1 else Fraction(1, 2)
            score += Fraction(str(weight)) * (share if name == "el2n" else 1 - share)
        expected[f"x{row:03d}"] = float(score / sum(Fraction(str(weight)) for weight in weights))
    told = Settings(members=tuple(zip(names, weights, strict=True)))
    chosen = select(Features(ids_of(n), values), "fusion", len(expected), 0, told)
    assert dict(zip(chosen["id"], chosen["score"], strict=True)) == pytest.approx(expected, abs=1e-12)
    assert (np.diff(chosen["score"]) <= 0).all()
    assert ((chosen["score"] >= 0) & (chosen["score"] <= 1 + 1e-12)).all()
    if hidden:
        with pytest.raises(UserError, match=f"fusion leaves {len(expected)} of {n}"):
            select(Features(ids_of(n), values), "fusion", n, 0, told)


@pytest.mark.parametrize("name", SCORED)
def test_fusion_of_one_is_that_selector(name):
    told = Settings(members=((name, 2.5),))
    features = Features(ids_of(N), {each: made(each, N) for each in needed("fusion", told)})
    chosen = select(features, "fusion", 20, 0, told)
    assert chosen["id"].tolist() == select(features, name, 20, 0)["id"].tolist()
    assert chosen["score"].iloc[0] == 1


@FEW
@given(seed=st.integers(0, 99), weights=st.tuples(*[st.sampled_from([0.1, 1.0, 4.0])] * 3), k=st.integers(1, 30))
@example(seed=0, weights=(1.0, 0.1, 1.0), k=25)
@example(seed=0, weights=(0.1, 0.1, 0.1), k=30)  # all: none is rejected
def test_a_fusion_with_distance_against_a_slow_greedy(seed, weights, k):
    """Each next one has the largest weighted mean of its ranks and its distance, in spreads, from those before it."""
    n = 30
    names = ("el2n", "kcenter", "confidence")
    values = {name: made(name, n, seed) for name in ("el2n", "confidence")}
    vectors = made("embeddings", n, seed).astype(np.float64)
    hidden = [3, 11] if seed % 2 else []
    values["el2n"] = masked(values["el2n"], hidden, 7.0)
    there = [row for row in range(n) if row not in hidden]
    k = min(k, len(there))

    def rank(row: int, column: np.ndarray, among: list[int]) -> float:
        return sum(column[other] < column[row] for other in among) / (len(among) - 1)

    spread = math.sqrt(sum(math.dist(vectors[row], vectors[there].mean(axis=0)) ** 2 for row in there) / len(there))
    bonus = {row: weights[0] * rank(row, np.ma.getdata(values["el2n"]), there)
             + weights[2] * (1 - rank(row, values["confidence"], list(range(n)))) for row in there}
    expected, scores = [max(there, key=lambda row: bonus[row])], [math.nan]
    while len(expected) < k:
        worth = {row: (bonus[row] + weights[1] * min(math.dist(vectors[row], vectors[each]) for each in expected)
                       / spread) / sum(weights) for row in there if row not in expected}
        expected.append(max(worth, key=lambda row: worth[row]))
        scores.append(worth[expected[-1]])
    told = Settings(members=tuple(zip(names, weights, strict=True)))
    features = Features(ids_of(n), {**values, "embeddings": vectors})
    chosen = select(features, "fusion", k, 0, told)
    assert chosen["id"].tolist() == [f"x{row:03d}" for row in expected]
    assert chosen["score"].tolist()[1:] == pytest.approx(scores[1:], rel=1e-9)
    assert rejected(features, "fusion", chosen, told)["reason"].str.startswith("not among the ").all()
    if hidden:
        with pytest.raises(UserError, match=f"fusion leaves {len(there)} of {n}"):
            select(features, "fusion", n, 0, told)


def test_the_weights_of_a_fusion_lead_from_the_score_to_k_center():
    features = Features(ids_of(N), {name: made(name, N) for name in ("el2n", "embeddings")})

    def ids(weight: float) -> list[str]:
        return select(features, "fusion", 12, 0, Settings(members=(("el2n", 1.0), ("kcenter", weight))))["id"].tolist()

    by_score = select(features, "el2n", 12, 0)["id"].tolist()
    assert ids(1e-6) == by_score and ids(1.0) != by_score
    rows = [features.ids.index(by_score[0])]
    while len(rows) < 12:
        rows.append(int(np.linalg.norm(features["embeddings"][:, None] - features["embeddings"][rows], axis=2)
                        .min(axis=1).argmax()))
    assert ids(1e6) == [features.ids[row] for row in rows]


# --- members as text ----------------------------------------------------------------------------------------------


def test_members_are_read():
    assert parse_members("label_issues:0.9, kcenter:0.3,forgetting : 0.1 ", "pipeline") == (
        ("label_issues", 0.9), ("kcenter", 0.3), ("forgetting", 0.1))
    assert parse_members("el2n:2,confidence:1e-3", "fusion") == (("el2n", 2.0), ("confidence", 0.001))
    assert parse_members("kmeans:1", "pipeline") == (("kmeans", 1.0),)
    assert parse_members("random:0.5,random:0.5", "pipeline") == (("random", 0.5), ("random", 0.5))


@pytest.mark.parametrize(("text", "kind", "says"), [
    ("", "pipeline", "'' is no selector"),
    (" ", "fusion", "'' is no selector"),
    (",", "pipeline", "'' is no selector"),
    ("el2n:0.5,", "pipeline", "'' is no selector"),
    ("el2m:0.5", "pipeline", "'el2m' is no selector"),
    ("0.5:el2n", "pipeline", "'0.5' is no selector"),
    ("el\n2n:0.5", "pipeline", "is no selector"),
    ("el2n 0.5", "fusion", "'el2n 0.5' is no selector"),
    ("pipeline:0.5", "pipeline", "'pipeline' is no selector"),
    ("fusion:0.5", "pipeline", "'fusion' is no selector"),
    ("el2n", "pipeline", "a number above 0, found 'el2n'"),
    ("el2n:", "fusion", "a number above 0, found 'el2n:'"),
    ("el2n:0", "pipeline", "found 'el2n:0'"),
    ("el2n:-1", "fusion", "found 'el2n:-1'"),
    ("el2n:nan", "fusion", "found 'el2n:nan'"),
    ("el2n:inf", "fusion", "found 'el2n:inf'"),
    ("el2n:half", "pipeline", "found 'el2n:half'"),
    ("el2n:0.5:0.1", "pipeline", "found 'el2n:0.5:0.1'"),
    ("el2n:\n", "pipeline", "a number above 0"),
    ("el2n:10%", "pipeline", "found 'el2n:10%'"),
    ("kmeans:1, el2n:1", "fusion", "kmeans gives no score"),
    ("random:1", "fusion", "random gives no score"),
    ("kcenter:1, kcenter:2", "fusion", "kcenter gives no score, and there is none beside it"),
    ("kcenter:1", "fusion", "kcenter gives no score"),
    ("el2n:1.5", "pipeline", "at most 1"),
    ("el2n:0.1,kcenter:0.2", "pipeline", "none larger than the one before it"),
    ("el2n:0.5,aum:0.1,kcenter:0.2", "pipeline", "none larger than the one before it"),
])
def test_members_that_make_no_sense(text, kind, says):
    with pytest.raises(UserError) as caught:
        parse_members(text, kind)
    message = one_line(caught)
    assert message.startswith(f"--{kind}")
    assert says in message


@MANY
@given(text=st.text(alphabet="el2nkcentrm:.,0159- \n\r\u2028e", max_size=25),
       kind=st.sampled_from(["pipeline", "fusion"]))
def test_any_text_is_members_or_one_line(text, kind):
    try:
        members = parse_members(text, kind)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert all(name in SELECTORS and number > 0 for name, number in members)


# --- the registry -------------------------------------------------------------------------------------------------


def test_every_entry_of_the_registry_is_whole():
    from datamap.selection.arguments import build_parser
    from datamap.selection.features import FEATURES

    flags = {flag for feature in FEATURES.values() for flag in feature.flags}
    assert {f"--{name}" for name in {*flags, *SETTINGS}} <= set(build_parser().flags)
    for name, each in SELECTORS.items():
        assert each.name == name
        assert (each.pick is None) != (each.score is None) or name == "fusion", name
        assert each.kind in ("baseline", "quality", "diversity", "importance", "hybrid")
        assert each.keep in (HIGHEST, LOWEST)
        assert all(SETTINGS[setting.name] == setting for setting in each.settings)
        assert set(needed(*CASES[name])) <= set(FEATURES), name
        assert len(set(needed(*CASES[name]))) == len(needed(*CASES[name]))
    wanted = """random full perplexity pseudo_perplexity label_issues consistency self_filter llm_judge kcenter kmeans
        herding lexical_diversity stratified predictive_entropy wordpiece_ratio el2n grand forgetting aum confidence
        variability loss_trajectory pipeline fusion"""
    assert set(wanted.split()) <= set(SELECTORS)


def test_every_selector_is_described():
    lines = described().splitlines()
    for name, each in SELECTORS.items():
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert each.what in line
        assert line.endswith("; lowest first") == (name in SCORED and each.keep == LOWEST)
    assert [line for line in lines if not line.startswith(" ")] == [
        "baseline:", "quality:", "diversity:", "importance:", "hybrid:"]


def test_a_selector_reads_no_more_than_it_says():
    """Neither features nor settings beyond those declared."""

    class Watched(Settings):
        def __getattribute__(self, name):
            seen.add(name)
            return super().__getattribute__(name)

    for case, (name, told) in CASES.items():
        if SELECTORS[name].kind == "hybrid":
            continue
        seen: set[str] = set()
        watched = Watched(**vars(told))
        seen.clear()
        select(Features(ids_of(N), values_for(case)), name, 9, 0, watched)  # values_for: what is needed only
        assert seen & set(vars(told)) <= settings_of(name, told) | {"keep", "fill"}, case


def test_settings_of_hybrids_are_those_of_their_members():
    told = Settings(members=(("perplexity", 0.5), ("kmeans", 0.2), ("el2n", 0.1)))
    assert settings_of("pipeline", told) == {"p_low", "p_high", "rank_by", "n_clusters"}
    assert set(needed("pipeline", told.replace(rank_by="mtld"))) == {
        "perplexity", "mtld", EMBEDDINGS, "el2n"}
    assert needed("stratified", Settings(strata=("label", "mtld"))) == ("label", "mtld")


# --- features -----------------------------------------------------------------------------------------------------


def test_features_are_in_the_order_of_their_ids():
    ids, values = ["c", "a", "d", "b"], np.array([2.0, 0, 3, 1])
    table = np.arange(8).reshape(4, 2)
    features = Features(ids, {"one": values, "two": table, "three": masked(values, [0], 7.0)})
    assert len(features) == 4
    assert features.ids == ["a", "b", "c", "d"]
    assert features["one"].tolist() == [0, 1, 2, 3]
    assert features["two"].tolist() == [[2, 3], [6, 7], [0, 1], [4, 5]]
    assert features["three"].tolist() == [0, 1, None, 3]
    with pytest.raises(KeyError):
        features["four"]


@MANY
@given(order=st.permutations(range(8)), data=st.data())
def test_features_among_others(order, data):
    values = np.arange(8.0)
    features = Features([f"x{row}" for row in order], {"value": values[list(order)]})
    rows = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True))
    part = features.among(np.array(rows))
    assert len(part) == len(rows)
    assert part.ids == [f"x{row}" for row in sorted(rows)]
    assert part["value"].tolist() == sorted(rows)
    inner = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=len(rows), unique=True))
    nested = part.among(np.array(inner))
    assert nested.ids == [f"x{sorted(rows)[row]}" for row in sorted(inner)]
    assert nested["value"].tolist() == [sorted(rows)[row] for row in sorted(inner)]
    assert features.ids == [f"x{row}" for row in range(8)]


def test_a_memory_map_stays_one_where_ids_are_sorted(tmp_path):
    np.save(tmp_path / "vectors.npy", made(EMBEDDINGS, N))
    vectors = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    features = Features(ids_of(N), {EMBEDDINGS: vectors})
    assert features[EMBEDDINGS] is vectors
    features.check([EMBEDDINGS])
    for case in ("kcenter", "herding", "kmeans", "lexical_diversity"):
        values = values_for(case)
        pd.testing.assert_frame_equal(
            choose(case, {**values, EMBEDDINGS: vectors}, 20), choose(case, values, 20), check_exact=True
        )


def test_ids_that_occur_twice_and_arrays_of_other_lengths():
    with pytest.raises(UserError) as caught:
        Features(["a", "b", "a"], {})
    assert "unique" in one_line(caught)
    with pytest.raises(ValueError, match="feature el2n has 2 rows for 3 ids"):
        Features(["a", "b", "c"], {"el2n": np.ones(2)})


def test_check_passes_what_is_whole_and_what_is_masked():
    features = Features(ids_of(4), {
        "a": np.array([1.0, 2, 3, 4]), "b": masked(np.arange(4), [0, 2], math.nan),
        "c": np.arange(4), "d": np.array(["x", None, "y", "z"], dtype=object),
        "e": masked(np.ones((4, 2)), [1, 2], math.inf), "f": np.ones((4, 3)),
    })
    features.check("abcdef")
    broken = Features(ids_of(4), {"a": masked(np.array([0, 1, math.inf, 2]), [0], math.nan)})
    with pytest.raises(UserError, match="^a of example 'x002' is inf"):
        broken.check(["a"])
    broken.among(np.array([0, 1, 3])).check(["a"])  # the examples at hand alone are looked at
    with pytest.raises(UserError, match="'x002'"):
        broken.among(np.array([1, 2])).check(["a"])


@pytest.mark.parametrize(("values", "said"), [
    (np.array([[0.0, 1.0], [np.nan, np.inf]]), "the vector of example 'b' holds 2 values"),
    (np.ma.masked_array([[0.0, 1.0], [2.0, np.nan]], mask=False), r"some of example 'b' is nan, no finite"),
    (np.array([0.0, np.inf]), "some of example 'b' is inf, no finite number"),
])
def test_what_is_no_number_is_named(values, said):
    with pytest.raises(UserError, match=said):
        Features(["a", "b"], {"some": values}).check(["some"])
