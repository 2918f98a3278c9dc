"""What makes two requests one job."""

import re

from msgspec.structs import replace

from archaeologist.jobs import as_named, job_key
from contracts.messages import CampaignId, HeroId, Job, JobKey, JobOptions, JobType, RequestId, Side

TARGET = Side(path="/c/checkpoint-2", step=2, read_path="/c/checkpoint-2", fingerprint="a")
REFERENCE = Side(path="/c/checkpoint-1", step=1, read_path="/c/checkpoint-1", fingerprint="b")


def key(
    *,
    job_type: JobType = "layer_stats",
    hero_id: str = "dio",
    campaign_id: str = "c1",
    target: Side = TARGET,
    reference: Side | None = REFERENCE,
    options: JobOptions | None = None,
) -> JobKey:
    return job_key(
        job_type=job_type,
        hero_id=hero_id,
        campaign_id=campaign_id,
        target=target,
        reference=reference,
        options=options or JobOptions(),
    )


def test_a_key_is_32_hexadecimal_digits_and_the_same_each_time() -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", key())
    assert key() == key()


def test_where_the_bytes_are_read_does_not_change_a_key() -> None:
    pinned = replace(TARGET, read_path="/c/.pins/x")
    assert key(target=pinned) == key()


def test_everything_that_changes_the_result_changes_the_key() -> None:
    keys = [
        key(),
        key(job_type="layer_drift"),
        key(hero_id="ozzy"),
        key(campaign_id="c2"),
        key(target=replace(TARGET, fingerprint="z")),
        key(target=replace(TARGET, step=3)),
        key(target=replace(TARGET, path="/d")),
        key(reference=None),
        key(reference=replace(REFERENCE, fingerprint="z")),
        key(options=JobOptions(compute_activations=False)),
        key(options=JobOptions(metrics=("cosine",))),
        key(options=JobOptions(analyses=("spectra",))),
        key(target=REFERENCE, reference=TARGET),
    ]
    assert len(set(keys)) == len(keys)


def test_a_text_for_people_names_the_checkpoint_and_not_its_pin() -> None:
    job = Job(
        job_key=JobKey("key"),
        job_id=RequestId("id"),
        job_type="layer_stats",
        priority="normal",
        hero_id=HeroId("dio"),
        campaign_id=CampaignId("c1"),
        target=replace(TARGET, read_path="/c/.pins/2-a"),
        reference=REFERENCE,
        created_at="2026-01-02T03:04:05Z",
    )
    said = "no tokenizer in '/c/.pins/2-a'; the reference '/c/checkpoint-1' has one"
    assert as_named(said, job) == "no tokenizer in '/c/checkpoint-2'; the reference '/c/checkpoint-1' has one"
