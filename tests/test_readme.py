"""README.md is one screen that leads to everything else; `test_guide` tests what it says."""

import re
from pathlib import Path

import cahlib
from cahlib.guide import GUIDES, read_page
from tests.docs import README

TEXT = README.read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert len(TEXT.splitlines()) <= 150


def test_the_readme_leads_to_every_guide():
    linked = {Path(each).stem for each in re.findall(r"\]\((cahlib/guide/[^)#]+)", TEXT)}
    assert linked == {*GUIDES}


def test_the_latest_changes_are_those_of_this_version():
    assert re.search(r"^## (\S+)", read_page("changelog"), re.M)[1] == cahlib.__version__
