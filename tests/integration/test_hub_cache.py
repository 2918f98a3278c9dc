"""A hub cache's snapshot, every file of it a link out of its folder, analysed by a child process."""

from pathlib import Path

from archaeologist.api import analyze
from tests.fixtures.checkpoints import write_checkpoint


def test_a_snapshot_of_the_hub_cache_is_analysed(tmp_path: Path, kernels: Path) -> None:
    write_checkpoint(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "0a1b2c"
    snapshot.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    stats = analyze(snapshot, compute_activations=False)
    assert stats.coverage.tensors_read == 24
    assert stats.architecture == "Qwen3ForCausalLM"
