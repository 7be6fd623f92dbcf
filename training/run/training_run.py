"""What every training has in common: steps, averaged weights, checkpoints, validation, interruption.

A trainer is a subclass of `TrainingRun` that says what is trained, with which objective, and what its folder holds.
Step k depends on (seed, k) alone, so that a resumed run follows an uninterrupted one.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import Accelerator
from tqdm import tqdm

from images.description import in_short
from run.average import AveragedNetwork
from run.checkpoints import (
    checkpoint_path,
    checkpoint_tensors,
    delete_oldest,
    images_seen,
    load_checkpoint,
    load_companions,
    read_state,
    write_checkpoint,
)
from run.config import RunConfig
from run.description import describe_run, how_to_resume
from run.draws import Examples, draw_augmented, draw_examples, seed_of
from run.folder import (
    BEST,
    VALIDATION_LOSS,
    changes,
    checkpoint_to_resume,
    has_best,
    prepare_folder,
    require_free_folder,
    validates_alike,
)
from run.health import Health
from run.interruption import Interruption
from run.lock import FolderLock
from run.log import RunLog
from run.optimizer import build_optimizer, learning_rate
from run.overfitting import warn_of_overfitting
from run.record import ImageRecord, record_in
from run.sharding import shard, whole
from run.splits import check_batches, load_splits
from run.trackers import check_trackers, start_trackers
from run.validation import Validation
from run.written_folder import WriteError, written_folder
from run.yaml_config import ConfigError, as_dict

DROPOUT = 2  # stream of random numbers beside that of the steps


class TrainingRun:
    """One run: everything is built, and restored if it resumes, by the constructor; `run` does the work.

    Subclasses define `build_objective`, `build_network` and `save_model`.

    Attributes:
        data: the training images.
        objective: has `parameterization` and `draw_times`, and gives the losses (N,) of (network, x_0, noise, times,
            labels), as `DenoisingScoreMatching` does.
        network, ema_network: what is trained, and its averaged weights, which are what is validated and saved.
        checkpoint: where the run goes on; None for a new one.
        companions: what is learned or averaged beside the network, by name: each has `update(step)`, for the end of a
            step, and `state_dict` and `load_state_dict`, for checkpoints, which have a file of that name.

    Args:
        fsdp: arguments of `shard`, if each process is to hold a shard of the network, rather than the whole.
        lock: of the run's folder, which must be held whenever something is written there; None if nobody else can be.

    Raises:
        ConfigError: if data, network and output folder do not allow what the configuration asks for.
    """

    label_dropout: float = 0.0
    augmentation: float = 0.0
    validation_count: int = 1
    digests: ClassVar[dict] = {}  # of other networks that the objective asks, by name; checkpoints have them
    result: ClassVar[str]
    """Name of the folder, in the run's, that the trained model gets."""

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        fsdp: dict | None = None,
        lock: FolderLock | None = None,
    ):
        self.config, self.accelerator = config, accelerator
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        check_batches(config, self.world_size)
        check_trackers(config)
        self.folder = Path(config.output_dir)
        self.checkpoints = self.folder / "checkpoints"
        self.checkpoint = checkpoint = checkpoint_to_resume(config)
        if checkpoint is None and accelerator.is_main_process:
            require_free_folder(config)

        with accelerator.local_main_process_first():
            earlier = record_in(read_state(checkpoint)) if checkpoint else None
            self.data, images = load_splits(config, earlier)
        options = config.data
        self.record = ImageRecord.of(self.data, options.split, images, options.max_images, options.data_dir)
        if earlier is not None:
            accelerator.print(earlier.kept(self.data))
            self.record = earlier.gone_on(self.record)
        if config.data.uniform_dequantization and self.data.pixels.levels is None:
            raise ConfigError("data.uniform_dequantization is for integers, but the images are float32")
        self.objective = self.build_objective()
        torch.manual_seed(config.seed)
        self.network = self.build_network(new=checkpoint is None)
        if config.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.average = AveragedNetwork(self.network, config.ema, device=None if fsdp else accelerator.device)
        self.ema_network = self.average.network
        if fsdp:
            shard(self.network, accelerator.device, **fsdp)
        optimizer = build_optimizer(config.optimizer, self.network, accelerator.device)
        if config.compile:
            self.network.compile()
        # Of a network in shards, accelerate only has to see to the precision.
        self.model = accelerator.prepare_model(self.network, device_placement=not fsdp, evaluation_mode=bool(fsdp))
        self.optimizer = accelerator.prepare(optimizer)
        self.companions = self.build_companions()
        self.step, self.images_seen, self.best_loss, self.noise_by_image = 0, 0, math.inf, True
        if checkpoint is not None:
            self._resume(checkpoint)
        self.average.start(self.network)
        self.health = Health(config, accelerator, self.checkpoints)
        self.validation = None
        if images is not None:
            self.validation = Validation(
                images, self.objective, config, accelerator, self.checked_labels, self.noise_by_image
            )
        self.log = None
        if accelerator.is_main_process:
            trackers = start_trackers(config, self.folder, self.step)
            for line in prepare_folder(config, checkpoint):
                print(line)
            if not has_best(self.folder, self.step):
                self.best_loss = math.inf  # the next validation saves one
            held_out = 0 if self.validation is None else self.validation.num_images
            about = describe_run(config, accelerator, self.data, held_out, self.network, self.step)
            print(in_short(self.data), about, sep="\n", flush=True)
            self.record.write(self.folder)
            self.log = RunLog(self.folder, self.step, trackers, lock)
            if self.step == 0:
                self.draw_start()

    # What a trainer defines.

    def build_objective(self):
        """The objective, for the images `self.data`."""
        raise NotImplementedError

    def build_network(self, new: bool) -> torch.nn.Module:
        """The network; `new` unless a checkpoint's weights will replace its own."""
        raise NotImplementedError

    def save_model(self, folder: Path) -> None:
        """Write the averaged network into a new folder."""
        raise NotImplementedError

    def checked_labels(self, labels: torch.Tensor | None, name: str) -> torch.Tensor | None:
        """The labels of some images of the data set `name` as the objective takes them; ConfigError if it can't."""
        return labels

    def build_companions(self) -> dict:
        """The `companions`."""
        return {}

    def objective_now(self):
        """The objective of the coming step; `objective` itself is that of the last."""
        return self.objective

    def weighted(self, losses: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The losses (n,) of a micro-batch at `times` as their gradient is to be taken."""
        return losses

    def validation_numbers(self, examples: Examples) -> torch.Tensor:
        """Of n validation images, (n, `validation_count`): the loss, and what else is to be averaged over all."""
        return self.objective(self.ema_network, *examples)[:, None]

    def log_validation(self, *means: float) -> None:
        """Write down the means of what `validation_numbers` gives beside the loss, on the main process."""

    def before_checkpoint(self) -> None:
        """What a step may be due for before its checkpoint, on all processes."""

    def draw_start(self) -> None:
        """Pictures of a new run, on the main process."""

    def after_step(self) -> None:
        """What else a step may be due for, on all processes."""

    def finish(self) -> None:
        """What follows when the trained model is saved, on the main process."""

    # The run.

    def batches(self, step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """This process's share of the images and labels of a step, and of those that follow."""
        config, share = self.config, (self.rank, self.world_size)
        return self.data.batches(config.batch_size, config.seed, step, *share, config.data.horizontal_flip)

    def run(self) -> None:
        """Train until the end, or until a signal arrives.

        Raises:
            Diverged: on all processes alike.
        """
        config, main = self.config, self.accelerator.is_main_process
        batches = self.batches(self.step)
        often = 0.5 if sys.stderr.isatty() else 20  # seconds
        progress = tqdm(total=config.steps, initial=self.step, disable=not main, mininterval=often, dynamic_ncols=True)
        loss_sum, count, seconds = 0.0, 0, 0.0  # since the last line of metrics
        with progress, Interruption(config.process_timeout) as interruption:
            while self.step < config.steps:
                began = time.perf_counter()
                loss, gradient_norm = self.train_step(*next(batches))
                loss_sum, count = loss_sum + loss, count + 1
                self.step, self.images_seen = self.step + 1, self.images_seen + config.batch_size
                if log := self._due(config.log_every):
                    # Only here does the processor wait for a GPU.
                    mean_loss = self.accelerator.reduce(loss_sum / count, "mean").item()
                    self.health.check(self.step, mean_loss)
                seconds += time.perf_counter() - began
                if log and main:
                    speed = count * config.batch_size / seconds
                    rate, norm = learning_rate(config.optimizer, self.step - 1, config.steps), gradient_norm.item()
                    self.log.metrics(self.step, loss=mean_loss, grad_norm=norm, lr=rate, images_per_second=speed)
                    progress.set_postfix_str(f"loss {mean_loss:.4g}, {speed:.0f} images/s", refresh=False)
                if log:
                    loss_sum, count, seconds = 0.0, 0, 0.0
                progress.update()
                if self.validation is not None and self._due(config.validate_every):
                    with self.averaged():
                        self.validate()
                self.before_checkpoint()
                signal = interruption.agreed()
                if self._due(config.checkpoint_every) or signal:
                    with contextlib.nullcontext() if signal else self._perhaps_unwritten():
                        self.save()
                self.after_step()
                if signal and self.step < config.steps:
                    saved = checkpoint_path(self.checkpoints, self.step)
                    again = how_to_resume(self.accelerator, self.network, config.overwrite)
                    self.accelerator.print(f"{signal}: saved {saved}. Resume with:\n    {again}")
                    return
        with self.averaged():
            if main:
                self.save_as(self.folder / self.result)
        if main:
            self.log.close()
            self.finish()

    def train_step(self, images: torch.Tensor, labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """One update of the weights and their average; this process's mean loss, and the norm of the gradient."""
        config = self.config
        # Drawn by step and process, so that dropout too resumes where it left off.
        torch.manual_seed(seed_of(config.seed, self.step, DROPOUT, self.rank))
        examples, augment_labels = self.drawn(images, labels, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, self.step, config.steps)
        micro_batches, size = config.gradient_accumulation_steps, len(images) // config.gradient_accumulation_steps
        loss = 0.0
        for i in range(micro_batches):
            wait = contextlib.nullcontext() if i == micro_batches - 1 else self.accelerator.no_sync(self.model)
            part, network = slice(i * size, (i + 1) * size), self.model
            if augment_labels is not None:
                network = partial(self.model, augment_labels=augment_labels[part])
            with wait:
                losses = self.objective_now()(network, *examples[part])
                self.accelerator.backward(self.weighted(losses, examples.times[part]).mean() / micro_batches)
            loss = loss + losses.detach().mean() / micro_batches
        norm = whole(self.accelerator.clip_grad_norm_(self.network.parameters(), config.gradient_clip or math.inf))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.network)
        for companion in self.companions.values():
            companion.update(self.step + 1)
        self.health.observe(norm)
        return loss, norm

    def drawn(self, images: torch.Tensor, labels: torch.Tensor | None, step: int) -> tuple:
        """The `Examples` of a step, of which these are the images, and labels of their augmentations or None."""
        key, share, augment_labels = (self.config.seed, step), {"rank": self.rank, "world_size": self.world_size}, None
        if self.augmentation:
            images, augment_labels = draw_augmented(images, self.augmentation, key, **share)
            augment_labels = augment_labels.to(self.accelerator.device, non_blocking=True)
        examples = draw_examples(
            images,
            self.checked_labels(labels, self.data.name),
            self.objective,
            key,
            **share,
            dequantize=self.config.data.uniform_dequantization,
            label_dropout=self.label_dropout,
            device=self.accelerator.device,
            pixels=self.data.pixels,
            noise_by_image=self.noise_by_image,
        )
        return examples, augment_labels

    def _due(self, every: int) -> bool:
        return self.step == self.config.steps or (every > 0 and self.step % every == 0)

    # Validation and pictures, by the averaged weights.

    def averaged(self) -> contextlib.AbstractContextManager:
        """A block in which `ema_network` holds the averaged weights; to be entered by all processes."""
        return self.average.whole()

    def validate(self) -> None:
        """Compute the validation loss, and keep the model if it is the best one; on all processes, when `averaged`."""
        loss, *others = self.validation.mean(self.validation_numbers, self.validation_count)
        if self.accelerator.is_main_process:
            self.log.metrics(self.step, validation_loss=loss)
            self.log_validation(*others)
            self.log.draw_loss(self.step)
            warn_of_overfitting(self.log, self.step)
            if loss < self.best_loss:
                with self._perhaps_unwritten():
                    with self._written(self.folder / BEST) as folder:
                        self.save_model(folder)
                        (folder / VALIDATION_LOSS).write_text(json.dumps({"step": self.step, "loss": loss}))
                    self.best_loss = loss

    # The run's folder.

    def save_as(self, target: Path) -> None:
        """Save the model as the folder `target`, which is there as a whole or not at all."""
        with self._written(target) as folder:
            self.save_model(folder)

    @contextlib.contextmanager
    def _written(self, target: Path) -> Iterator[Path]:
        self.log.require_held()
        with written_folder(target) as folder:
            yield folder

    @contextlib.contextmanager
    def _perhaps_unwritten(self) -> Iterator[None]:
        """For what a run can do without, if its configuration says so."""
        try:
            yield
        except WriteError as error:
            if self.config.on_write_error == "stop":
                raise
            print(f"Goes on without it: {error}", file=sys.stderr)

    def save(self) -> None:
        """Write a checkpoint, once all processes know that it is worth keeping."""
        self.health.check(self.step)
        main, scaler = self.accelerator.is_main_process, self.accelerator.scaler
        with self.averaged():
            tensors = checkpoint_tensors(self.network, self.ema_network, self.optimizer, main, self.companions)
        if main:
            state = {
                "step": self.step,
                "images_seen": self.images_seen,
                "best_loss": self.best_loss,
                "ema_step": self.average.step,
                "scaler": None if scaler is None else scaler.state_dict(),
                "config": as_dict(self.config),
                "images": self.record.as_dict(),
                "noise_by_image": self.noise_by_image,
                **self.digests,
            }
            path = checkpoint_path(self.checkpoints, self.step)
            with self._written(path) as folder:
                write_checkpoint(folder, tensors, state)
            delete_oldest(self.checkpoints, self.config.checkpoints_limit)

    def _resume(self, path: Path) -> None:
        try:
            state = load_checkpoint(path, self.network, self.ema_network, self.optimizer)
            load_companions(path, self.companions)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        for change in changes(state["config"], as_dict(self.config)):
            self.accelerator.print(f"Changed since the checkpoint was written: {change}")
        self.step, self.images_seen, self.average.step = state["step"], images_seen(state), state["ema_step"]
        self.best_loss = state["best_loss"] if validates_alike(state["config"], as_dict(self.config)) else math.inf
        self.noise_by_image = state.get("noise_by_image", False)
        if not self.noise_by_image:
            self.accelerator.print("This run began with an earlier release, whose draws of noise it keeps")
        if (scaler := self.accelerator.scaler) is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        self.accelerator.print(f"Resumed from {path}")
