"""The API held against its own OpenAPI document by schemathesis, on a real server with a bus and a campaign."""

import asyncio
import os
import re
import sys

import httpx
import pytest

from tests.integration.daemon.house import House
from tests.integration.web.test_page import fill

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "8")
"""For each operation; more for a longer search."""
SECONDS = float(os.environ.get("SCHEMATHESIS_SECONDS", "100"))


@pytest.mark.timeout(SECONDS + 20)
async def test_every_answer_is_one_that_the_description_promises(house: House, api: httpx.AsyncClient) -> None:
    fill(house.folder)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{api.base_url}/schema"),
        *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES),
        *("--seed", "1", "--continue-on-failure", "--warnings", "off", "--no-color"),
        "--exclude-path=/api/events",  # it does not end
        cwd=house.folder.root,  # what it leaves behind
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(SECONDS):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, said.decode()[-20_000:]


async def test_no_pattern_of_the_description_has_a_look_around(api: httpx.AsyncClient) -> None:
    patterns = re.findall(r'"pattern": *"((?:[^"\\]|\\.)*)"', (await api.get("/schema/openapi.json")).text)
    assert patterns
    assert not [pattern for pattern in patterns if "(?" in pattern], "RE2 and Rust refuse it"
