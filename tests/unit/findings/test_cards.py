"""The four cards."""

from msgspec.structs import replace

from archaeologist.findings.cards import NONE, cards
from contracts.artifacts import DriftTimeline, HealthTimeline, LayerTotal, StabilityReport
from tests.fixtures.summaries import BLOCKS, WHOSE, drift_timeline, health_timeline, stability_report


def test_cards_tell_how_many_which_and_how_far() -> None:
    analysed, most, least, average = cards(drift_timeline(), health_timeline(), stability_report())
    assert (analysed.value, analysed.detail) == ("3", "steps 100 to 300")
    assert (most.value, most.block, most.trend) == ("lm_head", "lm_head", (4e-4, 4e-3))
    assert (least.value, least.block) == ("model.embed_tokens", "model.embed_tokens")
    assert (average.value, average.detail) == ("0.01", "relative L2 over 2 comparisons; newest 0.01, as before")


def test_the_average_tells_how_the_newest_compares() -> None:
    timeline = replace(drift_timeline(), relative_l2=(0.04, 0.01))
    average = cards(timeline, health_timeline(), None)[-1]
    assert (average.value, average.trend) == ("0.025", (0.04, 0.01))
    assert average.detail.endswith("newest 0.01, 75.0% less than before")
    slower = cards(replace(timeline, relative_l2=(0.02, 0.020001)), health_timeline(), None)[-1]
    assert slower.detail.endswith("newest 0.02, less than 0.1% more than before")


def test_blocks_that_moved_alike_are_counted() -> None:
    totals = tuple(LayerTotal(layer=name, total_drift=1.0, total_relative=float(name == "lm_head")) for name in BLOCKS)
    found = cards(drift_timeline(), health_timeline(), replace(stability_report(), top_movers=totals))
    assert found[2].detail == "relative L2 0 on average over 2 comparisons; as much as 2 others"


def test_blocks_are_ranked_by_their_own_comparisons() -> None:
    moved = {BLOCKS[0]: (0.1,) * 6, BLOCKS[1]: (None,) * 3 + (0.2,) * 3, BLOCKS[2]: (0.15,) * 6, BLOCKS[3]: (0.3,) * 6}
    timeline = drift_timeline(steps=tuple(range(100, 700, 100)))
    layers = {name: replace(timeline.layers[name], relative_l2=values) for name, values in moved.items()}
    known = {name: sum(value for value in values if value is not None) for name, values in moved.items()}
    totals = tuple(LayerTotal(layer=name, total_drift=1.0, total_relative=total) for name, total in known.items())
    report = replace(stability_report(), top_movers=totals)
    _, most, least, _ = cards(replace(timeline, layers=layers), health_timeline(), report)
    assert (most.block, least.block) == (BLOCKS[3], BLOCKS[0]), "the second block has the smallest sum"
    some = {name: layers[name] for name in BLOCKS[:2]}
    _, most, *_ = cards(replace(timeline, layers=some), health_timeline(), report)
    assert most.block == BLOCKS[1]
    assert most.detail == "relative L2 0.2 on average over 3 of 6 comparisons"


def test_an_older_comparison_is_not_called_the_newest() -> None:
    found = cards(replace(drift_timeline(), relative_l2=(0.02, None)), health_timeline(), None)[-1]
    assert (found.value, found.detail) == ("0.02", "relative L2 over 1 of 2 comparisons; newest not known")
    steps = (100, 200, 300)
    timeline = replace(drift_timeline(steps=steps), relative_l2=(0.02, None, 0.04))
    assert cards(timeline, health_timeline(), None)[-1].detail == "relative L2 over 2 of 3 comparisons; newest 0.04"


def test_one_block_is_not_the_most_stable() -> None:
    report = stability_report(BLOCKS[:1])
    assert cards(drift_timeline(), health_timeline(), report)[2].value == NONE


def test_what_was_not_measured_is_called_that() -> None:
    empty = cards(DriftTimeline(**WHOSE), HealthTimeline(**WHOSE), StabilityReport(**WHOSE))
    assert [card.value for card in empty] == ["0", NONE, NONE, NONE]
