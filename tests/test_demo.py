import os
import re
import shutil

import pytest
from conftest import ROOT
from prepared_processes import PreparedProcess
from trained import finish


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo with a few training steps, in a copy of the repository as a clone would hold it."""
    clone = tmp_path_factory.mktemp("clone") / "alta"
    ignored = shutil.ignore_patterns(".venv", ".git", "output", "report.html", "runs", "__pycache__", "tests")
    shutil.copytree(ROOT, clone, ignore=ignored)
    script = ROOT / "tests" / "run_demo_in_prepared_processes.py"
    return clone, finish(PreparedProcess([script, "--quick"], clone, os.environ))


def test_demo_ends_in_a_self_contained_report_that_says_it_is_no_medical_device(demo):
    page = (demo[0] / "demo" / "report.html").read_text()
    assert "This is no medical device." in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert page.count("<svg") == 2 and page.count("data:image/jpeg;base64,") > 20


def test_demo_shows_figures_beside_their_chance_level(demo):
    page = (demo[0] / "demo" / "report.html").read_text()
    rows = re.findall(r"<td>(seen|unseen)</td><td>(note → study|study → note)</td>", page)
    assert len(rows) == 4
    assert "Chance" in page and "of the parameters train" in page


def test_demo_loads_its_hub_folder_in_a_new_process_without_the_package(demo):
    assert '"local_package_imported": false' in demo[1]
    difference = float(re.search(r'"largest_difference_of_adapter_over_base": ([\d.e-]+)', demo[1]).group(1))
    assert difference < 1e-4


def test_demo_fills_the_cards_from_the_run(demo):
    card = (demo[0] / "demo" / "output" / "alta" / "full" / "README.md").read_text()
    assert "zero-shot-image-classification" in card and "No medical device" in card
    assert "text to image R@1" in card and "chance" in card
