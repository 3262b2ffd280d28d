"""The report page: what it is made of, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from et.results import paper, report
from et.results.collect import collect
from et.runs.identity import Key
from tests.results.checks import html_faults
from tests.results.conftest import write_run
from tests.results.folders import write_descent, write_metrics

SCORES = [(0.90, 0.89), (0.91, 0.92), (0.95, 0.90)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """ET and GT on Amazon, ET with other epochs, ET on ImageNet, and a demo run that recorded its descent."""
    runs = tmp_path_factory.mktemp("runs")
    for seed, (et, gt) in enumerate(SCORES):
        folder = write_run(runs, Key("amazon_1pct", seed, "held_out", "paper"), {"test/f1_macro": et, "test/auc": 0.9})
        write_metrics(folder, steps=20)
        write_run(runs, Key("amazon_1pct_gt", seed, "held_out", "paper"), {"test/f1_macro": gt, "test/auc": 0.95})
    write_run(runs, Key("amazon_1pct", 0, "held_out", "paper"), {"test/f1_macro": 0.5}, ["trainer.max_epochs=3"])
    write_run(
        runs, Key("imagenet_inpainting", 0, "held_out", "paper"), {"test/psnr": 21.5}, dataset={"name": "imagenet"}
    )
    demo = write_run(
        runs, Key("demo_inpainting", 0, "held_out", "paper"), {"test/mse_masked": 0.13},
        dataset={"name": "<photos>", "variant": "embedded </script> photographs"},
    )  # fmt: skip
    write_descent(demo)
    Image.new("RGB", (80, 40), "navy").save(demo / "pictures" / "completions.png")
    return runs


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    arguments = ["--runs", str(runs), "--experiments", str(folder / "none"), "--output", str(folder / "report.html")]
    assert report.main(["1", "2", "4", "16", *arguments]) == 0
    return folder / "report.html"


def data_of(page: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())[1])


def test_the_page_is_valid_and_needs_nothing_from_elsewhere(page):
    text = page.read_text()
    assert html_faults(text) == []
    # Only the links to the documentation leave the page.
    assert not re.findall(r'(?:src|<link[^>]* href)="(?!#|data:)[^"]*"', text)
    assert all("docs/" in link for link in re.findall(r'<a href="(?!#)([^"]*)"', text))
    assert not re.findall(r"(?:url|@import)\s*\(?['\"]?http", text)
    assert "default-src 'none'" in text, "the browser is told to fetch nothing"
    assert "{{" not in text


def test_the_tables_asked_for_are_there(page):
    text = page.read_text()
    for number in paper.NUMBERS:
        assert (f'id="table-{number}"' in text) == (f'href="#table-{number}"' in text) == (number in (1, 2, 4, 16))


def test_a_cell_has_its_runs_with_configuration_and_curves(page):
    data = data_of(page)
    (cell,) = [
        cell for cell in data["cells"].values()
        if tuple(cell.get(key) for key in ("method", "condition", "metric", "protocol", "label"))
        == ("ET (Ours)", "Amazon · 1%", "Macro-F1 (%)", "held_out", "")
    ]  # fmt: skip
    assert cell["mean"] == pytest.approx(92.0) and cell["paper"] == "89.3 ± 0.7"
    found = [data["runs"][identity] for identity in cell["runs"]]
    assert [run["seed"] for run in found] == [0, 1, 2]
    assert all(set(run["curves"]) == {"train/loss", "val/f1_macro"} for run in found)
    assert len({run["configuration"] for run in found}) == 1, "seeds share one configuration text"
    assert "num_memories" in data["configurations"][found[0]["configuration"]]
    assert data["runs"].keys() >= set(cell["runs"])


def test_a_missing_cell_has_the_command_that_fills_it(page):
    commands = {cell["command"] for cell in data_of(page)["cells"].values() if not cell["runs"]}
    assert "python train.py --multirun sweep=table01 experiment=yelp_1pct" in commands


def test_pictures_beyond_the_limit_stay_outside(runs, tmp_path):
    from et.results.evidence import Evidence

    (demo,) = report.other_runs(collect([runs]))["demo_inpainting", "held_out"]
    full, none = Evidence(10**6), Evidence(0)
    identity = full.add_run(demo)
    none.add_run(demo)
    assert (len(full.runs[identity]["figures"]), full.runs[identity]["figuresLeftOut"]) == (1, 0)
    assert (len(none.runs[identity]["figures"]), none.runs[identity]["figuresLeftOut"]) == (0, 1)
    assert full.figure_bytes < 10**6


def test_a_figure_drawn_later_is_on_the_page(tmp_path):
    """Left in a run's folder figures/ by python -m et.results.figures: a still and an animation."""
    folder = write_run(tmp_path / "runs", Key("demo_inpainting", 0, "held_out", "paper"), {"test/mse_masked": 0.13})
    (folder / "figures").mkdir()
    still, moving = Image.new("RGB", (80, 40), "navy"), Image.new("RGB", (80, 40), "teal")
    still.save(folder / "figures" / "attention_weights.png")
    still.save(folder / "figures" / "completion.webp", save_all=True, append_images=[moving])
    output = tmp_path / "report.html"
    assert (
        report.main(["16", "--runs", str(tmp_path / "runs"), "--experiments", str(tmp_path), "--output", str(output)])
        == 0
    )
    found = data_of(output)["runs"][folder.name]["figures"]
    assert [figure["name"] for figure in found] == ["attention weights", "completion"]
    assert all(figure["source"].startswith("data:image/webp;base64,") for figure in found)


def test_descents_of_no_run_come_first_under_their_own_title(tmp_path):
    (tmp_path / "demo" / "pictures").mkdir(parents=True)
    for name in ("m", "o", "t0", "t1"):
        Image.new("RGB", (16, 16), "navy").save(tmp_path / "demo" / "pictures" / f"{name}.webp")
    picture = {
        "name": "chelsea", "height": 16, "width": 16, "windows": 1, "masked": "m.webp", "original": "o.webp",
        "frames": ["t0.webp", "t1.webp"], "attention": [-1, -2], "hopfield": [-1, -2], "mse_masked": [1, 0.5],
    }  # fmt: skip
    record = {"trained_steps": 1, "step_size": 0.1, "pictures": [picture], "title": "pretrained weights"}
    (tmp_path / "demo" / "pictures" / "descent.json").write_text(json.dumps(record))
    output = tmp_path / "report.html"
    folders = [str(tmp_path / "demo"), str(tmp_path / "absent")]
    assert report.main(["16", "--experiments", str(tmp_path), "--descents", *folders, "--output", str(output)]) == 0
    (found,) = data_of(output)["descents"]
    assert found["title"] == "pretrained weights" and "run" not in found
    assert all(frame.startswith("data:image/webp;base64,") for frame in found["pictures"][0]["frames"])


def test_bad_arguments_are_errors_for_people(tmp_path, capsys):
    assert report.main(["--runs", str(tmp_path / "nowhere")]) == 1
    assert "there is no folder" in capsys.readouterr().err


# From here on in a browser.


@pytest.fixture(scope="module")
def chromium():
    """Headless Chromium; skipped where it or selenium is absent."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install -e '.[dev]'")
    program, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if program is None or driver is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium, page):
    """The page, freshly opened from file:// on a desktop; no test may leave an error in the console."""
    show(chromium, page)
    yield chromium
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


def show(browser, page: Path, width: int = 1280, scheme: str = "light", place: str = "") -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    media = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.get("about:blank")
    browser.get(f"{page.as_uri()}{place}")


def one(browser, selector: str):
    return browser.find_element("css selector", selector)


def texts(browser, selector: str) -> list[str]:
    return [element.text for element in browser.find_elements("css selector", selector)]


def press(browser, key: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    ActionChains(browser).send_keys(getattr(Keys, key)).perform()


def column(browser, index: int) -> list[str]:
    """Entries of a column of table 1's first grid, as they stand."""
    script = (
        "return [...document.querySelector('#table-1 table').tBodies[0].rows].map(r => r.cells[arguments[0]].innerText)"
    )
    return browser.execute_script(script, index)


def test_one_view_at_a_time_that_the_address_names(browser, page):
    assert "the paper’s tables" in browser.title
    assert one(browser, "#overview").is_displayed() and not one(browser, "#table-2").is_displayed()
    one(browser, "nav a[href='#table-2']").click()
    assert one(browser, "#table-2").is_displayed() and not one(browser, "#overview").is_displayed()
    assert browser.title.startswith("Table 2: Graph classification")
    assert browser.switch_to.active_element.get_attribute("id") == "table-2-title", "the keyboard goes along"
    show(browser, page, place="#table-4")
    assert one(browser, "#table-4").is_displayed()


def test_a_column_sorts_up_and_down_and_back(browser, page):
    show(browser, page, place="#table-1")
    one(browser, "#table-1 input[type=checkbox]").click()  # rows without a measurement, too
    heading = one(browser, "#table-1 thead th:nth-child(6)")
    assert heading.text.startswith("held_out") and heading.get_attribute("aria-sort") == "none"
    before = column(browser, 5)
    heading.find_element("css selector", "button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    ascending = column(browser, 5)
    assert [float(text.split()[0]) for text in ascending[:3]] == pytest.approx([50.0, 90.3, 92.0])
    assert "Sorted by held_out, ascending" in one(browser, "#status").get_attribute("textContent")
    heading.find_element("css selector", "button").click()
    descending = column(browser, 5)
    assert descending[:3] == ascending[:3][::-1] and not descending[-1][0].isdigit(), "what is missing stays last"
    heading.find_element("css selector", "button").click()
    assert column(browser, 5) == before
    one(browser, "#table-1 thead th:nth-child(4) button").click()
    names = column(browser, 3)
    assert names[0] == "ET (Ours)" and names == sorted(names, key=str.lower)


def test_rows_can_be_filtered(browser, page):
    show(browser, page, place="#table-1")
    one(browser, "#table-1 input[type=search]").send_keys("amazon gt")
    shown = [row for row in browser.find_elements("css selector", "#table-1 tbody tr") if row.is_displayed()]
    assert shown and all("Amazon" in row.text and "GT" in row.text for row in shown)
    one(browser, "#table-1 input[type=search]").clear()
    one(browser, "#table-1 input[type=search]").send_keys(" ")

    def count():
        rows = browser.find_elements("css selector", "#table-1 tbody tr")
        return sum(row.is_displayed() for row in rows)

    measured = count()
    assert measured == 5, "two methods and two metrics, and the other configuration's F1: the filter is on at first"
    one(browser, "#table-1 input[type=checkbox]").click()
    assert count() > measured


def test_the_filter_leaves_counted_parameters(browser, page):
    show(browser, page, place="#table-16")
    assert one(browser, "#table-16 input[type=checkbox]").is_selected()
    assert all(row.is_displayed() for row in one(browser, "#table-16 table").find_elements("css selector", "tbody tr"))
    assert not all(row.is_displayed() for row in browser.find_elements("css selector", "#table-16 tbody tr"))


def test_a_cell_opens_its_runs_by_keyboard_and_gives_the_focus_back(browser, page):
    show(browser, page, place="#table-1")
    (button,) = [b for b in browser.find_elements("css selector", "#table-1 .cell") if b.text.startswith("92.0 ± 2.6")]
    browser.execute_script("arguments[0].focus()", button)
    press(browser, "ENTER")
    assert one(browser, "#cell-title").text == "ET (Ours)"
    assert "89.3 ± 0.7" in one(browser, "#cell .tiles").text and "+2.7" in one(browser, "#cell .tiles").text
    assert len(browser.find_elements("css selector", "#cell .run")) == len(SCORES)
    assert texts(browser, "#cell .run[open] .curve-figure figcaption span") == ["train/loss", "val/f1_macro"]
    label = one(browser, "#cell .run[open] svg.chart").get_attribute("aria-label")
    assert label.startswith("train/loss: from 1 to")
    assert one(browser, "#cell .run[open] .command code").text.startswith(
        "python train.py experiment=amazon_1pct seed=0"
    )
    configuration = browser.find_elements("css selector", "#cell .run[open] details summary")[-1]
    configuration.click()
    assert "num_memories" in one(browser, "#cell .run[open] details[open] pre").text
    press(browser, "ESCAPE")
    assert not one(browser, "#cell").is_displayed()
    assert browser.switch_to.active_element == button


def test_a_missing_cell_says_how_to_fill_it(browser, page):
    show(browser, page, place="#table-1")
    one(browser, "#table-1 input[type=checkbox]").click()
    one(browser, "#table-1 input[type=search]").send_keys("yelp 1%")
    (missing, *_) = [b for b in browser.find_elements("css selector", "#table-1 .cell.missing") if b.is_displayed()]
    missing.click()
    assert "sweep=table01 experiment=yelp_1pct" in one(browser, "#cell .command code").text


def test_runs_without_a_folder_or_table_say_so(browser):
    one(browser, "section[aria-labelledby=others-title] .cell").click()
    assert "metrics.csv" in one(browser, "#cell .run").text
    assert one(browser, "#cell .picture img").get_attribute("alt") == "completions of demo_inpainting, seed 0"
    assert "embedded </script> photographs" in one(browser, "#cell .facts").text


def test_the_viewer_steps_through_the_descent(browser):
    def shown():
        return one(browser, "#viewer .stage img.shown").get_attribute("class").split()[1]

    assert shown() == "t0" and one(browser, "#viewer .readout").text == "t = 0 of 4"
    assert texts(browser, "#viewer .panel output") == ["−15", "−10", "−5", "1"]
    one(browser, "#viewer button[aria-label='One step on']").click()
    assert shown() == "t1" and texts(browser, "#viewer .panel output") == ["−18", "−12", "−6", "0.5"]
    slider = one(browser, "#viewer input[type=range]")
    browser.execute_script("arguments[0].focus()", slider)
    press(browser, "ARROW_RIGHT")
    assert shown() == "t2"
    assert slider.get_attribute("aria-valuetext").startswith("Step 2 of 4: total energy −23, attention energy −14")
    one(browser, "#viewer button[aria-label='Last step']").click()
    one(browser, "#viewer button[aria-label='One step on']").click()
    assert shown() == "t4", "there it ends"
    assert one(browser, "#viewer .stage").get_attribute("aria-label") == "chelsea, completed at step 4"
    one(browser, "#viewer .choice label:nth-of-type(3)").click()
    assert one(browser, "#viewer .stage img.shown").get_attribute("class").startswith("original")


def test_the_viewer_plays_to_the_end(browser):
    from selenium.webdriver.support.ui import WebDriverWait

    one(browser, "#viewer button[aria-label=Play]").click()
    assert one(browser, "#viewer button[aria-label=Pause]").is_displayed()
    WebDriverWait(browser, 10).until(lambda b: one(b, "#viewer .readout").text == "t = 4 of 4")
    assert one(browser, "#viewer button[aria-label=Play]").is_displayed()


def test_the_theme_can_be_chosen(browser):
    def background():
        return browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    light = background()
    for _ in range(2):
        one(browser, "#theme").click()
    assert one(browser, "#theme").text == "Theme: dark" and background() != light


def test_the_overview_counts_apart_and_says_each_difference_in_a_sentence(browser):
    tiles = texts(browser, "#coverage .tiles dd")
    assert tiles[0].startswith("5 of ") and tiles[2] == "0"
    sentences = texts(browser, "#deltas .sentence")
    assert (
        "ET (Ours) on Amazon · 1%: Macro-F1 92.0 % on held-out data (3 runs), 2.7 points above the paper’s 89.3 ± 0.7."
        in (sentences)
    )
    assert texts(browser, ".bar nav a") == [
        "Overview",
        "Image completion",
        "Anomaly detection",
        "Graphs",
        "Documentation",
    ]


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1400, "dark")])
def test_every_view_is_accessible_and_fits_the_screen(browser, page, width, scheme):
    """By axe, whose rules are those of WCAG 2 and of good practice."""
    axe = pytest.importorskip("axe_core_python.selenium").Axe()
    browser.set_script_timeout(120)
    found = []
    for place, opens in (("", None), ("#table-16", None), ("#table-1", ".cell:not(.missing)")):
        show(browser, page, width, scheme, place)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), place
        cut = "return [...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
        assert browser.execute_script(cut) == 0, f"{place}: a column is cut off"
        if opens:
            one(browser, f"{place} {opens}").click()
        # What is hidden, or covered by the cell, only keeps axe busy.
        browser.execute_script(
            "document.querySelectorAll(arguments[0]).forEach(e => e.replaceChildren())",
            ".paper-table" if opens else ".paper-table[hidden]",
        )
        for violation in axe.run(browser, context="#cell" if opens else None)["violations"]:
            found += [(place, violation["id"], node["html"][:200]) for node in violation["nodes"]]
    assert found == []
