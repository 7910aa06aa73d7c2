"""Scores against what SQuAD's script and textbooks say; tables against direct sums."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from edgellm.runtime.errors import UsageError
from edgellm.runtime.evaluation.cells import Cell, cells
from edgellm.runtime.evaluation.picture import svg
from edgellm.runtime.evaluation.results import Row
from edgellm.runtime.evaluation.scores import bootstrap, f1, found, interval, wilson
from edgellm.runtime.evaluation.summary import table


def test_f1_ignores_case_articles_and_punctuation() -> None:
    assert f1("The Eiffel-Tower!", "eiffeltower") == 1
    assert f1("in the big city of Paris", "Paris, the city") == pytest.approx(2 * (2 / 5) * 1 / (2 / 5 + 1))
    assert f1("no no", "no") == pytest.approx(2 / 3)
    assert f1("something", "else") == f1("", "else") == 0
    assert f1("the", "a") == 1


def test_found_is_a_share() -> None:
    assert found(" 12345. It is", ["12345"]) == 1
    assert found("12345 and 2222", ["12345", "22222"]) == 0.5


def test_wilsons_interval_is_the_textbooks() -> None:
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert interval([1.0, 0.0]) == wilson(0.5, 2)


def test_a_bootstraps_interval_is_about_two_standard_errors() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400).tolist()
    low, high = bootstrap(values)
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(values) / 20, rel=0.05)
    assert low < np.mean(values) < high
    assert interval(values) == (low, high)


def test_cells_cross_policies_and_budgets() -> None:
    made = cells(["vatp", "h2o:300,sinks=20", "full", "window:25%"], ["50%", "400"], 1000)
    assert [str(cell) for cell in made] == ["full", "vatp:50%", "vatp:400", "h2o:300,sinks=20", "window:25%"]
    assert made[1].of(811, 1000).budget == 406
    assert made[2].of(811, 1000).budget == 400
    assert made[0].of(811, 1000).budget == 1000
    assert str(Cell("h2o,sinks=20", "25%").of(400, 1000)) == "h2o:100,sinks=20"


@pytest.mark.parametrize("wrong", ["vatp:x", "vatp:25%%", "what:25%", "vatp:25%,sinks=-1", "vatp:0%", "vatp:2000"])
def test_cells_that_cannot_be_are_told_before_anything_runs(wrong: str) -> None:
    with pytest.raises(UsageError):
        cells([wrong], ["50%"], 1000)
    with pytest.raises(UsageError, match="is not a number of tokens"):
        cells(["vatp"], ["half"], 1000)


CELLS = [Cell("full", ""), Cell("vatp", "25%"), Cell("h2o,sinks=20", "25%"), Cell("h2o,sinks=20", "50%")]


def rows(values: list[list[float]]) -> dict[int, Row]:
    names = [str(cell) for cell in CELLS]
    return {i: Row(i, 100, dict(zip(names, item, strict=True)), {}) for i, item in enumerate(values)}


def test_a_table_compares_items_in_pairs() -> None:
    made = table(rows([[1, 0.5, 0.25, 1], [0.5, 0.25, 0, 1], [1, 0.75, 0.5, 1]]), CELLS, 3, False, "h2o,sinks=20")
    assert [row["of_full"] for row in made] == pytest.approx([1, 0.6, 0.3, 1.2])
    assert made[1]["against"] == {"kv": "h2o:25%,sinks=20", "difference": 0.25, "low": 0.25, "high": 0.25}
    assert "against" not in made[2]
    alone = table(rows([[1, 1, 0, 0], [1, 0, 0, 0]]), CELLS, 2, False, "")
    assert alone[1]["against"]["kv"] == "full"
    assert alone[1]["against"]["difference"] == -0.5
    assert (alone[1]["low"], alone[1]["high"]) == wilson(0.5, 2)


def test_a_texts_table_is_perplexity() -> None:
    made = table(rows([[1, 1.5, 2, 1], [2, 2.5, 2, 2]]), CELLS, 2, True, "")
    assert made[0]["score"] == pytest.approx(math.exp(1.5))
    assert made[1]["of_full"] == pytest.approx(math.exp(0.5))
    assert made[1]["against"]["low"] == pytest.approx(0.5)


def test_a_score_of_nothing_has_no_share() -> None:
    assert table(rows([[0, 1, 0, 0]]), CELLS, 1, False, "")[1]["of_full"] is None


def test_the_picture_has_a_line_a_policy_and_a_point_a_cell() -> None:
    made = table(rows([[1, 0.5, 0.25, 1], [0.5, 0.25, 0, 1]]), CELLS, 2, False, "")
    root = ElementTree.fromstring(svg(made, "a < b", "found"))
    space = "{http://www.w3.org/2000/svg}"
    lines = [line.get("points", "").split() for line in root.iter(f"{space}polyline")]
    assert [len(line) for line in lines] == [0, 1, 2]
    ours, theirs = (lines[i][-1].split(",")[1] for i in (1, 2))
    assert float(ours) > float(theirs)  # a higher score lies higher: pixels count downwards
    assert len(list(root.iter(f"{space}circle"))) == 3
    shown = [text.text for text in root.iter(f"{space}text")]
    assert {"a < b", "found", "vatp", "h2o,sinks=20", "25%", "50%"} <= set(shown)
