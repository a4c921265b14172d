"""The page of `serve` in a real browser, for tests. They are skipped without Chromium."""

from __future__ import annotations

import os
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.browser import set_viewport
from tests.support.serving import NAME, Server


class Page:
    """The web page, opened and loaded."""

    def __init__(self, browser: webdriver.Chrome, server: Server, width: int = 1200, height: int = 900) -> None:
        self.browser = browser
        set_viewport(browser, width, height)
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

    def scroll_width(self) -> int:
        return int(self.browser.execute_script("return document.documentElement.scrollWidth"))

    def browser_errors(self) -> list[object]:
        return [entry for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
