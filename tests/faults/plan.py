"""What is sent and what goes wrong, drawn from a seed: pure.

A plan is the same for the same numbers. When exactly a fault meets a job depends on the machine; which faults there
are, in which order, between which requests, does not.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from contracts import subjects
from tests.faults.evidence import Sent

HERO: Final = "dio"
CAMPAIGNS: Final = ("north", "east", "south")
VICTIMS: Final = "victims"
"""The campaign of the checkpoints that are tampered with, one a request."""
SMALL: Final = "small-disk"

LOST: Final = frozenset({"worker_lost"})
"""A job may be lost by one worker after the other; then it fails and says so."""
CRASHED: Final = LOST | {"job_crashed"}

INFRASTRUCTURE: Final = {
    "daemon killed": 16,
    "daemon frozen past its lease": 16,
    "daemon told to stop": 8,
    "server killed": 12,
    "server restarted": 8,
    "connection cut": 16,
    "connection refused": 6,
    "connection stalled": 6,
    "connection slow": 8,
    "disk full": 4,
    "disk read-only": 4,
    "queue message repeated": 10,
}
"""What is done to the machinery while it works, by weight."""

FATES: Final[dict[str, tuple[int, frozenset[str]]]] = {
    "killed": (8, CRASHED),
    "segfault": (8, CRASHED),
    "unsaid": (4, CRASHED),
    "garbage": (4, CRASHED),
    "starved": (2, CRASHED | {"completed", "memory_capped"}),
    "hang": (3, LOST | {"job_timed_out"}),
    "frozen": (3, LOST | {"job_timed_out"}),
    "later": (4, LOST | {"completed"}),
    "deleted": (5, LOST | {"completed"}),
    "truncated": (5, LOST | {"checkpoint_changed", "header_invalid"}),
    "overwritten": (5, LOST | {"checkpoint_changed"}),
}
"""What happens to a job's child or to what it reads, by weight; how the request may end then."""
ENDLESS: Final = frozenset({"hang", "frozen"})
"""These wait for the time limit, which is short for ``layer_drift`` and ample for what a loaded machine really does."""
NAMES: Final = {
    "killed": "child out of memory (kill -9)",
    "starved": "child out of memory (address space)",
    "segfault": "child segmentation fault",
    "hang": "child hangs, deaf to SIGTERM",
    "frozen": "child frozen",
    "garbage": "child writes nonsense",
    "unsaid": "child ends without a word",
    "later": "child finds no GPU memory",
    **{fate: f"checkpoint {fate} while it is read" for fate in ("deleted", "truncated", "overwritten")},
}

INFRASTRUCTURE_SHARE: Final = 0.5
FATE_SHARE: Final = 0.25
"""Of the faults; the rest are messages repeated and out of order."""


class Message(NamedTuple):
    """One message, as it is published."""

    subject: str
    body: dict[str, Any]
    message_id: str

    @property
    def data(self) -> bytes:
        """Its body."""
        return json.dumps(self.body).encode()


class Fault(NamedTuple):
    """Something that is done after so many messages."""

    after: int
    kind: str


class Tally:
    """Counts the faults that lie in the messages themselves, as they are sent."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._highest: Counter[str] = Counter()

    def kinds_of(self, message: Message) -> Iterator[str]:
        """The kinds of fault that a message is or brings about."""
        body = message.body
        if body["request_id"] in self._known:
            yield "message repeated"
            return
        self._known.add(body["request_id"])
        if name := NAMES.get(body.get("fate", "")):
            yield name
        if message.subject == subjects.CHECKPOINT_SAVED:
            highest = self._highest[body["campaign_id"]]
            if body["checkpoint_step"] < highest:
                yield "checkpoint announced out of order"
            self._highest[body["campaign_id"]] = max(highest, body["checkpoint_step"])


@dataclass
class Plan:
    """Everything that will happen."""

    messages: list[Message] = field(default_factory=list)
    sent: dict[str, Sent] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    cancellations: dict[int, str] = field(default_factory=dict)
    """The request that is cancelled after so many messages."""
    victims: list[int] = field(default_factory=list)
    """Steps of the checkpoints that are tampered with."""
    steps: tuple[int, ...] = ()
    """Of each campaign's checkpoints."""


def draw(*, requests: int, faults: int, seed: int) -> Plan:
    """A plan of so many distinct requests and at least so many faults."""
    chance = random.Random(seed)
    plan = Plan(steps=_steps_for(requests))
    in_machinery, in_children = round(faults * INFRASTRUCTURE_SHARE), round(faults * FATE_SHARE)
    fates = _spread({name: weight for name, (weight, _) in FATES.items()}, in_children, chance)
    requested = [*_announcements(plan, chance), *_announced_again(plan), *_evaluations(plan)]
    requested += [*_fated(plan, fates), *_bad(requests // 25)]
    requested += _on_small_disk(max(4, requests // 60))
    requested += _joined_or_plain(requests - len(requested), plan, chance)
    chance.shuffle(requested)
    for message, sent in requested:
        plan.messages.append(message)
        plan.sent[sent.request_id] = sent
    _repeat(plan, faults - in_machinery - in_children, chance)
    _choose_cancelled(plan)
    for kind in _spread(INFRASTRUCTURE, in_machinery, chance):
        plan.faults.append(Fault(chance.randrange(len(plan.messages)), kind))
    plan.faults.sort()
    return plan


Request = tuple[Message, Sent]


def _steps_for(requests: int) -> tuple[int, ...]:
    """As many checkpoints a campaign as have pairs enough: every drift and every comparison is a job of its own."""
    count = 4
    while len(CAMPAIGNS) * count * (count - 1) < requests:
        count += 1
    return tuple(range(100, 100 * (count + 1), 100))


def _announcements(plan: Plan, chance: random.Random) -> Iterator[Request]:
    """Every checkpoint of every campaign, as its trainer announces it; some of them are analysed for real."""
    for campaign in CAMPAIGNS:
        for step in plan.steps:
            fate = "real" if chance.random() < 0.2 else _quick(chance)
            yield _announcement(f"saved-{campaign}-{step}", campaign, step, fate=fate)


def _announcement(request_id: str, campaign: str, step: int, **more: Any) -> Request:
    return _request(
        request_id,
        subjects.CHECKPOINT_SAVED,
        LOST | {"completed"},
        campaign_id=campaign,
        checkpoint_path=f"checkpoint-{step}",
        checkpoint_step=step,
        skills={"BIN": _score(campaign, step)},
        **more,
    )


def _announced_again(plan: Plan) -> Iterator[Request]:
    """Some of them once more under another id, as a trainer does that was started again."""
    for campaign in CAMPAIGNS:
        for step in plan.steps[::4]:
            yield _announcement(f"resaved-{campaign}-{step}", campaign, step)


def _evaluations(plan: Plan) -> Iterator[Request]:
    """A second skill of every other checkpoint, measured apart from its announcement and perhaps told before it."""
    for campaign in CAMPAIGNS:
        for step in plan.steps[::2]:
            yield _request(
                f"evaluated-{campaign}-{step}",
                subjects.SKILL_EVALUATED,
                LOST | {"completed", "skipped"},
                campaign_id=campaign,
                checkpoint_step=step,
                skill="SY",
                score=_score(campaign, step + 1),
            )


def _score(campaign: str, step: int) -> float:
    """Of every step another one, and not in their order."""
    return (7919 * step + 104_729 * CAMPAIGNS.index(campaign)) % 100_003 / 100_003


def _fated(plan: Plan, fates: list[str]) -> Iterator[Request]:
    for number, fate in enumerate(fates):
        step = 100 + number
        plan.victims.append(step)
        kind: dict[str, Any] = {"checkpoint_step": step, "reference": "none", "compute_activations": False}
        if fate in ENDLESS:
            kind = {"job_type": "layer_drift", "base_checkpoint_step": step, "target_checkpoint_step": step}
        yield _request(
            f"{fate}-{number}",
            subjects.ANALYSIS_REQUESTED,
            FATES[fate][1],
            campaign_id=VICTIMS,
            fate=fate,
            **kind,
        )


def _bad(count: int) -> Iterator[Request]:
    for number in range(count):
        fields, code = (
            ({"checkpoint_path": f"/etc/passwd-{number}"}, "path_outside_root"),
            ({"checkpoint_path": f"../../../../../outside-{number}"}, "path_outside_root"),
            ({"checkpoint_step": 999_000 + number}, "checkpoint_missing"),
            ({"checkpoint_step": 100, "job_type": "layer_magic"}, "job_type_unknown"),
            ({"checkpoint_step": str(number)}, "message_invalid"),
        )[number % 5]
        yield _request(
            f"bad-{number}", subjects.ANALYSIS_REQUESTED, frozenset({code}), campaign_id=CAMPAIGNS[0], **fields
        )


def _on_small_disk(count: int) -> Iterator[Request]:
    for number in range(count):
        yield _request(
            f"small-{number}",
            subjects.ANALYSIS_REQUESTED,
            LOST | {"completed", "artifact_unwritable"},
            campaign_id=SMALL,
            checkpoint_step=100 + number % 20,
            model_ref=f"try-{number}",  # another option, another job
            reference="none",
            compute_activations=False,
            fate="real",
        )


def _joined_or_plain(count: int, plan: Plan, chance: random.Random) -> list[Request]:
    """Comparisons of any two checkpoints; some twice under two names, some forced, some cancelled later."""
    pairs = [(campaign, base, to) for campaign in CAMPAIGNS for base in plan.steps for to in plan.steps if base != to]
    chance.shuffle(pairs)
    made: list[Request] = []
    for number in range(count):
        campaign, base, to = pairs[number % len(pairs)]
        kind = chance.random()
        if made and kind < 0.08:
            made.append(_again(chance.choice(made), f"again-{number}", is_forced=kind < 0.02))
        elif kind < 0.3:
            made.append(_stats(f"stats-{number}", campaign, base, to, chance))
        else:
            made.append(_drift(f"drift-{number}", campaign, base, to, chance))
    return made


def _again(original: Request, request_id: str, *, is_forced: bool) -> Request:
    message, sent = original
    body = {**message.body, "request_id": request_id}
    body |= {"force": True} if is_forced else {}
    return _as_sent(Message(message.subject, body, request_id), sent.endings)


def _drift(request_id: str, campaign: str, base: int, to: int, chance: random.Random) -> Request:
    fate = "real" if chance.random() < 0.01 else _quick(chance)
    return _request(
        request_id,
        subjects.ANALYSIS_REQUESTED,
        LOST | {"completed"},
        campaign_id=campaign,
        job_type="layer_drift",
        base_checkpoint_step=base,
        target_checkpoint_step=to,
        priority=chance.choice(["low", "normal", "high"]),
        fate=fate,
    )


def _stats(request_id: str, campaign: str, base: int, to: int, chance: random.Random) -> Request:
    """All comparisons of one checkpoint want the same path: the artifact before moves aside."""
    return _request(
        request_id,
        subjects.ANALYSIS_REQUESTED,
        LOST | {"completed"},
        campaign_id=campaign,
        checkpoint_step=to,
        reference_checkpoint_step=base,
        compute_activations=False,
        priority=chance.choice(["low", "normal", "high"]),
        fate=_quick(chance),
    )


def _quick(chance: random.Random) -> str:
    return "slow" if chance.random() < 0.08 else ""


def _request(request_id: str, subject: str, endings: frozenset[str], **fields: Any) -> Request:
    body = {"hero_id": HERO, "request_id": request_id, **fields}
    return _as_sent(Message(subject, body, request_id), endings)


def _as_sent(message: Message, endings: frozenset[str]) -> Request:
    return message, Sent(message.message_id, endings, message.subject, message.data)


def _repeat(plan: Plan, count: int, chance: random.Random) -> None:
    """Sends some messages once more, word for word; a third of them under their own id, which the server knows."""
    for number in range(count):
        place = chance.randrange(len(plan.messages))
        original = plan.messages[place]
        message_id = original.message_id if number % 3 == 0 else f"repeat-{number}"
        later = chance.randrange(place + 1, min(len(plan.messages), place + 400) + 1)
        plan.messages.insert(later, original._replace(message_id=message_id))


def _choose_cancelled(plan: Plan) -> None:
    # A prime, so that the places share no rhythm with anything else.
    for place, message in enumerate(plan.messages):
        if place % 47 == 46 and message.body["request_id"].startswith("drift"):
            _cancel(plan, place, message.body["request_id"])


def _cancel(plan: Plan, place: int, request_id: str) -> None:
    """Whoever asked for the same, under another name, sees it cancelled too."""
    plan.cancellations[place] = request_id
    drift = next(message.body for message in plan.messages if message.body["request_id"] == request_id)
    same = {name: drift[name] for name in ("campaign_id", "base_checkpoint_step", "target_checkpoint_step")}
    for message in plan.messages:
        if all(message.body.get(name) == value for name, value in same.items()):
            sent = plan.sent[message.body["request_id"]]
            plan.sent[sent.request_id] = replace(sent, endings=sent.endings | {"cancelled"})


def _spread(weights: dict[str, int], count: int, chance: random.Random) -> list[str]:
    """Each kind once, the rest by their weights."""
    rest = max(0, count - len(weights))
    chosen = [*weights, *chance.choices(list(weights), weights=list(weights.values()), k=rest)]
    chance.shuffle(chosen)
    return chosen
