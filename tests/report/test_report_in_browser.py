"""The page in a real browser, from a file."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from pytest_celery_faults.report.page import write
from pytest_celery_faults.timeline import KINDS
from report_helpers import show

#: The test whose name is given to a script.
NAMED = "[...document.querySelectorAll('.test')].find(one => one.innerText.includes(arguments[0]))"


def until(browser, script: str) -> None:
    """Wait until a script finds something true."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30, poll_frequency=0.02).until(lambda _: browser.execute_script(script), script)


#: Whether all that is open has what it holds, and each chart that is seen is drawn.
IS_DRAWN = """
const all = (selector, is) => [...document.querySelectorAll(selector)].every(is);
return all('details[open]', one => one.childElementCount > 1)
  && all('.chart', one => one.childElementCount > 0 || !one.checkVisibility());
"""


def drawn(browser) -> None:
    """Wait until the page shows what is open: a browser tells it a moment later, and once more for a chart's size."""
    until(browser, IS_DRAWN)


def opened(browser, page):
    browser.get(page.as_uri())
    drawn(browser)
    return browser


def open_all(browser, selector: str = "details") -> None:
    for _ in range(2):  # there are others in them
        browser.execute_script("document.querySelectorAll(arguments[0]).forEach(one => { one.open = true })", selector)
        drawn(browser)


def texts(browser, selector: str) -> list[str]:
    return browser.execute_script("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector)


def names(browser) -> list[str]:
    """The tests that are listed, in order."""
    return [text.splitlines()[0].rpartition("::")[2] for text in texts(browser, ".test > summary .name")]


def press(browser, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def items(browser, test: str) -> list[dict[str, str]]:
    """What is drawn in the chart of a test, with its place."""
    browser.execute_script(f"{NAMED}.open = true", test)
    drawn(browser)
    return browser.execute_script(
        f"return [...{NAMED}.querySelectorAll('.item')]"
        """.map(item => {
          const shape = item.querySelector('.bar, .mark').getBoundingClientRect();
          return {...item.dataset, said: item.getAttribute('aria-label'), left: shape.left, right: shape.right,
                  top: shape.top};
        });
        """,
        test,
    )


def test_it_opens_from_a_file_and_loads_nothing(browser, page):
    opened(browser, page)
    assert browser.title == "Celery faults report"
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.execute_script("return document.querySelectorAll('[src], link').length") == 0


def test_nothing_that_comes_from_a_test_is_executed(browser, page):
    opened(browser, page)
    assert items(browser, "test_hostile")
    open_all(browser)
    assert "</script><script>document.title" in "".join(texts(browser, "td.code"))
    assert browser.title == "Celery faults report"
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0


def test_a_script_that_is_not_the_pages_own_would_not_run(chromium, page):
    opened(chromium, page)
    add = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    chromium.execute_script(add)
    assert chromium.execute_script("return window.ran") is None
    fetched = chromium.execute_script("return fetch('data:text/plain,x').then(() => 'loaded', () => 'refused')")
    assert fetched == "refused"
    assert all("Content Security Policy" in entry["message"] for entry in chromium.get_log("browser"))


def test_failed_tests_come_first_with_their_traceback(browser, page):
    opened(browser, page)
    assert [text.split()[-1] for text in texts(browser, ".badge")] == [
        *["failed"] * 2, "error", *["passed"] * 3, "skipped",
    ]  # fmt: skip
    assert names(browser)[:1] == ["test_fails"]
    assert ">       assert not celery_faults.dlq" in texts(browser, ".test:first-child pre")[0]
    assert texts(browser, ".test:first-child .says")[0].startswith("AssertionError: assert not ")
    assert len(browser.find_elements("css selector", ".test[open]")) == 3


def test_the_overview_counts(browser, page):
    opened(browser, page)
    cards = {text[0]: text[1:] for text in (list(filter(None, text.splitlines())) for text in texts(browser, ".card"))}
    assert cards["Tests by outcome"] == ["failed", "2", "error", "1", "passed", "3", "skipped", "1"]
    assert cards["Faults by kind"] == ["OSError", "2", "Duplicate", "1", "Sleep", "1"]
    assert cards["Tasks by state"][:2] == ["SUCCESS", "8"]
    assert cards["Virtual time"][0] == "30.1 min"
    assert len(cards["Slowest tests, in real time"]) == 6


def test_it_is_used_by_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    for _ in range(30):
        press(browser, Keys.TAB)
        if browser.switch_to.active_element.get_attribute("id") == "text":
            break
    press(browser, "DOWNLOAD retries")
    assert names(browser) == ["test_retries"]
    assert texts(browser, "#count") == ["1 test of 7"]
    press(browser, *[Keys.BACKSPACE] * 20, Keys.TAB)
    press(browser, "fail")
    assert names(browser)[0] == "test_fails"
    assert texts(browser, "#count") == ["2 tests of 7"]
    press(browser, Keys.TAB, Keys.TAB, "Slee")
    assert names(browser) == ["test_fails"]
    press(browser, Keys.TAB, Keys.ENTER)
    assert texts(browser, "#count") == ["7 tests"]
    drawn(browser)

    press(browser, Keys.TAB)
    assert browser.execute_script("return document.activeElement.tagName") == "SUMMARY"
    press(browser, Keys.ENTER)
    assert browser.execute_script("return document.activeElement.parentElement.open") is False
    press(browser, Keys.ENTER)
    for _ in range(4):  # past the traceback
        press(browser, Keys.TAB)
        if browser.execute_script("return document.activeElement.getAttribute('class')") == "item":
            break
    said = [browser.execute_script("return document.activeElement.getAttribute('aria-label')")]
    for _ in range(3):
        press(browser, Keys.ARROW_RIGHT)
        said.append(browser.execute_script("return document.activeElement.getAttribute('aria-label')"))
    assert len(set(said)) == 4
    assert texts(browser, ".test:first-child .info") == said[-1:]


def test_each_filter_finds_its_tests(browser, page):
    opened(browser, page)
    choose = """
    const select = document.getElementById(arguments[0]);
    select.value = arguments[1];
    select.dispatchEvent(new Event('input', {bubbles: true}));
    """
    browser.execute_script(choose, "task", "shop.download")
    assert names(browser) == ["test_retries"]
    browser.execute_script(choose, "fault", "Sleep")
    assert (names(browser), texts(browser, "#count")) == ([], ["0 tests of 7"])
    browser.execute_script(choose, "task", "")
    assert names(browser) == ["test_fails"]
    browser.execute_script(choose, "fault", "")
    browser.execute_script(choose, "outcome", "skipped")
    assert names(browser) == ["test_skips"]


def test_the_bars_have_their_times_and_stand_in_their_order(browser, page):
    opened(browser, page)
    bars = [item for item in items(browser, "test_retries") if item["kind"] == "attempt"]
    assert [(bar["attempt"], bar["start"], bar["end"]) for bar in bars] == [
        ("1", "0", "0"), ("2", "1", "1"), ("3", "3", "3"),
    ]  # fmt: skip
    assert bars[1]["said"] == (
        "shop.download#1 attempt 2, from 1 s to 1 s, RETRY, OSError('gone'), retry asked for in 2 s"
    )
    assert all(one["right"] < other["left"] for one, other in pairwise(bars))
    waits = [other["left"] - one["right"] for one, other in pairwise(bars)]
    assert 1.5 < waits[1] / waits[0] < 2.5, "twice as long"

    marks = items(browser, "test_fails")
    assert {mark["kind"] for mark in marks} == {
        "attempt", "acked", "fault fired", "soft time limit", "dead-lettered", "redelivered",
    }  # fmt: skip
    places = [(float(mark["at"]), mark["left"]) for mark in marks if mark["kind"] == "acked"]
    assert places == sorted(places)
    limited = next(mark for mark in marks if mark["kind"] == "soft time limit")
    bar = next(mark for mark in marks if mark["kind"] == "attempt" and mark["end"] == "4")
    assert bar["left"] < limited["left"] < bar["right"] + 8


def test_a_tenth_of_a_second_and_half_an_hour_are_both_seen(browser, page):
    opened(browser, page)
    bars = [item for item in items(browser, "test_long_waits") if item["kind"] == "attempt"]
    lefts = [bar["left"] for bar in bars]
    waits = [later - before for before, later in pairwise(lefts)]
    assert min(waits) > 25
    assert waits[2] < 10 * waits[0]
    shortened = browser.execute_script(
        f"return [...{NAMED}.querySelectorAll('.gap')].map(one => one.getBoundingClientRect().x)", "test_long_waits"
    )
    assert len(shortened) == 1
    assert lefts[2] < shortened[0] < lefts[3]
    assert "30 min long" in browser.execute_script(
        f"return [...{NAMED}.querySelectorAll('text')].map(one => one.textContent)", "test_long_waits"
    )


def test_who_sent_whom_is_drawn(browser, page):
    opened(browser, page)
    assert items(browser, "test_passes")
    links = browser.execute_script("return [...document.querySelectorAll('.link')].map(one => ({...one.dataset}))")
    assert [link for link in links if link] == [
        {"parent": "test_shop.parent#1", "child": f"shop.add#{number}"} for number in (1, 2, 3)
    ]


def test_there_are_tables_for_those_who_do_not_see_the_chart(browser, page):
    opened(browser, page)
    open_all(browser, ".test:first-child details")
    assert texts(browser, ".test:first-child caption") == [
        "Tasks of this test", "Dead letters of this test", "Events of this test, in order",
    ]  # fmt: skip
    rows = [row.split("\t") for row in texts(browser, ".test:first-child details:last-child tbody tr")]
    assert ["4 s", "soft time limit", "test_shop.resize#1"] in [row[:3] for row in rows]
    times = [float(row[0].removesuffix(" s")) for row in rows]
    assert times == sorted(times)
    unnamed = "return [...document.querySelectorAll('input, select')].filter(one => !one.labels.length).length"
    assert browser.execute_script(unnamed) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_fits(browser, page, width, scheme):
    show(browser, width, scheme)
    opened(browser, page)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return document.querySelectorAll('.bar').length") > 0
    low = browser.execute_script(CONTRAST)
    assert low == [], "text that is hard to read"


#: Every text of which the contrast with what is behind it is below WCAG's 4.5.
CONTRAST = """
const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgb = color => {
  pen.clearRect(0, 0, 1, 1); pen.fillStyle = color; pen.fillRect(0, 0, 1, 1);
  return [...pen.getImageData(0, 0, 1, 1).data];
};
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
const behind = element => {
  for (let one = element; one; one = one.parentElement) {
    const color = rgb(getComputedStyle(one).backgroundColor);
    if (color[3] === 255) return color;
  }
  return [255, 255, 255];
};
return [...document.querySelectorAll('body *')].filter(one => {
  const own = [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  if (!own || one.closest('script, style, noscript, .unseen, .skip') || !one.checkVisibility()) return false;
  const style = getComputedStyle(one);
  const [high, low] = [light(rgb(one.namespaceURI.endsWith('svg') ? style.fill : style.color)), light(behind(one))]
    .sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05) < 4.5;
}).map(one => one.outerHTML.slice(0, 120));
"""


def test_the_theme_can_be_chosen(browser, page):
    show(browser, 1280, "dark")
    opened(browser, page)
    color = "return getComputedStyle(document.body).backgroundColor"
    dark = browser.execute_script(color)
    choose = "const t = document.getElementById('theme'); t.value = arguments[0]; t.dispatchEvent(new Event('change'))"
    browser.execute_script(choose, "light")
    assert browser.execute_script(color) != dark
    opened(browser, page)
    browser.execute_script(choose, "")
    assert browser.execute_script(color) == dark


def test_many_tests_are_listed_as_they_are_needed(browser, tmp_path):
    record = {
        "elapsed": 3.0, "real": 0.1, "executions": 1, "states": {"SUCCESS": 1}, "faults": {}, "letters": {},
        "tasks": [
            {"label": "shop.add#1", "name": "shop.add", "parent": -1, "sent": 0, "call": "1, 2", "queue": "celery",
             "state": "SUCCESS", "attempts": [[1, 0.0, 0.0, 2, 19, "SUCCESS", "", None, False]]}
        ],
        "dead": [], "events": [[0.0, min(n, 3), 0, 1, ""] for n in range(20)], "omitted": [0, 0],
    }  # fmt: skip
    test = {**record, "outcome": "passed", "tries": 1, "events": 20, "tasks": ["shop.add"], "says": []}
    index = {
        "began": 0, "took": 1, "exit": 0, "seed": 1, "versions": {}, "kinds": KINDS, "others": {},
        "tests": [{**test, "id": f"test_shop.py::test_it[{n}]"} for n in range(5000)],
    }  # fmt: skip
    tries = json.dumps([{"outcome": "passed", "phases": [], "record": record}])
    write(tmp_path / "big.html", index, [tries] * 5000)
    opened(browser, tmp_path / "big.html")
    assert len(names(browser)) == 100
    assert texts(browser, ".chart") == []
    browser.execute_script("document.getElementById('more').click()")
    assert len(names(browser)) == 200
    assert texts(browser, "#more") == ["Show 100 more of 4,800"]
    browser.execute_script("location.hash = 't4321'")
    until(browser, "return document.activeElement.innerText.includes('test_it[4321]')")
    drawn(browser)
    assert len(texts(browser, ".chart")) == 1


def test_a_page_about_no_test_says_so(browser, tmp_path):
    index = {
        "began": 0, "took": 1, "exit": 0, "seed": 1, "versions": {"Python": "3"}, "kinds": KINDS,
        "others": {"passed": 2}, "tests": [],
    }  # fmt: skip
    write(tmp_path / "empty.html", index, [])
    opened(browser, tmp_path / "empty.html")
    assert texts(browser, "#overview .note") == [
        "No test of this run used the plugin, so there is nothing to show. Other tests: 2 passed."
    ]
