from pathlib import Path

import msgspec
import pytest

from archaeologist.errors import SettingInvalid
from archaeologist.trainers.announcement import announcement
from archaeologist.trainers.publisher import bus_settings, remedy
from contracts.messages import CheckpointSaved


def saved(step: int) -> CheckpointSaved:
    return announcement(
        Path(f"/runs/checkpoint-{step}"),
        hero_id="hero",
        campaign_id="one",
        step=step,
        model_ref=None,
        metrics={},
        skills={},
    )


def test_the_bus_is_the_one_given_then_the_environments_then_this_machines() -> None:
    environ = {"ARCHAEOLOGIST_NATS_URL": "nats://environment:1"}
    assert bus_settings(environ, url="nats://given:1").url == "nats://given:1"
    assert bus_settings(environ, url=None).url == "nats://environment:1"
    assert bus_settings({}, url=None).url == "nats://127.0.0.1:4222"


def test_credentials_come_from_arguments_or_the_environment() -> None:
    environ = {"ARCHAEOLOGIST_BUS__TOKEN": "secret", "ARCHAEOLOGIST_BUS__CONNECT_TIMEOUT_SECONDS": "2.5"}
    settings = bus_settings(environ, credentials="/etc/trainer.creds")
    assert (settings.token, settings.credentials) == ("secret", "/etc/trainer.creds")
    assert settings.connect_timeout_seconds == 2.5


def test_a_daemons_settings_file_is_not_the_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "archaeologist.toml").write_text('[bus]\ntoken = "the daemon\'s"\n')
    monkeypatch.chdir(tmp_path)
    assert bus_settings({}).token is None


def test_variables_of_the_daemon_do_not_disturb_a_trainer() -> None:
    assert bus_settings({"ARCHAEOLOGIST_POLICY__EVERY": "0", "ARCHAEOLOGIST_ROOT": "/x"}) == bus_settings({})


@pytest.mark.parametrize("given", [{"tokn": "x"}, {"connect_timeout_seconds": 0}])
def test_a_wrong_setting_is_named_before_training(given: dict[str, object]) -> None:
    with pytest.raises(SettingInvalid, match=r"bus settings: .*(tokn|connect_timeout_seconds)"):
        bus_settings({}, **given)


def test_the_remedy_names_each_checkpoint_and_one_command() -> None:
    text = remedy([saved(5), saved(10)])
    assert "step 5, 10" in text
    assert "archaeologist request --hero hero --campaign one /runs/checkpoint-5" in text


def test_checkpoints_in_the_campaigns_folder_are_asked_for_in_one_command() -> None:
    folder = "/root/campaigns/hero/one/checkpoints"
    messages = [msgspec.structs.replace(saved(step), checkpoint_path=f"{folder}/checkpoint-{step}") for step in (5, 10)]
    assert "`archaeologist request --hero hero --campaign one --steps 5:10:1`" in remedy(messages)


def test_the_remedy_for_many_checkpoints_stays_a_line() -> None:
    assert len(remedy([saved(step) for step in range(1000)])) < 400
