"""The process of a trainer, and the errors that end it with a message."""

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from accelerate import Accelerator

from images.streams import StreamError
from run.accelerator import make_accelerator
from run.config import RunConfig
from run.folder import mend_folder, require_outside_the_data
from run.health import Diverged
from run.interruption import ends_in_order
from run.lock import FolderLock, FolderLost
from run.memory import keep_freed_memory
from run.sharding import fsdp_options
from run.training_run import TrainingRun
from run.written_folder import WriteError
from run.yaml_config import ConfigError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _lost_process(error: RuntimeError) -> bool:
    """Whether an error says that another process does not answer any more; gloo has no type for it."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


@contextlib.contextmanager
def held_folder(folder: Path, accelerator: Accelerator) -> Iterator[FolderLock | None]:
    """The run's folder, which the main process locks and puts right before the others look at it."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        yield None
        return
    with FolderLock(folder) as lock:
        for line in mend_folder(folder):
            print(line)
        accelerator.wait_for_everyone()
        yield lock


def launch(trainer: type[TrainingRun], configuration: Callable[[], RunConfig]) -> int:
    """Run a trainer with the configuration that is read here; returns the exit status."""
    try:
        config = configuration()
        require_outside_the_data(config.data, config.output_dir)
        keep_freed_memory()
        fsdp = fsdp_options()
        if fsdp and (config.compile or config.mixed_precision == "fp16"):
            raise ConfigError("compile=true and mixed_precision=fp16 are not supported with FSDP")
        if fsdp and config.optimizer.name == "muon":
            raise ConfigError(
                "optimizer.name=muon needs whole matrices, of which FSDP gives each process a share: "
                "optimizer.name=adamw, or a launch without FSDP"
            )
        accelerator = make_accelerator(config.mixed_precision, timedelta(seconds=config.process_timeout))
        with ends_in_order(), held_folder(Path(config.output_dir), accelerator) as lock:
            trainer(config, accelerator, fsdp if dist.is_initialized() else None, lock).run()
            accelerator.end_training()
    except (ConfigError, StreamError, Diverged, FolderLost, WriteError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        print(f"Nothing more can be written into {config.output_dir}: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not (dist.is_initialized() and _lost_process(error)):
            raise
        print(
            f"Process {dist.get_rank()} has lost another one ({error}). That one ended, for the reason given above, "
            f"or has not answered for process_timeout={config.process_timeout:g} seconds. Start all again with "
            "resume=latest.",
            file=sys.stderr,
        )
        return 1
    return 0
