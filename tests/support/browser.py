"""Start a headless Chromium."""

import os
import shutil
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
REQUIRED = bool(DRIVER) or os.environ.get("REQUIRE_BROWSER") == "1"


def check_programs() -> None:
    """Fail if a program is missing."""
    missing = [name for name, path in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if path is None]
    assert not missing, f"there is no {' and no '.join(missing)} on PATH: apt-get install chromium chromium-driver"


def start_browser(profile: Path, size: str = "1280,2400") -> Any:
    """Return a selenium driver with a window of this size. Its files are in the folder ``profile``."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
    for switch in [*switches.split(), "disable-component-update", "disable-dev-shm-usage", f"window-size={size}"]:
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(DRIVER))
