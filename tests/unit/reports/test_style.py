import re

import pytest

from curricle.reports.style import SCRIPT, STYLE


def test_every_color_of_the_light_page_has_a_dark_one() -> None:
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)
    assert re.findall(r"--[a-z-]+(?=:)", dark) == re.findall(r"--[a-z-]+(?=:)", light)


def test_every_color_that_is_used_is_set() -> None:
    used = set(re.findall(r"var\((--[a-z-]+)\)", STYLE))
    assert used <= set(re.findall(r"(--[a-z-]+):", STYLE))


@pytest.mark.parametrize("text", [STYLE, SCRIPT])
def test_neither_style_nor_script_names_an_address(text: str) -> None:
    assert "//" not in text
    assert "url(" not in text
    assert "</" not in text
