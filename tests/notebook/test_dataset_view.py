"""What the results show of a dataset: the page in a frame, or a gallery with pages."""

import re
import urllib.request

import pytest

from cahlib.core.errors import ConfigError
from cahlib.notebook.dataset_view import DatasetView
from tests.world import judged


@pytest.fixture
def folder(tmp_path):
    made = [
        judged.judged(number, nsfw="NSFW" if number == 3 else "UNLIKELY") for number in range(25)
    ]
    judged.write_these(tmp_path, made)
    return tmp_path


def test_elsewhere_a_gallery_is_leafed_through(folder):
    shown = DatasetView(lambda: folder, "Colab")
    shown.open()
    assert "1 to 18 of 25" in shown.page.value and shown.page.value.count("<img") == 18
    assert "<b>more</b>" not in shown.page.value
    shown.more.click()
    assert "19 to 25 of 25" in shown.page.value and shown.more.disabled
    shown.back.click()
    shown.back.click()
    assert "1 to 18 of 25" in shown.page.value and shown.back.disabled
    shown.order.value = "least similar first"
    found = re.findall("<strong>(.*?)</strong>", shown.page.value)
    assert found == sorted(found)
    shown.where.value = "NSFW = 'NSFW'"
    assert "1 to 1 of 1" in shown.page.value and "NSFW, blurred" in shown.page.value
    shown.where.value = "position > 99"
    assert "No pair matches" in shown.page.value
    shown.where.value = "positoin > 99"
    assert "did you mean position" in shown.page.value
    next(folder.glob("images/*.tar")).write_bytes(b"damaged")
    shown.where.value = ""
    shown.open()  # anew
    assert "cah verify" in shown.page.value


def test_here_the_page_is_shown_in_a_frame(folder):
    shown = DatasetView(lambda: folder, "Jupyter")
    try:
        shown.open()
        (address,) = re.findall('src="(http://127.0.0.1:.*?)"', shown.page.value)
        with urllib.request.urlopen(address) as answer:
            assert "frame-ancestors http://localhost" in answer.headers["content-security-policy"]
        shown.open()  # once more, for another state of it
        with pytest.raises(OSError):
            urllib.request.urlopen(address)
    finally:
        shown.close()


def test_a_folder_without_a_dataset_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="holds no dataset"):
        DatasetView(lambda: tmp_path, "Kaggle").open()
