"""Is who lacks a package told what to install?"""

import json
import sys

import pytest

from curricle.errors import BindError
from curricle.extras import imported


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
