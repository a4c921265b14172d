"""A headless Chromium for tests of pages, and what it finds wrong with a page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

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

# The contrast of each text with its background, with transparent backgrounds blended: the texts below 4.5.
_LOW_CONTRAST = """
const number = text => (text.match(/-?[\\d.]+(e-?\\d+)?/g) || []).map(Number);
const parse = text => {
  const [r, g, b, a = 1] = number(text.replace(/^color\\(srgb/, "("));
  const scale = text.startsWith("color(srgb") ? 255 : 1;
  return [r * scale, g * scale, b * scale, a];
};
const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
const backgroundOf = element => {
  const layers = [];
  for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
};
const luminance = color => {
  const linear = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = color.slice(0, 3).map(value => linear(value / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const low = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
  if (["STYLE", "title"].includes(element.tagName)) continue;
  const style = getComputedStyle(element), background = backgroundOf(element);
  const color = over(parse(element instanceof SVGElement ? style.fill : style.color), background);
  const [light, dark] = [luminance(color), luminance(background)].sort((a, b) => b - a);
  const ratio = (light + 0.05) / (dark + 0.05);
  if (ratio < 4.5) low.push([walker.currentNode.data.trim().slice(0, 40), Math.round(ratio * 100) / 100]);
}
return low;
"""


@contextmanager
def open_browser(profile: Path, language: str = "en") -> Iterator[webdriver.Chrome]:
    """Start Chromium with a profile in that folder, for a user of `language`. The test is skipped if there is none."""
    program, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def show(browser: webdriver.Chrome, *, width: int = 1280, is_dark: bool = False) -> None:
    """Set the width of the page in pixels, and the colour scheme that the user prefers."""
    prefer(browser, "dark" if is_dark else "light")
    set_viewport(browser, width)


def prefer(browser: webdriver.Chrome, scheme: str) -> None:
    """Set the colour scheme that the user prefers, "light" or "dark"."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def set_viewport(browser: webdriver.Chrome, width: int, height: int = 900) -> None:
    """Set the size in pixels of the viewport, not of the window around it."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def low_contrast(browser: webdriver.Chrome) -> list[tuple[str, float]]:
    """Return the visible texts whose contrast is below 4.5:1, each with its contrast."""
    texts: list[Any] = browser.execute_script(_LOW_CONTRAST)
    return [(text, ratio) for text, ratio in texts]


def requested_urls(browser: webdriver.Chrome) -> list[str]:
    """Return the addresses of all requests of pages from files since the last call, that of the page included."""
    import json

    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    return [request["request"]["url"] for request in requests if request["documentURL"].startswith("file:")]
