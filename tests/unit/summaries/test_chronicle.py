"""Summaries of campaigns on the disk: brought up to date or built anew, they are the same."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from archaeologist.artifacts.archive import Rule, archive
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.errors import ArtifactUnwritable, SummariesLate
from archaeologist.summaries import chronicle, store
from archaeologist.summaries.chronicle import rebuild, update
from archaeologist.summaries.sources import FORMAT, is_current
from contracts.artifacts import Alert, DriftTimeline, HealthTimeline
from tests.fixtures.histories import Weights, artifact, folder_in, place_whole, put, put_all, with_activations

BLOCKS = ("model.embed_tokens", "model.layers.0", "model.layers.1")
STEPS = (100, 200, 300, 400)
HUGE = b'"reference_checkpoint_step":' + b"9" * 400


def weights(step: int, blocks: tuple[str, ...] = BLOCKS) -> Weights:
    generator = np.random.default_rng(step)
    return {f"{block}.mlp.weight": generator.standard_normal(8) for block in blocks}


@pytest.fixture
def folder(tmp_path: Path) -> CampaignFolder:
    """A campaign without artifacts."""
    return folder_in(tmp_path)


def summaries(folder: CampaignFolder) -> dict[str, bytes]:
    """What every summary holds, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.summaries.glob("*.json"))}


def timeline(folder: CampaignFolder) -> DriftTimeline:
    return msgspec.json.decode(folder.timeline.read_bytes(), type=DriftTimeline)


def health(folder: CampaignFolder) -> HealthTimeline:
    return msgspec.json.decode(folder.health.read_bytes(), type=HealthTimeline)


def built_anew(folder: CampaignFolder) -> dict[str, bytes]:
    rebuild(folder)
    return summaries(folder)


def test_updates_in_any_order_equal_a_rebuild_byte_for_byte(folder: CampaignFolder) -> None:
    for step in (300, 100, 400, 200):
        before = (step - 100, weights(step - 100)) if step > 100 else None
        put(folder, step, weights(step), reference=before)
        assert update(folder).read == 1
    brought = summaries(folder)
    assert brought == built_anew(folder)
    assert timeline(folder).checkpoints == (200, 300, 400)
    assert health(folder).checkpoints == STEPS


def test_the_timeline_has_the_specification_s_arrays(folder: CampaignFolder) -> None:
    put_all(folder, {step: weights(step) for step in STEPS})
    update(folder)
    found = json.loads(folder.timeline.read_bytes())
    layer = found["layers"]["model.layers.0"]
    change = weights(300)["model.layers.0.mlp.weight"] - weights(200)["model.layers.0.mlp.weight"]
    assert layer["name"] == "model.layers.0"
    assert layer["drift_l2"][1] == pytest.approx(float(np.linalg.norm(change)), rel=1e-12)
    assert layer["drift_cosine"] == [0.5, 0.5, 0.5]
    assert found["reference_steps"] == [100, 200, 300]


def test_arrays_stay_aligned_when_a_block_is_missing_in_the_middle(folder: CampaignFolder) -> None:
    for step, blocks in {200: BLOCKS, 300: BLOCKS[:2], 400: BLOCKS}.items():
        put(folder, step, weights(step, blocks), reference=(100, weights(100)))
    update(folder)
    found = timeline(folder)
    assert list(found.layers) == list(BLOCKS)
    late = found.layers["model.layers.1"]
    assert late.drift_l2[0] is not None
    assert late.drift_l2[1] is None
    assert late.below_resolution == (False, None, False)
    for layer in found.layers.values():
        arrays = [value for value in msgspec.structs.asdict(layer).values() if isinstance(value, tuple)]
        assert {len(array) for array in arrays} == {3}


def test_health_covers_checkpoints_without_drift_too(folder: CampaignFolder) -> None:
    alert = Alert(severity="warning", family="entropy", metric="entropy", message="it falls")
    place_whole(folder.layer_stats(100), msgspec.json.encode(artifact(100, weights(100))))
    ill = with_activations(replace(artifact(200, weights(200)), alerts=(alert,)), std=1.5, entropy=2.5)
    place_whole(folder.layer_stats(200), msgspec.json.encode(ill))
    update(folder)
    found = health(folder)
    assert timeline(folder).checkpoints == ()
    assert found.entropy == (None, 2.5)
    assert found.layers["model.layers.0"].activation_std == (None, 1.5)
    assert found.layers["model.layers.0"].activation_percentile_99 == (None, 3.0)
    assert found.layers["model.layers.0"].weight_nonfinite == (0, 0)
    assert [(one.checkpoint_step, one.message) for one in found.alerts] == [(200, "it falls")]
    assert found.probes[0] is None


def test_a_second_update_reads_nothing_and_writes_nothing(folder: CampaignFolder) -> None:
    put_all(folder, {step: weights(step) for step in STEPS})
    assert update(folder).is_changed
    before = folder.timeline.stat().st_mtime_ns
    assert update(folder) == chronicle.Outcome(4, 0, (), is_changed=False)
    assert folder.timeline.stat().st_mtime_ns == before


def test_a_step_analysed_again_replaces_its_predecessor(folder: CampaignFolder) -> None:
    put_all(folder, {step: weights(step) for step in STEPS})
    update(folder)
    other = weights(1)
    put(folder, 300, other, reference=(200, weights(200)))
    assert update(folder).read == 1
    change = other["model.layers.0.mlp.weight"] - weights(200)["model.layers.0.mlp.weight"]
    layer = timeline(folder).layers["model.layers.0"]
    assert layer.drift_l2[1] == pytest.approx(float(np.linalg.norm(change)), rel=1e-12)
    assert len(layer.drift_l2) == 3
    assert summaries(folder) == built_anew(folder)


def test_an_artifact_that_was_taken_away_is_no_longer_there(folder: CampaignFolder) -> None:
    put_all(folder, {step: weights(step) for step in STEPS})
    update(folder)
    folder.layer_stats(300).unlink()
    update(folder)
    assert health(folder).checkpoints == (100, 200, 400)
    assert summaries(folder) == built_anew(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not one"),
        (b"{" * 100_000, "is not one"),
        (b'{"version": 1, "job_key": "k", "checkpoint_path": "p"}', "is not one"),
        (b'{"version": 99, "job_key": "k"}', "upgrade archaeologist"),
        (msgspec.json.encode(artifact(300, weights(1))).replace(b'"reference_checkpoint_step":null', HUGE), "64 bits"),
        (msgspec.json.encode(artifact(777, weights(1))), "checkpoint_step is 777"),
        (msgspec.json.encode(replace(artifact(300, weights(1)), campaign_id="other")), "campaign_id is 'other'"),
    ],
    ids=["empty", "nested", "half", "future", "huge", "other step", "other campaign"],
)
def test_a_bad_artifact_is_told_of_and_the_others_are_served(folder: CampaignFolder, content: bytes, says: str) -> None:
    put_all(folder, {step: weights(step) for step in STEPS})
    place_whole(folder.layer_stats(300), content)
    assert update(folder).read == 4
    found = timeline(folder)
    assert found.checkpoints == (200, 400)
    assert [problem.file for problem in found.left_out] == ["layer_stats/ckpt-000300.layer_stats.json"]
    assert says in found.left_out[0].reason
    assert health(folder).left_out == found.left_out
    assert update(folder).read == 0, "it is not read again while it is the same"
    assert summaries(folder) == built_anew(folder)


def test_files_with_other_names_are_told_of_or_passed_over(folder: CampaignFolder) -> None:
    put_all(folder, {100: weights(100)})
    beside = folder.layer_stats(100).parent
    (beside / "ckpt-100.layer_stats.json").write_bytes(folder.layer_stats(100).read_bytes())
    (beside / ".key.1.tmp").write_bytes(b"half")
    (beside / "notes.txt").write_bytes(b"x")
    (beside / "ckpt-000500.layer_stats.json").symlink_to(beside / "nowhere")
    update(folder)
    assert health(folder).checkpoints == (100,)
    assert [problem.code for problem in health(folder).left_out] == ["artifact_missing", "artifact_invalid"]


@pytest.mark.parametrize("damage", [b"", b"x" * 100, None])
def test_a_damaged_store_costs_a_rebuild_and_nothing_else(folder: CampaignFolder, damage: bytes | None) -> None:
    put_all(folder, {step: weights(step) for step in STEPS})
    update(folder)
    expected = summaries(folder)
    kept = folder.summaries / store.NAME
    kept.write_bytes(kept.read_bytes()[:-3] + b"abc" if damage is None else damage)
    assert update(folder).read == 4
    assert summaries(folder) == expected


def test_a_store_of_another_program_version_is_not_used(
    folder: CampaignFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_all(folder, {step: weights(step) for step in STEPS})
    monkeypatch.setattr("archaeologist.__version__", "0.0.1")
    store.save(_made(folder.summaries), store.Store(program="0.0.1"))
    monkeypatch.undo()
    assert store.load(folder.summaries) == store.Store()


def test_a_store_of_an_older_format_is_not_used(folder: CampaignFolder) -> None:
    put_all(folder, {step: weights(step) for step in STEPS})
    update(folder)
    store.save(folder.summaries, replace(store.load(folder.summaries), format=FORMAT - 1))
    assert store.load(folder.summaries) == store.Store()
    assert update(folder).read == 4


def test_only_checkpoints_that_were_run_alike_have_the_same_probes(folder: CampaignFolder) -> None:
    found = with_activations(artifact(100, weights(100)), std=1.0, entropy=2.0)
    active = {name: replace(block, rankme_tokens=512) for name, block in found.activation_stats.items()}
    assert found.probe_info is not None
    others = (
        found,
        replace(found, architecture="Qwen3ForCausalLM"),
        replace(found, activation_stats=active),
        replace(found, probe_info=replace(found.probe_info, sha256="other")),
        replace(found, probe_info=replace(found.probe_info, tokenizer_sha256="other")),
        replace(found, output_stats=None),
    )
    for step, other in zip(range(100, 700, 100), others, strict=True):
        place_whole(folder.layer_stats(step), msgspec.json.encode(replace(other, checkpoint_step=step)))
    update(folder)
    probes = health(folder).probes
    assert len(set(probes)) == 5
    assert probes[0] == probes[5], "what was measured does not matter"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_a_summary_that_was_removed_is_written_again(folder: CampaignFolder) -> None:
    put_all(folder, {step: weights(step) for step in STEPS})
    update(folder)
    folder.health.unlink()
    assert not is_current(folder)
    assert update(folder).is_changed
    assert is_current(folder)


def test_an_update_that_runs_out_of_time_keeps_what_it_read(folder: CampaignFolder) -> None:
    put_all(folder, {step: weights(step) for step in STEPS})
    ticks = iter(range(100))

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return float(next(ticks))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chronicle, "time", Clock)
        with pytest.raises(SummariesLate, match="2 of 4"):
            update(folder, until=1.5)
    assert not folder.timeline.exists()
    assert update(folder).read == 2
    assert summaries(folder) == built_anew(folder)


def test_writers_at_once_lose_no_artifact(folder: CampaignFolder) -> None:
    def add(step: int) -> None:
        put(folder, step, weights(step), reference=(0, weights(0)))
        update(folder)

    threads = [threading.Thread(target=add, args=(step,)) for step in range(1, 9)]
    threads.append(threading.Thread(target=rebuild, args=(folder,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert timeline(folder).checkpoints == tuple(range(1, 9))
    assert summaries(folder) == built_anew(folder)


def test_who_waits_too_long_for_the_lock_says_so(folder: CampaignFolder) -> None:
    put_all(folder, {100: weights(100)})
    with chronicle._locked(folder, None), pytest.raises(SummariesLate, match="somebody else"):
        update(folder, until=time.monotonic())


def test_a_folder_that_cannot_be_written_is_a_coded_error(folder: CampaignFolder) -> None:
    folder.summaries.write_bytes(b"a file where the folder should be")
    with pytest.raises(ArtifactUnwritable, match="cannot be written"):
        update(folder)


def test_a_reader_never_sees_half_a_summary(folder: CampaignFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    put_all(folder, {step: weights(step) for step in STEPS})
    update(folder)
    before = summaries(folder)

    def full(*_: Any) -> int:
        raise OSError(28, os.strerror(28))

    put(folder, 500, weights(500))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArtifactUnwritable, match="free space"):
            update(folder)
    assert summaries(folder) == before
    update(folder)
    assert health(folder).checkpoints[-1] == 500


def test_an_empty_campaign_has_empty_summaries(folder: CampaignFolder) -> None:
    assert update(folder).checkpoints == 0
    assert timeline(folder) == DriftTimeline(campaign_id="campaign", hero_id="hero")


def test_a_death_between_two_summaries_is_made_up_for(folder: CampaignFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    put_all(folder, {step: weights(step) for step in STEPS})
    update(folder)
    put(folder, 500, weights(500), reference=(400, weights(400)))
    write = chronicle._write

    def dies(path: Path, summary: msgspec.Struct) -> None:
        if path == folder.stability:
            raise KeyboardInterrupt
        write(path, summary)

    with monkeypatch.context() as patch:
        patch.setattr(chronicle, "_write", dies)
        with pytest.raises(KeyboardInterrupt):
            update(folder)
    assert not is_current(folder)
    update(folder)
    assert summaries(folder) == built_anew(folder)
    assert timeline(folder).checkpoints[-1] == 500


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_to_the_files_updates_equal_a_rebuild(folder: CampaignFolder, seed: int) -> None:
    chance = np.random.default_rng(seed)
    for _ in range(25):
        step = 100 * int(chance.integers(1, 9))
        happens = chance.integers(0, 6)
        if happens == 0:
            folder.layer_stats(step).unlink(missing_ok=True)
        elif happens == 1:
            folder.sketch(step).unlink(missing_ok=True)
        elif happens == 2:
            place_whole(folder.layer_stats(step), b"half an arti")
        else:
            blocks = BLOCKS[: int(chance.integers(1, 4))]
            before = weights(step - 100) if happens == 3 else weights(int(chance.integers(0, 99)))
            put(folder, step, weights(step, blocks), reference=(step - 100, before))
        update(folder)
    assert summaries(folder) == built_anew(folder)


def test_numbers_that_overflow_or_are_null_stay_null(folder: CampaignFolder) -> None:
    found = artifact(200, weights(200), reference=(100, weights(100)))
    block = replace(found.drift_stats["model.layers.0"], total_l2=None, relative_l2=1.7e308)
    odd = replace(found, drift_stats={**found.drift_stats, "model.layers.0": block})
    place_whole(folder.layer_stats(200), msgspec.json.encode(odd))
    update(folder)
    layer = timeline(folder).layers["model.layers.0"]
    assert (layer.drift_l2, layer.relative_l2) == ((None,), (1.7e308,))


def archived(folder: CampaignFolder) -> Path:
    """The WARM root, once everything is archived."""
    warm = folder.root / "warm"
    (warm / "campaigns").mkdir(parents=True)
    report = archive(folder, Rule(warm_root=warm, before=time.time() + 60, allowed=(folder.root,)))
    assert (report.archived, report.error) == (len(STEPS), None)
    return warm


def test_archived_artifacts_give_the_same_summaries_byte_for_byte(folder: CampaignFolder) -> None:
    put_all(folder, {step: weights(step) for step in STEPS})
    before = built_anew(folder)
    archived(folder)
    assert not is_current(folder)
    assert update(folder).checkpoints == len(STEPS)
    assert is_current(folder)
    assert summaries(folder) == before == built_anew(folder)


def test_what_is_known_stays_while_the_warm_root_is_away_and_the_rest_comes_back_with_it(
    folder: CampaignFolder,
) -> None:
    put_all(folder, {step: weights(step) for step in STEPS})
    warm = archived(folder)
    before = built_anew(folder)
    warm.rename(warm.with_name("away"))
    put(folder, 500, weights(500))
    assert update(folder).checkpoints == 5
    outcome = rebuild(folder)
    assert outcome.checkpoints == 1
    assert {problem.code for problem in outcome.left_out} == {"archive_unavailable"}
    assert not is_current(folder)
    warm.with_name("away").rename(warm)
    assert update(folder).checkpoints == 5
    assert is_current(folder)
    folder.layer_stats(500).unlink()
    folder.sketch(500).unlink()
    update(folder)
    assert summaries(folder) == before
