"""A headless Chromium clicks through every tab of the Space; see docs/images/space_screenshots.py."""

import importlib.util
import io
import warnings

import pytest
from builders.loaded_scripts import load_script

pytest.importorskip("gradio", reason="the Space needs gradio: pip install adaptok_hf[space]")

screenshots = load_script("docs/images/space_screenshots.py")


def why_not() -> str | None:
    if importlib.util.find_spec("playwright") is None:
        return "the browser test of the Space did not run: pip install playwright"
    if screenshots.find_chromium() is None:
        return "the browser test of the Space did not run: no Chromium (apt-get install chromium, or ADAPTOK_CHROMIUM)"
    return None


if why_not():
    warnings.warn(why_not(), stacklevel=1)  # shown at the end of the run, unlike the reason of a skip
pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture
def visitor(complete_pipeline, tmp_path, monkeypatch):
    from playwright.sync_api import sync_playwright

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    demo, url = screenshots.launch_space(complete_pipeline)
    with sync_playwright() as playwright:
        visitor = screenshots.Visitor(playwright, url)
        yield visitor
        visitor.browser.close()
    demo.close()


@pytest.mark.slow
def test_every_tab(visitor):
    """Runs each tab, looks at it wide and narrow: nothing overflows, every control has a name, the console is clean."""
    from PIL import Image

    for tab in screenshots.TABS:
        visitor.run(tab, press=tab != "about")
        for width, height in (screenshots.WIDE, screenshots.NARROW):
            visitor.look(width, height, dark=width < 500)
            picture = Image.open(io.BytesIO(visitor.picture()))
            assert picture.width == width
            assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width, f"{tab} at {width}"
            if tab == "reconstruct":  # the labels of the plot follow from light to dark
                colors = visitor.page.evaluate(COLORS)
                assert colors[0] == colors[1]
            nameless = visitor.page.evaluate(NAMELESS)
            assert nameless == [], f"{tab}: {nameless}"
        visitor.look(*screenshots.WIDE, dark=False)
    assert visitor.problems == []


# Of the page's text, and of the labels of a plot.
COLORS = "[getComputedStyle(document.body).color, getComputedStyle(document.querySelector('.vega-embed text')).fill]"

# Controls that a screen reader could not name.
NAMELESS = """
[...document.querySelectorAll('button, input, select, textarea, video')].filter(e => {
  if (!e.checkVisibility() || e.type === 'file' || e.closest('[aria-hidden=true]')) return false;
  const label = e.labels && e.labels.length && [...e.labels].some(l => l.textContent.trim());
  return !(label || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.title || e.textContent.trim()
           || e.placeholder) && e.tagName !== 'VIDEO';
}).map(e => e.outerHTML.slice(0, 200))
"""


@pytest.mark.slow
def test_player_and_keyboard(visitor):
    """The players of a result stay in step, and the keyboard moves slider, tab and button."""
    visitor.run("reconstruct", press=True)
    page = visitor.page
    seek = page.locator(".at-seek").first
    seek.focus()
    page.keyboard.press("End")
    page.wait_for_timeout(400)
    times = page.evaluate("[...document.querySelectorAll('.at-player video')].map(v => v.currentTime)")
    assert len(times) == 3 and min(times) > 0.5 and max(times) - min(times) < 0.1
    assert page.locator(".at-play").first.get_attribute("aria-label") == "Play"
    page.locator(".at-play").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("!document.querySelector('.at-player video').paused")
    page.get_by_role("tab", name="Reconstruct").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#share-run").wait_for(state="visible")
    players = visitor.panel().locator(".at-player")
    players.nth(2).wait_for()  # the result that the tab arrives with
    players.first.evaluate("element => element.dataset.old = 1")
    visitor.panel().get_by_role("slider").first.press("ArrowRight")
    page.locator("#share-run").focus()
    page.keyboard.press("Enter")
    page.locator(".at-share .at-player:not([data-old])").nth(2).wait_for()
    assert visitor.problems == []


def test_a_bad_upload_is_a_message_in_the_page(visitor, tmp_path):
    path = tmp_path / "page.mp4"
    path.write_text("<html><b>no video</b></html>" * 50)
    visitor.open_tab("inspect")
    visitor.panel().locator(".at-looks img").first.wait_for()  # the result that the tab arrives with
    visitor.panel().get_by_label("Clear").first.click()
    visitor.panel().locator("input[type=file]").set_input_files(str(path))
    visitor.page.wait_for_timeout(1000)
    visitor.page.locator("#inspect-run").click()
    toast = visitor.page.locator("[data-testid=toast-body]").filter(has_text="page.mp4: not a video")
    toast.wait_for()
    assert "/tmp" not in toast.inner_text()
    badge = visitor.panel().locator(".wrap > .error").first
    badge.wait_for()
    toast.get_by_role("button", name="Close", exact=True).click()
    badge.wait_for(state="hidden")  # leaves with the message
