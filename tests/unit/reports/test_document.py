from curricle.reports.document import POLICY, again, document, note, section, table
from curricle.reports.tables import Grid


def test_a_page_loads_nothing_and_escapes_its_title() -> None:
    page = document("a < b", [section("One", note("x & y")), ""])
    assert POLICY in page
    assert "<title>a &lt; b</title>" in page
    assert "<h2>One</h2>" in page
    assert "x &amp; y" in page
    assert "http" not in page.replace("http-equiv", "")


def test_only_a_page_with_plots_carries_the_library() -> None:
    assert len(document("a", ["b"])) < 20_000 < len(document("a", ["b"], plots=True))


def test_a_table_marks_numbers_and_its_total() -> None:
    grid = Grid(
        title="", columns=("a", "b"), rows=(("x", "1"), ("<y>", "2")), numeric=(False, True),
        total=True,
    )  # fmt: skip
    told = table(grid)
    assert "<td class=number>1</td>" in told
    assert '<tr class="total"><td>&lt;y&gt;</td>' in told


def test_what_to_type_is_shown_only_if_known() -> None:
    assert again("") == ""
    assert "a &amp;&amp; b" in again("a && b")
    assert "Run it again" in again("curricle compare spec.yaml\ncurricle report run")
    assert "Draw this page of the same runs again" in again("curricle report run")
