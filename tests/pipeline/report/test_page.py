"""The page of a report: self-contained, inert whatever the corpus holds, readable and the same for the same inputs."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path

import jinja2
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pipeline.errors import BadConfig
from pipeline.report import chain, charts, page, reports
from pipeline.report.charts import Series
from pipeline.report.languages import Language, language_of
from pipeline.report.section import (
    Block,
    Cell,
    Chapter,
    Facts,
    Figure,
    Note,
    Pairs,
    Passage,
    Pre,
    Section,
    Span,
    Table,
    cell_text,
)
from tests.pipeline.report.conftest import HOSTILE, run
from tests.support.browser import low_contrast, open_browser, requested_urls, show

ENGLISH = Language("en")
# The horizontal position of the decimal point of a cell, in pixels.
_POINT = """
const range = document.createRange(), text = arguments[0].firstChild, at = text.data.lastIndexOf(".");
range.setStart(text, at);
range.setEnd(text, at + 1);
return range.getBoundingClientRect().left;
"""


class Elements(html.parser.HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def render(store: Path, name: str, code: str = "en") -> bytes:
    return reports.render(name, chain.chain(store, name, pytest.fail), Language(code))


@pytest.fixture(scope="module")
def pages(store: Path) -> dict[str, bytes]:
    return {**{name: render(store, name) for name in ("novel", "hostile")}, "gallery": gallery("gallery")}


def test_text_of_a_corpus_never_becomes_markup(pages: dict[str, bytes]) -> None:
    parsed = Elements(pages["hostile"])
    names = {tag for tag, _ in parsed.elements}
    assert not names & {"script", "img", "iframe", "object", "embed", "form", "b", "base"}
    assert not [attributes for _, attributes in parsed.elements if any(name.startswith("on") for name in attributes)]
    links = [attributes["href"] for tag, attributes in parsed.elements if tag == "a"]
    assert all(link and link.startswith("#") for link in links)
    assert "{{7*7}}" in parsed.text
    assert "<script>" in parsed.text


def test_page_has_no_control_characters_and_no_marks_of_reading_order(pages: dict[str, bytes]) -> None:
    for content in pages.values():
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", content.decode())


def gallery(text: str) -> bytes:
    """Return a page with every kind of block, chart and tint, and `text` in all of their texts."""
    table = Table([text], [[text], [1]], text, bars=0, code=(0,))
    svg = charts.lines([Series(text, [1, 2], [3, 4])], text)
    blocks: list[Block] = [
        text,
        table,
        Figure(svg, text, table, [Series(text, [], []), Series(text, [], [], is_level=True)]),
        Figure(charts.histogram([0, 1], [3], text), text),
        Figure(charts.flow((text, 3), [(text, -1)], (text, 2), text), text),
        Passage([Span(text, f"{tint}{step}", text) for tint in "th" for step in range(10)], text, (text, text), table),
        Facts([(text, text)]),
        Pairs(text, [(text, text)]),
        Pre(text, text),
        Note(text),
    ]
    return page.render(text, [Chapter(text, text, [(text, text)], [Section(text, blocks)], text)], ENGLISH)


def test_every_block_escapes_its_text() -> None:
    tags = [[tag for tag, _ in Elements(gallery(text)).elements] for text in ("plain", "".join(HOSTILE))]
    assert tags[0] == tags[1]


def test_legend_has_the_marks_of_the_lines() -> None:
    marks = [attributes["class"] for tag, attributes in Elements(gallery("a")).elements if tag == "i"]
    assert marks[:2] == ["c0", "c1 level"]


def test_colours_of_charts_and_signs_stand_out_from_their_background() -> None:
    schemes = re.findall(r":root \{(.*?)\}", page.stylesheet(), re.DOTALL)
    assert len(schemes) == 3  # light, dark, print
    for scheme in schemes:
        colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6})", scheme))
        for name in ("c0", "c1", "c2", "c3", "c4", "c5"):
            assert contrast(colors[name], colors["paper"]) >= 3, name
            assert contrast(colors[name], colors["sheet"]) >= 3, name
        for name in ("ink", "faint", "cinnabar"):
            assert contrast(colors[name], colors["paper"]) >= 4.5, name
            assert contrast(colors[name], colors["sheet"]) >= 4.5, name


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colours as WCAG 2.2 defines it."""

    def luminance(color: str) -> float:
        digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
        values = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted(luminance(color) for color in (first, second))
    return (high + 0.05) / (low + 0.05)


def test_same_inputs_give_the_same_bytes(store: Path, pages: dict[str, bytes], tmp_path: Path) -> None:
    assert render(store, "novel") == pages["novel"]
    moved = tmp_path / "elsewhere"
    moved.symlink_to(store)
    assert render(moved, "novel") == pages["novel"]
    assert str(store).encode() not in pages["novel"]


def test_page_of_a_recipe_has_a_chapter_for_each_stage_and_names_its_artifacts(
    store: Path, pages: dict[str, bytes]
) -> None:
    refs = page.refs_of(pages["novel"])
    assert [ref.split("/")[0] for ref in refs] == ["corpora", "tokens"]
    assert all((store / ref / "manifest.json").is_file() for ref in refs)


def test_changed_page_is_not_intact(pages: dict[str, bytes]) -> None:
    content = pages["novel"]
    assert page.is_intact(content)
    assert not page.is_intact(content.replace(b"novel", b"novem", 1))
    assert not page.is_intact(content[:-100])
    assert not page.is_intact(b"")


def test_both_languages_have_the_same_structure(store: Path, pages: dict[str, bytes]) -> None:
    chinese = Elements(render(store, "novel", "zh"))
    english = Elements(pages["novel"])
    assert [tag for tag, _ in chinese.elements] == [tag for tag, _ in english.elements]
    assert "语料" in chinese.text


def test_language_is_that_of_the_locale_unless_it_is_named() -> None:
    assert language_of("", {"LANG": "zh_CN.UTF-8"}).code == "zh"
    assert language_of("", {"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}).code == "en"
    assert language_of("", {}).code == "en"
    assert language_of("en", {"LANG": "zh_TW"}).code == "en"
    with pytest.raises(BadConfig, match="one of en, zh, got fr"):
        language_of("fr")


def test_undefined_name_in_a_template_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        page._environment().from_string("{{ nothing }}").render()


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        ((12.5, 3.14159, None, 1000), ["12.500", "3.142", "–", "1,000.000"]),
        ((5.21, 3.68, 3.3, 0.0), ["5.21", "3.68", "3.30", "0.00"]),
        ((1234.5, 0.001234), ["1,234.5", "0.0"]),
        ((0.001, 0.00055, 5e-05), ["0.00100", "0.00055", "0.00005"]),
        ((2.0, 3.0, -4.0), ["2", "3", "−4"]),
        ((1e-12, 0.5), ["0.0", "0.5"]),
        ((1e-12, 3e-13), ["1e−12", "3e−13"]),
        ((1e300, 2.5, float("nan")), ["1e+300", "2.5", "nan"]),
        ((7, 1000), ["7", "1,000"]),
        (("a\x1bb", 2.5), ["a\\x1bb", "2.5"]),
    ],
)
def test_numbers_of_a_column_have_the_same_decimals(cells: tuple[Cell, ...], texts: list[str]) -> None:
    table = Table(("column",), [(cell,) for cell in cells])
    assert [table.text(cell, 0) for cell in cells] == texts


def test_decimals_of_a_column_stand_below_each_other(tmp_path: Path) -> None:
    rows = [("uniform", 12.5), ("a long name", 3.14159), ("zstd", 1000)]
    chapter = Chapter("Run", "", [], [Section("Baselines", [Table(("model", "bits"), rows)])])
    path = tmp_path / "report.html"
    path.write_bytes(page.render("table", [chapter], ENGLISH))
    with open_browser(tmp_path / "profile") as browser:
        browser.get(path.as_uri())
        cells = browser.find_elements(By.CSS_SELECTOR, "td.number")
        points = {browser.execute_script(_POINT, cell) for cell in cells}
    assert len(cells) == 3
    assert max(points) - min(points) < 0.1


def test_numbers_are_written_for_readers() -> None:
    assert [cell_text(cell) for cell in (1234567, -3, 0.123456, None, "a\x1bb")] == [
        *("1,234,567", "−3", "0.1235", "–", "a\\x1bb"),
    ]


@pytest.mark.parametrize("name", ["novel", "hostile", "gallery"])
def test_page_in_a_browser_is_silent_legible_and_fits(pages: dict[str, bytes], tmp_path: Path, name: str) -> None:
    assert_fine_in_a_browser(pages[name], name, tmp_path)


@pytest.mark.parametrize("file", ["shuihu_raw.txt", "pile_val.jsonl.zst"])
def test_page_of_a_real_text_in_a_browser(store: Path, shared: Path, tmp_path: Path, file: str) -> None:
    name = file.partition("_")[0]
    run(store, "clean", shared / "data" / file, "--name", name)
    run(store, "tokenize", name, "--tokenizer", "novel", "--allow-unknown", "--jobs", 1)
    content = render(store, name)
    assert len(content) < 3_000_000
    assert_fine_in_a_browser(content, name, tmp_path)


def assert_fine_in_a_browser(content: bytes, name: str, tmp_path: Path) -> None:
    """Assert that a page is silent, requests nothing, fits its window and is legible, in both colour schemes."""
    path = tmp_path / "report.html"
    path.write_bytes(content)
    with open_browser(tmp_path / "profile") as browser:
        browser.get(path.as_uri())
        assert browser.get_log("browser") == []
        assert [url for url in requested_urls(browser) if not url.startswith("data:")] == [path.as_uri()]
        assert browser.title == f"{name} · Inkstone 砚"
        browser.execute_script("document.querySelectorAll('details').forEach(entry => { entry.open = true; })")
        for is_dark in (False, True):
            for width in (390, 1280):
                show(browser, width=width, is_dark=is_dark)
                assert low_contrast(browser) == []
                assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.get_log("browser") == []
        browser.execute_script("document.querySelector('h1').style.color = '#555'")
        assert [text for text, _ in low_contrast(browser)] == [name]  # the check sees a pale heading


def test_keyboard_reaches_links_tables_and_numbers(pages: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(pages["novel"])
    with open_browser(tmp_path / "profile") as browser:
        browser.get(path.as_uri())
        expected = len(browser.find_elements(By.CSS_SELECTOR, "a, summary, main [tabindex='0']"))
        hidden = len(browser.find_elements(By.CSS_SELECTOR, "details [tabindex='0']"))
        reached = set()
        for _ in range(expected + 5):
            browser.switch_to.active_element.send_keys(Keys.TAB)
            reached.add(browser.switch_to.active_element.id)
        assert len(reached - {browser.find_element(By.TAG_NAME, "body").id}) == expected - hidden
        summary = browser.find_element(By.TAG_NAME, "summary")
        summary.send_keys(Keys.ENTER)
        assert browser.find_element(By.CSS_SELECTOR, "details[open] table").is_displayed()
