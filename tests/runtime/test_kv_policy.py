"""KV policies: what --kv reads and refuses, and what the operator is told."""

from __future__ import annotations

import pytest

from edgellm.kernels.control import MILLION, SCORE, Control
from edgellm.runtime.errors import UsageError
from edgellm.runtime.kv_policy import POLICIES, KVPolicy, kv_policy, parse_kv


def test_policies() -> None:
    assert parse_kv("full", 2048) == KVPolicy("full", 2048, 4)
    assert parse_kv("full:100", 2048).budget == 100
    window = parse_kv(" window:512", 2048)
    assert (window.number, window.budget, window.sinks, str(window)) == (1, 512, 4, "window:512")
    assert parse_kv("window:5", 2048).budget == 5
    assert parse_kv("window:1,sinks=0", 2048).budget == 1


@pytest.mark.parametrize(
    ("text", "row", "planes"),
    [
        ("vatp:512", Control(0, 0, 0, 512, 20, SCORE, 256, norm=1), 2),
        ("vatp-window:512", Control(0, 0, 0, 512, 20, SCORE, 10, queries=400, norm=1), 3),
        ("h2o:512", Control(0, 0, 0, 512, 0, SCORE, 256), 1),
        ("h2o:512,sinks=20", Control(0, 0, 0, 512, 20, SCORE, 256), 1),
        ("h2o:512,recent=10,queries=400", Control(0, 0, 0, 512, 0, SCORE, 10, queries=400), 3),
        ("a2sf:512,forget=0.25,recent=0.1", Control(0, 0, 0, 512, 0, SCORE, 51, forget=250_000), 1),
        ("tova:1", Control(0, 0, 0, 1, 0, SCORE, forget=0), 1),
        ("vatp:100,heads=max,sinks=4", Control(0, 0, 0, 100, 4, SCORE, 50, heads=2, norm=1), 2),
    ],
)
def test_what_the_operator_is_told(text: str, row: Control, planes: int) -> None:
    policy = parse_kv(text, 2048)
    assert policy.control(policy.budget) == row
    assert policy.planes == planes
    assert row.forget <= MILLION


def test_its_text_says_everything() -> None:
    for text in ("full:64", "window:64,sinks=2", "vatp:64,sinks=4,recent=0.25,heads=mean,prefill=whole", "h2o:64",
                 "a2sf:64,forget=0.5,queries=10", "vatp-window:64"):  # fmt: skip
        assert str(parse_kv(text, 64)) == text
        assert parse_kv(str(parse_kv(text, 64)), 64) == parse_kv(text, 64)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("window", "no budget"),
        ("window:", "not a number"),
        ("window:-5", "not a number"),
        ("window:5e3", "not a number"),
        ("window:²", "not a number"),
        ("window:" + "9" * 5000, "not a number"),
        ("window:4", "4 sinks and one more"),
        ("window:2049", "outside 5 to 2048"),
        ("full:2049", "outside 1 to 2048"),
        ("full:0", "outside 1 to 2048"),
        ("snap:512", '"snap" is unknown'),
        ("", "unknown"),
        ("vatp", "no budget"),
        ("vatp:20", "20 sinks and one more"),
        ("vatp:30", "20 sinks and 15 recent"),
        ("vatp:512,", "setting"),
        ("vatp:512,sinks", "setting"),
        ("vatp:512,colour=red", "unknown"),
        ("vatp:512,sinks=-1", "not a number"),
        ("vatp:512,recent=nan", "recent=nan"),
        ("vatp:512,recent=-1", "recent=-1"),
        ("vatp:512,forget=1.5", "forget=1.5"),
        ("vatp:512,forget=x", "not a number"),
        ("vatp:512,queries=" + "9" * 12, "queries="),
        ("vatp:512,heads=median", "heads=median"),
        ("vatp:512,prefill=half", "prefill=half"),
        ("window:512,recent=5", 'no setting "recent"'),
        ("full:512,sinks=5", 'no setting "sinks"'),
    ],
)
def test_policies_refused(text: str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        parse_kv(text, 2048)
    assert caught.value.exit_code == 2


def test_budgets_a_layer() -> None:
    policy = kv_policy("vatp", 100, 2048, [60, 140], sinks=4)
    assert policy.layer_budgets(2) == (60, 140)
    assert [policy.control(budget).recent for budget in policy.budgets] == [30, 70]
    assert parse_kv("vatp:100", 2048).layer_budgets(3) == (100, 100, 100)
    for wrong in ([4, 140], [60, 2049]):
        with pytest.raises(UsageError, match="budget of"):
            kv_policy("vatp", 100, 2048, wrong, sinks=4)
    with pytest.raises(UsageError, match="one budget"):
        kv_policy("full", 100, 2048, [100, 100])


def test_every_policy_has_a_row() -> None:
    for name in POLICIES:
        assert parse_kv(f"{name}:1024", 2048).control(1024).budget == 1024


@pytest.mark.parametrize(
    "wrong", ["pool=4,prefill=whole", "pool=101,prefill=whole", "pool=5,prefill=chunked", "pool=5"]
)
def test_pooling_is_odd_and_for_whole_prompts(wrong: str) -> None:
    with pytest.raises(UsageError, match="pool"):
        parse_kv(f"h2o:64,{wrong}", 2048)
    assert str(parse_kv("h2o:64,prefill=whole,pool=5", 2048)) == "h2o:64,prefill=whole,pool=5"
