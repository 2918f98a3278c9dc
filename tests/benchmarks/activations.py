"""Times a job with activations and a reference against the specification's approach, and takes the memory of both.

``python -m tests.benchmarks.activations [--large] [--layers N] [--tokens 1024] [--rounds 3] [--only-ours]``, in
the shape of Qwen3-0.6B, or of Qwen3-4B, of which both approaches together do not fit in 24 GB. The specification's
approach does the same work with both models loaded whole (its sections 5.3 and 5.4): norms, drift, a pass a probe with
hooks on the layers, ``torch.quantile``, and what the artifact has beyond the specification, the way one would write it
in float32: effective rank, CKA, the divergences of the logits. Everything runs in fresh processes; times are of whole
processes. Nothing is asserted.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from msgspec.structs import replace

from archaeologist import api
from archaeologist.bench.models import SIZES, make_pair
from archaeologist.bench.processes import Run, run_child, run_printing
from contracts.messages import Excavation, ForwardOptions, NeighbourOptions
from tests.fixtures.tokenizers import save_tokenizer

WORDS_A_PROBE = 24

SPECIFICATION = """
import json, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
target, reference, probes, limit = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval() for path in (target, reference)]
norms = {name: parameter.data.norm(2).item() for name, parameter in models[0].named_parameters()}
state = load_file(reference + "/model.safetensors", device="cpu")
for name, parameter in models[0].named_parameters():
    if name in state:
        (parameter.data - state[name]).norm(2).item()
        mine, theirs = parameter.data.flatten().unsqueeze(0), state[name].flatten().unsqueeze(0)
        torch.nn.functional.cosine_similarity(mine, theirs).item()
tokenizer = AutoTokenizer.from_pretrained(target)
kept = [{}, {}]
def keep(store, name):
    def hook(module, inputs, output):
        store.setdefault(name, []).append((output[0] if isinstance(output, tuple) else output).detach().cpu())
    return hook
for model, store in zip(models, kept):
    for name, module in model.named_modules():
        if "layers." in name and name.count(".") == 2:
            module.register_forward_hook(keep(store, name))
total, outputs = 0, []
with torch.no_grad():
    for line in open(probes):
        if total >= limit:
            break
        inputs = tokenizer(json.loads(line)["text"], return_tensors="pt", truncation=True, max_length=512)
        mine, theirs = [torch.log_softmax(model(**inputs).logits[0].float(), dim=-1) for model in models]
        middle = torch.logaddexp(mine, theirs) - 0.6931471805599453
        ids = inputs["input_ids"][0]
        outputs.append([
            torch.nn.functional.kl_div(mine, theirs, log_target=True, reduction="batchmean").item(),
            ((mine.exp() * (mine - middle) + theirs.exp() * (theirs - middle)).sum(-1) / 2).mean().item(),
            (mine.argmax(-1) == theirs.argmax(-1)).float().mean().item(),
            *(-(logs.exp() * logs).sum(-1).mean().item() for logs in (mine, theirs)),
            *(-logs[:-1].gather(1, ids[1:, None]).mean().item() for logs in (mine, theirs)),
        ])
        total += inputs["input_ids"].shape[1]

def distribution(values):
    parts = [values[start : start + 2**24] for start in range(0, len(values), 2**24)]
    found = [values.mean().item(), values.std().item(), values.max().item(), values.min().item()]
    found.append((((values - values.mean()) / values.std()) ** 4).mean().item() - 3)
    found += [torch.quantile(part, q).item() for part in parts for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)]
    return [*found, (values == 0).float().mean().item()]

def hsic(a, b):
    n = len(a)
    whole = (a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a.sum(0) @ b.sum(0)) / (n - 2)
    return (whole / (n * (n - 3))).item()

found = {}
for name, parts in kept[0].items():
    mine, theirs = [torch.cat([part[0, 1:] for part in store[name]]).float() for store in kept]
    found[name] = distribution(mine.flatten())
    found[name] += distribution(torch.cat([part[0, 0] for part in parts]).float())
    found[name] += [mine.norm(dim=1).mean().item(), mine.var(dim=0).mean().item()]
    sample = torch.linspace(0, len(mine) - 1, 512).round().long()
    sigmas = torch.linalg.svdvals(mine[sample])
    shares = sigmas / sigmas.sum()
    units = torch.nn.functional.normalize(mine, dim=1).sum(0)
    found[name] += [(-(shares * shares.log()).sum()).exp().item(), (units @ units).item()]
    grams = [(side[sample] - side[sample].mean(0)) for side in (mine, theirs)]
    grams = [(gram @ gram.T).fill_diagonal_(0) for gram in grams]
    found[name].append(hsic(*grams) / (hsic(grams[0], grams[0]) * hsic(grams[1], grams[1])) ** 0.5)
print(json.dumps({"tokens": total, "layers": len(found), "kl": sum(output[0] for output in outputs) / len(outputs)}))
"""


def write_probes(folder: Path, *, tokens: int) -> Path:
    """More texts than so many tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["binary", "letters", "number", "apple", "happy", "decimal", "mammals", "sentence"]
    texts = [
        " ".join(words[(number * 7 + place * place) % len(words)] for place in range(WORDS_A_PROBE))
        for number in range(tokens // WORDS_A_PROBE + 1)
    ]
    file = folder / "benchmark.jsonl"
    file.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    return file


def child(target: Path, base: Path, folder: Path, probes: Path, *, tokens: int) -> Run:
    """One run of the child."""
    job = api.layer_stats_job(target, reference=base, probes=probes.stem, probes_folder=probes.parent)
    job = replace(job, options=replace(job.options, max_probe_tokens=tokens))
    forward = ForwardOptions(probes_folder=str(probes.parent))
    artifact, sketch = (str(folder / name) for name in ("artifact.tmp", "sketch.tmp"))
    asked = Excavation(job=job, artifact_path=artifact, sketch_path=sketch, activations=forward)
    return run_child(asked, cache=api.default_cache())


def theirs(target: Path, base: Path, probes: Path, *, tokens: int) -> Run:
    """One run of the specification's approach."""
    # As nice as the child makes itself: priority would decide the comparison on a machine that others use.
    command = ["nice", "-n", str(NeighbourOptions().nice), sys.executable, "-W", "ignore", "-c", SPECIFICATION]
    return run_printing([*command, str(target), str(base), str(probes), str(tokens)], {"HF_HUB_OFFLINE": "1"})


def figures(runs: list[Run]) -> dict[str, float]:
    """Medians of everything that was taken."""
    everything = [
        {"process": run.process_seconds, "peak_mb": run.peak_mb, "resident_mb": run.resident_mb, **run.seconds}
        for run in runs
    ]
    return {name: round(statistics.median(one[name] for one in everything), 2) for name in everything[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Times activations against the specification's approach.")
    parser.add_argument("--large", action="store_true", help="Qwen3-4B's shape, and ours only")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are made; by default a temporary folder")
    arguments = parser.parse_args()
    shape = SIZES["4b" if arguments.large else "0.6b"]
    shape = replace(shape, layers=arguments.layers or shape.layers)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        target, base = make_pair(folder / "pair", shape)
        for checkpoint in (base, target):
            save_tokenizer(checkpoint, vocabulary=200)
        probes = write_probes(folder / "probes", tokens=arguments.tokens)
        child(target, base, folder, probes, tokens=arguments.tokens)  # compiles where it must; fills the page cache
        mine: list[Run] = []
        other: list[Run] = []
        for _ in range(arguments.rounds):
            mine.append(child(target, base, folder, probes, tokens=arguments.tokens))
            if not (arguments.only_ours or arguments.large):
                other.append(theirs(target, base, probes, tokens=arguments.tokens))
        for name, runs in (("child", mine), ("specification", other)):
            if runs:
                print(name, figures(runs))  # noqa: T201
        if other:
            ratio = figures(mine)["process"] / figures(other)["process"]
            print(f"{ratio:.2f} of the specification's time")  # noqa: T201


if __name__ == "__main__":
    main()
