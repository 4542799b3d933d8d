"""What all tests share; nothing here needs a network."""

import os
from pathlib import Path

import pytest


# Set before torch and datasets are imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

FIXTURES = Path(__file__).parent / "fixtures"
ROOT = Path(__file__).parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """The process that only hands tests out to others goes without the libraries, whose import takes long."""
    if not config.getoption("numprocesses", None):
        for fixtures in ("tiny", "trained"):
            config.pluginmanager.import_plugin(fixtures)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left with one of them when the others are done."""
    longest = ("export_alta", "checkpoints", "engines", "demo", "record_streams", "evidence", "write_records")
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in longest)
