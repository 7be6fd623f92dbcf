"""Train a score network:

    accelerate launch training/train.py training/configs/NAME.yaml key=value section.key=value ...

`run/config.py` describes the keys. The run's folder then holds

    config.yaml     the whole configuration          figures/         samples, loss curve, forward noising
    metrics.jsonl   loss, speed, ... by step         tensorboard/     the same: tensorboard --logdir FOLDER
    checkpoints/    to resume from: resume=latest    best/, pipeline/ of lowest validation loss; at the end
    pushed/         what push_to_hub=true sent last

Step k depends on (seed, k) alone: a resumed run follows an uninterrupted one (bit for bit on one CPU process), and
several processes, or micro-batches, follow one process with the same `batch_size`. SIGTERM or Ctrl-C save a checkpoint
after the current step and exit with status 0; a diverged loss or a refused configuration exit with status 1.

Several processes on CPUs: accelerate launch --cpu --num_processes N training/train.py ... (see `run/launching.py`).

Several machines: each process reads the images and, to resume, the checkpoint, which the main process writes to
`output_dir`; so that folder has to be shared by the machines, or copied to them before they resume. Send signals to
the whole process group: a launcher that is killed alone leaves its processes running.
"""

import sys

import torch
from accelerate import Accelerator

from images.pixels import suggest_sigma_data, suggest_sigma_max
from run.config import Config, read_config
from run.figures import image_grid, noising_strip
from run.launching import start_all_processes
from run.process import launch
from run.publishing import Publisher
from run.score_model import (
    ANY_SIGMA_DATA,
    build_network,
    build_objective,
    build_scheduler,
    check_score_model,
    load_initial_weights,
    sigma_data_is_asked_for,
)
from run.splits import check_labels
from run.training_run import TrainingRun
from sde_diffusers import ScoreSdePipeline
from sde_diffusers.images import visible


class Training(TrainingRun):
    """The training of a score network; see `TrainingRun`."""

    result = "pipeline"

    def __init__(self, config: Config, accelerator: Accelerator, fsdp: dict | None = None):
        self.conditional = bool(config.model.get("num_class_embeds"))
        self.label_dropout = config.label_dropout
        self.publisher = Publisher(config) if config.push_to_hub and accelerator.is_main_process else None
        super().__init__(config, accelerator, fsdp)

    def build_objective(self):
        config = self.config
        auto = {
            "sigma_max": config.scheduler.get("sigma_max") == "auto",
            "sigma_data": sigma_data_is_asked_for(config),
        }
        count = min(2000 if any(auto.values()) else 8, self.data.num_images or 2000)
        self.few, labels = next(self.data.batches(count, seed=0))
        self.checked_labels(labels, self.data.name)  # a stream tells its labels only now

        self.scheduler = build_scheduler(config)
        low, high = self.scheduler.parameterization.image_range
        measure = {"sigma_max": suggest_sigma_max, "sigma_data": suggest_sigma_data}
        for name in (name for name in auto if auto[name] and getattr(self.record, name) is None):
            value = (high - low) * measure[name](self.few, pixels=self.data.pixels)
            setattr(self.record, name, value)
            self.accelerator.print(f"{name}: {value:.4g}, from the training images")
        if auto["sigma_max"]:
            self.scheduler = build_scheduler(config, self.record.sigma_max)
        return build_objective(config, self.scheduler, self.record.sigma_data or ANY_SIGMA_DATA)

    def build_network(self, new):
        network = build_network(self.config, self.data.image_shape, self.record)
        if self.config.initial_weights and new:
            load_initial_weights(self.config, network)
        return network

    def checked_labels(self, labels, name):
        check_labels(self.config, labels, name)
        return labels if self.conditional else None

    def draw_start(self):
        few = self.data.pixels.to_unit(self.few[:4], torch.float64)
        strip = noising_strip(visible(few), self.scheduler.parameterization)
        self.log.picture(0, "noising", strip)

    def after_step(self):
        config, main = self.config, self.accelerator.is_main_process
        draw = config.sample_every and self._due(config.sample_every)
        push = config.push_to_hub and self._due(config.checkpoint_every) and self.step < config.steps
        if not (draw or push):
            return
        with self.averaged():
            if draw and main:
                self.draw_samples()
            if push and main:
                self.publisher.offer(self.step, self.save_as)

    def draw_samples(self) -> None:
        """Save a grid of samples, from the same noise every time."""
        options = self.config.samples
        labels = None
        if self.conditional:
            labels = torch.arange(options.columns).repeat(options.rows) % self.network.config.num_class_embeds
        pipeline = ScoreSdePipeline(unet=self.ema_network, scheduler=self.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        with self.accelerator.autocast():
            images = pipeline(
                batch_size=options.rows * options.columns,
                num_inference_steps=options.num_inference_steps,
                class_labels=labels,
                guidance_scale=options.guidance_scale,
                generator=torch.Generator().manual_seed(self.config.seed),
                output_type="pt",
            ).images
        self.log.picture(self.step, "samples", image_grid(visible(images), options.columns), keep=True)
        self.log.draw_loss(self.step)

    def save_model(self, folder):
        ScoreSdePipeline(unet=self.ema_network, scheduler=self.scheduler).save_pretrained(folder)

    def finish(self):
        pipeline = self.folder / self.result
        if self.publisher:
            self.publisher.finish(self.step, pipeline)
        print(
            f'Done: from sde_diffusers import ScoreSdePipeline; pipe = ScoreSdePipeline.from_pretrained("{pipeline}")'
        )


def main(arguments: list[str]) -> int:
    """Run the trainer; returns the exit status."""

    def configuration() -> Config:
        config = read_config(arguments)
        check_score_model(config)
        return config

    return launch(Training, configuration)


if __name__ == "__main__":
    start_all_processes()
    sys.exit(main(sys.argv[1:]))
