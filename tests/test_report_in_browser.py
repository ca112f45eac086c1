"""report.html in a headless Chromium, as on a phone and on a desktop: see tests/test_browser.py."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lit_training.trained.test_report import HOSTILE, PHOTOS, RUN, write_hostile_photos
from tests.support.browser import REQUIRED, check_programs, start_browser
from tests.support.commands import run_well

pytestmark = [
    pytest.mark.slow,
    pytest.mark.figures,
    pytest.mark.skipif(not REQUIRED, reason="no chromedriver here: apt-get install chromium chromium-driver"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    check_programs()
    browser = start_browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.quit()


@pytest.mark.parametrize("width", [390, 1200])
def test_hostile_names_on_a_page_that_fits_and_needs_no_network(browser: Any, width: int) -> None:
    write_hostile_photos(Path("photos"))
    run_well(PHOTOS)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("performance")
    browser.get((RUN / "report.html").absolute().as_uri())
    page_width, pictures, broken = browser.execute_script(
        "const all = [...document.images];"
        "const broken = all.filter(i => !(i.complete && i.naturalWidth)).length;"
        "return [document.documentElement.scrollWidth, all.length, broken]"
    )
    assert page_width <= width
    assert (pictures > 20, broken) == (True, 0)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {address.partition(":")[0] for address in sent} <= {"file", "data"}
    assert sum(address.startswith("file:") for address in sent) == 1
    text = browser.execute_script("return document.body.innerText").replace("\n", " ")
    assert all(name in text for name in HOSTILE[:4])
    assert browser.execute_script("return document.querySelectorAll('script, [onerror]').length") == 0
    for left, right in browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, p, pre, .tiles div, figcaption, .grid img')]"
        ".map(n => [n.getBoundingClientRect().left, n.getBoundingClientRect().right])"
    ):
        assert (left >= 0, right <= width) == (True, True)
