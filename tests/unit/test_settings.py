"""The settings: where a value comes from, what is refused, and that the documents say what the code does."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from archaeologist.errors import SettingInvalid
from archaeologist.settings import (
    BestReference,
    CampaignSettings,
    LinkSettings,
    PathMapping,
    PolicySettings,
    Settings,
    find_file,
    load,
)
from contracts.messages import GpuOptions

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "deploy" / "archaeologist.toml"
PAGE = REPOSITORY / "docs" / "settings.md"

# \u2013: the dash of what has no default.
ROW = re.compile(r"^\| `([\w.*]+)` \| (?:`(.+?)`|\u2013) \| ", re.MULTILINE)
COMMENTED = re.compile(r"^# (?=\[|\w+ = )", re.MULTILINE)

WITHOUT_DEFAULT = object()


def leaves(value: Struct, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name of every setting in a struct, and its default."""
    for field in msgspec.structs.fields(value):
        inner = getattr(value, field.name)
        if isinstance(inner, Struct):
            yield from leaves(inner, f"{prefix}{field.encode_name}.")
        else:
            yield f"{prefix}{field.encode_name}", WITHOUT_DEFAULT if inner is None else inner


def every_setting() -> dict[str, Any]:
    """Every setting by its name in the documents."""
    found = dict(leaves(Settings()))
    for table, kind in (("paths", PathMapping), ("campaigns", CampaignSettings), ("web.links", LinkSettings)):
        del found[table]
        place = "campaigns.*" if table == "campaigns" else table
        found |= {f"{place}.{field.encode_name}": WITHOUT_DEFAULT for field in msgspec.structs.fields(kind)}
    # The host's name differs from machine to machine.
    found["worker.name"] = WITHOUT_DEFAULT
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names in a TOML document, as ``every_setting`` writes them."""
    for name, value in values.items():
        if prefix == "campaigns.":
            yield from (f"campaigns.*.{inner}" for inner in value)
        elif isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from flat(value[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def load_text(tmp_path: Path, text: str, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    path = tmp_path / "archaeologist.toml"
    path.write_text(text, encoding="utf-8")
    return load(config=path, environ=environ or {}, overrides=overrides)


# The documents.


def test_the_example_file_sets_every_default_and_nothing_else() -> None:
    assert load(config=EXAMPLE, environ={}) == Settings()
    with_default = {name for name, default in every_setting().items() if default is not WITHOUT_DEFAULT}
    assert set(flat(tomllib.loads(EXAMPLE.read_text(encoding="utf-8")))) == with_default


def test_the_example_file_with_its_comments_taken_away_is_valid_and_names_every_setting(tmp_path: Path) -> None:
    text = COMMENTED.sub("", EXAMPLE.read_text(encoding="utf-8"))
    assert set(flat(tomllib.loads(text))) == every_setting().keys()
    load_text(tmp_path, text)


def test_the_page_names_every_setting_once_with_its_default() -> None:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert [name for name, _ in rows] == list(dict.fromkeys(name for name, _ in rows))
    said = {name: tomllib.loads(f"x = {default}")["x"] if default else WITHOUT_DEFAULT for name, default in rows}
    expected = {name: list(value) if isinstance(value, tuple) else value for name, value in every_setting().items()}
    assert said == expected


# Where a value comes from.


def test_without_a_file_or_a_variable_everything_has_its_default() -> None:
    assert load(config=None, environ={}) == Settings()


def test_a_variable_overrides_the_file_and_an_option_overrides_the_variable(tmp_path: Path) -> None:
    text = '[policy]\nevery = 2\n[bus]\nurl = "nats://file:1"\n'
    variables = {"ARCHAEOLOGIST_POLICY__EVERY": "3", "ARCHAEOLOGIST_NATS_URL": "nats://variable:1"}
    assert load_text(tmp_path, text).policy.every == 2
    assert load_text(tmp_path, text, variables).policy.every == 3
    assert load_text(tmp_path, text, variables, **{"policy.every": 4}).policy.every == 4
    assert load_text(tmp_path, text, variables).bus.url == "nats://variable:1"


def test_an_option_that_was_not_given_changes_nothing(tmp_path: Path) -> None:
    assert load_text(tmp_path, 'root = "/data"\n', root=None).root == "/data"


@pytest.mark.parametrize(
    ("variable", "value", "name", "expected"),
    [
        ("ARCHAEOLOGIST_ROOT", "/data", "root", "/data"),
        ("ARCHAEOLOGIST_POLICY__AUTOMATIC", "false", "policy.automatic", False),
        ("ARCHAEOLOGIST_JOBS__LAYER_STATS__TIME_LIMIT_SECONDS", "7.5", "jobs.layer_stats.time_limit_seconds", 7.5),
        ("ARCHAEOLOGIST_POLICY__BEST__MODE", "max", "policy.best.mode", "max"),
        ("ARCHAEOLOGIST_GPU__DEVICE", "cuda:12", "gpu.device", "cuda:12"),
        ("ARCHAEOLOGIST_GPU__SHARE", "0.25", "gpu.share", 0.25),
    ],
)
def test_a_variable_is_read_as_its_setting_s_type(variable: str, value: str, name: str, expected: object) -> None:
    assert dict(leaves(load(environ={variable: value})))[name] == expected


def test_a_job_type_s_other_limits_stay_when_a_variable_changes_one() -> None:
    limits = load(environ={"ARCHAEOLOGIST_JOBS__LAYER_STATS__MAX_RUNNING": "3"}).jobs.layer_stats
    assert limits == msgspec.structs.replace(Settings().jobs.layer_stats, max_running=3)


def test_the_named_file_comes_before_the_variable_s(tmp_path: Path) -> None:
    named, other = tmp_path / "named.toml", tmp_path / "other.toml"
    named.touch()
    other.touch()
    environ = {"ARCHAEOLOGIST_CONFIG": str(other)}
    assert find_file(named, environ) == named
    assert find_file(None, environ) == other


def test_a_file_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "archaeologist.toml").write_text('root = "/here"\n')
    monkeypatch.chdir(tmp_path)
    assert load(environ={}).root == "/here"


# What is refused.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense = 1\n", "nonsense"),
        ("[policy]\nevry = 1\n", "evry"),
        ("[policy]\nevery = 0\n", "policy.every"),
        ("[policy]\nlevel_up_step = 1.5\n", "level_up_step"),
        ('[policy]\nreference = "newest"\n', "newest"),
        ("[jobs.layer_stats]\nmax_running = -1\n", "max_running"),
        ('[worker]\nname = "a/b"\n', "worker.name"),
        ('[[web.links]]\ntitle = "x"\naddress = "javascript:alert(1)"\n', "web.links[0].address"),
        ('[[web.links]]\ntitle = "x"\naddress = "//elsewhere"\n', "web.links[0].address"),
        ('[[web.links]]\ntitle = ""\naddress = "/"\n', "web.links[0].title"),
        ('[gpu]\ndevice = "cuda:x"\n', "gpu.device"),
        ('[gpu]\ndevice = "cuda\\n"\n', "gpu.device"),
        ("[gpu]\nshare = 0\n", "gpu.share"),
        ("[gpu]\nreserve_mb = -1\n", "gpu.reserve_mb"),
        ('[gpu]\nwhen_full = "fail"\n', "gpu.when_full"),
        ("[campaigns.dio]\nroots = 1\n", "roots"),
        ('[policy]\nanalyses = ["htsr", "speed"]\n', "'speed' is not known; use any of spectra, attention"),
        ('[campaigns.dio]\nanalyses = ["speed"]\n', "'speed' is not known; use any of spectra, attention"),
        ("root = [\n", "TOML"),
        ('root = "\udcff"\n', "TOML"),
    ],
)
def test_a_wrong_name_or_value_in_the_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "archaeologist.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SettingInvalid, match=re.escape(said)) as raised:
        load(config=path, environ={})
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ARCHAEOLOGIST_POLICY__EVRY", "1", "ARCHAEOLOGIST_POLICY__EVRY"),
        ("ARCHAEOLOGIST_POLICY__EVERY", "often", "ARCHAEOLOGIST_POLICY__EVERY"),
        ("ARCHAEOLOGIST_NATSURL", "nats://x", "ARCHAEOLOGIST_NATSURL"),
        ("ARCHAEOLOGIST_ROOT__X", "1", "'root.x': 'root' is a value"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, value: str, said: str) -> None:
    with pytest.raises(SettingInvalid, match=said):
        load(environ={"ARCHAEOLOGIST_ROOT": ".", variable: value})


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"JOBS__LEASE_SECONDS": "20"}, "jobs.heartbeat_seconds is 30 and jobs.lease_seconds 20: .* 5 for instance"),
        ({"JOBS__LEASE_SECONDS": "inf"}, "Expected `float` <= 31536000"),
        (
            {"JOBS__LEASE_SECONDS": "8", "JOBS__HEARTBEAT_SECONDS": "2", "NOTIFY__WEBHOOK": "http://bus"},
            "notify.timeout_seconds is 10 and jobs.lease_seconds 8",
        ),
    ],
)
def test_times_that_contradict_each_other_are_refused(environ: dict[str, str], said: str) -> None:
    with pytest.raises(SettingInvalid, match=said):
        load(environ={f"ARCHAEOLOGIST_{name}": value for name, value in environ.items()})


def test_a_short_lease_with_a_shorter_heartbeat_is_accepted() -> None:
    environ = {"ARCHAEOLOGIST_JOBS__LEASE_SECONDS": "8", "ARCHAEOLOGIST_JOBS__HEARTBEAT_SECONDS": "4"}
    assert load(environ=environ).jobs.lease_seconds == 8


def test_a_named_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingInvalid, match="not there"):
        load(config=tmp_path / "absent.toml", environ={})


# What the settings say.


def test_a_campaign_overrides_its_hero_and_a_hero_the_policy(tmp_path: Path) -> None:
    settings = load_text(
        tmp_path,
        '[policy]\nevery = 5\n[campaigns.dio]\nevery = 3\nbase = "/b"\n[campaigns."dio/first"]\nevery = 1\n',
    )
    assert settings.policy_for("other", "first") == PolicySettings()
    assert settings.policy_for("dio", "second") == PolicySettings(every=3, base="/b")
    assert settings.policy_for("dio", "first") == PolicySettings(every=1, base="/b")


def test_a_campaign_may_switch_analyses_on_and_off(tmp_path: Path) -> None:
    settings = load_text(
        tmp_path,
        '[policy]\nanalyses = ["htsr"]\n[campaigns.dio]\nanalyses = []\n'
        '[campaigns."dio/first"]\nanalyses = ["spectra", "attention"]\n',
    )
    assert settings.policy_for("other", "first").analyses == ("htsr",)
    assert settings.policy_for("dio", "second").analyses == ()
    assert settings.policy_for("dio", "first").analyses == ("spectra", "attention")


def test_an_override_may_switch_something_off(tmp_path: Path) -> None:
    settings = load_text(tmp_path, '[campaigns.dio]\nautomatic = false\nbest = { metric = "accuracy", mode = "max" }\n')
    policy = settings.policy_for("dio", "first")
    assert not policy.automatic
    assert policy.best == BestReference(metric="accuracy", mode="max")


def test_the_root_and_the_allowed_folders_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    settings = Settings(root=str(tmp_path / "link"), allowed=(str(tmp_path / "link" / ".."),))
    assert settings.root_path == tmp_path / "real"
    assert settings.allowed_roots == (tmp_path / "real", tmp_path)
    assert settings.state_path == tmp_path / "real" / ".archaeologist"


def test_each_job_type_has_its_own_limits() -> None:
    jobs = Settings().jobs
    assert jobs.of("layer_stats") == jobs.layer_stats
    assert jobs.of("layer_drift") == jobs.layer_drift


def test_what_a_job_may_take_of_a_gpu_goes_to_the_child_as_set(tmp_path: Path) -> None:
    assert Settings().gpu_options == GpuOptions()
    text = '[gpu]\ndevice = "cuda:1"\nshare = 0.25\nreserve_mb = 10\nwhen_full = "wait"\n'
    expected = GpuOptions(device="cuda:1", share=0.25, reserve_mb=10, when_full="wait")
    assert load_text(tmp_path, text).gpu_options == expected
