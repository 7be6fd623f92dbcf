"""Pushing the run's pipeline to the Hub in the background; a failed upload is reported, and training goes on."""

import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from huggingface_hub import get_token
from tqdm import tqdm

from images.sources import HUB_IDS
from run.config import Config
from run.yaml_config import ConfigError
from sde_diffusers.hub import push_model
from sde_diffusers.hub.push import check_names
from sde_diffusers.model_card import HandwrittenCardError, check_card_words


class Publisher:
    """One upload at a time, each of the averaged weights at one step.

    Raises:
        ConfigError: there is no token to push with, or no such repository or licence can be.
    """

    def __init__(self, config: Config):
        if not get_token():
            raise ConfigError("push_to_hub=true needs a token of the Hub: run `hf auth login`, or set HF_TOKEN")
        self.config = config
        self.repo_id = config.hub_model_id or Path(config.output_dir).resolve().name
        self.folder = Path(config.output_dir) / "pushed"
        self._thread = None
        for key, check, value in (
            ("hub_model_id", check_names, self.repo_id),
            ("hub_license", check_card_words, config.hub_license),
        ):
            try:
                check(value)
            except ValueError as error:
                raise ConfigError(f"push_to_hub=true with {key}={value}: {error}") from error

    def offer(self, step: int, images_seen: int, save: Callable[[Path], None]) -> None:
        """Push this step's pipeline, which `save` writes into a folder, unless an earlier one is still on its way."""
        if self._thread is not None and self._thread.is_alive():
            tqdm.write(f"Step {step} is not pushed to the Hub: an earlier upload is not done yet")
            return
        try:
            save(self.folder)
        except OSError as error:
            self._report(step, error)
        else:
            self._start(self.folder, step, images_seen)

    def finish(self, step: int, images_seen: int, folder: Path) -> None:
        """Push the run's last pipeline, and wait until it is there; Ctrl-C ends the wait."""
        print(f"Pushing the pipeline to {self.repo_id} ...", flush=True)
        try:
            if self._thread is not None:
                self._thread.join()
            self._start(folder, step, images_seen)
            self._thread.join()
        except KeyboardInterrupt as error:
            self._report(step, error)

    def _start(self, *arguments) -> None:
        self._thread = threading.Thread(target=self._push, args=arguments, daemon=True)
        self._thread.start()

    def _push(self, folder: Path, step: int, images_seen: int) -> None:
        config = self.config
        grids = sorted((Path(config.output_dir) / "figures").glob("samples-*.png"))
        dataset = HUB_IDS.get(config.data.dataset, config.data.dataset)
        local = config.data.dataset not in HUB_IDS and Path(dataset).expanduser().exists()
        name = Path(dataset).resolve().name if local else dataset  # the rest of a path is nobody else's business
        description = (
            f"Trained for {step:,} of {config.steps:,} steps, on {images_seen:,} images of `{name}` in all; these are "
            f"the averaged weights (EMA)."
        )
        push = partial(
            push_model,
            folder,
            self.repo_id,
            commit_message=f"Step {step} of {config.steps}",
            private=config.hub_private,
            license=config.hub_license,
            datasets=None if local else [dataset],
            samples=grids[-1] if grids else None,
        )
        try:
            try:
                commit = push(description=description)
            except HandwrittenCardError:  # whose text stays
                commit = push()
        except Exception as error:  # whatever it is: the training is worth more
            self._report(step, error)
        else:
            tqdm.write(f"Pushed step {step} to the Hub: {commit}")

    def _report(self, step: int, error: BaseException) -> None:
        reason = str(error).strip() or type(error).__name__
        if isinstance(error, RuntimeError) and error.__cause__:  # of a file that could not be uploaded
            reason += f" ({error.__cause__})"
        private = {True: " --private", False: " --no-private", None: ""}[self.config.hub_private]
        tqdm.write(
            f"Step {step} is not pushed to the Hub: {reason}\nTo push the trained pipeline by hand: "
            f"sde-diffusers push {self.config.output_dir}/pipeline {self.repo_id}{private}",
            file=sys.stderr,
        )
