"""Reports in Markdown."""

from maest.helpers.reports.report import table


def test_table_lines_up():
    lines = table(["a", "bb"], [["long", "1"], ["x", "22.5"]]).splitlines()
    assert lines == ["| a    |   bb |", "|------|-----:|", "| long |    1 |", "| x    | 22.5 |"]
