"""The app: what its pictures mean, and the page clicked through in a browser that cannot leave this machine."""

import shutil
import socket
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from et.inpainting import app
from et.inpainting.analysis import attention_of
from et.inpainting.app import Viewer
from et.inpainting.model import InpaintingET
from et.utils.errors import UserError


@pytest.fixture(scope="module")
def viewer():
    torch.manual_seed(0)
    network = InpaintingET(64, 16, dim=16, num_heads=2, head_dim=4, num_memories=16, steps=3, step_size=2.0)
    network.decoder.weight.data *= 30  # so that every step is seen
    return Viewer(network.eval())


@pytest.fixture
def scene(viewer):
    return viewer.descend(viewer.open("chelsea", 0.5, 0), 3)


def test_a_patch_is_found_under_the_pixel_that_shows_it(viewer, scene):
    side = 16 * viewer.scale
    assert viewer.masked(scene).shape == (4 * side, 4 * side, 3) and 4 * side >= app.DISPLAYED
    assert [viewer.patch_at(x, y) for x, y in ((0, 0), (side, side - 1), (4 * side - 1, 4 * side - 1))] == [0, 1, 15]
    for patch in (3, 9):  # grey where it is hidden, and only there
        other = viewer.toggle(scene, patch)
        differs = (viewer.masked(scene) != viewer.masked(other)).any(-1)
        row, column = divmod(patch, 4)
        assert differs[row * side + 8 : (row + 1) * side - 8, column * side + 8 : (column + 1) * side - 8].mean() > 0.9
        assert other.seen is None and other.masked[0, patch] != scene.masked[0, patch]
        assert torch.equal(viewer.toggle(other, patch).masked, scene.masked)


def test_a_completion_keeps_what_is_visible(viewer, scene):
    original, grey = viewer.masked(viewer.toggle(scene, 0)), 127
    completed = viewer.panels(scene, 3)["completion"].astype(int)
    visible = np.abs(original.astype(int) - grey).max(-1) > 1
    frame = (original == (255, 60, 0)).all(-1)
    side = 16 * viewer.scale
    visible[:side, :side] = False  # the toggled patch
    assert np.abs(completed - original)[visible & ~frame].max() == 0
    assert set(viewer.panels(scene, 0)) == {"completion", "tokens", "attention", "hopfield"}
    assert not np.array_equal(viewer.panels(scene, 0)["tokens"], viewer.panels(scene, 3)["tokens"])


def test_the_last_steps_error_is_the_networks_own(viewer, scene):
    with torch.no_grad():
        prediction = viewer.network(scene.image, scene.masked)
    from et.inpainting.patches import patchify

    error = (prediction - patchify(scene.image, 16))[scene.masked].square().mean()
    assert viewer.error(scene, 3) == pytest.approx(float(error), rel=2e-2)  # the app may compute in bfloat16


@pytest.mark.parametrize("self_attention", [False, True])
def test_whom_a_patch_attends_to_gives_the_first_term_of_its_update(self_attention):
    torch.manual_seed(1)
    network = InpaintingET(32, 8, dim=16, num_heads=2, head_dim=4, self_attention=self_attention, block={"beta": 3.0})
    attention = network.block.attention
    attention.w_query.data *= 10
    attention.w_key.data *= 10
    g, patch = torch.randn(17, 16), 5
    weights = attention_of(network, g, patch)
    assert weights.shape == (2, 17) and torch.allclose(weights.sum(-1), torch.ones(2))
    assert (weights[:, 1 + patch] == 0).all() == (not self_attention)
    attention.terms = "query"
    keys = torch.einsum("hn,nd,hyd->hy", weights, g, attention.w_key)
    expected = attention.update(g[None])[0, 1 + patch]
    assert torch.allclose(torch.einsum("hy,hyd->d", keys, attention.w_query), expected, atol=1e-4)


def test_a_photograph_of_any_kind_is_opened_and_a_model_without_descent_refused(viewer):
    for mode, size in (("RGBA", (90, 40)), ("L", (30, 64)), ("P", (64, 64))):
        assert viewer.open(Image.new(mode, size), 0.5, 0).image.shape == (1, 3, 64, 64)
    with pytest.raises(UserError, match="this run is none"):
        Viewer(torch.nn.Linear(1, 1))


def test_without_gradio_the_app_says_what_to_install(viewer, monkeypatch):
    monkeypatch.setattr(app, "gr", None)
    with pytest.raises(UserError, match=r"\.\[app\]"):
        app.application(viewer)


# From here on in a browser.


@pytest.fixture(scope="module")
def address(viewer):
    pytest.importorskip("gradio", reason="no Gradio: pip install -e '.[app]'")
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app.application(viewer), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def browser(address):
    """Headless Chromium that can resolve no name and reach no address but this machine's."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install -e '.[dev]'")
    program, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if program is None or driver is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    offline = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", offline):
        options.add_argument(argument)
    options.add_argument("--window-size=1400,1300")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chromium.get(address)
    yield chromium
    chromium.quit()


def one(browser, selector: str):
    return browser.find_element("css selector", selector)


def wait_until(browser, condition):
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    ignored = (NoSuchElementException, StaleElementReferenceException)
    return WebDriverWait(browser, 120, ignored_exceptions=ignored).until(lambda _: condition())


def picture(browser, name: str) -> str:
    return one(browser, f"#{name} img").get_attribute("src")


@pytest.mark.slow
def test_the_page_clicked_through(browser, address):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    wait_until(browser, lambda: "8 hidden patches" in one(browser, "#said").text)
    assert "Step 3" in one(browser, "#said").text
    for name in ("photo", "completion", "tokens", "attention", "hopfield", "looks", "energies"):
        wait_until(browser, lambda name=name: int(one(browser, f"#{name} img").get_property("naturalWidth")) > 100)

    before = picture(browser, "tokens")  # a step back
    slider = one(browser, "#step input[type=range]")
    slider.send_keys(Keys.ARROW_LEFT)
    wait_until(browser, lambda: "Step 2" in one(browser, "#said").text and picture(browser, "tokens") != before)

    before = picture(browser, "looks")  # whom another patch attends to
    browser.find_elements("css selector", "#click input")[1].click()
    photo = one(browser, "#photo img")
    corner = -photo.size["width"] // 2 + 6, photo.size["height"] // 2 - 6
    ActionChains(browser).move_to_element_with_offset(photo, *corner).click().perform()
    wait_until(browser, lambda: picture(browser, "looks") != before)
    assert "8 hidden patches" in one(browser, "#said").text

    browser.find_elements("css selector", "#click input")[0].click()  # hide or show the patch at the centre
    photo = one(browser, "#photo img")
    ActionChains(browser).move_to_element_with_offset(photo, 20, 20).click().perform()
    wait_until(browser, lambda: "press" in one(browser, "#said").text)
    one(browser, "#go").click()
    wait_until(browser, lambda: "Step 3" in one(browser, "#said").text)
    assert "8 hidden patches" not in one(browser, "#said").text

    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert loaded and all(name.startswith((address, "data:", "blob:")) for name in loaded)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
