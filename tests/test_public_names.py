"""The names that users import: ``from datamap import ...``, lazily, and from the scripts of a checkout."""

import importlib
import subprocess
import sys

import pytest
from conftest import REPOSITORY

import datamap


def test_importing_datamap_imports_nothing_else():
    program = ("import sys; before = set(sys.modules); import datamap; dir(datamap); datamap.__all__\n"
               "print(sorted(set(sys.modules) - before))")
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['datamap']"


@pytest.mark.parametrize("name", datamap.__all__)
def test_every_name_is_the_one_of_its_room(name):
    value = getattr(datamap, name)
    assert value.__name__ == name and value.__module__.startswith("datamap.")
    assert name in dir(datamap)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = datamap.nonsense


@pytest.mark.parametrize("module", ["helpers", "dataset_cartography", "dataset_filters"])
def test_every_name_of_the_modules_that_users_import_from(module):
    found = importlib.import_module(module)
    assert all(hasattr(found, name) for name in found.__all__)


def test_what_was_documented_of_them():
    from dataset_cartography import categorize_examples, get_examples_by_category, load_cartography_metrics
    from dataset_filters import apply_filters
    from helpers import load_split

    given = [categorize_examples, get_examples_by_category, load_cartography_metrics, apply_filters, load_split]
    assert [getattr(datamap, each.__name__) for each in given] == given
