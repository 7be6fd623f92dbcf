"""The app of space_app, started for a check of it."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def running_app(patience: float = 300):
    """Start the app, which must answer within so many seconds; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started, url = time.monotonic(), f"http://127.0.0.1:{port}/"
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "TIME_LIMIT": "3600"}  # the machine may be busy
    app = subprocess.Popen([sys.executable, ROOT / "space_app" / "app.py"], env=environment, stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen(url).close()
                break
            except OSError:
                if app.poll() is not None or time.monotonic() - started > patience:
                    raise RuntimeError("The app did not start.") from None
                time.sleep(0.2)
        print(f"the app answered after {time.monotonic() - started:.1f} s")
        yield url
    finally:
        app.terminate()
        app.wait()
