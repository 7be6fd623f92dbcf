"""Drive the app of space_app in headless Chromium, as a person would, and take screenshots:

    pip install playwright; apt-get install chromium
    python scripts/check_space_in_browser.py OUTPUT_FOLDER [--url URL] [--chromium /usr/bin/chromium]

Every tab is used by clicks, on a wide screen and on a phone, light and dark; bad inputs must be answered by messages,
Stop, pressed at random moments in every tab, must keep what was seen and show no error, text must have a contrast of
4.5 to 1, and the console must stay free of errors. Without --url the app is started, and the time until it answers is
reported. The exit status says whether all of this held; what a page looks like is for you to judge, from the
screenshots.
"""

import argparse
import itertools
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SCREENS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 2,
        "is_mobile": True,
        "has_touch": True,
    },
}
SCHEMES = ("light", "dark")
STOPS = 4  # in each tab
PATIENCE = 120_000  # milliseconds
ENDED = re.compile("Stopped|evaluations of the network")
DONE = re.compile("evaluations of the network")
LOW_CONTRAST = """() => {
    const rgba = text => { const c = text.match(/[\\d.]+/g).map(Number); return c.length < 4 ? [...c, 1] : c; };
    const over = (c, ground) => c.slice(0, 3).map((v, k) => v * c[3] + ground[k] * (1 - c[3]));
    const linear = v => v <= 10.3 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4;
    const light = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]) + 0.05;
    const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const parent = texts.currentNode.parentElement, text = texts.currentNode.textContent.trim();
        if (!text || !parent.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
        if (!parent.getBoundingClientRect().width || ["SCRIPT", "STYLE"].includes(parent.tagName)) continue;
        let opacity = 1, ground = [255, 255, 255], above = [];
        for (let e = parent; e; e = e.parentElement) {
            opacity *= Number(getComputedStyle(e).opacity);
            above.push(rgba(getComputedStyle(e).backgroundColor));
        }
        for (const layer of above.reverse()) ground = over(layer, ground);
        const style = getComputedStyle(parent), color = rgba(parent.closest("svg") ? style.fill : style.color);
        const pair = [light(over([...color.slice(0, 3), color[3] * opacity], ground)), light(ground)];
        const contrast = Math.max(...pair) / Math.min(...pair);
        if (contrast < 4.5) found.push(`${text.slice(0, 40)}: ${contrast.toFixed(2)}`);
    }
    return found;
}"""


@contextmanager
def running_app():
    """Start the app; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started, url = time.monotonic(), f"http://127.0.0.1:{port}/"
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port)}
    app = subprocess.Popen([sys.executable, ROOT / "space_app" / "app.py"], env=environment, stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen(url).close()
                break
            except OSError:
                if app.poll() is not None or time.monotonic() - started > 300:
                    raise RuntimeError("The app did not start.") from None
                time.sleep(0.2)
        print(f"the app answered after {time.monotonic() - started:.1f} s")
        yield url
    finally:
        app.terminate()
        app.wait()


class Visit:
    """One page of the app; screenshots go to `folder`, under names that begin with `screen`."""

    def __init__(self, page: Page, folder: Path, screen: str):
        self.page, self.folder, self.screen = page, folder, screen
        self.wide = page.viewport_size["width"] > 800
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def shot(self, name: str) -> None:
        self.page.wait_for_timeout(700)  # transitions
        self.page.wait_for_function("[...document.images].every(image => image.complete || !image.checkVisibility())")
        self.page.screenshot(path=self.folder / f"{self.screen}-{name}.png", full_page=True)
        self.errors += [f"low contrast in {name}: {text}" for text in self.page.evaluate(LOW_CONTRAST)]

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
        expect(panel.locator(".status", has_text=DONE).first).to_be_visible(timeout=PATIENCE)
        return time.monotonic() - started

    def refusal(self, message: str) -> None:
        """Wait for a message to the user, and until it goes away."""
        toast = self.page.locator(".toast-body", has_text=message).first
        expect(toast).to_be_visible(timeout=PATIENCE)
        self.shot("refused-" + re.sub(r"\W+", "-", message.lower()))
        expect(toast).to_be_hidden(timeout=PATIENCE)

    def example(self, panel, examples: str, gallery: str, count: int) -> None:
        """Click on the first example."""
        self.page.locator(f"{examples} button").first.click()
        expect(panel.locator(f"{gallery} .caption-label")).to_have_count(count, timeout=PATIENCE)
        self.result(panel)

    def stop(self, panel, start) -> None:
        """Begin and press Stop at random moments; the last time, what was seen must still be there."""
        for _ in range(STOPS):
            start.click()
            self.page.wait_for_timeout(random.uniform(300, 2500))
            seen = panel.locator(".pictures img, .strip img").count()
            self.press(panel, "Stop")
            expect(panel.locator(".status", has_text=ENDED).last).to_be_visible(timeout=PATIENCE)
            self.page.wait_for_timeout(700)
            if panel.locator(".error").locator("visible=true").count():
                self.errors.append("an error is shown after Stop")
            if panel.locator(".pictures img, .strip img").count() < seen:
                self.errors.append("pictures went away after Stop")
        self.shot("stopped")

    # The tabs.

    def generate(self) -> None:
        panel = self.open_tab("Generate")
        self.shot("generate-first-sight")
        tiles = panel.locator("#generated img")
        before, started = tiles.first.get_attribute("src") if tiles.count() else None, time.monotonic()
        self.press(panel, "Generate")
        self.page.wait_for_function(
            "before => { const i = document.querySelector('#generated img'); return i && i.src && i.src != before; }",
            arg=before and self.page.evaluate("path => new URL(path, document.baseURI).href", before),
            polling=50,
        )
        print(f"{self.screen}: first image {time.monotonic() - started:.1f} s after the click on Generate")
        self.result(panel)
        self.shot("generate")
        caption = panel.locator("#generated .caption-label").nth(2).inner_text()
        panel.get_by_text("Steps, guidance, seed").click()
        seed = panel.get_by_label("Seed of the first image")
        panel.locator("#generated button.thumbnail-item").nth(2).click()
        expect(seed).to_have_value("0")  # to look at an image changes no setting
        width = panel.locator("#generated .preview img").first.bounding_box()["width"]
        if width < (400 if self.wide else 250):
            self.errors.append(f"an enlarged picture is {width:.0f} pixels wide")
        self.press(panel, "Keep this seed")
        expect(seed).to_have_value(caption.removeprefix("seed ").strip(), timeout=PATIENCE)
        self.shot("generate-seed-kept")
        steps = panel.get_by_label("Steps").locator("visible=true").first
        steps.fill("1000")
        self.press(panel, "Generate")
        self.refusal("Steps: 1000 is greater than maximum value 200")
        expect(panel.locator("#generated .caption-label").first).to_be_visible()
        steps.fill("150")
        self.stop(panel, panel.get_by_role("button", name="Generate", exact=True).locator("visible=true"))
        seed.fill("-1")
        self.press(panel, "Generate")
        self.refusal("The seed must be a whole number")
        self.example(panel, "#generate-examples", "#generated", 8)

    def inpaint(self) -> None:
        panel = self.open_tab("Inpaint")
        canvas = panel.locator("#canvas canvas").first
        canvas.wait_for()
        self.page.wait_for_timeout(2000)
        self.shot("inpaint-first-sight")
        self.press(panel, "Fill in")
        self.refusal("Nothing is painted over yet")
        panel.locator("#canvas").get_by_role("button", name=re.compile("brush|draw", re.I)).first.click()
        box = canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x - 60, y + 40)
        self.page.mouse.down()
        for k in range(13):
            self.page.mouse.move(x - 60 + 10 * k, y + 40 + (k % 2) * 15)
        self.page.mouse.up()
        self.page.wait_for_timeout(500)
        self.press(panel, "Fill in")
        self.result(panel)
        expect(panel.locator("#completions .caption-label")).to_have_count(6)
        self.shot("inpaint")
        self.example(panel, "#inpaint-examples", "#completions", 6)
        self.stop(panel, self.page.locator("#inpaint-examples button").first)

    def likelihood(self, big: Path, text: Path, noise: Path) -> None:
        panel = self.open_tab("Likelihood")
        self.press(panel, "Measure")
        self.result(panel)
        self.shot("likelihood")
        self.stop(panel, panel.get_by_role("button", name="Measure", exact=True).locator("visible=true"))
        for file, message in ((big, "too large"), (text, "not an image that can be read")):
            panel.locator("#likelihood-image").get_by_role("button", name=re.compile("clear|remove", re.I)).click()
            panel.locator("#likelihood-image input[type=file]").set_input_files(file)
            self.page.wait_for_timeout(1500)
            self.press(panel, "Measure")
            self.refusal(message)
        panel.locator("#likelihood-image").get_by_role("button", name=re.compile("clear|remove", re.I)).click()
        panel.locator("#likelihood-image input[type=file]").set_input_files(noise)
        self.page.wait_for_timeout(1500)
        self.press(panel, "Measure")
        expect(panel.get_by_text("Out of distribution")).to_be_visible(timeout=PATIENCE)
        self.shot("likelihood-of-noise")

    def interpolate(self) -> None:
        panel = self.open_tab("Interpolate")
        panel.locator("#interpolate-seeds").click()
        self.result(panel)
        self.shot("interpolate-seeds")
        self.stop(panel, panel.locator("#interpolate-seeds"))
        self.page.get_by_role("tab", name="Two images").click()
        panel.locator("#interpolate-images").click()
        expect(panel.locator("#strip .caption-label").first).to_have_text("A", timeout=PATIENCE)
        self.result(panel)
        self.shot("interpolate-images")

    def watch(self) -> None:
        panel = self.open_tab("Watch")
        self.press(panel, "Watch")
        self.result(panel)
        expect(panel.locator(".strip img")).to_have_count(3)
        self.shot("watch")
        self.stop(panel, panel.get_by_role("button", name="Watch", exact=True).locator("visible=true"))


def bad_files(folder: Path) -> tuple[Path, Path, Path]:
    """An image of 8,000 x 8,000 pixels, a text in a file named .png, and an image of noise."""
    big, text, noise = (folder / name for name in ("big.png", "text.png", "noise.png"))
    Image.new("L", (8000, 8000)).save(big)
    text.write_text("This is not an image.\n")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)).save(noise)
    return big, text, noise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the screenshots are written")
    parser.add_argument("--url", help="of an app that runs already")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser's program")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.url:
        return drive(arguments.url, arguments)
    with running_app() as url:
        return drive(url, arguments)


def drive(url: str, arguments) -> int:
    errors = []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as temporary:
        files = bad_files(Path(temporary))
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        for (size, options), scheme in itertools.product(SCREENS.items(), SCHEMES):
            screen = f"{size}-{scheme}"
            context = browser.new_context(**options, color_scheme=scheme)
            visit = Visit(context.new_page(), arguments.folder, screen)
            visit.page.goto(url)
            visit.page.get_by_role("tab", name="Generate", exact=True).locator("visible=true").wait_for()
            visit.generate()
            visit.inpaint()
            visit.likelihood(*files)
            visit.interpolate()
            visit.watch()
            width = visit.page.evaluate("document.documentElement.scrollWidth")
            if width > options["viewport"]["width"]:
                errors.append(f"{screen}: the page is {width} pixels wide")
            errors += [f"{screen}: {error}" for error in visit.errors]
            print(f"{screen}: every tab was used; {len(visit.errors)} errors", *visit.errors, sep="\n  ", flush=True)
            context.close()
        browser.close()
    print(*errors, sep="\n")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
