"""A headless Chromium that uses the page as a person does: widgets are found by the words that stand at them."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PATIENCE = float(os.environ.get("PAGE_PATIENCE", 240))  # seconds, on machines that have more to do
FLAGS = (
    *(
        "--headless=new",
        "--hide-scrollbars",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
    ),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Browser:
    """At one page. driver: selenium's. patience: seconds to wait for anything."""

    def __init__(self, driver, url: str, patience: float = PATIENCE):
        self.driver, self.url, self.patience = driver, url, patience

    def open(self) -> None:
        """Anew, as after a reload."""
        self.driver.get(self.url)
        self.until(lambda: self.find("//textarea"), "the form")

    def find(self, path: str) -> list:
        """Those that are shown, by XPath."""
        return [element for element in self.driver.find_elements("xpath", path) if element.is_displayed()]

    def until(self, answer: Callable[[], object], what: str) -> object:
        """What `answer` gives once it gives something."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            try:
                if found := answer():
                    return found
            except StaleElementReferenceException:
                pass  # the page changed while we looked
            time.sleep(0.1)
        raise AssertionError(f"no {what} within {self.patience} s; the page says: {self.text()[:2000]}")

    def text(self) -> str:
        return self.driver.find_element("tag name", "body").text

    def field(self, label: str):
        """A text or number field, a slider's number, or a list."""
        own = f"//label[.//span[normalize-space()='{label}']]//*[self::input or self::textarea]"
        named = f"//input[@aria-label='number input for {label}' or (@aria-label='{label}' and not(@type='file'))]"
        return self.until(lambda: self.find(f"{own} | {named}"), f"field {label!r}")[0]

    def write(self, **fields: object) -> None:
        """Into fields by their labels, underscores for spaces."""
        from selenium.webdriver.common.keys import Keys

        for name, value in fields.items():
            field = self.field(name.replace("_", " "))
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(Keys.BACKSPACE, str(value), Keys.TAB)

    def value(self, label: str) -> str:
        return self.field(label).get_attribute("value")

    def press(self, name: str) -> None:
        """A button that can be pressed, by its words; not a tab of that name."""
        path = f"//button[normalize-space()='{name}' and not(@role='tab') and not(@disabled) and not(@tabindex='-1')]"
        button = self.until(lambda: self.find(path), f"button {name!r}")[0]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def tab(self, name: str) -> None:
        self.until(lambda: self.find(f"//button[@role='tab' and normalize-space()='{name}']"), name)[0].click()

    def section(self, name: str) -> None:
        """Opens the section whose title begins so, unless it is open: one with values that take part opens itself."""
        path = f"//button[contains(@class, 'label-wrap') and .//span[starts-with(normalize-space(), '{name}')]]"
        button = self.until(lambda: self.find(path), f"section {name!r}")[0]
        if "open" not in button.get_attribute("class").split():
            button.click()

    def choose(self, label: str) -> None:
        """One of the choices of a radio group."""
        self.until(lambda: self.find(f"//label[normalize-space()='{label}']"), label)[0].click()

    def give(self, label: str, *files: Path) -> None:
        """Files to where the page asks for them."""
        path = f"//input[@type='file' and @aria-label='{label}']"
        inputs = self.until(lambda: self.driver.find_elements("xpath", path), f"place for {label!r}")
        inputs[0].send_keys("\n".join(str(file) for file in files))

    def state(self, *states: str) -> str:
        """Waits until what is shown is in one of these states, and gives the sentence about it."""
        path = " | ".join(f"//*[@role='status' and @data-state='{state}']" for state in states)
        return self.until(lambda: self.find(path), f"state {states}")[0].text

    def images(self, place: str) -> list:
        """Returns the buttons with images; place is "made" or "gallery"."""
        return self.find(f"//div[contains(concat(' ', @class, ' '), ' {place} ')]//button[@data-image]")

    def enlarge(self, index: int) -> None:
        """One of the gallery's images."""
        button = self.until(lambda: self.images("gallery")[index:], "image in the gallery")[0]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        self.until(lambda: self.find("//dialog[@open]"), "enlarged image")

    def paint(self, *points: tuple[float, float]) -> None:
        """Over the image, from point to point; (0, 0) is its upper left corner and (1, 1) its lower right one."""
        from selenium.webdriver.common.action_chains import ActionChains

        canvas = self.until(lambda: self.find("//canvas"), "canvas")[0]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        width, height = canvas.size["width"], canvas.size["height"]
        places = [(round((x - 0.5) * width), round((y - 0.5) * height)) for x, y in points]
        hand = ActionChains(self.driver).move_to_element_with_offset(canvas, *places[0]).click_and_hold()
        for place in places[1:]:
            hand.move_to_element_with_offset(canvas, *place)
        hand.release().perform()


@contextmanager
def chromium(url: str, width: int = 1200, height: int = 1300) -> Iterator[Browser]:
    """Skips the test where there is no Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: make test installs it")
    binary, server = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and server):
        pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, webdriver.ChromeService(server))
        try:
            yield Browser(driver, url)
        finally:
            driver.quit()
