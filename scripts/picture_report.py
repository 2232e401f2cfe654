"""Takes the README's picture of a report: a desktop in the light theme, a phone in the dark one.

    python scripts/picture_report.py --report=report.html --output=docs/report.png

Needs requirements-dev.txt, and Chromium with its driver. Make the report with --noreview_texts if
you may not publish its reviews.
"""

import base64
import dataclasses
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from sasnet_jax import cli, files
from sasnet_jax.cli import UserError, setting

_HEIGHT = 1000
_GAP = 24
_GRAY = (128, 132, 140)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PictureConfig:
    """The settings of the picture."""

    report: str = setting("", help="page to take a picture of", topic="files", required=True)
    output: str = setting("", help="PNG to write", topic="files", required=True)
    desktop: str = setting("#leakage", help="section at the top of the desktop", topic="picture")
    phone: str = setting("#embeddings", help="section at the top of the phone", topic="picture")


def run(config: PictureConfig) -> None:
    """Takes both pictures and puts them side by side."""
    if not Path(config.report).is_file():
        raise UserError(
            f"--report={config.report} does not exist; python -m sasnet_jax.report writes it"
        )
    page = Path(config.report).resolve().as_uri()
    with tempfile.TemporaryDirectory() as profile:
        driver = _chromium(profile)
        try:
            desktop = _picture(driver, page, config.desktop, 1280, "light")
            phone = _picture(driver, page, config.phone, 390, "dark")
        finally:
            driver.quit()
    joined = Image.new("RGB", (desktop.width + phone.width + 3 * _GAP, _HEIGHT + 2 * _GAP), _GRAY)
    joined.paste(desktop, (_GAP, _GAP))
    joined.paste(phone, (desktop.width + 2 * _GAP, _GAP))
    with files.replacing(Path(config.output)) as file:
        joined.save(file, "PNG", optimize=True)
    print(f"written: {config.output} ({Path(config.output).stat().st_size / 1e3:.0f} kB)")


def _chromium(profile: str) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={profile}")
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def _picture(
    driver: webdriver.Chrome, page: str, section: str, width: int, theme: str
) -> Image.Image:
    """The first screenful of a section."""
    screen = {"width": width, "height": _HEIGHT, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    driver.get(page)
    driver.execute_script(f"document.querySelector({section!r}).scrollIntoView()")
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    return Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")


if __name__ == "__main__":
    cli.main(PictureConfig, run, "report.html -> a picture of it.")
