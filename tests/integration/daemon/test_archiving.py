"""A daemon beside a WARM root: what is archived is as if it had never moved."""

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from archaeologist.artifacts.storage import archived_path
from archaeologist.artifacts.store import read_layer_stats
from archaeologist.settings import ArchiveSettings
from tests.fixtures.waiting import until
from tests.integration.daemon.house import PATIENCE_SECONDS, of, opened, with_quick_children


async def test_an_old_artifact_is_archived_at_the_start_and_set_aside_by_a_newer_analysis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    warm = tmp_path / "warm"
    (warm / "campaigns").mkdir(parents=True)
    async with opened(tmp_path) as house:
        path = house.folder.layer_stats(100)
        async with house.daemon():
            house.save(100)
            await house.request("first", checkpoint_step=100)
            await house.until_event(of("first", "completed"))
        first = read_layer_stats(path)
        os.utime(path, (0, 0))
        house.settings = replace(house.settings, archive=ArchiveSettings(warm_root=str(warm)))
        async with house.daemon():
            await until(lambda: archived_path(path).is_symlink() and not path.exists(), seconds=PATIENCE_SECONDS)
            assert read_layer_stats(path) == first
            house.save(100, seed=5)
            await house.request("second", checkpoint_step=100)
            await house.until_event(of("second", "completed"))
        assert read_layer_stats(path).job_key != first.job_key
        assert read_layer_stats(house.folder.superseded(first.job_key)) == first
