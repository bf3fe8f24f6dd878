"""The desk as people have it: the real service in a process of its own, a real browser, nothing but the keyboard."""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from desk_house import House, add_site
from live_service import settings_in

from pipelines.federated.queue import progress
from pipelines.federated.site_tables import UNREADABLE, VOTES
from pipelines.federated.votes import take, vote
from pipelines.settings import Settings

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.house,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no Chromium here (Debian: apt-get install chromium chromium-driver)"
    ),
]


def until(what: Callable[[], Any], patience_s: float = 30.0) -> Any:
    deadline = time.monotonic() + patience_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {patience_s} s"
        time.sleep(0.02)
    return found


@contextmanager
def service(settings: Settings) -> Iterator[str]:
    """The service's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"FEDLOOP_HOME": str(settings.home), "FEDLOOP_PORTS__SERVICE": str(port), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "pipelines.service"], env=os.environ | own, cwd=ROOT)
    try:
        url = f"http://127.0.0.1:{port}"

        def alive() -> bool:
            assert process.poll() is None, "the service has ended"
            try:
                return httpx.get(f"{url}/healthz").status_code == 200
            except httpx.TransportError:
                return False

        until(alive, 120)
        yield url
    finally:
        process.terminate()
        process.wait(30)


class Person:
    """Somebody in front of a browser that nobody has used before. Everything is done by keys."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 800) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def leave(self) -> None:
        """Close the browser; what it had not sent is gone."""
        if self.driver.service.is_connectable():
            self.driver.quit()

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def script(self, code: str) -> Any:
        return self.driver.execute_script(f"return {code}")

    def sit_down(self, url: str, house: House, who: str) -> None:
        from selenium.webdriver.common.keys import Keys

        self.driver.get(f"{url}/desk?site={house.site}")
        self.press(house.tokens[who], Keys.ENTER)
        until(lambda: self.script("document.querySelector('#sheet .tile, #empty:not([hidden])') !== null"))

    def sheet(self) -> int:
        """The first item of the sheet before them; 0 where there is none."""
        return int(
            self.script("document.querySelector('#sheet .tile') ? +document.getElementById('sheet').dataset.first : 0")
        )

    def turned(self, before: int) -> int:
        until(lambda: self.sheet() != before)
        return self.sheet()

    def said(self) -> str:
        return str(self.script("document.getElementById('said').textContent"))

    def errors(self) -> list[str]:
        """What the browser complained of, but for the 401 that the login form comes with."""
        return [line["message"] for line in self.driver.get_log("browser") if "401" not in line["message"]]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Settings:
    return settings_in(tmp_path_factory.mktemp("desk"), empty_registry)


@pytest.fixture(scope="module")
def url(settings: Settings) -> Iterator[str]:
    with service(settings) as address:
        yield address


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Callable[..., Person]]:
    people: list[Person] = []

    def open_browser(**size: int) -> Person:
        people.append(Person(tmp_path / f"browser-{len(people)}", **size))
        return people[-1]

    yield open_browser
    for person in people:
        person.leave()


def test_a_whole_queue_by_keyboard_with_the_browser_closed_in_the_middle(
    settings: Settings, url: str, browser: Callable[..., Person]
) -> None:
    """Class k for cluster k, but for each third picture, which is an 8, and the fourth, which nobody can read."""
    from selenium.webdriver.common.keys import Keys

    house = add_site(settings, "clinic-4", clusters=4, each=6)
    expected = {
        row: 8 if i % 6 == 2 else i // 6 for i, row in enumerate(house.rows) if i % 6 != 3
    }  # fmt: skip

    def label(person: Person, cluster: int) -> None:
        before = person.sheet()
        person.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, "8")
        assert "1 labelled 8. 5 left" in person.said()
        person.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, "x", str(cluster))
        person.turned(before)

    first = browser()
    first.sit_down(url, house, "anna")
    assert first.script("document.activeElement.getAttribute('role')") == "option"
    assert first.script("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    first.press("?")
    assert first.script("document.getElementById('help').open")
    first.press(Keys.ESCAPE)
    label(first, 0)
    label(first, 1)
    # In the middle of the third sheet the browser dies; what has been labelled is kept.
    first.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, "8")
    until(lambda: len(house.store.annotations()) == 11)
    assert first.errors() == []
    first.leave()

    again = browser(width=360, height=740)
    again.sit_down(url, house, "anna")
    assert again.script("document.documentElement.scrollWidth") <= 360
    assert again.script("document.querySelectorAll('#sheet .tile').length") == 5, "only what is left of the sheet"
    before = again.sheet()
    again.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, "x", "7")
    again.turned(before)
    until(lambda: again.said().startswith("Cluster 3"))
    again.press("u")  # a 7 it was not
    until(lambda: "Undone: 4 labels" in again.said())
    assert again.script("document.querySelectorAll('#sheet .tile').length") == 4
    before = again.sheet()
    again.press("2")
    again.turned(before)
    label(again, 3)
    until(lambda: again.script("document.getElementById('empty-title').textContent") == "All labelled")
    assert again.script("document.getElementById('progress').textContent") == "24 of 24 · 4 unreadable"
    assert again.errors() == []

    assert house.store.annotations() == expected
    with house.database.connect() as connection:
        log = list(connection.execute(sa.select(VOTES)))
    assert sum(entry.undoes is not None for entry in log) == 4
    assert sum(entry.choice == UNREADABLE for entry in log) == 4
    assert len(log) == 24 + 4 + 4, "every row once, and the four that were taken back"


def test_two_who_differ_are_shown_to_a_third_who_decides_by_touch(
    settings: Settings, url: str, browser: Callable[..., Person]
) -> None:
    from selenium.webdriver.common.by import By

    house = add_site(settings, "clinic-1", clusters=1, each=2, wants=2)
    for who, choice in (("anna", 3), ("ben", 5)):
        sheet = take(house.database, who)
        assert sheet is not None
        first, second = (each.item for each in sheet.items)
        vote(house.database, who, {first: choice, second: 1}, f"{who}-1")
    assert progress(house.database).disputed == 1
    cem = browser(width=360, height=740)
    cem.sit_down(url, house, "cem")
    assert cem.script("document.querySelector('.two').textContent") == "3 / 5"
    assert "Two people differ" in cem.script("document.getElementById('title').textContent")
    cem.driver.find_element(By.CSS_SELECTOR, "#classes button:nth-child(6)").click()
    until(lambda: cem.script("document.getElementById('empty-title').textContent") == "All labelled")
    assert cem.errors() == []
    assert house.store.annotations() == {house.rows[0]: 5, house.rows[1]: 1}


TURN = """
const [key, done] = arguments, sheet = document.getElementById("sheet"), before = sheet.dataset.first;
const began = performance.now();
const there = () => [...sheet.querySelectorAll("img")].every((each) =>
  each.complete || each.getBoundingClientRect().top > innerHeight);
const look = () => {
  const over = !document.getElementById("empty").hidden;
  if (over || (sheet.dataset.first !== before && there()))
    done([performance.now() - began, document.querySelectorAll("*").length, over]);
  else requestAnimationFrame(look);
};
document.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
look();
"""


def test_a_thousand_pictures_are_turned_over_without_waiting(
    settings: Settings, url: str, browser: Callable[..., Person]
) -> None:
    house = add_site(settings, "clinic-25", clusters=25, each=40)
    anna = browser()
    anna.sit_down(url, house, "anna")
    took_ms, nodes = [], []
    for _ in range(24):
        time.sleep(0.4)  # nobody labels forty pictures faster
        ms, count, over = anna.driver.execute_async_script(TURN, "3")
        assert not over
        took_ms.append(ms)
        nodes.append(count)
    before = anna.sheet()
    anna.press("3")
    assert anna.turned(before) == 0
    anna.driver.get_screenshot_as_png()
    assert anna.errors() == []
    took_ms.sort()
    print(f"\nturning a sheet of 40: median {statistics.median(took_ms):.0f} ms, slowest {took_ms[-1]:.0f} ms, "
          f"at most {max(nodes)} elements on the page")  # fmt: skip
    assert set(house.store.annotations()) == set(house.rows)
    assert max(nodes) < 400
    assert statistics.median(took_ms) < 1500
