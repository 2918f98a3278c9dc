"""THE BASELINE, not our way: the specification's approach, written out to be timed beside the child.

Its sections 5.3 and 5.4: the whole model loaded, a norm of each parameter, the reference loaded whole, a difference and
a cosine of each parameter. It gives no percentiles, no counts and no sketch, and in bfloat16 its norms and cosines lose
digits. Run as a process of its own, because it imports torch and transformers.
"""

from typing import Final

SPECIFICATION: Final = """
import json, pathlib, sys, time
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
target, *references = sys.argv[1:]
started = time.perf_counter()
from transformers import Qwen3ForCausalLM
loaded = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16)
model.eval()
norms = {name: parameter.data.norm(2).item() for name, parameter in model.named_parameters()}
distances, cosines = {}, {}
for reference in references:
    state = {}
    for file in sorted(pathlib.Path(reference).glob("*.safetensors")):
        state |= load_file(file, device="cpu")
    for name, parameter in model.named_parameters():
        if name not in state:
            continue
        distances[name] = (parameter.data - state[name]).norm(2).item()
        mine, theirs = parameter.data.flatten().unsqueeze(0), state[name].flatten().unsqueeze(0)
        cosines[name] = torch.nn.functional.cosine_similarity(mine, theirs).item()
ended = time.perf_counter()
print(json.dumps({"written": ended - started, "work": ended - loaded, "tensors": len(norms)}))
"""
"""Prints seconds of the work as it is written, after the libraries' import; and without loading the model's class,
which the first call of ``from_pretrained`` does."""

MEMORY: Final = 2.4
"""Times a checkpoint's size: both are loaded whole, and something is left over."""
