"""Web page in a real browser. Skipped without Chromium."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.support.browser import low_contrast, open_browser, prefer
from tests.support.page import Page
from tests.support.serving import ROOT, Server, ask, complete, serving, train, wait_for_health

SIZES = {"wide": (1200, 900), "narrow": (390, 844)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("page")
    train(root, steps=200, evaluations=4)
    with serving(root) as started:
        yield started


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with open_browser(tmp_path / "profile") as started:
        yield started


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_text_is_streamed_after_the_prompt(
    browser: webdriver.Chrome, server: Server, size: str, scheme: str
) -> None:
    prefer(browser, scheme)
    page = Page(browser, server, *SIZES[size])
    page["prompt"].send_keys("宋江")
    page.set("max_tokens", 120)
    if size == "narrow":  # where the settings are folded
        page.all("#settings summary")[0].click()
    page["seed"].send_keys("5")
    page["go"].click()
    page.wait(lambda: len(page["completion"].text) > 3)
    page.wait_for_end()
    expected = complete(server, prompt="宋江", max_tokens=120, seed=5, temperature=0.8, min_p=0.05)
    assert page["prompt-text"].text == "宋江"
    assert page.text_of("completion") == expected.text
    assert page["completion"].value_of_css_property("color") != page["prompt-text"].value_of_css_property("color")
    assert f"{expected.json()['usage']['completion_tokens']} tokens" in page["pace"].text
    assert "tokens/s" in page["pace"].text
    page["tokens"].click()
    assert page.all("#curve svg")[0].size["width"] == page["curve"].size["width"]
    assert page.scroll_width() <= SIZES[size][0], "the page is wider than the window"
    assert low_contrast(page.browser) == []
    page.screenshot(f"{size}-{scheme}")
    assert page.browser_errors() == []


@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_names_of_baselines_do_not_overlap_the_curve(browser: webdriver.Chrome, server: Server, size: str) -> None:
    page = Page(browser, server, *SIZES[size])
    labels, curves = ([entry.rect for entry in page.all(f"#curve {tag}")] for tag in ("text", "polyline"))
    assert len(curves) == 2
    for label in labels:
        for curve in curves:
            pairs = (("x", "width"), ("y", "height"))
            starts = [max(label[at], curve[at]) for at, _ in pairs]
            ends = [min(label[at] + label[length], curve[at] + curve[length]) for at, length in pairs]
            assert starts[0] >= ends[0] or starts[1] >= ends[1]
    shown = page["curve-key"].text + page["curve"].text
    assert all(name in shown for name in ("training", "validation", "counting pairs", "counting n-grams"))


def test_the_first_sight_has_a_sample_beginnings_and_a_summary(browser: webdriver.Chrome, server: Server) -> None:
    page = Page(browser, server)
    about = ask(server, "/run").json()
    assert page.text_of("completion") == about["sample"]["text"]
    assert page["caption"].text == "Written at the end of the training, step 200"
    assert [chip.text for chip in page.all("#beginnings button")] == about["beginnings"]
    assert f"{about['bits_per_char']:.2f} bits per character" in page["about"].text
    assert about["finished"][:4] in page["about"].text
    assert about["run"].split("/")[2] not in page["about"].text
    page.all("#beginnings button")[0].click()
    page.wait_for_end()
    assert page["prompt-text"].text == about["beginnings"][0]
    assert page.browser_errors() == []


@pytest.mark.parametrize(("language", "label"), [("zh-CN", "续写"), ("zh-TW,en", "续写"), ("de", "Write")])
def test_the_language_is_that_of_the_browser(server: Server, tmp_path: Path, language: str, label: str) -> None:
    with open_browser(tmp_path / "profile", language) as browser:
        page = Page(browser, server)
        assert page["go"].text == label
        html = browser.find_element(By.TAG_NAME, "html")
        assert html.get_attribute("lang") == ("zh-Hans" if label == "续写" else "en")
        page["language"].click()
        other = {"续写": "Write", "Write": "续写"}[label]
        page.wait(lambda: page["go"].text == other)
        assert page.browser_errors() == []


def test_every_text_of_the_page_exists_in_both_languages() -> None:
    script = (ROOT / "model" / "serving" / "page" / "strings.js").read_text("utf-8")
    table = script[: script.index("};")]
    keys = re.findall(r"^  (\w+): \[", table, re.MULTILINE)
    texts = re.findall(r'"([^"]*)"', table)
    assert len(texts) == 2 * len(keys) > 100
    for english, chinese in zip(texts[::2], texts[1::2], strict=True):
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", chinese)), english
    used = {
        key for path in (ROOT / "model" / "serving" / "page").iterdir() for key in used_keys(path.read_text("utf-8"))
    }
    assert used - set(keys) == set()


def used_keys(text: str) -> list[str]:
    return [max(match) for match in re.findall(r'\bt\("(\w+)"|data-(?:text|label|placeholder)="(\w+)"', text)]


def test_continue_appends_to_the_text_and_the_history_has_it_once(browser: webdriver.Chrome, server: Server) -> None:
    page = Page(browser, server)
    page["prompt"].send_keys("话说")
    page.set("max_tokens", 20)
    page["seed"].send_keys("3")
    page["go"].click()
    page.wait_for_end()
    first = page.text_of("completion")
    assert first == complete(server, max_tokens=20, seed=3, temperature=0.8, min_p=0.05).text
    page["continue"].click()
    page.wait(lambda: len(page.text_of("completion")) > len(first))
    page.wait_for_end()
    second = complete(server, prompt=f"话说{first}", max_tokens=20, seed=3, temperature=0.8, min_p=0.05).text
    assert page.text_of("completion") == first + second
    page["prompt"].clear()
    page["prompt"].send_keys("却说")
    page["go"].click()
    page.wait(lambda: page["prompt-text"].text == "却说")
    page.wait_for_end()
    assert [entry.get_property("textContent") for entry in page.all("#texts li > p")] == [f"话说{first}{second}"]
    browser.refresh()
    page.wait(lambda: len(page.all("#texts li")) == 2)
    page.all("#texts li:last-child button")[0].click()  # use again
    assert page["prompt"].get_property("value") == "话说"
    assert page["seed"].get_property("value") == "3"
    page.all("#texts li:last-child button")[2].click()  # remove
    assert len(page.all("#texts li")) == 1
    assert page.browser_errors() == []


def test_copy_takes_prompt_and_text(browser: webdriver.Chrome, server: Server) -> None:
    page = Page(browser, server)
    page["copy"].click()
    page.wait(lambda: page["notice"].text == "Copied")
    page["prompt"].send_keys(Keys.CONTROL, "v")
    about = ask(server, "/run").json()
    pasted = str(page["prompt"].get_property("value"))
    assert pasted == about["sample"]["prompt"] + about["sample"]["text"]


def test_tokens_show_their_probabilities_by_pointer_and_by_keyboard(browser: webdriver.Chrome, server: Server) -> None:
    page = Page(browser, server)
    page["prompt"].send_keys("话说")
    page["seed"].send_keys("3")
    page.set("max_tokens", 20)
    page["go"].click()
    page.wait_for_end()
    text = page.text_of("completion")
    page["tokens"].click()
    fields = {"max_tokens": 20, "seed": 3, "temperature": 0.8, "min_p": 0.05, "logprobs": 5}
    logprobs = complete(server, **fields).json()["choices"][0]["logprobs"]
    tokens = [token for token in logprobs["tokens"] if token != "<|endoftext|>"]
    assert [span.get_property("textContent") for span in page.all(".token")] == tokens
    assert page.text_of("completion") == text
    page.all(".token")[2].click()
    likeliest = sorted(logprobs["top_logprobs"][2].values(), reverse=True)[:5]
    rows = [row.text for row in page.all("#alternatives em")]
    assert len(rows) == 5
    assert [float(row.strip("<% ")) for row in rows] == pytest.approx([100 * math.exp(p) for p in likeliest], abs=0.6)
    page["completion"].send_keys(Keys.ARROW_RIGHT)
    assert "pointed" in str(page.all(".token")[3].get_attribute("class"))
    page["completion"].send_keys(Keys.ESCAPE)
    assert not page["alternatives"].is_displayed()
    page["tokens"].click()
    assert page.all(".token") == []
    assert page.browser_errors() == []


def test_every_control_is_reached_by_the_keyboard(browser: webdriver.Chrome, server: Server) -> None:
    page = Page(browser, server)
    controls = [
        control
        for control in page.all("button, a[href], input, textarea, summary")
        if control.is_displayed() and control.get_attribute("tabindex") != "-1"
    ]
    reached = []
    for _ in controls:
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(browser.switch_to.active_element)
    assert reached == controls
    page["prompt"].send_keys("话说", Keys.CONTROL, Keys.ENTER)
    page.wait_for_end()


# Click in the page itself: a text may end before the driver could react.
_STOP_SOON = """
const go = document.getElementById("go"), completion = document.getElementById("completion")
new MutationObserver((_, watcher) => {
    if (completion.innerText.length > 3 && go.innerText === "Stop") { watcher.disconnect(); go.click() }
}).observe(completion, { childList: true, characterData: true, subtree: true })
"""


def test_stop_button_ends_generation_and_frees_the_row(browser: webdriver.Chrome, server: Server) -> None:
    page = Page(browser, server)
    page["prompt"].send_keys("宋江")
    page.browser.execute_script("document.getElementById('max_tokens').max = 4096")
    page.set("max_tokens", 4096)
    page.set("temperature", 2)
    page.set("min_p", 0)
    page.browser.execute_script(_STOP_SOON)
    page["go"].click()
    page.wait_for_end()
    wait_for_health(server, seconds=2, active=0)
    assert "stopped" in page["pace"].text
    assert page.browser_errors() == []


def test_errors_are_plain(browser: webdriver.Chrome, server: Server) -> None:
    page = Page(browser, server)
    for seed in ("1.5", "-1", "seven", "99999999999999999"):
        page["seed"].clear()
        page["seed"].send_keys(seed)
        page["go"].click()
        page.wait(lambda: page["pace"].text == "The seed is a whole number, such as 7.")
        page["seed"].clear()
        page["seed"].send_keys("1")
        page["go"].click()
        page.wait_for_end()
    page.browser.execute_script("document.getElementById('prompt').value = '话'.repeat(60000)")
    page["go"].click()
    page.wait(lambda: "at most 50,000" in page["pace"].text)
    assert page["go"].text == "Write"


def test_a_server_that_is_gone_is_said_so(browser: webdriver.Chrome, trained: Path) -> None:
    with serving(trained) as server:
        page = Page(browser, server)
    page["go"].click()
    page.wait(lambda: page["pace"].text == "The server does not answer. Is it still running?")


def test_controls_are_labelled_and_text_is_escaped(browser: webdriver.Chrome, server: Server) -> None:
    page = Page(browser, server)
    for control in page.all("input, textarea, button, a, svg[role], [role=tablist], [role=group]"):
        assert control.accessible_name or not control.is_displayed(), control.get_attribute("id")
    page["prompt"].send_keys("<img src=x onerror=alert(1)><b>")
    page.set("max_tokens", 20)
    page["go"].click()
    page.wait_for_end()
    assert page["prompt-text"].text == "<img src=x onerror=alert(1)><b>"
    assert browser.find_elements(By.CSS_SELECTOR, "#sheet img, #sheet b") == []
