"""What crashes leave of a run's small files."""

import json

import pytest

from run.checkpoints import read_state
from run.log import read_metrics
from run.yaml_config import ConfigError

OLDEST = {"step": 2, "best_loss": 1.0, "ema_step": 2, "scaler": None, "config": {}}  # of the first release


def test_damaged_lines_of_metrics_are_passed_over(tmp_path):
    lines = [
        b'{"step": 1}',
        b'\xff\xfe{"step": 2}',
        b'{"step": 3, "lo\xe9ss": 1}',
        b"\0" * 20,
        b'{"st',
        b'{"step": 4}',
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 4]


@pytest.mark.parametrize(
    "state, message",
    [
        (OLDEST, None),
        (OLDEST | {"config": None}, "its config must be a dictionary, but is None"),
        *(({k: v for k, v in OLDEST.items() if k != key}, f"it lacks {key}") for key in OLDEST),
        ([], "it lacks step, best_loss, ema_step, scaler, config"),
    ],
)
def test_states_tell_what_every_release_has_written(state, message, tmp_path):
    path = tmp_path / "step-00000002"
    path.mkdir()
    (path / "state.json").write_text(json.dumps(state))
    if message is None:
        assert read_state(path) == state
        return
    with pytest.raises(ConfigError, match=f"state.json is damaged: {message}"):
        read_state(path)
