"""A checkpoint judged against artifact files as they lie in a campaign's folder."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from archaeologist.artifacts.archive import Rule, archive
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.excavation import judgement
from archaeologist.excavation.judgement import judge
from contracts.artifacts import (
    ActivationDistribution,
    FunctionalDrift,
    Generations,
    GenerationStats,
    GlobalWeightStats,
    LayerActivationStats,
    LayerStats,
    LayerWeightStats,
    OutputDrift,
    OutputStats,
    ProbeInfo,
    TensorWeights,
)
from tests.fixtures.artifacts import layer_stats

BLOCKS = ("model.layers.0", "model.layers.1", "model.layers.2")
NAMES = ("model.embed_tokens", *BLOCKS, "model.norm", "lm_head")


def weights(name: str, **fields: Any) -> LayerWeightStats:
    kind = "transformer_block" if name in BLOCKS else "other"
    tensor = TensorWeights(dtype="F32", shape=(2, 2), l2=10.0)
    return LayerWeightStats(name=name, layer_type=kind, tensors={"weight": tensor}, **{"l2": 10.0, **fields})


def activations(name: str, **fields: Any) -> LayerActivationStats:
    healthy = {"rankme": 100.0, "anisotropy": 0.3, "feature_variance": 1.0, "rankme_tokens": 512}
    return LayerActivationStats(name=name, **{**healthy, **fields})


def artifact(
    step: int,
    *,
    entropy: float = 2.0,
    kl: float = 0.1,
    rankme: Mapping[str, float] | None = None,
    sha256: str = "probes",
) -> LayerStats:
    """A healthy checkpoint that wobbles by a percent, but for what is named; ``rankme`` by block."""
    wobble = 1 + 0.01 * (-1) ** (step // 10)
    own = dict.fromkeys(NAMES, 100.0 * wobble) | dict(rankme or {})
    return replace(
        layer_stats(f"key{step}", step=step),
        architecture="Qwen3ForCausalLM",
        weight_stats={name: weights(name) for name in NAMES},
        global_weight_stats=GlobalWeightStats(param_count=24),
        activation_stats={name: activations(name, rankme=own[name]) for name in NAMES[:-1]},
        probe_info=ProbeInfo(
            dataset_id="default",
            num_sequences=1,
            total_tokens=512,
            source_file="package:default.jsonl",
            sha256=sha256,
            tokenizer_sha256="tokenizer",
        ),
        output_stats=OutputStats(positions=512, entropy=entropy * wobble, loss=2.2),
        functional_drift=FunctionalDrift(
            output=OutputDrift(positions=512, kl=kl * wobble),
            reference_output=OutputStats(positions=512, entropy=2.0, loss=2.2),
        ),
        reference_fingerprint="base",
        reference_checkpoint_step=0,
    )


ILL = artifact(500, rankme=dict.fromkeys(BLOCKS, 10.0), entropy=0.4)


def put(folder: Path, found: LayerStats) -> Path:
    path = folder / f"ckpt-{found.checkpoint_step:06d}.layer_stats.json"
    path.write_bytes(msgspec.json.encode(found))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight healthy checkpoints: steps 10 to 80."""
    for step in range(10, 90, 10):
        put(tmp_path, artifact(step))
    return tmp_path


def families(found: LayerStats, folder: Path) -> list[tuple[str, str, int]]:
    return [(alert.severity, alert.family, alert.checkpoints) for alert in judge(found, folders=[folder]).alerts]


CRITICAL = [("critical", "representation", 8), ("critical", "entropy", 8)]


def test_a_collapsed_checkpoint_is_critical_against_the_artifacts_in_the_folder(folder: Path) -> None:
    assert families(ILL, folder) == CRITICAL
    representation = judge(ILL, folders=[folder]).alerts[0]
    assert (representation.metric, representation.value, representation.baseline) == ("rankme", 10.0, 100.0)


def test_a_healthy_checkpoint_raises_nothing(folder: Path) -> None:
    assert judge(artifact(90), folders=[folder]) == judgement.Judgement()


def test_one_block_cannot_raise_an_alarm_alone_and_two_of_three_can(folder: Path) -> None:
    one = artifact(500, rankme={"model.layers.1": 1.0}, entropy=0.4)
    two = artifact(500, rankme={"model.layers.1": 1.0, "model.layers.2": 1.0}, entropy=0.4)
    assert families(one, folder) == []
    assert families(two, folder) == CRITICAL


def test_what_is_no_transformer_block_takes_no_part(folder: Path) -> None:
    assert families(artifact(500, rankme={"model.embed_tokens": 1.0, "model.norm": 1.0}, entropy=0.4), folder) == []


def test_the_divergence_from_the_reference_is_read(folder: Path) -> None:
    ill = artifact(500, kl=1.0, entropy=0.4)
    assert [alert.metric for alert in judge(ill, folders=[folder]).alerts] == ["entropy", "kl"]


def test_texts_that_repeat_are_a_family_of_their_own_and_checkpoints_without_texts_take_no_part(tmp_path: Path) -> None:
    def writing(found: LayerStats, distinct_2: float) -> LayerStats:
        texts = GenerationStats(texts=8, tokens=256, distinct_2=distinct_2)
        written = Generations(greedy=texts, sampled=texts, seed=1, temperature=1.0, max_new_tokens=32)
        return replace(found, generations=written)

    for step in range(10, 90, 10):
        put(tmp_path, writing(artifact(step), 0.9 + 0.001 * (step % 30)) if step > 20 else artifact(step))
    ill = writing(artifact(500, entropy=0.4), 0.2)
    assert families(ill, tmp_path) == [("critical", "entropy", 8), ("critical", "repetition", 6)]
    assert families(writing(artifact(500), 0.85), tmp_path) == []


def test_without_a_folder_only_nan_infinity_and_the_reference_judge(tmp_path: Path) -> None:
    assert judge(artifact(500), folders=[tmp_path / "missing"]) == judgement.Judgement()
    ill = replace(
        artifact(500),
        weight_stats={name: weights(name, nan_count=3 * (name == "lm_head")) for name in NAMES},
        activation_stats={
            "model.layers.0": activations("model.layers.0"),
            "model.layers.1": activations("model.layers.1", distribution=ActivationDistribution(inf_count=2)),
            "model.layers.2": activations("model.layers.2", first_token=ActivationDistribution(nan_count=5)),
        },
        output_stats=OutputStats(positions=1, nonfinite_positions=511),
    )
    found = judge(ill, folders=[tmp_path / "missing"]).alerts
    assert [(alert.severity, alert.family, alert.block, alert.value) for alert in found] == [
        ("critical", "weights", "lm_head", 3.0),
        ("critical", "representation", "model.layers.1", 7.0),
        ("critical", "entropy", None, 511.0),
    ]


def test_a_norm_that_left_its_history_is_a_warning_also_without_activations(folder: Path) -> None:
    stats = {name: weights(name, l2=15.0 if name == "model.layers.1" else 10.0) for name in NAMES}
    bare = replace(
        artifact(500),
        weight_stats=stats,
        activation_stats={},
        probe_info=None,
        output_stats=None,
        functional_drift=None,
    )
    (alert,) = judge(bare, folders=[folder]).alerts
    assert (alert.severity, alert.family, alert.block, alert.checkpoints) == ("warning", "weights", "model.layers.1", 8)


def test_artifacts_of_other_probes_campaigns_steps_and_versions_take_no_part(folder: Path) -> None:
    quiet = families(ILL, folder)
    for number, other in enumerate(
        (
            replace(artifact(410), campaign_id="another"),
            replace(artifact(420), hero_id="another"),
            replace(artifact(430), version=2),
            artifact(440, sha256="other probes"),
            artifact(600),
        )
    ):
        put(folder, other)
        assert families(ILL, folder) == quiet, number
    put(folder, artifact(450))
    assert families(ILL, folder) == [("critical", "representation", 9), ("critical", "entropy", 9)]


def test_without_a_campaign_the_folder_of_the_checkpoints_decides(tmp_path: Path) -> None:
    def of(run: str, found: LayerStats) -> LayerStats:
        path = f"/runs/{run}/checkpoint-{found.checkpoint_step}"
        return replace(found, hero_id="", campaign_id="", checkpoint_path=path)

    for step in range(10, 90, 10):
        put(tmp_path, of("one", artifact(step)))
    assert families(of("another", ILL), tmp_path) == families(of("another", ILL), tmp_path / "empty")
    assert families(of("one", ILL), tmp_path) == CRITICAL


def test_another_count_of_tokens_takes_no_part(folder: Path) -> None:
    shorter = {name: activations(name, rankme=10.0, rankme_tokens=256) for name in NAMES}
    assert families(replace(ILL, activation_stats=shorter), folder) == []
    assert families(ILL, folder) == CRITICAL


def test_unreadable_artifacts_are_left_out_and_counted(folder: Path) -> None:
    (folder / "ckpt-000091.layer_stats.json").write_bytes(b'{"version": 1, "hero')
    (folder / "ckpt-000092.layer_stats.json").mkdir()
    (folder / "ckpt-000093.layer_stats.json").write_bytes(b"\xff\xfe")
    (folder / "ckpt-000094.layer_stats.json").write_bytes(b'{"version": 1}')
    (folder / "ckpt-000095.layer_stats.json").write_bytes(b"[" * 100_000)
    (folder / "ckpt-000096.layer_stats.json").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "ckpt-000097.layer_stats.json")
    found = judge(ILL, folders=[folder])
    assert [(alert.severity, alert.family, alert.checkpoints) for alert in found.alerts] == CRITICAL
    (warning,) = found.warnings
    assert "7 earlier artifacts are unreadable" in warning
    assert "ckpt-000091.layer_stats.json" in warning


def test_an_artifact_that_is_too_large_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judgement, "MAX_BYTES", (folder / "ckpt-000010.layer_stats.json").stat().st_size - 1)
    assert "8 earlier artifacts are unreadable" in judge(ILL, folders=[folder]).warnings[0]


def test_files_with_other_names_are_not_opened(folder: Path) -> None:
    for name in (".key.1.tmp", "ckpt-000085.layer_stats.json.bak", "ckpt-x.layer_stats.json", "notes.txt"):
        (folder / name).write_bytes(b"no artifact")
    assert judge(ILL, folders=[folder]).warnings == ()


def test_only_the_newest_fifty_are_looked_at(folder: Path) -> None:
    broken = folder / "ckpt-000090.layer_stats.json"
    broken.write_bytes(b"broken")
    for step in range(100, 149):
        put(folder, artifact(step))
    assert judge(ILL, folders=[folder]).warnings
    put(folder, artifact(149))
    found = judge(ILL, folders=[folder])
    assert found.warnings == ()
    assert {alert.checkpoints for alert in found.alerts} == {50}


def test_the_campaigns_folder_counts_beside_the_artifacts_own(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for step in (80, 90):
        put(own, artifact(step))
    assert {alert.checkpoints for alert in judge(ILL, folders=[own]).alerts} <= {2}
    assert {alert.checkpoints for alert in judge(ILL, folders=[own, folder]).alerts} == {9}


def test_archived_artifacts_judge_as_before_and_those_out_of_reach_are_counted(tmp_path: Path) -> None:
    campaign = CampaignFolder.of(tmp_path, "hero", "campaign")
    folder = campaign.layer_stats(0).parent
    folder.mkdir(parents=True)
    for step in range(10, 90, 10):
        put(folder, artifact(step))
    before = judge(ILL, folders=[folder])
    assert families(ILL, folder) == CRITICAL
    warm = tmp_path / "warm"
    (warm / "campaigns").mkdir(parents=True)
    rule = Rule(warm_root=warm, before=time.time() + 60, allowed=(tmp_path,))
    assert archive(campaign, rule).archived == 8
    assert judge(ILL, folders=[folder]) == before
    warm.rename(tmp_path / "away")
    assert "8 earlier artifacts are unreadable" in judge(ILL, folders=[folder]).warnings[0]
