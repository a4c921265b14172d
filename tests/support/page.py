"""The page of `serve` in a real browser, for tests. They are skipped without Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.serving import NAME, Server

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
    "--force-prefers-reduced-motion",
)
# The least contrast of any visible text with the colours behind it (WCAG 2).
LEAST_CONTRAST = """
const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
const context = canvas.getContext("2d", { willReadFrequently: true })
const rgb = colors => {
    for (const color of colors) { context.fillStyle = color; context.fillRect(0, 0, 1, 1) }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)
}
const luminance = color => color.map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0)
let least = 21
for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())
    if (!own || !element.checkVisibility({ visibilityProperty: true })) continue
    const behind = []
    for (let node = element; node; node = node.parentElement) behind.unshift(getComputedStyle(node).backgroundColor)
    const style = getComputedStyle(element)
    const text = element instanceof SVGElement ? style.fill : style.color
    const [light, dark] = [luminance(rgb(behind)), luminance(rgb([...behind, text]))].sort((a, b) => b - a)
    least = Math.min(least, (light + 0.05) / (dark + 0.05))
}
return least
"""


@contextmanager
def chromium(profile: Path, language: str = "en") -> Iterator[webdriver.Chrome]:
    program, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
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
        self.wait(lambda: self["name"].text == NAME)

    def __getitem__(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition: object) -> None:
        WebDriverWait(self.browser, 20, 0.05).until(lambda _: condition())  # type: ignore[operator]

    def set(self, name: str, value: float) -> None:
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.browser.execute_script(script, self[name], value)

    def wait_for_end(self) -> None:
        self.wait(lambda: self["go"].text == "Write" and "token" in self["pace"].text)

    def text_of(self, name: str) -> str:
        """The text of an element, with its spaces."""
        return str(self[name].get_property("textContent"))

    def screenshot(self, name: str) -> None:
        """Save a screenshot in the folder that INKSTONE_PICTURES names, if it is set."""
        if folder := os.environ.get("INKSTONE_PICTURES"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.browser.save_screenshot(f"{folder}/{name}.png")

    def least_contrast(self) -> float:
        return float(self.browser.execute_script(LEAST_CONTRAST))

    def scroll_width(self) -> int:
        return int(self.browser.execute_script("return document.documentElement.scrollWidth"))

    def browser_errors(self) -> list[object]:
        return [entry for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def prefer(browser: webdriver.Chrome, scheme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
