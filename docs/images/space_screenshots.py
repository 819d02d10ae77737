"""Clicks through the tabs of a running Space in a headless Chromium and takes their pictures.

    python docs/images/space_screenshots.py            # space_*.png of the README, with the shipped checkpoints
    python docs/images/space_screenshots.py --folder F  # every tab, wide and narrow, light and dark

Needs playwright and a Chromium (`apt-get install chromium`, or `ADAPTOK_CHROMIUM`). `tests/space_app/test_browser.py` does
the same with a tiny model.
"""

import argparse
import io
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WIDE, NARROW = (1280, 900), (390, 844)
# tab -> what its result holds
TABS = {
    "reconstruct": ".vega-embed svg",
    "share": ".at-share",
    "generate": ".at-player",
    "predict": ".at-player",
    "inspect": ".at-looks img",
    "about": "h2",
}
_MAX_BYTES = 250_000


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("ADAPTOK_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


class Visitor:
    """One browser page on the Space; `problems` collects console errors, failed requests and uncaught exceptions."""

    def __init__(self, playwright, url: str, timeout: float = 120):
        self.browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu", "--force-color-profile=srgb"]
        )
        context = self.browser.new_context(viewport=dict(zip(("width", "height"), WIDE, strict=True)))
        self.page = context.new_page()
        self.page.set_default_timeout(1000 * timeout)
        self.problems: list[str] = []
        self.page.on("console", lambda m: m.type == "error" and self.problems.append(f"{m.text} ({m.location['url']})"))
        self.page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        self.page.goto(url)
        self.page.wait_for_selector("#reconstruct-run")

    def open_tab(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab.capitalize()).click()
        self.page.wait_for_timeout(300)

    def run(self, tab: str, press: bool = False) -> None:
        """Open a tab and wait for the whole result that it arrives with.

        Args:
            press: then take its last example, move its first slider, press its button, and wait for that result.
        """
        self.open_tab(tab)
        panel = self.panel()
        result = panel.locator(TABS[tab])
        result.first.wait_for()
        if press:
            if panel.locator(".gallery-item").count():
                panel.locator(".gallery-item").last.click()
            panel.locator("input[type=range]:not(.at-seek)").first.press("ArrowRight")
            self.page.wait_for_timeout(500)
            result.evaluate_all("elements => elements.forEach(element => element.dataset.old = 1)")
            self.page.locator(f"#{tab}-run").click()
            panel.locator(f"{TABS[tab]}:not([data-old])").first.wait_for()
        self.page.wait_for_timeout(500)

    def panel(self):
        return self.page.locator("[role=tabpanel]:visible").first

    def look(self, width: int, height: int, dark: bool) -> None:
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
        self.page.wait_for_timeout(400)

    def picture(self) -> bytes:
        """The whole page as PNG, its videos stopped in the middle."""
        self.page.evaluate(
            """for (const player of document.querySelectorAll('.at-player')) {
                for (const video of player.querySelectorAll('video')) { video.pause(); }
                const seek = player.querySelector('.at-seek');
                seek.value = 0.45 * seek.max;
                seek.dispatchEvent(new Event('input', {bubbles: true}));
            }"""
        )
        self.page.wait_for_timeout(600)
        return self.page.screenshot(full_page=True)


def write_small(png: bytes, path: Path) -> None:
    """With 256 colors, which these pictures bear, if the file is too large for a repository."""
    from PIL import Image

    if len(png) > _MAX_BYTES:
        image = Image.open(io.BytesIO(png)).convert("RGB")
        buffer = io.BytesIO()
        image.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        png = buffer.getvalue()
    path.write_bytes(png)


def launch_space(*pipelines):
    """The Space on a free port of this machine: (demo, address)."""
    sys.path.insert(0, str(ROOT / "space_app"))
    from demo import build_demo
    from theme import page_options

    demo = build_demo(pipelines[0], generators=pipelines[-1])
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, max_file_size="50mb", **page_options())
    return demo, url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, help="write every tab, 1280 and 390 pixels wide, light and dark, into this folder"
    )
    parser.add_argument("--url", help="a Space that runs already; default: one is started")
    parser.add_argument("--tabs", nargs="*", default=list(TABS), choices=list(TABS))
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    demo, url = None, arguments.url
    if url is None:
        from adaptok_hf import AdapTokPipeline

        demo, url = launch_space(*map(AdapTokPipeline.from_pretrained, ("small", "figures")))
    with sync_playwright() as playwright:
        visitor = Visitor(playwright, url, timeout=400)
        for tab in arguments.tabs:
            visitor.run(tab)
            if arguments.folder is None:
                if tab != "about":
                    visitor.look(*WIDE, dark=False)
                    write_small(visitor.picture(), Path(__file__).parent / f"space_{tab}.png")
                continue
            arguments.folder.mkdir(exist_ok=True)
            for width, height in (WIDE, NARROW):
                for dark in (False, True):
                    visitor.look(width, height, dark)
                    path = arguments.folder / f"{tab}_{width}_{'dark' if dark else 'light'}.png"
                    path.write_bytes(visitor.picture())
            visitor.look(*WIDE, dark=False)
        print("\n".join(visitor.problems) or "no console errors")
        visitor.browser.close()
    if demo is not None:
        demo.close()


if __name__ == "__main__":
    main()
