"""The page in a real browser, from disk: looking, linking, reviewing, what is downloaded, and hostile data."""

from __future__ import annotations

import base64
import csv
import json

import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, Hands
from conftest import qa_rows, write_rows
from made_report import by_confidence, make_page

import analyze_dataset
from datamap.core.files import read_table
from datamap.core.splits import load_split
from datamap.detection import decisions, known, review, suspects
from datamap.detection.decisions import read_decisions
from datamap.detection.review import ReviewFeatures
from datamap.report.examples import packed
from datamap.report.page import content_of, html_of
from datamap.tasks.registry import get_task

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the page is tested in Chromium, which is not installed here")
PAINTED = "MAPS[0].busy.then(() => document.querySelector('#map-data').data[0].selectedpoints)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Hands(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    file = write_rows(tmp_path_factory.mktemp("data") / "notes.jsonl", qa_rows(40, seed=3))
    return load_split(str(file), "train", get_task("qa"))


@pytest.fixture(scope="module")
def report(tmp_path_factory, questions):
    with pytest.MonkeyPatch.context() as patch:
        return make_page(tmp_path_factory.mktemp("page"), questions, patch)


@pytest.fixture
def opened(browser, report):
    """The page as somebody sees it who has decided nothing yet; nothing may go wrong in it or leave it."""
    browser.errors.clear()
    browser.requests.clear()
    browser.open(report)
    yield browser
    browser.run("localStorage.clear()")
    browser.size(1440, 900)
    assert browser.errors == []
    assert set(browser.requests) - {url for url in browser.requests if url.startswith("blob:")} == {
        report.resolve().as_uri()}


def place_of(browser, name, row):
    """Where a point of a map is in the window."""
    return browser.run(f"""(() => {{
        const map = MAPS.find((each) => each.id === '{name}'), plot = byId(map.id), layout = plot._fullLayout;
        plot.scrollIntoView({{block: 'center'}});
        const box = plot.getBoundingClientRect();
        return [box.left + layout.xaxis._offset + layout.xaxis.c2p(map.xs[{row}]),
                box.top + layout.yaxis._offset + layout.yaxis.c2p(map.ys[{row}])];
    }})()""")


def drawn_around(browser, name, row, radius=6):
    x, y = place_of(browser, name, row)
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]
    browser.drag([(x + radius * right, y + radius * down) for right, down in corners])


def test_it_opens_and_shows_what_there_is(opened, questions):
    assert opened.text("#title") == "notes.jsonl [train]"
    assert opened.text("#count") == "40 of 40"
    first = opened.run("page.view[0]")
    assert first == int(np.argmax(np.asarray(opened.run("[...page.suspicion]"))))
    assert opened.text("#example h2") == questions.ids[first]
    gold = questions.data["answers"][first]["text"][0]
    assert opened.texts("#example .whole mark.gold")[-1] == gold
    assert opened.run("document.querySelectorAll('#example .chart circle').length") == 3
    assert opened.run("document.querySelectorAll('#example .near li').length") == 5
    assert opened.run("document.querySelector('#map-data').data[0].type") == "scattergl"


def test_hover_shows_the_text_with_its_answer(opened, questions):
    row = 7
    opened.mouse("mouseMoved", *place_of(opened, "map-data", row))
    opened.until("!byId('tip').hidden")
    shown = opened.run("page.data.ids.findIndex((id, row) => byId('tip').innerText.startsWith(textsOf(row)[0]))")
    assert shown >= 0 and opened.texts("#tip mark.gold")
    opened.mouse("mouseMoved", 2, 2)
    opened.until("byId('tip').hidden")


@pytest.mark.parametrize("name, other", [("map-data", "map-clusters"), ("map-clusters", "map-data")])
def test_what_is_drawn_in_one_map_is_seen_in_the_other_and_in_the_list(opened, name, other):
    row = 11
    drawn_around(opened, name, row)
    opened.until("page.drawn !== null")
    chosen = opened.run("page.view")
    assert row in chosen and len(chosen) < 40
    painted = opened.run(f"MAPS.find((map) => map.id === '{other}').busy.then(() => "
                         f"document.querySelector('#{other}').data[0].selectedpoints)")
    assert sorted(painted) == sorted(chosen)
    assert opened.text("#count") == f"{len(chosen)} of 40"
    assert len(opened.texts("#table tbody tr")) == min(25, len(chosen))
    drawn_around(opened, other, 12)  # the other map's line takes the place of this one's
    opened.until(f"page.view.includes(12) && !document.querySelector('#{name}').layout.selections?.length")
    opened.click("#table th.cluster button")
    opened.click("#chips .chip")
    assert opened.text("#count") == "40 of 40" and opened.run(PAINTED) is None


def test_a_box_selects_too(opened):
    opened.run("Plotly.relayout('map-data', {dragmode: 'select'}).then(() => true)")
    x, y = place_of(opened, "map-data", 5)
    opened.drag([(x - 8, y - 8), (x, y), (x + 8, y + 8)])
    opened.until("page.drawn !== null")
    assert 5 in opened.run("page.view")


def test_search_filters_sorting_and_paging(opened, questions):
    opened.click("#search")
    opened.type("ADA")
    wanted = [row for row, text in enumerate(questions.data["context"][:]) if "ada" in text.lower()]
    opened.until("page.search === 'ADA'")
    found = opened.run("page.view")
    assert set(wanted) <= set(found) and 0 < len(found) < 40
    opened.run("byId('search').value = ''; byId('search').dispatchEvent(new Event('input'))")
    opened.until("page.view.length === 40")
    opened.run("byId('filter-column').value = 'cluster'; byId('filter-column').dispatchEvent(new Event('change'))")
    opened.run("(() => { const list = document.querySelector('#filter-value select'); list.value = '1';"
               "list.dispatchEvent(new Event('change')); })()")
    assert opened.texts("#chips .chip") == ["cluster: 1 ×"]
    assert set(opened.run("page.view.map((row) => labelsOf(page.columns.get('cluster'), row))")) == {"1"}
    opened.click("#chips .chip")
    opened.click("#table th.cluster button")
    opened.click("#pager button:last-child")
    assert opened.text("#pager span") == "26–40 of 40" and len(opened.texts("#table tbody tr")) == 15
    opened.run("sortBy('confidence', false)")
    values = opened.run("page.view.map((row) => page.columns.get('confidence').values[row])")
    assert values == sorted(values)


def test_colours_follow_the_column(opened):
    for key in ("suspicion", "cluster", "question_type", "rule3_low_q_similarity", "data source"):
        opened.run(f"byId('colour').value = {json.dumps(key)}; byId('colour').dispatchEvent(new Event('change'))")
        assert opened.run("page.colour") == key
    assert opened.texts("#legend button") == ["story (20)", "tale (20)"]


def test_a_review_by_keyboard_is_kept_downloaded_and_read(opened, questions, tmp_path):
    order = opened.run("page.view")
    opened.key("k")
    assert opened.run("page.at") == order[1]
    opened.key("ArrowDown")
    opened.key("ArrowUp")
    opened.key("d")
    opened.key("f")
    opened.run("document.activeElement.value = ''")
    opened.type("not there at all")
    opened.key("Enter")
    assert "does not stand in the context" in opened.text("#example .problem")
    word = questions.data["context"][order[2]].split()[0]
    opened.run("document.activeElement.value = ''")
    opened.type(word)
    opened.key("Enter")
    assert opened.run("page.at") == order[3]
    assert "3 decided: 1 keep, 1 drop, 1 fix" in opened.text("#progress")
    opened.reload()
    assert "3 decided" in opened.text("#progress")
    file = opened.download(tmp_path, "decisions.csv", lambda: opened.run("byId('download-decisions').click()"))
    table = read_decisions(file).set_index("id")
    decided = table[table["decision"] != ""]
    ids = questions.ids
    assert len(table) == 40
    assert decided["decision"].to_dict() == {ids[order[0]]: "keep", ids[order[1]]: "drop", ids[order[2]]: "fix"}
    assert decided.loc[ids[order[2]], "corrected"] == word
    file = opened.download(tmp_path, "train_ids.csv", lambda: opened.run("byId('download-ids').click()"))
    assert {row["id"] for row in csv.DictReader(file.open(newline=""))} == set(ids) - {ids[order[1]]}
    opened.run(f"open({order[1]})")
    opened.key("d")  # the same again takes it back
    assert "2 decided: 1 keep, 1 fix" in opened.text("#progress")


def test_a_correction_can_be_taken_over_by_mouse(opened):
    opened.click("#example .decide .fix")
    opened.run("getSelection().selectAllChildren(document.querySelectorAll('#example .whole')[1]);"
               "document.querySelectorAll('#example .whole')[1].dispatchEvent(new MouseEvent('mouseup'))")
    at = opened.run("page.at")
    assert opened.run("document.querySelector('#example .correction input').value") == opened.run(f"textsOf({at})[1]")
    offers = opened.texts("#example .offers .chip")
    assert "[no answer]" in offers
    opened.click("#example .offers .chip:last-child")
    opened.click("#example .confirm")
    assert opened.run(f"page.decisions.get({at})") == {"word": "fix", "corrected": "[no answer]"}


def test_a_correction_selected_in_the_context_is_saved_by_enter(opened):
    opened.key("f")
    opened.run("getSelection().empty(); document.activeElement.blur()")
    at = opened.run("page.at")
    opened.run("getSelection().selectAllChildren(document.querySelectorAll('#example .whole')[1]);"
               "document.querySelectorAll('#example .whole')[1].dispatchEvent(new MouseEvent('mouseup'))")
    opened.key("d")  # a letter behind it belongs to the correction
    whole = opened.run(f"textsOf({at})[1]")
    assert opened.run("[page.decisions.size, document.activeElement.value]") == [0, f"{whole}d"]
    opened.run(f"document.activeElement.value = {json.dumps(whole)}")
    opened.key("Enter")
    assert opened.run(f"page.decisions.get({at})") == {"word": "fix", "corrected": whole}


def test_the_menu_goes_by_escape_and_by_a_click_elsewhere(opened):
    opened.click("#downloads summary")
    assert opened.run("byId('downloads').open")
    opened.key("Escape")
    assert not opened.run("byId('downloads').open")
    opened.click("#downloads summary")
    opened.click("#title")
    assert not opened.run("byId('downloads').open")


def test_after_ten_decisions_the_rest_is_ranked_anew(opened, report):
    before = opened.run("[...page.suspicion]")
    rows = opened.run("page.view")[:10]
    for place in range(10):
        opened.key("k" if place % 3 else "d")
    after = np.array(opened.run("[...page.suspicion]"))
    found, decided = features_on(report), np.full(40, np.nan)
    decided[rows] = [0.0 if place % 3 else 1.0 for place in range(10)]
    assert np.abs(after - review.review(found, decided)).max() < 1e-6
    assert np.abs(after - before).max() > 0.01 and "ranked after 10" in opened.text("#progress")
    left = [row for row in np.argsort(-after, kind="stable").tolist() if row not in rows]
    assert opened.run("page.view") == [*left, *sorted(rows, key=lambda row: -after[row])]
    assert opened.run("page.at") == left[0]


STATE = "[page.view, [...page.suspicion], page.at, page.rankedAfter, byId('progress').innerText]"


@pytest.mark.parametrize("many", [4, 11])
def test_a_reload_changes_nothing(opened, many):
    """Decisions behind the last ranking do not count before the next one, and rows stay where they are."""
    for place in range(many):
        opened.key("k" if place % 3 else "d")
    before = opened.run(STATE)
    opened.reload()
    assert opened.run(STATE) == before
    for place in range(many, 10 * (many // 10 + 1)):
        opened.key("k" if place % 3 else "d")
    after = opened.run(STATE)
    assert after[3] == 10 * (many // 10 + 1) and after[1] != before[1]
    opened.run("decide('keep')")
    opened.run(f"open({after[0][-1]}); decide(page.decisions.get(page.at).word)")  # one that was ranked by, taken back
    before = opened.run(STATE)
    opened.reload()
    assert opened.run(STATE)[:2] == before[:2]


def test_decisions_on_what_an_other_sample_shows_are_kept(opened, questions, report, tmp_path):
    """Two pages of one dataset: each keeps what was decided on the other, and forgetting forgets all."""
    for _ in range(3):
        opened.key("k")
    opened.run(f"open({len(questions.ids) - 1}); decide('drop')")
    all_of_them = opened.run("[...page.decisions.keys()].map((row) => page.data.ids[row])")
    hidden = opened.run("page.data.ids[[...page.decisions.keys()][0]]")
    page = tmp_path / "sample.html"
    content = content_of(report.read_text(encoding="utf-8"))
    content["ids"] = [f"not {each}" if each == hidden else each for each in content["ids"]]
    page.write_text(html_of(content), encoding="utf-8")
    opened.open(page)
    assert "3 decided" in opened.text("#progress")
    opened.run("open(page.view.findLast((row) => !page.decisions.has(row))); decide('keep')")
    opened.open(report)
    assert "5 decided" in opened.text("#progress")
    assert set(all_of_them) <= set(opened.run("[...page.decisions.keys()].map((row) => page.data.ids[row])"))
    opened.open(page)
    opened.run("confirm = () => true; byId('forget').click()")
    opened.open(report)
    assert opened.text("#progress").startswith("0 decided")
    opened.requests.remove(page.as_uri())
    opened.requests.remove(page.as_uri())


def test_what_an_other_tab_decides_is_not_written_over(opened, questions):
    opened.key("k")
    last = questions.ids[opened.run("page.view.at(-1)")]
    opened.run(f"""{{ const kept = JSON.parse(localStorage.getItem(storeKey()));
        localStorage.setItem(storeKey(), JSON.stringify([...kept, [{json.dumps(last)}, 'drop', '']]));
        dispatchEvent(new StorageEvent('storage', {{ key: storeKey() }})); }}""")
    assert "2 decided: 1 keep, 1 drop" in opened.text("#progress")
    opened.key("k")
    opened.reload()
    assert "3 decided: 2 keep, 1 drop" in opened.text("#progress")


def test_a_fix_to_what_is_annotated_already_is_none(opened, questions, tmp_path, caplog):
    gold = questions.data["answers"][opened.run("page.at")]["text"][0]
    opened.key("f")
    opened.run("document.activeElement.value = ''")
    opened.type(f" {gold} ")
    opened.key("Enter")
    assert opened.text("#example .problem") == "that is what is annotated already; if it is right, keep it"
    assert opened.run("page.decisions.size") == 0
    # One that was kept in this browser, or comes back in a file, is a keep.
    opened.run(f"page.decisions.set(page.at, {{ word: 'fix', corrected: {json.dumps(gold)} }}); keep()")
    opened.reload()
    assert "1 decided: 1 keep" in opened.text("#progress") and "1 fix to what is annotated" in opened.text("#notice")
    first = opened.run("page.data.ids[page.decisions.keys().next().value]")
    file = tmp_path / "decisions.csv"
    file.write_text(f'id,decision,corrected\n{first},fix,"{gold}"\n')
    assert suspects.decisions_on(questions, str(file)).loc[first].tolist()[:2] == ["keep", ""]
    assert f"1 fix says what is annotated already ('{first}'): it counts as keep" in caplog.text


FORECAST = "Dr. for a cafe\u0301 or two for Dr. Otto or for\u00a0Ada"


@pytest.mark.parametrize("gold, start, text", [
    ("or", 5, "or"), ("or", 16, "or"), ("for", 4, "for"), ("for", 23, "for"), ("fo", 4, "fo"),
    ("for Ada", 37, "for Ada"), ("for\u00a0Ada", 39, "for Ada"), ("cafe\u0301", 10, "caf\u00e9"), ("Dr.", 0, "Dr"),
    ("Otto", 31, "otto"), ("Otto", 31, "[No answer]"), ("", -1, "[no answer]"), ("", -1, "Otto"), ("Ada", 2, "Ada"),
    ("two", 19, "two for"),
])
def test_page_and_python_agree_on_what_changes_nothing(browser, report, gold, start, text, tmp_path):
    answers = {"text": [gold] * bool(gold), "answer_start": [start] * bool(gold)}
    row = {"id": "a", "question": "who?", "context": FORECAST, "answers": answers}
    split = load_split(str(write_rows(tmp_path / "one.jsonl", [row, *qa_rows(1)])), "train", get_task("qa"))
    python = decisions._changes_nothing(split, 0, text)
    answer = split.data["answers"][0]
    usable = split.task.is_usable(split.data)[0] and gold
    there = [answer["answer_start"][0], len(answer["text"][0])] if usable else [-1, 0]
    if not browser.run("typeof page !== 'undefined' && page.n > 0"):
        browser.open(report)
    texts = json.dumps(["who?", FORECAST, answer["text"][0] if gold else "[no answer]"])
    said = browser.run(f"""(() => {{ const before = page.data;
        page.data = {{ ...before, texts: {texts},
            said: {{ ...before.said, gold: [2] }}, text: {{ columns: [{{ texts: [0] }}, {{ texts: [1] }}],
            spans: {{ start: [{there[0]}], length: [{there[1]}] }} }} }};
        try {{ return changesNothing(0, {json.dumps(text)}); }} finally {{ page.data = before; }} }})()""")
    assert said == python


def test_an_example_opens_when_there_is_room_for_it(opened):
    opened.size(320, 640)
    opened.reload()
    assert opened.run("page.at") is None and opened.run("byId('example').offsetWidth") == 0
    opened.size(1440, 900)
    opened.until("page.at !== null")
    assert opened.text("#example h2") == opened.run("page.data.ids[page.view[0]]")


def test_the_decisions_of_the_page_make_of_the_rest_what_find_errors_makes(opened, questions, report, tmp_path,
                                                                          monkeypatch):
    """Ten decisions in the browser, downloaded, and given to --find_errors: the same suspicion."""
    for place in range(10):
        opened.key("d" if place % 4 else "k")
    on_page = dict(zip(questions.ids, opened.run("[...page.suspicion]"), strict=True))
    file = opened.download(tmp_path, "decisions.csv", lambda: opened.run("byId('download-decisions').click()"))
    monkeypatch.setattr(known, "suspicion", by_confidence)
    made = report.parent.parent / "made"
    analyze_dataset.main(["--find_errors", "--decisions", str(file), "--cartography_dir", str(made / "map"),
                          "--embedding_dir", str(made / "embeddings"), "--cluster_dir", str(made / "clusters"),
                          "--predictions", str(made / "predictions"), "--dataset", questions.name,
                          "--output_dir", str(tmp_path / "suspects")])
    table = read_table(tmp_path / "suspects" / "suspects.csv").set_index("id")
    assert np.abs(table["suspicion"] - pd.Series(on_page)).max() < 1e-6
    undecided = table[table["decision"].isna()].index.tolist()
    assert [questions.ids[row] for row in opened.run("page.view")][:30] == undecided


@pytest.mark.slow
def test_from_the_browser_to_a_retrained_model(opened, questions, tiny_model, tmp_path):
    import dataset_filters
    import run

    order = opened.run("page.view")
    for _ in range(3):
        opened.key("d")
    file = opened.download(tmp_path, "decisions.csv", lambda: opened.run("byId('download-decisions').click()"))
    dataset_filters.main(["--decisions", str(file), "--dataset", questions.name, "--task", "qa",
                          "--output_dir", str(tmp_path / "cleaned")])
    run.main(["--do_train", "--dataset", str(tmp_path / "cleaned"), "--model", str(tiny_model), "--no_cuda",
              "--max_length", "128", "--doc_stride", "32", "--num_train_epochs", "1", "--enable_cartography",
              "--output_dir", str(tmp_path / "model"), "--cartography_output_dir", str(tmp_path / "map")])
    trained_on = set(read_table(tmp_path / "map" / "cartography_metrics.csv")["id"])
    assert trained_on == set(questions.ids) - {questions.ids[row] for row in order[:3]}


def features_on(report) -> ReviewFeatures:
    """What the page learns from, read back from its file."""
    content = content_of(report.read_text(encoding="utf-8"))["review"]
    group = np.array(content["group"])
    values = np.frombuffer(base64.b64decode(content["values"]), "<f4").reshape(len(group), content["width"])
    offset = np.frombuffer(base64.b64decode(content["offset"]), "<f8")
    return ReviewFeatures(values.astype(np.float64), [""] * content["width"], group,
                          [str(number) for number in range(content["groups"])], offset)


@pytest.mark.parametrize("groups, decisions", [(1, 12), (1, 60), (4, 12), (4, 150), (4, 0)])
def test_the_page_learns_what_python_learns(browser, report, groups, decisions):
    """Fewer and more decisions than weights, of numbers that the page holds in single precision."""
    rng = np.random.default_rng(groups + decisions)
    rows, width = 200, 9
    group = rng.integers(0, groups, rows)
    found = ReviewFeatures(rng.normal(0, 0.5, (rows, width)), [f"f{each}" for each in range(width)], group,
                           [f"g{each}" for each in range(groups)], rng.normal(-1, 2, rows))
    decided = np.full(rows, np.nan)
    chosen = rng.choice(rows, decisions, replace=False)
    decided[chosen] = rng.random(decisions) < 0.4
    browser.open(report)
    given = {"width": width, "groups": groups, "group": group.tolist(), "offset": packed(found.offset, "<f8"),
             "values": packed(found.values), "group_spread": review.GROUP_SPREAD, "steps": review.STEPS,
             "smallest_step": review.SMALLEST_STEP, "precision": review.PRECISION, "rounding": review.ROUNDING}
    marks = [None if np.isnan(each) else each for each in decided.tolist()]
    said = browser.run(f"""(() => {{ const given = {json.dumps(given)};
        given.values = numbers(given.values); given.offset = numbers(given.offset, 'f8');
        return [...review(given, Float64Array.from({json.dumps(marks)}, (each) => each ?? NaN))]; }})()""")
    assert np.abs(np.array(said) - review.review(found, decided)).max() < 1e-6
    if decisions:
        assert np.abs(np.array(said) - review.sigmoid(found.offset)).max() > 0.01


def test_overview_data_and_provenance(opened):
    for part, heading in (("overview", "Learning curves"), ("dataset", "Question types"), ("made", "Dataset")):
        opened.run(f"location.hash = '#{part}'")
        opened.until(f"!byId('part-{part}').hidden")
        assert heading in opened.texts(f"#part-{part} h2")
    opened.run("location.hash = '#overview'")
    opened.until("!byId('part-overview').hidden")
    opened.click("#part-overview section:last-of-type tr.press")
    opened.until("!byId('part-explore').hidden")
    assert opened.texts("#chips .chip")[0].startswith("cluster: ")


def test_a_line_of_the_overview_is_pressed_by_keyboard_too(opened):
    opened.run("location.hash = '#overview'")
    opened.until("!byId('part-overview').hidden")
    opened.run("document.querySelector('#part-overview section:last-of-type tr.press').focus()")
    opened.key("Enter")
    opened.until("!byId('part-explore').hidden")
    assert opened.texts("#chips .chip")[0].startswith("cluster: ")


def test_what_is_not_cut_is_not_called_cut(opened):
    said = "lengths({ ...page.data.data.lengths, of: 40, max_length: 128, cut: %d }).lastChild.innerText"
    assert opened.run(said % 0) == "No example has more than the 128 tokens that the model read at once."
    assert opened.run(said % 1).startswith("1 example (2.5%) has more than the 128 tokens")


def test_exact_copies_look_alike_whatever_is_annotated_in_them(opened):
    """Shown around its answer each looked like another text."""
    shown = opened.run("""(() => {
        const { text, said, ids } = page.data, [one, other] = [0, 1];
        for (const column of text.columns) column.texts[other] = column.texts[one];
        const long = textsOf(one)[1].length - 4;
        text.spans.start[one] = 0; text.spans.start[other] = long;
        said.gold[one] = text.columns[0].texts[5]; said.gold[other] = text.columns[0].texts[6];
        const made = copyTable({ counts: [{ kind: "exact", n: 1, other_gold: 1 }],
            pairs: [{ id: ids[one], other_id: ids[other], kind: "exact", overlap: 1, same_gold: false }] });
        return [...[...made.querySelectorAll("td")].map((cell) => cell.textContent),
            ...[one, other].map((row) => textOf(said.gold[row]))];
    })()""")
    assert shown[0] == shown[1] and shown[4:7] == ["differently", shown[7], shown[8]]


def test_nothing_is_wider_than_the_window(opened):
    for width, height in ((320, 640), (768, 900), (1440, 900), (3840, 2160)):
        opened.size(width, height)
        for part in ("overview", "dataset", "made", "explore"):
            opened.run(f"location.hash = '#{part}'")
            opened.until(f"!byId('part-{part}').hidden")
            opened.until("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        opened.run("open(page.view[0])")
        assert opened.run("byId('example').getBoundingClientRect().width") > 250
        opened.run("close()")


def test_maps_have_room_on_paper(opened):
    """A print changes no window: the maps stay as wide as they are, unless they are told."""
    opened.size(1920, 1080)
    wide = "MAPS.map(({ id }) => document.querySelector(`#${id} .main-svg`).getBoundingClientRect().width)"
    opened.until(f"{wide}.every((each) => each > 500)")
    opened.run("window.printed = null; matchMedia('print').addEventListener('change', (event) => "
               f"{{ printed ??= {wide}; }})")
    opened._ask("Page.printToPDF")
    assert opened.run("printed") == [330, 330]
    opened.until(f"{wide}.every((each) => each > 500)")


def test_letters_of_the_maps_grow_with_those_of_the_page(opened):
    sizes = "[style('font-size'), document.querySelector('#map-data').layout.font.size]"
    assert opened.run(sizes) == ["15px", 12]
    opened.size(3840, 2160)
    opened.until("document.querySelector('#map-data').layout.font.size === 17.6")
    assert opened.run("style('font-size')") == "22px"
    assert opened.run("document.querySelector('#map-data .xtitle').style.fontSize") == "17.6px"


def test_dark_and_without_webgl(opened):
    opened.dark(True)
    opened.until("document.querySelector('#map-data').layout.shapes.at(-1).line.color === style('--ink')")
    opened.dark(False)
    opened.run("hasWebGL = () => false; MAPS.length = 0")
    assert opened.run("drawMaps().then(() => document.querySelector('#map-data').data[0].type)") == "scatter"


# --- hostile data ---

NASTY = ("<script>window.hacked = 1</script>", "</script><img src=x onerror=window.hacked=1>", "%%DATA%% %%SCRIPTS%%",
         "\"'`${window.hacked = 1}<!--", "]]>&lt;b&gt;&amp;", "مرحبا \u202eabc", "🙂👩‍👩‍👧‍👦 naïve", "=1+1",
         "\u2028\u2029\x00", "<a href=javascript:window.hacked=1>x</a>")


def hostile_rows() -> list[dict]:
    rows = []
    for number, text in enumerate(NASTY * 2):
        context = f"🙂 {text} The answer is {text} here. " + ("x" * 100_000 if number == 3 else "And so on. " * number)
        start = context.index(text, 5 + len(text))
        rows.append({"id": f"{text}{number}", "question": f"{text} what?", "context": context,
                     "answers": {"text": [text], "answer_start": [start]}, "__proto__": text, "constructor": number,
                     "<b>": NASTY[number % 3], "hasOwnProperty": f"{text} {number}"})
    return rows


def test_text_of_the_data_runs_nothing_and_breaks_nothing(browser, tmp_path, monkeypatch):
    split = load_split(str(write_rows(tmp_path / "nasty.jsonl", hostile_rows())), "train", get_task("qa"))
    page = make_page(tmp_path, split, monkeypatch)
    content = content_of(page.read_text(encoding="utf-8"))
    assert [text.removesuffix(str(row)) for row, text in enumerate(content["ids"])] == list(NASTY * 2)
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page)
    for row in range(len(split.ids)):
        browser.run(f"open({row})")
        gold = split.data["answers"][row]["text"][0]
        pieces = "[...document.querySelectorAll('#example .whole mark.gold')].map((each) => each.textContent)"
        assert "".join(browser.run(pieces)) == gold
        assert browser.run("document.querySelector('#example h2').textContent") == split.ids[row]
        browser.run(f"showTip({row}, {{ clientX: 100, clientY: 100 }})")
        assert browser.run("byId('tip').offsetWidth <= innerWidth")
    for part in ("overview", "dataset", "made"):
        browser.run(f"location.hash = '#{part}'")
        browser.until(f"!byId('part-{part}').hidden")
    browser.run("location.hash = ''")
    for column in ("__proto__", "<b>", "constructor"):
        browser.run(f"page.colour = {json.dumps(f'data {column}')}; paintColours()")
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.run("window.hacked === undefined && ({}).codes === undefined")
    assert browser.run("document.querySelectorAll('main img, main script, aside a').length") == 0
    browser.run("page.decisions.set(7, { word: 'fix', corrected: '=1+1' }); localStorage.clear()")
    file = browser.download(tmp_path, "decisions.csv", lambda: browser.run("byId('download-decisions').click()"))
    table = read_decisions(file).set_index("id")
    assert set(table.index) == set(split.ids) and table.loc[split.ids[7], "corrected"] == "=1+1"
    assert browser.errors == [] and {url.partition(":")[0] for url in browser.requests} <= {"file", "blob"}


def test_a_policy_stands_in_the_way_of_what_would_get_through(browser, report):
    """The check of the tests above can fail: a script put into the page by hand is refused, and so is a request."""
    browser.open(report)
    browser.errors.clear()
    browser.run("document.body.append(h('img', { src: 'http://127.0.0.1:9/x.png' }));"
                "{ const script = document.createElement('script'); script.textContent = 'window.hacked = 2';"
                "document.body.append(script); }")
    browser.until("true")
    assert browser.run("window.hacked") is None
    assert sum("Content Security Policy" in error for error in browser.errors) == 2
    browser.errors.clear()
