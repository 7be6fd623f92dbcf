"""Put load on the app of space_app: many clients at once, some of whose requests are cancelled or left alone.

    python scripts/check_space_load.py [--clients 100] [--seconds 120]

The app is started and warmed up. Then each client asks, waits for its answer and asks again; a request that the full
queue refuses is made again. No answer may fail or belong to another request (its pixels are compared with those of an
idle app), threads must stay few, memory must return to its level of before, and after SIGTERM, in the midst of more
requests, no temporary file may be left. The exit status says whether all of this held.
"""

import argparse
import asyncio
import io
import json
import os
import random
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image
from space_app_running import running_app

WAITING = 32  # requests that the app lets wait
SEEDS = range(12)
CANCELLED = 0.25  # of the requests, half of them by a word, half by leaving
MOST_THREADS = 48
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # or it may use one that is being closed
SLACK = 150e6  # bytes that the allocator may keep


class Client:
    """One visitor; its requests are those of a browser."""

    def __init__(self, http: httpx.AsyncClient, events: dict[str, int]):
        self.http, self.events, self.session = http, events, uuid.uuid4().hex

    def request(self, event: str, data: list) -> dict:
        return {"data": data, "fn_index": self.events[event], "session_hash": self.session}

    async def ask(self, event: str, data: list, patience: float = 300.0):
        """The outputs of an event, or why there are none: "refused", "cancelled" after `patience` seconds, ..."""
        request = self.request(event, data)
        joined = await self.http.post("queue/join", json=request)
        if joined.status_code == 503:
            return "refused"
        try:
            return await asyncio.wait_for(self.answer(), patience)
        except asyncio.TimeoutError:
            if random.random() < 0.5:
                await self.http.post("cancel", json={**request, **joined.json()})
            self.session = uuid.uuid4().hex
            return "cancelled"

    async def answer(self):
        async with self.http.stream("GET", "queue/data", params={"session_hash": self.session}) as lines:
            async for line in lines.aiter_lines():
                message = json.loads(line.removeprefix("data:")) if line else {}
                if message.get("msg") == "process_completed":
                    return message["output"]["data"] if message["success"] else f"failed: {message['output']}"
        return "failed: no answer"

    async def pixels(self, gallery) -> np.ndarray:
        file = await self.http.get("file=" + gallery[0]["image"]["path"])
        return np.asarray(Image.open(io.BytesIO(file.content)).convert("L")).astype(float)

    async def draw(self, seed: int, patience: float = 300.0):
        """The first of two images, or why there is none."""
        answer = await self.ask("generate", ["Bag", "DDIM", 10, 1, 2, seed, False], patience)
        return answer if isinstance(answer, str) else await self.pixels(answer[0])

    async def visit(self, end: float, expected: list[np.ndarray], outcomes: Counter) -> None:
        """Ask until the time `end`."""
        while time.monotonic() < end:
            seed = random.choice(SEEDS)
            patience = random.uniform(0, 2) if random.random() < CANCELLED else 300.0
            if random.random() < 0.2:
                outcome = await self.ask("random_image", [], patience)
                outcome = outcome if isinstance(outcome, str) else "answered"
            else:
                outcome = await self.draw(seed, patience)
                if not isinstance(outcome, str):
                    outcome = "answered" if np.abs(outcome - expected[seed]).max() <= 2 else "another's answer"
            outcomes[outcome] += 1
            if outcome == "refused":
                await asyncio.sleep(random.uniform(1, 5))


async def sample(process: psutil.Process, peaks: dict[str, int]) -> None:
    """Note the largest memory and number of threads, until cancelled."""
    while True:
        peaks["memory"] = max(peaks["memory"], process.memory_info().rss)
        peaks["threads"] = max(peaks["threads"], process.num_threads())
        await asyncio.sleep(0.2)


async def settled(process: psutil.Process) -> int:
    """Resident bytes once nothing computes any more."""
    process.cpu_percent()
    while True:
        await asyncio.sleep(2)
        if process.cpu_percent() < 20:
            return process.memory_info().rss


async def put_load(url: str, clients: int, seconds: float) -> bool:
    """Whether the app bears it."""
    process = max(psutil.Process().children(recursive=True), key=lambda child: child.memory_info().rss)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=LIMITS) as http:
        config = (await http.get("config")).json()
        http.base_url = url + "gradio_api/"
        events = {event["api_name"]: event["id"] for event in config["dependencies"]}
        visitors = [Client(http, events) for _ in range(clients)]
        expected = [await visitors[0].draw(seed) for seed in SEEDS]
        await asyncio.gather(*(visitor.visit(time.monotonic() + 10, expected, Counter()) for visitor in visitors))
        before = await settled(process)
        peaks, outcomes = {"memory": 0, "threads": 0}, Counter()
        sampling = asyncio.create_task(sample(process, peaks))
        end = time.monotonic() + seconds
        await asyncio.gather(*(visitor.visit(end, expected, outcomes) for visitor in visitors))
        sampling.cancel()
        after = await settled(process)
        for visitor in visitors[: 2 * WAITING]:  # what SIGTERM meets
            await visitor.http.post(
                "queue/join", json=visitor.request("generate", ["Bag", "DDIM", 99, 1, 2, 0, False])
            )
    print(f"{clients} clients, {seconds:.0f} s: " + ", ".join(f"{n} {what}" for what, n in outcomes.most_common()))
    print(f"memory {before / 1e6:.0f} MB before, at most {peaks['memory'] / 1e6:.0f}, {after / 1e6:.0f} after")
    print(f"threads: at most {peaks['threads']}")
    well = outcomes.keys() <= {"answered", "cancelled", "refused"} and outcomes["answered"] > 0
    return well and peaks["threads"] <= MOST_THREADS and after < before + SLACK


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=120)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        with running_app() as url:
            well = asyncio.run(put_load(url, arguments.clients, arguments.seconds))
        left = [path.name for path in Path(folder).iterdir()]
    print(f"temporary files left: {len(left)}", *left)
    return 0 if well and not left else 1


if __name__ == "__main__":
    sys.exit(main())
