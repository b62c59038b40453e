"""Is who lacks a package told what to install?"""

import importlib.metadata
import json
import sys

import pytest

from curricle.errors import BindError
from curricle.extras import imported, package_version


def test_a_module_that_is_there_is_returned() -> None:
    assert imported("json", package="json", extra="hf", use="nothing") is json


def test_a_missing_package_names_the_extra_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "absent", None)
    with pytest.raises(
        BindError,
        match=r"'absent' must be installed for poems: pip install 'curricle\[verse\]' \(.*absent",
    ):
        imported("absent", package="absent", extra="verse", use="poems")


def test_a_source_that_is_not_installed_has_an_unknown_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", fail)
    assert package_version() == "unknown"
