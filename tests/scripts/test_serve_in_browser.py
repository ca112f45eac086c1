"""The page of scripts/serve.py in a headless Chromium, at the width of a phone and of a desktop."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datamodules.text import printable
from lit_training import load
from tests.scripts.test_serve import NAMES, trained  # noqa: F401 - a fixture
from tests.stress.clients import Server, server
from tests.support.browser import REQUIRED, check_programs, start_browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not REQUIRED, reason="no chromedriver here: apt-get install chromium chromium-driver"),
]


@pytest.fixture(scope="module")
def running(trained: Path) -> Iterator[Server]:  # noqa: F811
    check_programs()
    with server(f"{trained}/lightning_logs/version_0 --port 0") as found:
        yield found


@pytest.mark.parametrize("width", [390, 1200])
def test_choose_or_drop_a_picture_and_read_the_answer(
    running: Server,
    trained: Path,  # noqa: F811
    width: int,
    tmp_path: Path,
) -> None:
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.support.expected_conditions import staleness_of
    from selenium.webdriver.support.ui import WebDriverWait

    browser = start_browser(tmp_path / "profile")
    metrics = {"width": width, "height": 1600, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def find(selector: str) -> list[Any]:
        return browser.find_elements("css selector", selector)

    try:
        browser.get(f"http://127.0.0.1:{running.port}/")
        for name in NAMES:
            file = next((trained / "photos" / "train" / name).iterdir())
            right: Any = load(trained / "lightning_logs" / "version_0").predict(str(file), "cpu", coverage=0.9)
            assert right.label == name
            photo = tmp_path / f"photo{file.suffix}"  # the driver takes no path that is not UTF-8
            photo.write_bytes(file.read_bytes())
            choose, take = find("input[type=file]")
            assert take.get_attribute("capture") is not None
            place = choose.rect
            drop = {"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] / 2}
            drop["data"] = {"items": [], "files": [str(photo)], "dragOperationsMask": 1}
            if name == NAMES[0]:
                choose.send_keys(str(photo))
            else:
                for event in ("dragEnter", "dragOver", "drop"):
                    browser.execute_cdp_cmd("Input.dispatchDragEvent", {"type": event, **drop})
            [button, _] = find("button")
            button.click()
            # the answer replaces the page; while it does, the driver may also raise another error
            WebDriverWait(browser, 120, 0.5, [WebDriverException]).until(staleness_of(button))
            assert [one.text for one in find("h2")] == [printable(name)]
            shown = [f"{printable(label)} {100 * value:.1f} %" for label, value in right.probabilities.items()]
            assert [one.text for one in find("label")][:3] == shown
            bars = [browser.execute_script("return arguments[0].value", one) for one in find("progress")]
            assert bars == list(right.probabilities.values())
            assert ", ".join(map(printable, right.set)) in find("p")[0].text
            [picture] = find("img")
            assert browser.execute_script("return arguments[0].naturalWidth", picture) == 64  # 32 and its heat map
            assert browser.execute_script("return document.documentElement.scrollWidth") == width
            assert not find("script")
    finally:
        browser.quit()
    assert running.ask(Path(file).read_bytes())[0] == 200
