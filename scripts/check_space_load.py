"""Put load on the app of space_app: several clients at once, some of whose requests are cancelled.

    python scripts/check_space_load.py [--clients 10] [--requests 50]

The app is started, warmed up by a quarter of the requests, and measured: no answer may fail or belong to another
request, the app must come to rest, and its memory must return to its level of before. The exit status says whether all
of this held.
"""

import argparse
import sys
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import psutil
from check_space_in_browser import running_app
from gradio_client import Client

ROUND = 5  # every so many-th request is cancelled
SLACK = 100e6  # bytes that the allocator may keep


def ask(client: Client, seed: int) -> str:
    """One request; "answered", "cancelled" or what went wrong."""
    job = client.submit("Bag", "DDIM", 20, 1, 4, seed, False, api_name="/generate")
    cancelled = seed % ROUND == 0
    if cancelled:
        time.sleep(0.5)
        job.cancel()
    try:
        gallery, _ = job.result(timeout=300)
    except (CancelledError, KeyError) as error:  # the client raises either if it is cancelled
        return "cancelled" if cancelled else f"{type(error).__name__}: {error}"
    except Exception as error:  # whatever a client sees is counted
        return f"{type(error).__name__}: {error}"
    captions = [item["caption"] for item in gallery]
    return "answered" if captions == [f"seed {seed + k}" for k in range(4)] else f"wrong answer: {captions}"


def put_load(clients: list[Client], requests: range) -> dict[str, int]:
    """Send the requests; how often each outcome happened."""
    with ThreadPoolExecutor(len(clients)) as pool:
        outcomes = [*pool.map(lambda seed: ask(clients[seed % len(clients)], seed), requests)]
    return {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}


def settled(process: psutil.Process) -> tuple[int, int]:
    """Resident bytes and threads, once nothing computes any more."""
    while process.cpu_percent(2.0) > 20:
        pass
    return process.memory_info().rss, process.num_threads()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--requests", type=int, default=50)
    arguments = parser.parse_args()
    with running_app() as url:
        app = next(child for child in psutil.Process().children() if "app.py" in " ".join(child.cmdline()))
        clients = [Client(url, verbose=False, analytics_enabled=False) for _ in range(arguments.clients)]
        put_load(clients, range(1, arguments.requests // 4))
        memory, threads = settled(app)
        started = time.monotonic()
        outcomes = put_load(clients, range(1000, 1000 + arguments.requests))
        print(f"{arguments.requests} requests in {time.monotonic() - started:.0f} s: {outcomes}")
        memory_after, threads_after = settled(app)
    print(
        f"memory {memory / 1e6:.0f} MB before, {memory_after / 1e6:.0f} MB after; threads {threads}, {threads_after}"
    )
    good = set(outcomes) <= {"answered", "cancelled"} and memory_after < memory + SLACK
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
