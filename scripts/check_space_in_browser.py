"""Drive the app of space_app in headless Chromium, as a person would, and take screenshots:

    pip install playwright; apt-get install chromium
    python scripts/check_space_in_browser.py OUTPUT_FOLDER [--url URL] [--chromium /usr/bin/chromium]
    python scripts/check_space_in_browser.py OUTPUT_FOLDER --repeat 20       # an hour or more: twenty times in a row
    python scripts/check_space_in_browser.py OUTPUT_FOLDER --visits phone-dark --patience 600    # on a busy machine

Every tab is used by clicks, on a wide screen and on a phone, light and dark; bad inputs must be answered by messages,
Stop, pressed at random moments in every tab (twenty times in all visits), must keep what was seen, call it stopped and
show no error, what the model sees must follow the brush, downloads and earlier results must have telling names, no
label may lie on its picture, text must have a contrast of 4.5 to 1, arrow keys must move between tabs, progress must
be spoken, and the console must stay free of errors. Without --url the app is started, and the time until it answers is
reported. The exit status says whether all of this held; what a page looks like is for you to judge, from the
screenshots.
"""

import argparse
import itertools
import re
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from space_app_running import running_app
from space_visit import Visit

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


class Checks(Visit):
    """What is done, and must come of it, on each tab and page."""

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
        spoken = re.compile("evaluations of the network")
        expect(self.page.locator("#spoken[aria-live=polite]", has_text=spoken)).to_have_count(1, timeout=self.patience)
        caption = panel.locator("#generated .caption-label").nth(2).inner_text()
        panel.get_by_text("Steps, guidance, seed").click()
        seed = panel.get_by_label("Seed of the first image")
        self.downloads(panel, "#generated", r"[a-z0-9-]+-seed-\d+-[a-z0-9-]+-20-steps", 8)
        panel.locator("#generated button.thumbnail-item").nth(2).click()
        expect(seed).to_have_value("0")  # to look at an image changes no setting
        width = panel.locator("#generated .preview img").first.bounding_box()["width"]
        self.expect(width >= (400 if self.wide else 250), f"an enlarged picture is {width:.0f} pixels wide")
        self.shot("generate-enlarged")
        self.press(panel, "Keep this seed")
        expect(seed).to_have_value(caption.removeprefix("seed ").strip(), timeout=self.patience)
        self.shot("generate-seed-kept")
        steps = panel.get_by_label("Steps").locator("visible=true").first
        steps.fill("1000")
        self.press(panel, "Generate")
        self.refusal("Steps: 1000 is greater than maximum value 200", by_itself=True)
        expect(panel.locator("#generated .caption-label").first).to_be_visible()
        steps.fill("20")
        guidance = panel.get_by_label("Guidance").locator("visible=true").first
        guidance.fill("2")
        self.press(panel, "Generate")
        self.refusal("Guidance other than 1 leads towards a class")
        expect(panel.locator("#generated .caption-label").first).to_be_visible()
        guidance.fill("1")
        steps.fill("150")
        self.stop(panel, panel.get_by_role("button", name="Generate", exact=True).locator("visible=true"))
        seed.fill("-1")
        self.press(panel, "Generate")
        self.refusal("The seed must be a whole number")
        self.example(panel, "#generate-examples", "#generated", 8)
        self.page.get_by_text("Earlier results").click()
        expect(self.page.locator("#history img").nth(8)).to_be_visible()  # more than the last result
        self.page.get_by_text("What the words mean").click()
        self.shot("history-and-words")
        self.page.get_by_text("Earlier results").click()
        self.page.get_by_text("What the words mean").click()

    def inpaint(self) -> None:
        panel = self.open_tab("Inpaint")
        canvas = panel.locator("#canvas canvas").first
        canvas.wait_for()
        self.page.wait_for_timeout(1000)
        self.shot("inpaint-first-sight")
        self.press(panel, "Fill in")
        self.refusal("Nothing is painted over yet")
        panel.locator("#canvas").get_by_role("button", name=re.compile("brush|draw", re.I)).first.click()
        box = canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        seen = panel.locator(".seen img")
        unpainted = seen.get_attribute("src")
        self.page.mouse.move(x - 60, y + 40)
        self.page.mouse.down()
        for k in range(13):
            self.page.mouse.move(x - 60 + 10 * k, y + 40 + (k % 2) * 15)
        self.page.mouse.up()
        expect(seen).not_to_have_attribute("src", unpainted, timeout=self.patience)  # from the first stroke
        self.seen_whole(panel, 1)
        self.press(panel, "Fill in")
        self.result(panel)
        expect(panel.locator("#completions .caption-label")).to_have_count(6)
        self.shot("inpaint")
        self.example(panel, "#inpaint-examples", "#completions", 6)
        self.stop(panel, panel.get_by_role("button", name="Fill in", exact=True).locator("visible=true"))

    def likelihood(self, big: Path, text: Path, noise: Path) -> None:
        panel = self.open_tab("Likelihood")
        self.seen_whole(panel, 1)
        self.press(panel, "Measure")
        self.result(panel)
        for words in ("typical test images", "Likelihood is not typicality", "reconstruction error"):
            expect(panel.get_by_text(words).first).to_be_visible()
        self.shot("likelihood")
        self.stop(panel, panel.get_by_role("button", name="Measure", exact=True).locator("visible=true"))
        for file, message in ((big, "too large"), (text, "not an image that can be read")):
            panel.locator("#likelihood-image").get_by_role("button", name=re.compile("clear|remove", re.I)).click()
            panel.locator("#likelihood-image input[type=file]").set_input_files(file)
            self.refusal(message)
        panel.locator("#likelihood-image").get_by_role("button", name=re.compile("clear|remove", re.I)).click()
        panel.locator("#likelihood-image input[type=file]").set_input_files(noise)
        self.page.wait_for_timeout(1500)
        self.press(panel, "Measure")
        expect(panel.get_by_text("Less likely than typical test images")).to_be_visible(timeout=self.patience)
        expect(panel.get_by_text("changed more than typical test images")).to_be_visible()
        self.shot("likelihood-of-noise")

    def interpolate(self) -> None:
        panel = self.open_tab("Interpolate")
        panel.locator("#interpolate-seeds").click()
        self.result(panel)
        self.shot("interpolate-seeds")
        self.stop(panel, panel.locator("#interpolate-seeds"))
        self.page.get_by_role("tab", name="Two images").click()
        panel.locator("#interpolate-images").click()
        expect(panel.locator("#strip .caption-label").first).to_have_text("A", timeout=self.patience)
        self.result(panel)
        self.seen_whole(panel, 2)
        self.shot("interpolate-images")

    def watch(self) -> None:
        panel = self.open_tab("Watch")
        self.press(panel, "Watch")
        self.result(panel)
        strips = panel.locator("#strips .thumbnail-lg img")
        expect(strips).to_have_count(3)
        self.page.wait_for_timeout(1000)
        for k in range(3):
            self.in_view(strips.nth(k), "Watch's result")
        self.in_view(panel.locator(".progress").first, "Watch's status")
        self.shot("watch")
        slider, places = panel.locator("input[type=range]").first, set()
        for t in (0, 0.5, 1):
            slider.evaluate("(e, t) => { e.value = t; e.dispatchEvent(new Event('input', { bubbles: true })); }", t)
            self.page.wait_for_timeout(500)
            places.add(strips.first.evaluate("e => getComputedStyle(e).objectPosition"))
            self.shot(f"watch-at-{t}")
        self.expect(len(places) == 3, "the slider over t changes nothing")
        panel.get_by_label("All times").click()
        self.shot("watch-all-times")
        widths = {strips.nth(k).bounding_box()["width"] for k in range(3)}
        self.expect(min(widths) >= (500 if self.wide else 300), f"strips of all times are {widths} pixels wide")
        panel.get_by_label("One time").click()
        self.downloads(panel, "#strips", "watch-(ve|vp|sub-vp)-probability-flow-ode-seed-0", 3)
        self.shot("watch-enlarged")
        panel.locator("#strips").get_by_role("button", name=re.compile("close", re.I)).click()
        self.history("watch sub vp probability flow ode seed 0")
        last = strips.nth(2).get_attribute("src")
        self.press(panel, "Watch")
        expect(strips.nth(2)).not_to_have_attribute("src", last, timeout=self.patience)  # grey until its turn comes
        self.result(panel)
        self.stop(panel, panel.get_by_role("button", name="Watch", exact=True).locator("visible=true"))

    def keyboard(self) -> None:
        """Arrow keys move between the tabs."""
        self.page.get_by_role("tab", name="Generate", exact=True).locator("visible=true").first.focus()
        for key, name in (("ArrowRight", "inpaint"), ("ArrowRight", "likelihood"), ("ArrowLeft", "inpaint")):
            self.page.keyboard.press(key)
            self.page.wait_for_timeout(300)
            self.expect(self.open_tab_name() == name, f"{key} leads to {self.open_tab_name()}, not {name}")
        self.page.keyboard.press("Home")

    def model(self, name: str) -> None:
        """Another model's page; an image of it."""
        self.go_to(name)
        panel = self.open_tab("Generate")
        panel.get_by_text("Steps, guidance, seed").click()
        panel.get_by_label("Steps").locator("visible=true").first.fill("5")
        panel.get_by_label("Images").locator("visible=true").last.fill("2")
        self.press(panel, "Generate")
        self.result(panel)
        expect(panel.locator("#generated .caption-label")).to_have_count(2, timeout=self.patience)
        self.shot(f"model-{name}")

    def one_step(self, name: str) -> None:
        """The page of a consistency model: pictures at first sight, others for a seed, and what other pages have."""
        self.go_to(name)
        captions = self.page.locator("#drawn-at-once .caption-label")
        expect(captions).to_have_count(8, timeout=self.patience)
        self.page.get_by_label("Seed of the first image").locator("visible=true").first.fill("5")
        self.page.get_by_role("button", name="Draw", exact=True).click()
        expect(captions.first).to_have_text("seed 5", timeout=self.patience)
        page = self.page.locator("body")
        self.page.wait_for_timeout(1500)  # the seed and the button both ask; the later work has begun, too
        self.result(page)
        self.downloads(page, "#drawn-at-once", r"any-class-seed-\d+-1-evaluation", 8)
        self.shot(f"model-{name}")
        self.page.locator("#drawn-at-once").get_by_role("button", name=re.compile("close", re.I)).click()
        self.page.locator("#one-step-examples tbody tr").first.click()
        expect(captions.first).to_have_text("seed 0", timeout=self.patience)
        self.result(page)
        self.history("any class seed 0 2 evaluations")
        self.press(page, "Stop")  # of nothing
        self.page.get_by_text("What the words mean").click()
        expect(self.page.get_by_text("a network that was tuned to answer any point")).to_be_visible()
        self.shot(f"model-{name}-words")


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
    names = [f"{size}-{scheme}" for size, scheme in itertools.product(SCREENS, SCHEMES)]
    parser.add_argument("--visits", nargs="+", choices=names, default=names, help="of which screens (all)")
    parser.add_argument("--repeat", type=int, default=1, help="how often all is done, until something fails (1)")
    parser.add_argument("--patience", type=float, default=120, help="seconds that anything may take (120)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with nullcontext(arguments.url) if arguments.url else running_app(max(300, arguments.patience)) as url:
        for k in range(arguments.repeat):
            if drive(url, arguments):
                return 1
            print(f"round {k + 1} of {arguments.repeat}: nothing amiss", flush=True)
    return 0


def drive(url: str, arguments) -> int:
    errors = []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as temporary:
        files = bad_files(Path(temporary))
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        for (size, options), scheme in itertools.product(SCREENS.items(), SCHEMES):
            screen = f"{size}-{scheme}"
            if screen not in arguments.visits:
                continue
            context = browser.new_context(**options, color_scheme=scheme)
            visit = Checks(context.new_page(), arguments.folder, screen, 1000 * arguments.patience)
            visit.page.goto(url)
            visit.page.get_by_role("tab", name="Generate", exact=True).locator("visible=true").wait_for()
            visit.keyboard()
            visit.generate()
            visit.inpaint()
            visit.likelihood(*files)
            visit.interpolate()
            visit.watch()
            width = visit.page.evaluate("document.documentElement.scrollWidth")
            if width > options["viewport"]["width"]:
                errors.append(f"{screen}: the page is {width} pixels wide")
            if not arguments.url:
                visit.one_step("fashion-mnist-consistency")
                visit.model("cassava-64-ve")
            errors += [f"{screen}: {error}" for error in visit.errors]
            print(f"{screen}: every tab was used; {len(visit.errors)} errors", *visit.errors, sep="\n  ", flush=True)
            context.close()
        browser.close()
    print(*errors, sep="\n")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
