"""What a process has in memory after its imports; the import contracts say the same of the source."""

import json
import subprocess
import sys

import pytest

LARGE = ("torch", "numba", "llvmlite", "safetensors", "transformers", "numpy", "pandas", "accelerate")
FOR_PEOPLE = ("structlog", "typer", "rich")


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    return {name.partition(".")[0] for name in json.loads(found.stdout)}


@pytest.mark.parametrize(
    "module",
    [
        "archaeologist.daemon.service",
        "archaeologist.daemon.child",
        "archaeologist.api",
        "archaeologist.bus.server",
        "archaeologist.web.service",
    ],
)
def test_the_parent_holds_nothing_large(module: str) -> None:
    assert modules_after(f"import {module}").isdisjoint(LARGE)


def test_the_command_line_starts_without_anything_large_and_without_the_bus() -> None:
    assert modules_after("import archaeologist.cli.app").isdisjoint({*LARGE, "nats"})


def test_the_package_alone_loads_nothing_of_itself() -> None:
    loaded = modules_after("import archaeologist")
    assert loaded.isdisjoint({*LARGE, *FOR_PEOPLE, "nats", "msgspec", "contracts"})


def test_the_trainer_s_publisher_needs_the_bus_and_nothing_for_people() -> None:
    loaded = modules_after("import archaeologist.trainers.publisher")
    assert loaded.isdisjoint({*LARGE, *FOR_PEOPLE})
    assert {"nats", "msgspec"} <= loaded


def test_the_callback_brings_nothing_that_a_trainer_with_transformers_lacks() -> None:
    with_transformers = modules_after("from transformers import TrainerCallback")
    loaded = modules_after("import archaeologist.trainers.huggingface")
    assert loaded.isdisjoint({*FOR_PEOPLE, "numba"} - with_transformers)


def test_the_contracts_need_msgspec_and_the_standard_library() -> None:
    loaded = modules_after(
        "import contracts.messages, contracts.artifacts, contracts.records, contracts.subjects, contracts.documents"
    )
    # What msgspec brings, and what the .pth files of installed packages load at each start, is there without us.
    assert loaded - modules_after("import msgspec") - {"contracts"} <= sys.stdlib_module_names
