"""Debian's Chromium, for tests: `apt-get install chromium chromium-driver`, `pip install selenium`."""

import math
import shutil
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PAGE_TIMEOUT_S = 180
PRESS_AGAIN_S = 30
COMPLAINTS = """return [...document.querySelectorAll("[role=alert], [aria-invalid=true], [data-sonner-toast]")]
    .map(each => each.innerText || each.name || each.outerHTML)"""


def missing() -> str | None:
    """What is not there of what a browser needs; `None` when nothing is."""
    for program in ("chromium", "chromedriver"):
        if not shutil.which(program):
            return f"no `{program}` here: `apt-get install chromium chromium-driver`"
    return None if find_spec("selenium") else "no `selenium` here: `pip install selenium`"


class Page:
    """A page of Prefect's UI, where things are found by the words people see; what is not there yet is waited for."""

    def __init__(self, url: str) -> None:
        from selenium.webdriver import Chrome, ChromeOptions
        from selenium.webdriver.chrome.service import Service

        options = ChromeOptions()
        for each in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1100,1000"):
            options.add_argument(f"--{each}")  # `no-sandbox`: CI is root; the page is our own server's
        options.binary_location = str(shutil.which("chromium"))
        self.url, self.chrome = url, Chrome(options, Service(str(shutil.which("chromedriver"))))

    def open(self, path: str) -> None:
        self.chrome.get(f"{self.url}/{path}")

    def close(self) -> None:
        self.chrome.quit()

    def write(self, label: str, text: str) -> None:
        """Fill in the first input under a label; what stood there goes."""

        def written(field: Any) -> bool:
            if field.get_property("value") != text:
                field.send_keys("\ue009a\ue000", "\ue003", text)  # Ctrl+A, Backspace
            return field.get_property("value") == text

        self._do(self._input(label), written)

    def holds(self, label: str, text: str) -> None:
        """Wait until the first input under a label has this in it."""
        self._do(self._input(label), lambda field: field.get_property("value") == text)

    def press(self, text: str, role: str | None = None) -> None:
        """Click on a button, or what plays another role: a `tab`, an `option` of the list that is open."""

        def pressed(element: Any) -> bool:
            element.click()
            return role != "tab" or element.get_attribute("aria-selected") == "true"  # a page that loads is deaf yet

        self._do(_button(text, role), pressed)

    def submit(self, button: str = "Submit") -> None:
        """Press a button until another page comes: a busy server refuses now and then, and a person tries again."""
        form, pressed = self.chrome.current_url, -math.inf

        def left(chrome: Any) -> bool:
            nonlocal pressed
            if chrome.current_url == form and time.monotonic() > pressed + PRESS_AGAIN_S:
                chrome.find_element("xpath", _button(button)).click()
                pressed = time.monotonic()
            return chrome.current_url != form

        self._until(left, f"the form was not accepted: {button}")

    def reads(self, text: str) -> None:
        """Wait until it stands on the page."""
        self._do(f"//main//*[text()[contains(., '{text}')]]", lambda element: element.is_displayed())

    def text(self) -> str:
        """All of the page, what is in its inputs included."""
        return self.chrome.page_source

    def shot(self, path: Path) -> None:
        self.chrome.execute_script("document.querySelectorAll('*').forEach(each => each.scrollLeft = 0)")
        self.chrome.save_screenshot(str(path))

    def _input(self, label: str) -> str:
        heading = f"//label[normalize-space(.)='{label}' or normalize-space(.)='{label} (Optional)']"
        return f"({heading}/following::*[self::input or self::textarea])[1]"

    def _do(self, path: str, done: Callable[[Any], bool]) -> None:
        """Do something with what is there, again when the page has put another in its place meanwhile."""

        def attempt(chrome: Any) -> bool:
            element = chrome.find_element("xpath", path)
            chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            return done(element)

        self._until(attempt, f"not on the page, or not to be used: {path}")

    def _until(self, done: Callable[[Any], bool], lacking: str) -> None:
        """Wait for it; if it does not come, tell what stands on the page, and what the browser was refused."""
        from selenium.common.exceptions import TimeoutException, WebDriverException
        from selenium.webdriver.support.ui import WebDriverWait

        try:
            WebDriverWait(self.chrome, PAGE_TIMEOUT_S, ignored_exceptions=[WebDriverException]).until(done)
        except TimeoutException:
            complaints = self.chrome.execute_script(COMPLAINTS)
            logged = [each["message"] for each in self.chrome.get_log("browser")[-5:]]
            shown = " | ".join(self.chrome.find_element("tag name", "body").text.splitlines())
            raise AssertionError(f"{lacking}\n{self.chrome.current_url}\n{complaints}\n{logged}\n{shown}") from None


def _button(text: str, role: str | None = None) -> str:
    kind = f"*[@role='{role}']" if role else "button"
    return f"//{kind}[normalize-space(.)='{text}']"
