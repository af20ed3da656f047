"""Ossicle's own step of the same HuBERT."""

from ossicle.core.errors import ConfigError
from ossicle.launch.bench.bare import BareStep
from ossicle.launch.bench.peers.shape import KERNELS, STRIDES, Shape
from ossicle.launch.bench.steps import Facts, StepWork
from ossicle.launch.config import Config, compose
from ossicle.launch.experiment import resolved

SINGLE = {"_target_": "ossicle.stage.plan.Single"}


class SameHubert(BareStep):
    """A bare step whose products are counted as those of the peers are, as the papers write them."""

    def __init__(self, config: Config, work: StepWork, macs: int) -> None:
        super().__init__(config, work)
        self.macs = macs

    def facts(self) -> Facts:
        """What is known of it."""
        facts = super().facts()
        return Facts(
            facts.params,
            self.macs * self.work.rate_hz / self.work.samples,
            facts.precision,
            facts.compiled,
            facts.note,
        )


def hubert(shape: Shape, work: StepWork) -> SameHubert:
    """The experiment of these sizes on one batch."""
    config = resolved(compose("pretrain", overrides(shape, work)))
    config["stage"] = SINGLE  # a chain of runs would say how many classes there are
    step = SameHubert(config, work, shape.macs(work.samples))
    clock = step.system.model.clock
    if clock.num_frames(work.samples) != shape.frames(work.samples):
        raise ConfigError(
            f"{shape.experiment} has {clock.num_frames(work.samples)} frames where peers have"
            f" {shape.frames(work.samples)}",
            "report it: the systems are not asked for the same work",
        )
    return step


def overrides(shape: Shape, work: StepWork) -> list[str]:
    """The experiment of some sizes, as the command line would state it."""
    convolutions = [[shape.conv_dim, kernel, stride] for kernel, stride in zip(KERNELS, STRIDES, strict=True)]
    return [
        f"experiment={shape.experiment}",
        "data.shards=null",
        f"seed={work.seed}",
        f"cluster.accelerator={work.device}",
        f"precision={'bf16-mixed' if work.bfloat16 else '32-true'}",
        f"compile={str(work.compile).lower()}",
        f"compile_mode={work.compile_mode}",
        f"target.num_classes={shape.classes}",
        f"++objective.head.final_dim={shape.final_dim}",
        f"objective.mask_start_probability={shape.start_probability}",
        f"encoder.dim={shape.dim}",
        f"encoder.num_layers={shape.layers}",
        f"encoder.ffn_dim={shape.ffn_dim}",
        f"encoder.layer_drop={shape.layer_drop}",
        f"encoder.dropout={shape.dropout}",
        f"encoder.position_kernel={shape.position_kernel}",
        f"encoder.position_groups={shape.position_groups}",
        f"mixer.num_heads={shape.heads}",
        f"mixer.dropout={shape.dropout}",
        *([f"frontend.convolutions={convolutions}"] if shape.wave else ["frontend.band_shift=0"]),
    ]
