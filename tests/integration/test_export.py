"""Exports, read back with the readers of the tools that they are for."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pandas as pd
import pyarrow.parquet
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from archaeologist.artifacts.output import whole_folder
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.cli import app
from archaeologist.export.columns import COLUMNS
from archaeologist.export.table import write_parquet
from contracts.artifacts import LayerStats
from tests.fixtures.exports import BLOCK, STEPS, artifact, campaign
from tests.fixtures.histories import CAMPAIGN, HERO, place_whole
from tests.fixtures.hostile import MARKUP, marked

NAME = f"{HERO}/{CAMPAIGN}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one campaign, and nothing of the caller's settings."""
    campaign(tmp_path)
    return tmp_path


def export(root: Path, form: str, output: Path) -> int:
    return app.run(["export", NAME, "--root", str(root), "--format", form, "--output", str(output)])


def check_table(table: pd.DataFrame) -> None:
    assert list(table.columns) == [column.name for column in COLUMNS]
    assert len(table) == 2 * len(STEPS)
    moved = table[table.drift_l2.notna()]
    assert list(moved.checkpoint_step) == list(STEPS[1:])
    assert list(moved.reference_step) == [100, 200]
    assert set(moved.tensor) == {"mlp.up_proj.weight"}
    assert set(moved.drift_relative_l2) == {0.1 + 0.2}  # not a digit lost
    assert set(moved.change_sigma_1) == {0.25}
    matrix = table[table.tensor == "mlp.up_proj.weight"]
    assert list(matrix.weight_l2) == [step / 3 for step in STEPS]
    assert (set(matrix["shape"]), set(matrix["values"]), set(matrix["dtype"])) == ({"4x8"}, {32}, {"BF16"})
    # What was not measured is missing, and not 0.
    assert table.weight_kurtosis.isna().all()
    assert table[table.tensor == "input_layernorm.weight"].weight_dead_rows.isna().all()


def test_a_notebook_opens_the_parquet_file_with_one_line(root: Path) -> None:
    output = root / "sub" / "tensors.parquet"
    assert export(root, "parquet", output) == 0
    check_table(pd.read_parquet(output))
    file = pyarrow.parquet.ParquetFile(output)
    assert file.num_row_groups == len(STEPS)
    field = file.schema_arrow.field("drift_relative_l2")
    assert field.metadata[b"unit"] == b"ratio"
    assert str(file.schema_arrow.field("created_at").type) == "timestamp[ms, tz=UTC]"
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_a_notebook_opens_the_csv_file_with_one_line(root: Path) -> None:
    output = root / "tensors.csv"
    assert export(root, "csv", output) == 0
    check_table(pd.read_csv(output))


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_table_needs_no_summaries_and_names_what_it_leaves_out(
    root: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = CampaignFolder.of(root, HERO, CAMPAIGN)
    folder.summaries.write_bytes(b"in the way, as on a disk that is read-only")
    place_whole(folder.layer_stats(400), msgspec.json.encode(artifact(300)))
    huge = msgspec.json.encode(artifact(500)).replace(b'"shape":[4,8]', b'"shape":[%d]' % 10**30)
    place_whole(folder.layer_stats(500), huge)
    output = root / "out"
    assert export(root, form, output) == 0
    check_table(pd.read_parquet(output) if form == "parquet" else pd.read_csv(output))
    said = capsys.readouterr().err
    assert "left out: layer_stats/ckpt-000400.layer_stats.json: its checkpoint_step is 300" in said
    assert "left out: layer_stats/ckpt-000500.layer_stats.json: artifact" in said
    assert folder.summaries.is_file()


def test_without_an_artifact_that_can_be_read_there_is_no_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = CampaignFolder.of(root, HERO, CAMPAIGN)
    for step in STEPS:
        place_whole(folder.layer_stats(step), b"{")
    assert export(root, "csv", root / "out") == app.FAILED
    assert "error: artifact_missing: no artifact in " in capsys.readouterr().err
    assert not (root / "out").exists()


def test_an_export_that_fails_half_way_leaves_the_earlier_file(root: Path) -> None:
    output = root / "tensors.parquet"
    assert export(root, "parquet", output) == 0
    before = output.read_bytes()

    def broken() -> Iterator[LayerStats]:
        yield artifact(100)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_parquet(broken(), output)
    assert output.read_bytes() == before
    assert not list(root.glob(".*.tmp"))


def test_tensorboard_reads_the_timelines(root: Path) -> None:
    output = root / "events"
    assert export(root, "tensorboard", output) == 0
    read = EventAccumulator(str(output))
    read.Reload()
    tags = read.Tags()["scalars"]
    assert {f"drift_relative_l2/{BLOCK}", f"health_weight_l2/{BLOCK}", "health/weight_l2", "skill/BIN"} <= set(tags)
    drift = read.Scalars(f"drift_relative_l2/{BLOCK}")
    assert [(one.step, one.value) for one in drift] == [(200, 0.5), (300, 0.5)]
    scores = read.Scalars("skill/BIN")
    assert [one.step for one in scores] == [100, 250, 300]
    assert all(math.isclose(one.value, one.step / 1000, rel_tol=1e-6) for one in scores)
    assert {one.wall_time for one in drift} == {1767323045.0}


@pytest.mark.parametrize("form", ["parquet", "csv", "tensorboard"])
def test_hostile_strings_are_exported_as_they_are_and_a_time_that_is_none_is_missing(root: Path, form: str) -> None:
    folder = CampaignFolder.of(root, HERO, CAMPAIGN)
    for step in STEPS:
        hostile = marked(artifact(step), keep=("hero_id", "campaign_id"))
        place_whole(folder.layer_stats(step), msgspec.json.encode(hostile))
    output = root / f"out.{form}"
    assert export(root, form, output) == 0
    if form == "tensorboard":
        read = EventAccumulator(str(output))
        read.Reload()
        assert f"drift_relative_l2/{BLOCK}{MARKUP}" in read.Tags()["scalars"]
        return
    table = pd.read_parquet(output) if form == "parquet" else pd.read_csv(output)
    assert set(table.block) == {f"{BLOCK}{MARKUP}"}
    assert table.created_at.isna().all()


@pytest.mark.timeout(120)
def test_wandb_reads_the_timelines_and_nothing_of_this_machine(root: Path) -> None:
    output = root / "run"
    environment = {**os.environ, "HOME": str(root / "home")}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "archaeologist",
            "export",
            NAME,
            "--root",
            str(root),
            *("--format", "wandb", "--output", str(output)),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", str(output)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    records = [json.loads(line) for line in read.stdout.splitlines()]
    [run] = [record["run"] for record in records if "run" in record]
    assert (run["project"], run["display_name"]) == (HERO, CAMPAIGN)
    assert not run.get("host")
    history = [record["history"]["item"] for record in records if "history" in record]
    steps = {int(values["_step"]): values for values in history}
    assert sorted(steps) == [100, 200, 250, 300]
    assert float(steps[200][f"drift_relative_l2/{BLOCK}"]) == 0.5
    assert float(steps[250]["skill/BIN"]) == 0.25
    assert [path.name for path in root.iterdir() if path.name.endswith((".tmp", ".work"))] == []


@pytest.mark.parametrize(
    ("form", "module"),
    [
        ("parquet", "pyarrow"),
        ("csv", "pyarrow"),
        ("tensorboard", "tensorboard"),
        ("wandb", "wandb"),
    ],
)
def test_a_missing_extra_names_the_line_that_installs_it(
    root: Path, form: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert export(root, form, root / "out") == app.USAGE
    said = capsys.readouterr().err
    assert f"error: extra_missing: --format {form} needs {module}" in said
    assert "pip install 'model-archaeologist[export]'" in said
    assert not (root / "out").exists()


def test_what_lies_at_the_output_is_left_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "out").mkdir()
    (root / "out" / "mine").write_text("mine")
    for form in ("parquet", "tensorboard", "wandb"):
        assert export(root, form, root / "out") == app.USAGE
    assert "is a folder; name a file" in capsys.readouterr().err
    assert (root / "out" / "mine").read_text() == "mine"


def test_a_folder_whose_writing_fails_is_not_there(tmp_path: Path) -> None:
    def failing() -> None:
        with whole_folder(tmp_path / "out") as temporary:
            (temporary / "half").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert list(tmp_path.iterdir()) == []


def test_a_formthat_is_none_is_named_with_those_there_are(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(root, "excel", root / "out") == app.USAGE
    assert "use one of: parquet, csv, tensorboard, wandb" in capsys.readouterr().err
