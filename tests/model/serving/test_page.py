"""Web page in a real browser. Skipped without Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.serving import NAME, Server, complete, serving, train, wait_for_health

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
SIZES = {"wide": (1200, 900), "narrow": (390, 844)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("page")
    train(root, steps=200, evaluations=4)
    with serving(root) as started:
        yield started


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    program, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options, Service(driver))
    try:
        yield started
    finally:
        started.quit()


class Page:
    """The web page, opened and loaded."""

    def __init__(self, browser: webdriver.Chrome, server: Server, width: int = 1200, height: int = 900) -> None:
        self.browser = browser
        # Size of the viewport, not of the window around it.
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(f"{server.url}/")
        self.wait(lambda: NAME in self["facts"].text)

    def __getitem__(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def wait(self, condition: object) -> None:
        WebDriverWait(self.browser, 20, 0.05).until(lambda _: condition())  # type: ignore[operator]

    def set(self, name: str, value: float) -> None:
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.browser.execute_script(script, self[name], value)

    def wait_for_end(self) -> None:
        self.wait(lambda: self["go"].text == "Generate" and "tokens" in self["pace"].text)

    def screenshot(self, name: str) -> None:
        """Save a screenshot in the folder that INKSTONE_PICTURES names, if it is set."""
        if folder := os.environ.get("INKSTONE_PICTURES"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.browser.save_screenshot(f"{folder}/{name}.png")

    def browser_errors(self) -> list[object]:
        return [entry for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_generate_streams_text_after_the_prompt(
    browser: webdriver.Chrome, server: Server, size: str, scheme: str
) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page = Page(browser, server, *SIZES[size])
    page["prompt"].send_keys("宋江")
    page.set("max_tokens", 120)
    page["seed"].send_keys("5")
    page["go"].click()
    page.wait(lambda: len(page["completion"].text) > 3)
    page.wait_for_end()
    expected = complete(server, prompt="宋江", max_tokens=120, seed=5, temperature=0.8, min_p=0.05)
    assert page["prompt-text"].text == "宋江"
    assert page["completion"].get_property("textContent") == expected.text
    assert page["completion"].value_of_css_property("color") != page["prompt-text"].value_of_css_property("color")
    assert f"{expected.json()['usage']['completion_tokens']} tokens" in page["pace"].text
    assert "tokens/s" in page["pace"].text
    assert page["curve"].is_displayed()
    assert page["curve"].get_property("naturalWidth")
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= SIZES[size][0], "the page is wider than the window"
    page.screenshot(f"{size}-{scheme}")
    assert page.browser_errors() == []


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


def test_page_shows_errors(browser: webdriver.Chrome, server: Server) -> None:
    page = Page(browser, server)
    page.browser.execute_script("document.getElementById('prompt').value = '话'.repeat(60000)")
    page["go"].click()
    page.wait(lambda: "at most 50,000" in page["pace"].text)
    assert page["go"].text == "Generate"


def test_controls_are_labelled_and_text_is_escaped(browser: webdriver.Chrome, server: Server) -> None:
    page = Page(browser, server)
    for control in browser.find_elements(By.CSS_SELECTOR, "input, textarea, button, img"):
        assert control.accessible_name, control.get_attribute("id")
    page["prompt"].send_keys("<img src=x onerror=alert(1)><b>")
    page.set("max_tokens", 20)
    page["go"].click()
    page.wait_for_end()
    assert page["prompt-text"].text == "<img src=x onerror=alert(1)><b>"
    assert browser.find_elements(By.CSS_SELECTOR, "#sheet img, #sheet b") == []
