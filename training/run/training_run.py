"""What every training has in common: steps, averaged weights, checkpoints, validation, interruption.

A trainer is a subclass of `TrainingRun` that says what is trained, with which objective, and what its folder holds.
Step k depends on (seed, k) alone, so that a resumed run follows an uninterrupted one.
"""

import contextlib
import copy
import math
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch
from diffusers.training_utils import EMAModel
from tqdm import tqdm

from accelerate import Accelerator
from images.description import in_short
from run.checkpoints import (
    STATE,
    WriteError,
    checkpoint_path,
    checkpoint_tensors,
    list_checkpoints,
    load_checkpoint,
    recover,
    save_checkpoint,
    written_folder,
)
from run.config import ConfigError, RunConfig, as_dict, save_config
from run.draws import Examples, draw_examples, seed_of
from run.folder import changes, checkpoint_to_resume, clear_folder, require_free_folder
from run.interruption import Interruption
from run.log import RunLog
from run.record import ImageRecord, read_record
from run.sharding import gathered, shard, shard_of, shard_size, whole
from run.splits import load_splits

VALIDATION, DROPOUT = 1, 2  # streams of random numbers beside that of the steps
FP16_PATIENCE = 20  # steps in a row without a finite gradient while the loss scale falls from 2^16


class Diverged(RuntimeError):
    """The loss or its gradient is no longer a finite number."""


class TrainingRun:
    """One run: everything is built, and restored if it resumes, by the constructor; `run` does the work.

    Subclasses define `build_objective`, `build_network` and `save_model`.

    Attributes:
        data: the training images.
        objective: has `parameterization` and `draw_times`, and gives the losses (N,) of (network, x_0, noise, times,
            labels), as `DenoisingScoreMatching` does.
        network, ema_network: what is trained, and its averaged weights, which are what is validated and saved.

    Args:
        fsdp: arguments of `shard`, if each process is to hold a shard of the network, rather than the whole.

    Raises:
        ConfigError: if data, network and output folder do not allow what the configuration asks for.
    """

    label_dropout: float = 0.0
    result: ClassVar[str]
    """Name of the folder, in the run's, that the trained model gets."""

    def __init__(self, config: RunConfig, accelerator: Accelerator, fsdp: dict | None = None):
        self.config, self.accelerator = config, accelerator
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        if config.batch_size % (self.world_size * config.gradient_accumulation_steps):
            raise ConfigError(
                f"batch_size must be a multiple of processes * gradient_accumulation_steps = {self.world_size} * "
                f"{config.gradient_accumulation_steps}, but is {config.batch_size}"
            )
        shards = config.data.stream_shards
        if shards > 1 and (shards % self.world_size or config.batch_size % shards):
            raise ConfigError(
                f"data.stream_shards must be 1, or a multiple of the number of processes ({self.world_size}) that "
                f"divides batch_size ({config.batch_size}), but is {shards}"
            )
        self.folder = Path(config.output_dir)
        self.checkpoints = self.folder / "checkpoints"
        checkpoint = checkpoint_to_resume(config)
        if checkpoint is None and accelerator.is_main_process:
            require_free_folder(config)

        with accelerator.local_main_process_first():
            earlier = checkpoint and read_record(checkpoint / STATE)
            self.data, validation = load_splits(config, earlier)
        self.record = earlier or ImageRecord.of(self.data, config.data.split, validation)
        if earlier is not None:
            accelerator.print(earlier.kept(self.data))
        if config.data.uniform_dequantization and self.data.pixels.levels is None:
            raise ConfigError("data.uniform_dequantization is for integers, but the images are float32")
        self.objective = self.build_objective()
        torch.manual_seed(config.seed)
        self.network = self.build_network(new=checkpoint is None)
        if config.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.ema_network = copy.deepcopy(self.network).eval().requires_grad_(False)
        if fsdp:
            shard(self.network, accelerator.device, **fsdp)
        else:
            self.ema_network.to(accelerator.device)
        options = config.optimizer
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=options.lr,
            betas=options.betas,
            eps=options.eps,
            weight_decay=options.weight_decay,
            fused=accelerator.device.type in ("cpu", "cuda"),
        )
        if config.compile:
            self.network.compile()
        # Of a network in shards, accelerate only has to see to the precision.
        self.model = accelerator.prepare_model(self.network, device_placement=not fsdp, evaluation_mode=bool(fsdp))
        self.optimizer = accelerator.prepare(optimizer)
        self.ema = EMAModel(
            [],
            decay=config.ema.decay,
            use_ema_warmup=config.ema.warmup,
            inv_gamma=config.ema.inv_gamma,
            power=config.ema.power,
            foreach=True,
        )
        self.step, self.best_loss = 0, math.inf
        if checkpoint is not None:
            self._resume(checkpoint)
        # They are the parameters of `ema_network` themselves, or as sharded as those of the network.
        pairs = zip(self.ema_network.parameters(), self.network.parameters(), strict=True)
        self.ema.shadow_params = [shard_of(average, like) for average, like in pairs]
        self.unhealthy_steps = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        self.validation = self._validation_examples(validation)
        self.log = None
        if accelerator.is_main_process:
            if checkpoint is None:
                clear_folder(config)
            print(in_short(self.data))
            self._describe()
            save_config(config, self.folder / "config.yaml")
            self.record.write(self.folder)
            self.log = RunLog(self.folder, self.step)
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

    def draw_start(self) -> None:
        """Pictures of a new run, on the main process."""

    def after_step(self) -> None:
        """What else a step may be due for, on all processes."""

    def finish(self) -> None:
        """What follows when the trained model is saved, on the main process."""

    # The run.

    def run(self) -> None:
        """Train until the end, or until a signal arrives.

        Raises:
            Diverged: on all processes alike.
        """
        config, main = self.config, self.accelerator.is_main_process
        batches = self.data.batches(
            config.batch_size, config.seed, self.step, self.rank, self.world_size, config.data.horizontal_flip
        )
        progress = tqdm(
            total=config.steps,
            initial=self.step,
            disable=not main,
            mininterval=0.5 if sys.stderr.isatty() else 20,
            dynamic_ncols=True,
        )
        loss_sum, count, seconds = 0.0, 0, 0.0  # since the last line of metrics
        with progress, Interruption(config.process_timeout) as interruption:
            while self.step < config.steps:
                began = time.perf_counter()
                loss, gradient_norm = self.train_step(*next(batches))
                loss_sum, count = loss_sum + loss, count + 1
                self.step += 1
                log = self._due(config.log_every)
                if log:
                    # Only here does the processor wait for a GPU.
                    mean_loss = self.accelerator.reduce(loss_sum / count, "mean").item()
                    self._check_health(mean_loss)
                seconds += time.perf_counter() - began
                if log and main:
                    speed = count * config.batch_size / seconds
                    self.log.metrics(
                        self.step,
                        loss=mean_loss,
                        grad_norm=gradient_norm.item(),
                        lr=self.learning_rate(self.step - 1),
                        images_per_second=speed,
                    )
                    progress.set_postfix_str(f"loss {mean_loss:.4g}, {speed:.0f} images/s", refresh=False)
                if log:
                    loss_sum, count, seconds = 0.0, 0, 0.0
                progress.update()
                if self.validation is not None and self._due(config.validate_every):
                    with self.averaged():
                        self.validate()
                signal = interruption.agreed()
                if self._due(config.checkpoint_every) or signal:
                    with contextlib.nullcontext() if signal else self._perhaps_unwritten():
                        self.save()
                if signal and self.step < config.steps:
                    self._say_how_to_resume(signal)
                    return
                self.after_step()
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
        examples = draw_examples(
            images,
            self.checked_labels(labels, self.data.name),
            self.objective,
            (config.seed, self.step),
            rank=self.rank,
            world_size=self.world_size,
            dequantize=config.data.uniform_dequantization,
            label_dropout=self.label_dropout,
            device=self.accelerator.device,
            pixels=self.data.pixels,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        micro_batches, size = config.gradient_accumulation_steps, len(images) // config.gradient_accumulation_steps
        loss = 0.0
        for i in range(micro_batches):
            wait = contextlib.nullcontext() if i == micro_batches - 1 else self.accelerator.no_sync(self.model)
            with wait:
                part = self.objective(self.model, *examples[i * size : (i + 1) * size]).mean() / micro_batches
                self.accelerator.backward(part)
            loss = loss + part.detach()
        limit = math.inf if config.gradient_clip is None else config.gradient_clip
        gradient_norm = whole(self.accelerator.clip_grad_norm_(self.network.parameters(), limit))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.network.parameters())
        # The gradient is that of all processes, so that they all come to the same conclusion.
        self.unhealthy_steps = torch.where(gradient_norm.isfinite(), 0, self.unhealthy_steps + 1)
        return loss, gradient_norm

    def learning_rate(self, step: int) -> float:
        """Of the step with this number, from 0: linear warm-up, constant, linear decay."""
        options, steps = self.config.optimizer, self.config.steps
        rise = (step + 1) / options.warmup_steps if options.warmup_steps else 1.0
        fall = (steps - step) / (options.decay_fraction * steps) if options.decay_fraction else 1.0
        return options.lr * min(rise, fall, 1.0)

    def _due(self, every: int) -> bool:
        return self.step == self.config.steps or (every > 0 and self.step % every == 0)

    def _check_health(self, mean_loss: float = 0.0) -> None:
        """Raise `Diverged` if the steps up to now were of no use; fp16 may skip some while its scale adapts."""
        unhealthy = self.unhealthy_steps.item()
        fp16 = self.accelerator.mixed_precision == "fp16"
        if unhealthy <= (FP16_PATIENCE if fp16 else 0) and (fp16 or math.isfinite(mean_loss)):
            return
        good = [str(path) for path in list_checkpoints(self.checkpoints)] or ["there is none"]
        precision = {"fp16": ", mixed_precision=bf16 or no", "bf16": ", mixed_precision=no", "no": ""}
        raise Diverged(
            f"The gradient is no finite number since step {self.step - max(unhealthy, 1) + 1} (loss {mean_loss}). "
            f"Last good checkpoint: {good[-1]}. Try a lower optimizer.lr (now {self.config.optimizer.lr:g}), more "
            f"optimizer.warmup_steps, gradient_clip=1{precision[self.accelerator.mixed_precision]}."
        )

    # Validation and pictures, by the averaged weights.

    def _validation_examples(self, images) -> Examples | None:
        """This process's part of the validation images, with the times and noise of every validation."""
        if images is None:
            return None
        count = min(self.config.data.validation_images, images.num_images or math.inf)
        pixels, labels = next(images.batches(count, seed=0))
        key = (self.config.seed, 0, VALIDATION)
        labels = self.checked_labels(labels, images.name)
        dequantize = self.config.data.uniform_dequantization
        examples = draw_examples(pixels, labels, self.objective, key, dequantize=dequantize, pixels=self.data.pixels)
        return examples[self.rank :: self.world_size]

    def averaged(self) -> contextlib.AbstractContextManager:
        """A block in which `ema_network` holds the averaged weights; to be entered by all processes."""
        return gathered(self.ema_network, self.ema.shadow_params)

    @torch.no_grad()
    def validate(self) -> None:
        """Compute the validation loss, and keep the model if it is the best one."""
        device = self.accelerator.device
        size = max(1, self.config.batch_size // self.world_size // self.config.gradient_accumulation_steps)
        total = torch.zeros(2, device=device)  # sum of losses, number of images
        for start in range(0, len(self.validation.x_0), size):
            x_0, noise, times, labels = self.validation[start : start + size]
            labels = None if labels is None else labels.to(device)
            with self.accelerator.autocast():
                losses = self.objective(self.ema_network, x_0.to(device), noise.to(device), times, labels)
            total += torch.stack([losses.sum(), losses.new_tensor(float(len(losses)))])
        loss_sum, count = self.accelerator.reduce(total).tolist()
        loss = loss_sum / count
        better, self.best_loss = loss < self.best_loss, min(loss, self.best_loss)
        if self.accelerator.is_main_process:
            self.log.metrics(self.step, validation_loss=loss)
            self.log.draw_loss(self.step)
            if better:
                with self._perhaps_unwritten():
                    self.save_as(self.folder / "best")

    # The run's folder.

    def save_as(self, target: Path) -> None:
        """Save the model as the folder `target`, which is there as a whole or not at all."""
        with written_folder(target) as folder:
            self.save_model(folder)

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
        self._check_health()
        main, scaler = self.accelerator.is_main_process, self.accelerator.scaler
        with self.averaged():
            tensors = checkpoint_tensors(self.network, self.ema_network, self.optimizer, keep=main)
        if main:
            state = {
                "step": self.step,
                "best_loss": self.best_loss,
                "ema_step": self.ema.optimization_step,
                "scaler": None if scaler is None else scaler.state_dict(),
                "config": as_dict(self.config),
                "images": self.record.as_dict(),
            }
            path = checkpoint_path(self.checkpoints, self.step)
            save_checkpoint(path, tensors, state, self.config.checkpoints_limit)

    def _resume(self, path: Path) -> None:
        try:
            state = load_checkpoint(path, self.network, self.ema_network, self.optimizer)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        for change in changes(state["config"], as_dict(self.config)):
            self.accelerator.print(f"Changed since the checkpoint was written: {change}")
        self.step, self.best_loss, self.ema.optimization_step = state["step"], state["best_loss"], state["ema_step"]
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.accelerator.is_main_process:
            for name in ("best", self.result):
                recover(self.folder / name)
        self.accelerator.print(f"Resumed from {path}")

    def _describe(self) -> None:
        parameters = sum(p.numel() for p in self.network.parameters())
        own = shard_size(self.network)
        shards = "" if own is None else f" (FSDP: {own:,} of them on the first)"
        devices = f"{self.world_size} x {self.accelerator.device.type}{shards}"
        shape = " x ".join(map(str, self.data.image_shape))
        held_out = 0 if self.validation is None else len(self.validation.x_0) * self.world_size
        lines = (
            f"Results: {self.folder.resolve()}",
            f"Images: {self.data.num_images or 'a stream'} of {self.data.name}, {shape}; for validation: {held_out}",
            f"Network: {parameters:,} parameters, on {devices}, mixed precision: {self.accelerator.mixed_precision}",
            f"Steps: {self.config.steps:,} of {self.config.batch_size} images, from step {self.step:,}",
        )
        print("\n".join(lines), flush=True)

    def _say_how_to_resume(self, signal: str) -> None:
        launcher = "python" if self.world_size == 1 else f"torchrun --nproc-per-node {self.world_size}"
        if shard_size(self.network) is not None:
            launcher = f"ACCELERATE_USE_FSDP=true FSDP_VERSION=2 {launcher}"
        arguments = [a for a in sys.argv if not a.startswith(("resume=", "overwrite="))]
        self.accelerator.print(
            f"{signal}: saved {checkpoint_path(self.checkpoints, self.step)}. Resume with:\n"
            f"    {launcher} {shlex.join(arguments)} resume=latest"
        )
