"""Train a score network:

    accelerate launch training/train.py training/configs/NAME.yaml key=value section.key=value ...

`run/config.py` describes the keys. The run's folder then holds

    config.yaml     the whole configuration          figures/         samples, loss curve, forward noising
    metrics.jsonl   loss, speed, ... by step         tensorboard/     the same: tensorboard --logdir FOLDER
    checkpoints/    to resume from: resume=latest    best/, pipeline/ of lowest validation loss; at the end
    averages/       of other lengths, for average.py    abandoned/  what a run that went back had written later
    pushed/         what push_to_hub=true sent last

Step k depends on (seed, k) alone: a resumed run follows an uninterrupted one (bit for bit on one CPU process), and
several processes, or micro-batches, follow one process with the same `batch_size`, but for dropout. SIGTERM or Ctrl-C
save a checkpoint after the current step and exit with status 0; a diverged loss or a refused configuration exit with
status 1.

Several processes on CPUs: accelerate launch --cpu --num_processes N training/train.py ... (see `run/launching.py`).

Several machines: each process reads the images and, to resume, the checkpoint, which the main process writes to
`output_dir`; so that folder has to be shared by the machines, or copied to them before they resume. Send signals to
the whole process group: a launcher that is killed alone leaves its processes running.
"""

from run.command_help import help_if_asked

if __name__ == "__main__":
    help_if_asked(__doc__, "run/config.py")

import sys
from functools import partial

import torch
from accelerate import Accelerator

from evaluation.config import FEATURE_SPACES
from evaluation.feature_metrics import eight_bits
from evaluation.sample_distance import SampleDistance
from run.checkpoints import read_state
from run.config import Config, read_config
from run.distillation import require_same_images, trained_networks
from run.figures import distance_curves, image_grid, noise_level_curves, noising_strip
from run.launching import start_all_processes
from run.learned_weighting import LearnedWeighting
from run.measured import MEASURED_IMAGES, measure, take_measured, wants_images
from run.noise_levels import NoiseLevels
from run.optimizer import learning_rate
from run.power_averages import PowerAverages, drop_snapshots, save_snapshot
from run.process import launch
from run.publishing import Publisher
from run.record import digest_of
from run.score_model import (
    build_network,
    build_objective,
    build_scheduler,
    check_score_model,
    load_initial_weights,
    tunes_consistency,
)
from run.splits import about_classes, check_labels
from run.training_run import TrainingRun
from run.yaml_config import ConfigError
from sde_diffusers import ScoreSdePipeline
from sde_diffusers.images import visible
from sde_diffusers.perceptual import PerceptualDistance
from sde_diffusers.pipelines.pipeline_score_sde import StateNotFiniteError


class Training(TrainingRun):
    """The training of a score network; see `TrainingRun`."""

    result = "pipeline"

    def __init__(self, config: Config, accelerator: Accelerator, *arguments, **options):
        self.conditional = bool(config.model.get("num_class_embeds"))
        self.label_dropout, self.augmentation = config.label_dropout, config.augmentation
        self.kept = {}
        self.publisher = Publisher(config) if config.push_to_hub and accelerator.is_main_process else None
        super().__init__(config, accelerator, *arguments, **options)
        if accelerator.is_main_process:
            drop_snapshots(self.folder, after=self.step)

    def build_objective(self):
        config = self.config
        if self.checkpoint is not None:
            for line in take_measured(config, self.checkpoint):
                self.accelerator.print(line)
        if note := about_classes(config, self.data):
            self.accelerator.print(note)
        count = MEASURED_IMAGES if wants_images(config) else 8
        self.few, labels = self._some_images(count)
        self.checked_labels(labels, self.data.name)  # a stream tells its labels only now
        image_range = build_scheduler(config).parameterization.image_range
        for line in measure(config, self.few, self.data.pixels, image_range):
            self.accelerator.print(line)
        self.scheduler = build_scheduler(config)
        self.distance = None
        if config.distance_every:
            reference = eight_bits(self._some_images(config.distance.num_reference)[0], self.data.pixels)
            self.distance = SampleDistance(config.distance, reference, self.data.name, config.seed, self.accelerator)
        objective = build_objective(config, self.scheduler)
        self.noise_levels = NoiseLevels(objective, config.noise_levels) if config.noise_levels else None
        self.validation_count += 2 * config.noise_levels
        before = {} if self.checkpoint is None else read_state(self.checkpoint)
        self.asked, self.digests = trained_networks(config, self.scheduler, before)
        if denoiser := self.asked.get("denoiser"):
            objective.denoiser = self._in_precision_of_the_run(denoiser)
        if classifier := self.asked.get("perceptual_classifier"):
            objective.perceptual = PerceptualDistance(classifier.to(self.accelerator.device), image_range)
        return objective

    def _in_precision_of_the_run(self, network):
        network.to(self.accelerator.device)
        if self.config.channels_last:
            network.to(memory_format=torch.channels_last)

        def ask(*arguments):
            with self.accelerator.autocast():
                return network(*arguments)

        return ask

    def _some_images(self, count):
        """Images, and labels or None: `count` of the training's, or all if there are fewer."""
        images, labels = next(self.data.batches(min(count, self.data.num_images or count), seed=0))
        if self.data.num_images is not None:
            return images, labels
        once = list({digest_of(image): k for k, image in enumerate(images)}.values())  # a short stream begins again
        return images[once], None if labels is None else labels[once]

    def build_network(self, new):
        network = build_network(self.config, self.data.image_shape, self.record)
        require_same_images(self.config, self.asked, network)
        if self.config.initial_weights and new:
            for note in load_initial_weights(self.config, network):
                self.accelerator.print(note)
        return network

    def build_companions(self):
        config, accelerator, companions = self.config, self.accelerator, {}
        if config.learned_weighting:
            companions["learned_weighting"] = LearnedWeighting(
                lambda step: learning_rate(config.optimizer, step, config.steps),
                partial(accelerator.reduce, reduction="mean") if self.world_size > 1 else None,
                accelerator.device,
            )
        if config.power_averages.snapshot_every:
            companions["power_averages"] = PowerAverages(self.network, config.power_averages.sigma_rel)
        return companions

    def objective_now(self):
        if not tunes_consistency(self.config):
            return self.objective
        now = self.objective.at(self.step / self.config.steps)
        now.given_solutions = bool(self.config.kept_batches)
        return now

    def drawn(self, images, labels, step):
        """If batches are kept, one of them, which is solved when it is first asked for."""
        if not self.config.kept_batches:
            return super().drawn(images, labels, step)
        number = step % self.config.kept_batches
        if number not in self.kept:
            if number < step:  # the run was resumed
                images, labels = next(self.batches(number))
            examples, _ = super().drawn(images, labels, number)
            solution, noise = self.objective.solved(*examples)
            self.kept[number] = examples._replace(x_0=solution, noise=noise)
        return self.kept[number], None

    def weighted(self, losses, times):
        weighting = self.companions.get("learned_weighting")
        if weighting is None:
            return losses
        log_s = -self.objective.sde.half_log_snr(times)
        weighting.learn(losses, log_s, share=1 / self.config.gradient_accumulation_steps)
        return losses * weighting.weight(log_s)

    def validation_numbers(self, examples):
        losses = super().validation_numbers(examples)
        if self.noise_levels is None:
            return losses
        return torch.cat([losses, self.noise_levels.spread(losses[:, 0], examples.times)], 1)

    def log_validation(self, *means):
        if self.noise_levels is None:
            return
        levels, losses = self.noise_levels.levels, self.noise_levels.means(means)
        self.log.metrics(self.step, noise_levels=levels, noise_level_losses=losses)
        history = {r["step"]: r["noise_level_losses"] for r in self.log.records if r.get("noise_levels") == levels}
        self.log.picture(self.step, "noise_levels", noise_level_curves(levels, history))

    def before_checkpoint(self):
        averages = self.companions.get("power_averages")
        if averages is not None and self._due(self.config.power_averages.snapshot_every):
            tensors = averages.state_dict()
            if self.accelerator.is_main_process:
                self.log.require_held()
                with self._perhaps_unwritten():
                    save_snapshot(self.folder, self.step, tensors)

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
        measure_distance = config.distance_every and self._due(config.distance_every)
        if not (draw or push or measure_distance):
            return
        with self.averaged():
            if measure_distance:
                self.measure_distance()
            if draw and main:
                self.draw_samples()
            if push and main:
                self.publisher.offer(self.step, self.images_seen, self.save_as)

    def measure_distance(self) -> None:
        """Write down how far samples lie from training images, on all processes."""
        distances, reasons = self.distance(self._pipeline())
        if not self.accelerator.is_main_process:
            return
        for reason in reasons:
            print(f"Step {self.step}: {reason}")
        if not distances:
            return
        how = self.distance.settings
        self.log.metrics(self.step, **distances, distance_settings=how)
        history = [
            r for r in self.log.records if distances.keys() <= r.keys() and r.get("distance_settings", how) == how
        ]
        steps, curves = [r["step"] for r in history], {name: [r[name] for r in history] for name in distances}
        self.log.picture(self.step, "distance", distance_curves(steps, curves))

    def _pipeline(self) -> ScoreSdePipeline:
        pipeline = ScoreSdePipeline(unet=self.ema_network, scheduler=self.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def draw_samples(self) -> None:
        """Save a grid of samples, from the same noise every time."""
        options = self.config.samples
        labels = None
        if self.conditional:
            labels = torch.arange(options.columns).repeat(options.rows) % self.network.config.num_class_embeds
        try:
            with self.accelerator.autocast():
                images = self._pipeline()(
                    batch_size=options.rows * options.columns,
                    num_inference_steps=options.num_inference_steps,
                    class_labels=labels,
                    guidance_scale=options.guidance_scale,
                    generator=torch.Generator().manual_seed(self.config.seed),
                    output_type="pt",
                ).images
        except StateNotFiniteError as error:  # of a network that has learnt little; the run goes on
            print(f"Step {self.step}: no samples. {error}")
            return
        self.log.picture(self.step, "samples", image_grid(visible(images), options.columns), keep=True)
        self.log.draw_loss(self.step)

    def save_model(self, folder):
        ScoreSdePipeline(unet=self.ema_network, scheduler=self.scheduler).save_pretrained(folder)

    def finish(self):
        pipeline = self.folder / self.result
        if self.publisher:
            self.publisher.finish(self.step, self.images_seen, pipeline)
        print(
            f'Done: from sde_diffusers import ScoreSdePipeline; pipe = ScoreSdePipeline.from_pretrained("{pipeline}")'
        )


def main(arguments: list[str]) -> int:
    """Run the trainer; returns the exit status."""

    def configuration() -> Config:
        config = read_config(arguments)
        check_score_model(config)
        if config.distance.features not in (None, *FEATURE_SPACES):
            allowed = ", ".join(FEATURE_SPACES)
            raise ConfigError(f"distance.features must be one of {allowed}, but is {config.distance.features!r}")
        return config

    return launch(Training, configuration)


if __name__ == "__main__":
    start_all_processes()
    sys.exit(main(sys.argv[1:]))
