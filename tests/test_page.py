"""The page at /, in the system's Chromium. What it looks like is kept in screenshots/, for a person to see."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright
from replica import served
from samples import ROOT

from service.feedback_store import Store
from service.keys import new_key
from service.settings import SENTIMENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, BrowserContext, Error, Page, Route

    Open = Callable[..., Page]

SCREENSHOTS = ROOT / "screenshots"
PATIENCE_MS = 20_000
SIZES = {"phone": (360, 740), "tablet": (820, 1100), "wide": (1440, 900)}
TEXT = "Not the masterpiece it wants to be, but a warm, funny and beautifully acted story that I was sorry to see end."


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served({"sentiment": SENTIMENT, "other": SENTIMENT}, max_text_chars=5000, max_texts_per_request=7) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no browser: neither chromium nor google-chrome is installed")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Open]:
    """Open the page: visit(url, size, **options of the browser's context). It may write no error to the console."""
    contexts: list[BrowserContext] = []
    errors: list[Error] = []

    def visit(url: str = url, size: str = "wide", **options: Any) -> Page:
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(url)
        if url != "about:blank":
            expect(page.locator("#text")).to_be_focused()  # by itself; keys that come earlier go nowhere
        return page

    yield visit
    for context in contexts:
        context.close()
    assert errors == []


def type_and_wait(page: Page, text: str = TEXT) -> None:
    """Type the text and wait until it is explained."""
    page.keyboard.type(text)
    page.wait_for_selector("#why:not(.is-stale) mark")


def test_the_browser_is_told_to_fetch_nothing_else_and_to_run_nothing_but_the_script(url: str) -> None:
    for path in ("/", "/page/page.js", "/page/page.css"):
        response = httpx.get(f"{url}{path}", headers={"accept": "text/html,*/*;q=0.8"})
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
    assert httpx.put(url).status_code == 405
    assert httpx.get(f"{url}/page/__init__.py").status_code == 404


def test_a_text_is_answered_while_it_is_typed(visit: Open, url: str) -> None:
    page = visit()
    page.keyboard.type(TEXT)  # the text has the focus
    expect(page.locator("#best-label")).to_have_text("positive")
    [result] = httpx.post(f"{url}/v1/classify", json={"texts": [TEXT]}).json()["results"]
    expect(page.locator("#labels .score").first).to_have_text(f"{100 * result['labels'][0]['score']:.1f}%")
    expect(page.locator("#labels li")).to_have_count(2)
    expect(page.locator("#set-labels")).to_contain_text("positive")
    expect(page.locator("#set-meaning")).to_contain_text("90% of texts")
    expect(page.locator("#tokens")).to_have_text(f"{result['tokens']} of at most 256")
    expect(page.locator("#version")).to_have_text("sentiment@d281482d40265cb5")
    expect(page.locator("#status")).to_contain_text("positive, ")
    page.select_option("#model", "other")
    expect(page.locator("#version")).to_contain_text("other@")
    page.fill("#text", "")
    expect(page.locator("#answer")).to_be_hidden()


def test_the_page_says_where_the_model_abstains(visit: Open, abstaining_folder: Path, bundle_folder: Path) -> None:
    with served({"shy": abstaining_folder, "mood": bundle_folder}) as url:
        page = visit(url)
        page.keyboard.type("the film was a dull story of two people")
        expect(page.locator("#abstained")).to_be_visible()
        expect(page.locator("#status")).to_contain_text("Abstained")
        page.select_option("#model", "mood")
        expect(page.locator("#abstained")).to_be_hidden()


def test_the_first_answer_appears_within_100_ms_of_the_key_press(visit: Open) -> None:
    page = visit()
    page.evaluate("""() => {
        window.taken = [];
        addEventListener("keydown", (event) => { window.pressed = event.timeStamp; });
        const shown = () => requestAnimationFrame(() => window.taken.push(performance.now() - window.pressed));
        new MutationObserver(shown).observe(document.getElementById("best-score"), { childList: true });
    }""")
    page.keyboard.type("a warm and funny film", delay=150)
    expect(page.locator("#best-label")).to_have_text("positive")
    taken = page.evaluate("window.taken")
    middle = statistics.median(taken)
    print(f"\nkey press to answer, {len(taken)} of them: {middle:.0f} ms in the median, {max(taken):.0f} at most")
    assert len(taken) >= 15
    assert middle < 100


def test_tokens_are_painted_where_they_are_in_the_text(visit: Open) -> None:
    page = visit()
    text = (
        "\N{GRINNING FACE} <b>naïve</b> 👩‍👩‍👧 but lovely"  # characters of one, two and many code units; markup is text
    )
    type_and_wait(page, text)
    assert page.locator("#painted").text_content() == text
    assert "lovely" in page.locator("#painted mark").all_text_contents()
    assert page.locator("#painted b").count() == 0
    expect(page.locator("#words")).to_contain_text("lovely +")


def test_what_was_cut_off_is_said(visit: Open) -> None:
    page = visit()
    page.fill("#text", "a fine film " * 100)
    expect(page.locator("#tokens")).to_contain_text("46 more were cut off")
    page.wait_for_selector("#painted .cut")


def test_the_request_is_copied_as_curl_and_python(visit: Open, url: str) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    type_and_wait(page, 'it\'s "fine"')
    page.click("summary:has-text('program')")
    page.click("[data-copies=curl]")
    expect(page.locator("#status")).to_have_text("Copied")
    curl = page.evaluate("navigator.clipboard.readText()")
    assert curl == (
        f"""curl {url}/v1/classify -d '{{"texts":["it'\\''s \\"fine\\""],"model":"sentiment","explain":true}}'"""
    )
    python = page.locator("#python").text_content()
    assert python is not None
    found: dict[str, Any] = {}
    exec(python.replace("print(", "found.append("), {"found": Labels(found)})
    assert found["label"] == "positive"


class Labels:
    """What the copied program prints."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found

    def append(self, label: str, score: float) -> None:
        self.found |= {"label": label, "score": score}


def test_the_rows_of_a_file_are_answered_in_a_table(visit: Open, tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv"
    rows = [f'{i},"a {word}, ""{word}"" film"' for i, word in enumerate(["lovely", "dull"] * 10)]
    file.write_text("\ufeffid,text\r\n" + "\r\n".join([*rows, "20,", f"21,{'long ' * 1001}"]) + "\r\n")
    page = visit()
    page.set_input_files("#file", file)
    expect(page.locator("#progress")).to_have_text("reviews.csv, 22 rows: 10 positive, 10 negative, 2 not answered")
    expect(page.locator("#rows tr")).to_have_count(22)
    expect(page.locator("#rows tr").nth(1)).to_contain_text('a dull, "dull" film')
    expect(page.locator("#rows .failed")).to_have_text(["empty", "too long"])
    with page.expect_download() as download:
        page.click("#download")
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0] == "id,text,label,score"
    assert lines[2].startswith('1,"a dull, ""dull"" film",negative,0.')
    page.screenshot(path=SCREENSHOTS / "file.png", full_page=True)
    assert Axe().run(page).violations_count == 0
    page.fill("#text", "a lovely film")
    expect(page.locator("#table")).to_be_hidden()


def test_a_file_can_be_dropped_and_one_without_a_text_column_is_refused(visit: Open) -> None:
    page = visit()
    drop = """([name, content]) => {
        const dropped = new DataTransfer();
        dropped.items.add(new File([content], name));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(drop, ["a.tsv", "id\ttext\n1\ta lovely film"])
    expect(page.locator("#progress")).to_have_text("a.tsv, 1 row: 1 positive")
    page.evaluate(drop, ["b.csv", "id,review\n1,fine"])
    expect(page.locator("#error")).to_have_text("The file has no column text. Its columns are: id, review.")


@pytest.mark.parametrize(
    ("source", "header", "rows"),
    [
        ("text\na\nb", ["text"], [["a"], ["b"]]),
        ("id;text\r\n1;a, b\r\n\r\n2;c\r\n", ["id", "text"], [["1", "a, b"], ["2", "c"]]),
        ('text,id\r"a\nb, ""c""",1\r', ["text", "id"], [['a\nb, "c"', "1"]]),
        ("text,id\na", ["text", "id"], [["a"]]),
        ("text,id\na,", ["text", "id"], [["a", ""]]),
        ('text\n"never closed\nb', ["text"], [['"never closed'], ["b"]]),
        ("", [], []),
    ],
)
def test_a_table_is_read_however_it_was_written(visit: Open, source: str, header: list[str], rows: Any) -> None:
    read = "async (source) => (await import('/page/text.js')).parseTable(source, false, 1000)"
    assert visit().evaluate(read, source) == {"header": header, "rows": rows, "isWhole": True}


def test_a_text_that_is_too_long_is_said_with_its_length(visit: Open) -> None:
    page = visit()
    page.fill("#text", "good " * 1200)
    expect(page.locator("#error")).to_have_text("The text has 6,000 characters and 5,000 are read: shorten it.")
    page.screenshot(path=SCREENSHOTS / "error.png")
    assert Axe().run(page).violations_count == 0
    page.fill("#text", "good")
    expect(page.locator("#best-label")).to_have_text("positive")
    expect(page.locator("#error")).to_be_hidden()


def test_a_service_that_is_busy_is_asked_again(visit: Open) -> None:
    refused = []

    def busy(route: Route) -> None:
        refused.append(route)
        error = {"code": "overloaded", "message": "too much is waiting", "details": []}
        if len(refused) == 1:
            route.fulfill(status=429, headers={"Retry-After": "1"}, body=json.dumps({"error": error}))
        else:
            route.continue_()

    page = visit()
    page.route("**/v1/classify", busy)
    page.fill("#text", "a lovely film")
    expect(page.locator("#error")).to_have_text("The service is busy. The page asks again in 1 s.")
    expect(page.locator("#best-label")).to_have_text("positive")
    expect(page.locator("#error")).to_be_hidden()


def test_a_service_that_has_gone_is_said(visit: Open) -> None:
    with served({"sentiment": SENTIMENT}) as url:
        page = visit(url)
        expect(page.locator("#model option")).to_have_count(1)
    page.fill("#text", "a lovely film")
    expect(page.locator("#error")).to_contain_text("does not answer. The page keeps asking.")


def test_a_service_with_keys_asks_for_one_and_the_tab_keeps_it(visit: Open) -> None:
    key, line = new_key("page")
    with served({"sentiment": SENTIMENT}, api_keys=[str(line)]) as url:
        page = visit(url)
        expect(page.locator("#error")).to_have_text("The service wants an API key: type it here.")
        assert Axe().run(page).violations_count == 0
        page.fill("#key", "another")
        page.press("#key", "Enter")
        expect(page.locator("#error")).to_be_visible()
        page.fill("#key", key)
        page.press("#key", "Enter")
        page.fill("#text", "a lovely film")
        expect(page.locator("#best-label")).to_have_text("positive")
        expect(page.locator("#curl")).to_contain_text('-H "Authorization: Bearer $HEED_API_KEY"')
        page.reload()
        page.fill("#text", "a lovely film")
        expect(page.locator("#best-label")).to_have_text("positive")
        assert page.url == f"{url}/"
        assert key not in page.inner_text("body")
        page.close()
        elsewhere = visit(url)  # another tab is asked again
        expect(elsewhere.locator("#error")).to_have_text("The service wants an API key: type it here.")
        elsewhere.close()


def test_a_label_is_corrected_where_the_service_keeps_corrections(
    visit: Open, tags_folder: Path, tmp_path: Path
) -> None:
    page = visit()
    page.fill("#text", "a lovely film")
    expect(page.locator("#best-label")).to_have_text("positive")
    expect(page.locator("#correction")).to_be_hidden()
    models = {"sentiment": SENTIMENT, "tags": tags_folder}
    file = tmp_path / "labels.db"
    with served(models, feedback_store=str(file)) as url:
        page.goto(url)
        type_and_wait(page, "a lovely film!")
        expect(page.locator("#correction")).to_contain_text("Sends the text with this label; the service keeps both")
        page.select_option("#right", "negative")
        page.click("#correction button")
        expect(page.locator("#corrected")).to_have_text("Thank you: kept as negative.")
        page.screenshot(path=SCREENSHOTS / "corrected.png", full_page=True)
        report = Axe().run(page)
        assert report.violations_count == 0, report.generate_report()
        page.select_option("#model", "tags")
        expect(page.locator("#version")).to_contain_text("tags@")
        page.select_option("#right", ["negative", "positive"])
        page.click("#correction button")
        expect(page.locator("#corrected")).to_have_text("Thank you: kept as negative, positive.")
        with contextlib.closing(Store(str(file), wait_s=5)) as store:
            kept = [(label.model, label.label, label.predicted, label.text) for label in store.labels()]
            store.delete_before(time.time() + 1)
        text = "a lovely film!"
        assert kept == [
            ("sentiment", "negative", "positive", text),
            ("tags", ["negative", "positive"], ["positive"], text),
        ]
        page.click("#correction button")
        expect(page.locator("#corrected")).to_contain_text(
            "Not kept: the service does not remember this answer any more"
        )
    page.click("#correction button")
    expect(page.locator("#corrected")).to_have_text("Not kept: the service does not answer. Send it again.")


def test_a_correction_is_sent_once_and_its_outcome_stands_under_no_other_text(visit: Open, tmp_path: Path) -> None:
    sent: list[Route] = []
    with served({"sentiment": SENTIMENT}, feedback_store=str(tmp_path / "labels.db")) as url:
        page = visit(url)
        page.route("**/v1/feedback", lambda route: sent.append(route))  # it waits
        type_and_wait(page, "a lovely film")
        page.select_option("#right", "negative")
        page.dblclick("#correction button")
        page.fill("#text", "a dull film")
        expect(page.locator("#best-label")).to_have_text("negative")
        for route in sent:
            route.continue_()
        expect(page.locator("#correction button")).to_have_attribute("aria-disabled", "false")
        expect(page.locator("#corrected")).to_be_empty()
        assert len(sent) == 1
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_accessible_and_fits_every_screen(visit: Open, size: str, scheme: str) -> None:
    page = visit(size=size, color_scheme=scheme, reduced_motion="reduce")
    report = Axe().run(page)
    assert report.violations_count == 0, report.generate_report()
    type_and_wait(page)
    page.click("summary:has-text('program')")
    report = Axe().run(page)
    assert report.violations_count == 0, report.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background == {"light": "rgb(251, 250, 247)", "dark": "rgb(20, 23, 26)"}[scheme]
    page.screenshot(path=SCREENSHOTS / f"{size}-{scheme}.png", full_page=True)


def test_it_is_used_by_keyboard_in_the_order_of_reading(visit: Open) -> None:
    page = visit()
    type_and_wait(page)
    focused = [page.evaluate("document.activeElement.id || document.activeElement.tagName")]
    for _ in range(3):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert focused == ["text", "file", "SUMMARY", "BODY"]
    page.locator("summary:has-text('program')").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#curl")).to_be_visible()
