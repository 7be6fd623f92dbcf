"""One visit to the app of space_app by a browser: how its page is used, and what must hold wherever it is.

What is done on each tab, and the program: `check_space_in_browser.py`.
"""

import random
import re
import time
import zipfile
from pathlib import Path

from playwright.sync_api import Page, expect

STOPS = 5  # in each tab of each of the four visits
ENDED = re.compile("Stopped|evaluations? of the network")
DONE = re.compile("evaluations? of the network")
STOPPED = re.compile(r"Stopped at \d+%|Stopped before it began")
# Gradio's canvas complains so where it begins to load its one layer twice: the later one stays, and is drawn on.
LOADED_TWICE = "No draw texture found for layer"
FADED_IN = """element => {
    while (element && getComputedStyle(element).opacity === "1") element = element.parentElement;
    return !element;
}"""
LOW_CONTRAST = Path(__file__).with_name("low_contrast.js").read_text(encoding="utf-8")
OVER_PICTURES = Path(__file__).with_name("over_pictures.js").read_text(encoding="utf-8")


class Visit:
    """One page of the app; screenshots go to `folder`, under names that begin with `screen`.

    Whatever is expected must come within `patience` milliseconds.
    """

    def __init__(self, page: Page, folder: Path, screen: str, patience: float):
        self.page, self.folder, self.screen, self.patience = page, folder, screen, patience
        self.wide = page.viewport_size["width"] > 800
        self.errors: list[str] = []
        page.set_default_timeout(patience)
        page.on("console", self.hear)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def hear(self, message) -> None:
        if message.type == "error" and message.text != LOADED_TWICE:
            self.errors.append(message.text)

    def shot(self, name: str) -> None:
        self.page.wait_for_timeout(300)  # transitions
        self.page.wait_for_function("[...document.images].every(image => image.complete || !image.checkVisibility())")
        path = self.folder / f"{self.screen}-{name}.png"
        self.page.screenshot(path=path, full_page=True, animations="disabled")
        self.errors += [f"low contrast in {name}: {text}" for text in self.page.evaluate(LOW_CONTRAST)]
        self.errors += [f"over a picture in {name}: {text}" for text in self.page.evaluate(OVER_PICTURES)]

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.errors.append(otherwise)

    def open_tab(self, name: str):
        """Go to a tab; its panel."""
        tab = self.page.get_by_role("tab", name=name, exact=True).locator("visible=true")
        if not tab.count():  # on narrow screens some are in a menu
            self.page.locator(".overflow-menu > button").locator("visible=true").first.click()
            tab = self.page.locator(".overflow-dropdown button", has_text=name)
        tab.first.click()
        return self.page.locator("[role=tabpanel]:visible").first

    def press(self, panel, name: str) -> None:
        panel.get_by_role("button", name=name, exact=True).locator("visible=true").click()

    def result(self, panel) -> float:
        """Wait for the result; seconds since the call."""
        started = time.monotonic()
        expect(panel.locator(".progress", has_text=DONE).first).to_be_visible(timeout=self.patience)
        return time.monotonic() - started

    def refusal(self, message: str, by_itself: bool = False) -> None:
        """Wait for a message to the user, and until it goes away, by itself or by its cross."""
        toast = self.page.locator(".toast-body", has_text=message).first
        expect(toast).to_be_visible(timeout=self.patience)
        self.page.wait_for_function(FADED_IN, arg=toast.element_handle(), timeout=self.patience)
        self.shot("refused-" + re.sub(r"\W+", "-", message.lower()))
        if not by_itself:
            self.page.locator(".toast-close").locator("visible=true").first.click()
        expect(toast).to_be_hidden(timeout=self.patience)

    def example(self, panel, examples: str, gallery: str, count: int) -> None:
        """Click on the first example."""
        self.page.locator(f"{examples} tbody tr, {examples} button.gallery-item").first.click()
        expect(panel.locator(f"{gallery} .caption-label")).to_have_count(count, timeout=self.patience)
        self.result(panel)

    def stop(self, panel, start) -> None:
        """Begin and press Stop at random moments; what was seen must still be there, called so, and no error."""
        name, pictures, stopped = self.open_tab_name(), panel.locator(".pictures .thumbnail-lg img"), 0
        for _ in range(STOPS):
            before = self.first_address(pictures)
            start.click()
            self.page.wait_for_timeout(random.uniform(300, 2500))
            seen = pictures.count()
            self.press(panel, "Stop")
            expect(panel.locator(".progress", has_text=ENDED).last).to_be_visible(timeout=self.patience)
            self.page.wait_for_timeout(400)
            ended = panel.locator(".block.progress", has_text=STOPPED).count()
            address = self.first_address(pictures)
            if ended and address != before:
                self.expect("-stopped-at-" in address, f"{name}: what was stopped is called {address}")
            stopped += ended
            self.expect(not panel.locator(".error").locator("visible=true").count(), f"{name}: an error after Stop")
            self.expect(not seen or pictures.count() > 0, f"{name}: pictures went away after Stop")
        print(f"{self.screen}: {name}: Stop ended {stopped} of {STOPS} before their result", flush=True)
        self.shot(f"{name}-stopped")

    def first_address(self, pictures) -> str | None:
        return pictures.first.get_attribute("src") if pictures.count() else None

    def downloads(self, panel, gallery: str, name: str, count: int) -> None:
        """The zip of all pictures of a result, and the file of one that is enlarged; their names match `name`."""
        pattern = re.compile(rf"(native-size|enlarged)/{name}\.png")
        with self.page.expect_download() as event:
            panel.locator(".download").locator("visible=true").click()
        with zipfile.ZipFile(event.value.path()) as archive:
            names = archive.namelist()
        self.expect(len(names) == 2 * count and all(map(pattern.fullmatch, names)), f"the zip holds {names}")
        panel.locator(f"{gallery} button.thumbnail-item").first.click()
        with self.page.expect_download() as event:
            panel.locator(gallery).get_by_role("link", name=re.compile("download", re.I)).or_(
                panel.locator(gallery).get_by_role("button", name=re.compile("download", re.I))
            ).first.click()
        file = event.value.suggested_filename
        self.expect(pattern.fullmatch(f"enlarged/{file}") is not None, f"a picture is downloaded as {file}")

    def history(self, words: str) -> None:
        """What was done is among the earlier results, under these words."""
        self.page.get_by_text("Earlier results").click()
        captions = self.page.locator("#history .caption-label", has_text=words)
        expect(captions.first).to_be_visible(timeout=self.patience)
        self.page.get_by_text("Earlier results").click()

    def open_tab_name(self) -> str:
        selected = self.page.locator("[role=tab][aria-selected=true]").locator("visible=true").first
        return selected.inner_text().strip().lower()

    def seen_whole(self, panel, count: int) -> None:
        """What the model sees of uploads is there, and no edge of it is cut off."""
        frames = panel.locator(".seen").locator("visible=true")
        expect(frames).to_have_count(count, timeout=self.patience)
        for frame in frames.all():
            expect(frame.locator("img")).to_be_visible(timeout=self.patience)
            outer, inner = frame.bounding_box(), frame.locator("img").bounding_box()
            below = inner["y"] + inner["height"] - outer["y"] - outer["height"]
            beside = max(outer["x"] - inner["x"], inner["x"] + inner["width"] - outer["x"] - outer["width"])
            self.expect(max(below, beside) <= 1, f"{self.open_tab_name()}: what the model sees is cut off")

    def in_view(self, locator, what: str) -> None:
        box = locator.bounding_box()
        height = self.page.viewport_size["height"]
        self.expect(
            box is not None and -1 <= box["y"] and box["y"] + box["height"] <= height + 1, f"{what}: not in view"
        )

    def go_to(self, name: str) -> None:
        """To another model's page, from the bar at the top."""
        self.page.get_by_role("link", name=name).or_(self.page.get_by_role("button", name=name)).first.click()
        self.page.locator("#title", has_text=name).wait_for()
