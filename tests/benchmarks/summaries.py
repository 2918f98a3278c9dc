"""Times the summaries of a long campaign: adding one checkpoint, building anew, reading each.

``python -m tests.benchmarks.summaries [--checkpoints 2000] [--rounds 9] [--folder DIR]``. Artifacts of 399 tensors in
39 blocks with activations and two skills are generated, as large as real ones; sketches too, those that nobody reads
as holes. The same is done with 20 checkpoints, for the ratio. Nothing is asserted.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.checkpoints.names import place
from archaeologist.statistics.sketch import WIDTH, SketchHeader, encode_header
from archaeologist.statistics.trajectory import WINDOW
from archaeologist.summaries.chronicle import rebuild, update
from contracts.artifacts import (
    ActivationDistribution,
    DriftTimeline,
    FunctionalDrift,
    GlobalDriftStats,
    HealthTimeline,
    LayerActivationStats,
    LayerDriftStats,
    LayerStats,
    LayerWeightStats,
    OutputDrift,
    OutputStats,
    ProbeInfo,
    Similarity,
    SkillHistory,
    SkillImpact,
    SkillScore,
    StabilityReport,
    TensorDrift,
    TensorWeights,
)
from tests.fixtures.artifacts import layer_stats
from tests.fixtures.histories import CAMPAIGN, HERO, folder_in, place_whole

LAYERS = 36
PARTS = (
    *(f"self_attn.{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
    *(f"mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
NAMES = (
    "model.embed_tokens.weight",
    *(f"model.layers.{layer}.{part}" for layer in range(LAYERS) for part in PARTS),
    "model.norm.weight",
    "lm_head.weight",
)
SMALL = 20
KINDS: dict[str, type[msgspec.Struct]] = {
    "layer_drift_timeline.json": DriftTimeline,
    "health_timeline.json": HealthTimeline,
    "stability_report.json": StabilityReport,
    "skill_impact.json": SkillImpact,
}


class Campaign:
    """A campaign that grows by one checkpoint at a time."""

    def __init__(self, folder: CampaignFolder, *, real_from: int) -> None:
        self.folder = folder
        self._random = np.random.default_rng(0)
        self._real_from = real_from
        self._number = 0
        self._scores: list[SkillScore] = []
        blocks: dict[str, list[str]] = {}
        for name in NAMES:
            blocks.setdefault(place(name).block, []).append(name)
        self._blocks = blocks

    def add(self) -> None:
        """The next checkpoint, in its place: artifact, sketch, scores."""
        self._number += 1
        step = 100 * self._number
        place_whole(self.folder.layer_stats(step), msgspec.json.encode(self._artifact(step)))
        self._put_sketch(step)
        self._scores.append(SkillScore(step=step, score=float(self._random.random()), num_samples=None))
        scores = tuple(self._scores)
        history = SkillHistory(hero_id=HERO, campaign_id=CAMPAIGN, skills={"BIN": scores, "SY": scores[::-1][::-1]})
        if self._number >= self._real_from:
            place_whole(self.folder.skills, msgspec.json.encode(history))

    def _artifact(self, step: int) -> LayerStats:
        return replace(
            layer_stats(f"key{step}", step=step),
            fingerprint=f"{step:032d}",
            reference_checkpoint_step=step - 100 if step > 100 else None,
            reference_fingerprint=f"{step - 100:032d}" if step > 100 else None,
            weight_stats={name: self._weights(name, of) for name, of in self._blocks.items()},
            activation_stats={name: self._active(name) for name in self._blocks},
            drift_stats={name: self._drift(name, of) for name, of in self._blocks.items()} if step > 100 else {},
            global_drift_stats=GlobalDriftStats(l2=self._one(), relative_l2=self._one()) if step > 100 else None,
            functional_drift=FunctionalDrift(
                output=OutputDrift(positions=512, kl=self._one(), js=self._one(), top1_agreement=self._one()),
                similarity={name: Similarity(cka=self._one(), positions=512) for name in self._blocks},
            ),
            output_stats=OutputStats(positions=512, entropy=self._one(), loss=self._one()),
            probe_info=ProbeInfo(
                dataset_id="default", num_sequences=9, total_tokens=512, source_file="package:default.jsonl"
            ),
        )

    def _weights(self, name: str, tensors: list[str]) -> LayerWeightStats:
        each = {
            tensor.removeprefix(f"{name}."): msgspec.convert(
                {"dtype": "BF16", "shape": (1024, 1024), **self._many(13)}, TensorWeights
            )
            for tensor in tensors
        }
        norms = {tensor: of.l2 for tensor, of in each.items()}
        return LayerWeightStats(
            name=name, layer_type="transformer_block", weight_norms=norms, l2=self._one(), tensors=each
        )

    def _many(self, count: int) -> dict[str, float]:
        names = [name for name in TensorWeights.__struct_fields__ if name not in {"dtype", "shape"}][:count]
        return dict(zip(names, self._random.random(count).tolist(), strict=True))

    def _active(self, name: str) -> LayerActivationStats:
        mean, std, low, high, rankme = self._random.random(5).tolist()
        whole = ActivationDistribution(count=1, mean=mean, std=std, rms=std, min=low, max=high, absmax=high)
        return LayerActivationStats(
            name=name,
            mean=mean,
            std=std,
            percentile_1=low,
            percentile_99=high,
            rankme=rankme,
            anisotropy=mean,
            distribution=whole,
            first_token=whole,
            by_skill={"BIN": whole, "SY": whole},
        )

    def _drift(self, name: str, tensors: list[str]) -> LayerDriftStats:
        l2, relative, cosine = (0.01 + self._random.random(3)).tolist()
        each = {
            tensor.removeprefix(f"{name}."): TensorDrift(
                l2=l2 * part,
                relative_l2=relative * part,
                cosine=cosine,
                one_minus_cosine=cosine * part,
                changed_fraction=0.9 * part,
                max_change=l2,
                below_resolution=part < 0.1,
            )
            for tensor, part in zip(tensors, self._random.random(len(tensors)).tolist(), strict=True)
        }
        return LayerDriftStats(
            name=name,
            weight_l2={tensor: of.l2 for tensor, of in each.items()},
            weight_cosine={tensor: of.cosine for tensor, of in each.items()},
            total_l2=l2,
            total_cosine=cosine,
            l2=l2,
            relative_l2=relative,
            one_minus_cosine=cosine,
            changed_fraction=0.9,
            below_resolution=False,
            tensors=each,
        )

    def _one(self) -> float:
        return float(self._random.random())

    def _put_sketch(self, step: int) -> None:
        """A sketch of full size; one that will not be read is a hole on the disk."""
        sizes = [(name, WIDTH if "norm" not in name else 128) for name in NAMES]
        header = encode_header(SketchHeader(fingerprint=f"{step:032d}", step=step), sizes)
        count = sum(size for _, size in sizes)
        with self.folder.sketch(step).open("wb") as file:
            file.write(header)
            if self._number >= self._real_from:
                self._random.standard_normal(count).astype("<f8").tofile(file)
            else:
                file.truncate(len(header) + 8 * count)


class Adding:
    """What adding one checkpoint costs, in seconds, round by round."""

    def __init__(self, campaign: Campaign) -> None:
        self._campaign = campaign
        self.wall: list[float] = []
        self.processor: list[float] = []

    def take(self) -> None:
        """Adds one."""
        self._campaign.add()
        os.sync()
        before = time.process_time()
        self.wall.append(seconds(lambda: update(self._campaign.folder)))
        self.processor.append(time.process_time() - before)


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    before = time.perf_counter()
    action()
    return time.perf_counter() - before


def grown(root: Path, *, checkpoints: int) -> Campaign:
    """A campaign of one checkpoint less, with its summaries."""
    folder = folder_in(root)
    campaign = Campaign(folder, real_from=checkpoints - WINDOW - 2)
    for _ in range(checkpoints - 1):
        campaign.add()
    print(f"{checkpoints} checkpoints of {len(NAMES)} tensors, artifact {_size(folder.layer_stats(200))}:")  # noqa: T201
    print(f"  built anew      {seconds(lambda: rebuild(folder)):8.2f} s")  # noqa: T201
    return campaign


def show(campaign: Campaign, adding: Adding, *, rounds: int) -> None:
    """Prints what the campaign costs."""
    folder = campaign.folder
    print(f"  adding one      {_shown(adding.wall)}; of processor time {_shown(adding.processor)}")  # noqa: T201
    print(f"  nothing to do   {seconds(lambda: update(folder)) * 1000:8.0f} ms")  # noqa: T201
    for path, kind in _summaries(folder):
        decode = msgspec.json.Decoder(kind).decode
        reading = [seconds(lambda path=path, decode=decode: decode(path.read_bytes())) for _ in range(rounds)]  # type: ignore[misc]
        print(f"  reading {path.name:26} {statistics.median(reading) * 1000:6.0f} ms, {_size(path)}")  # noqa: T201


def _summaries(folder: CampaignFolder) -> Iterator[tuple[Path, type[msgspec.Struct]]]:
    for name, kind in KINDS.items():
        yield folder.summaries / name, kind


def _ratio(large: list[float], small: list[float]) -> float:
    return statistics.median(large) / statistics.median(small)


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.2f} MB"


def _shown(values: list[float]) -> str:
    low, middle, high = (number * 1000 for number in (min(values), statistics.median(values), max(values)))
    return f"{middle:.0f} ms ({low:.0f} to {high:.0f})"


def main() -> None:
    """Runs both sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        sizes = {"small": SMALL, "large": options.checkpoints}
        campaigns = {name: grown(base / name, checkpoints=size) for name, size in sizes.items()}
        adding = {name: Adding(campaign) for name, campaign in campaigns.items()}
        # In turns, so that whatever else the machine does disturbs both alike.
        for _ in range(options.rounds):
            for one in adding.values():
                one.take()
        for name, campaign in campaigns.items():
            print(f"{sizes[name]} checkpoints:")  # noqa: T201
            show(campaign, adding[name], rounds=options.rounds)
        wall = _ratio(adding["large"].wall, adding["small"].wall)
        processor = _ratio(adding["large"].processor, adding["small"].processor)
        print(f"adding one to {options.checkpoints} costs {wall:.1f} times what it costs with {SMALL},")  # noqa: T201
        print(f"{processor:.1f} times in processor time, which a busy machine disturbs less")  # noqa: T201
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
