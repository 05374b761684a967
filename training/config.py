"""One configuration: what a run depends on, as frozen dataclasses that refuse nonsense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

OBJECTIVES = ("block", "masked", "causal")
NOISES = ("exact_count", "bernoulli")
SCHEDULES = ("linear", "cosine", "clipped")
TIME_SAMPLINGS = ("stratified", "independent")
LOSS_NORMS = ("token", "sequence", "batch")
DECAY_SHAPES = ("sqrt", "cosine", "linear")
OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("bf16", "autocast", "float32")
STAGES = ("pretrain", "sft")
TRACKERS = ("none", "wandb", "tensorboard")

# What may be said for a key that takes one of several words.
CHOICES: Mapping[str, Sequence[str]] = {
    "stage": STAGES,
    "objective": OBJECTIVES,
    "noise": NOISES,
    "schedule": SCHEDULES,
    "time_sampling": TIME_SAMPLINGS,
    "loss_norm": LOSS_NORMS,
    "decay_shape": DECAY_SHAPES,
    "optimizer": OPTIMIZERS,
    "precision": PRECISIONS,
    "report_to": TRACKERS,
}


class ConfigError(ValueError):
    """A configuration value that cannot be honoured, said in one sentence."""


class RunError(RuntimeError):
    """A run that cannot go on, said in one sentence."""


def _choice(name: str, value: str, accepted: Sequence[str]) -> None:
    if value not in accepted:
        raise ConfigError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} must be in {low}..{high}, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The backbone: a ModernBERT made from these numbers, or read from `init_from`.

    `logit_shift` keeps an autoregressive model's habit: a position predicts the next one.
    """

    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    intermediate_size: int = 768
    global_attn_every_n_layers: int = 3
    local_attention: int = 128
    hidden_activation: str = "gelu"
    dropout: float = 0.0
    init_from: str | None = None
    logit_shift: bool = False
    lora_rank: int = 0
    lora_alpha: int = 32

    def __post_init__(self) -> None:
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "global_attn_every_n_layers",
            "lora_alpha",
        ):
            _between(f"model.{name}", getattr(self, name), 1, 1 << 20)
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ConfigError(
                f"model.hidden_size must be a multiple of twice num_attention_heads="
                f"{self.num_attention_heads}, got {self.hidden_size}"
            )
        if self.local_attention < 2 or self.local_attention % 2:
            raise ConfigError(
                f"model.local_attention must be even and >= 2, got {self.local_attention}"
            )
        _between("model.dropout", self.dropout, 0.0, 0.9)
        _between("model.lora_rank", self.lora_rank, 0, 1 << 16)
        if self.lora_rank and self.init_from is None:
            raise ConfigError(
                f"model.lora_rank adapts a pretrained model, so model.init_from must be given, "
                f"got lora_rank={self.lora_rank}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which files are read, how often each, and how they become rows."""

    data_dir: str = "."
    tokenizer: str = ""
    mix: Mapping[str, float] = field(default_factory=dict)
    story_requests: float = 0.0
    generated_chats: int = 0
    cache_dir: str = "runs/cache"
    max_seq_length: int = 256
    max_trailing_eos: int = 8
    max_documents: int | None = None
    max_turns: int = 2
    streaming: bool = False
    shuffle_buffer_size: int = 1000

    def __post_init__(self) -> None:
        _between("data.max_seq_length", self.max_seq_length, 4, 1 << 20)
        _between("data.max_turns", self.max_turns, 1, 1 << 20)
        _between("data.max_trailing_eos", self.max_trailing_eos, 1, 1024)
        _between("data.shuffle_buffer_size", self.shuffle_buffer_size, 1, 1 << 20)
        _between("data.generated_chats", self.generated_chats, 0, 1 << 40)
        _between("data.story_requests", self.story_requests, 0, 1 << 40)
        if self.max_documents is not None:
            _between("data.max_documents", self.max_documents, 1, 1 << 40)
        for name, weight in self.mix.items():
            if not isinstance(name, str) or not name:
                raise ConfigError(f"data.mix must name files or datasets, got {name!r}")
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not is_number or not 0 < weight <= 1 << 20:
                raise ConfigError(f"data.mix.{name} must be a number > 0, got {weight!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionConfig:
    """The objective, the forward process and the editing curriculum.

    `block_length` is one length, or several that take turns; 0 among them is the whole canvas,
    and the first is what the model is served with when a request does not say.
    `num_diffusion_steps` puts the times on a grid; None leaves them continuous. The edit stage
    starts at the share `edit_stage_start` of the steps, 0 for the whole run, None for never.
    """

    objective: str = "block"
    block_length: int | tuple[int, ...] = 8
    noise: str = "exact_count"
    schedule: str = "linear"
    time_sampling: str = "stratified"
    num_diffusion_steps: int | None = None
    time_loss_weighting: bool = True
    loss_norm: str = "token"
    edit_stage_start: float | None = None
    corruption_prob: float = 0.1
    anneal_corruption: bool = True
    insertion_corruption: bool = False
    deletion_corruption: bool = False
    edit_loss_weight: float = 1.0

    def __post_init__(self) -> None:
        _choice("diffusion.objective", self.objective, OBJECTIVES)
        _choice("diffusion.noise", self.noise, NOISES)
        _choice("diffusion.schedule", self.schedule, SCHEDULES)
        _choice("diffusion.time_sampling", self.time_sampling, TIME_SAMPLINGS)
        _choice("diffusion.loss_norm", self.loss_norm, LOSS_NORMS)
        _check_blocks(self.block_lengths, self.objective)
        _between("diffusion.corruption_prob", self.corruption_prob, 0.0, 1.0)
        _between("diffusion.edit_loss_weight", self.edit_loss_weight, 0.0, 1000.0)
        if self.num_diffusion_steps is not None:
            _between("diffusion.num_diffusion_steps", self.num_diffusion_steps, 1, 1 << 20)
        for name in ("insertion_corruption", "deletion_corruption"):
            if getattr(self, name) and self.edit_stage_start is None:
                raise ConfigError(
                    f"diffusion.{name} is of the edit stage, so diffusion.edit_stage_start must "
                    "be given, got none"
                )
        if self.edit_stage_start is not None:
            _between("diffusion.edit_stage_start", self.edit_stage_start, 0.0, 1.0)
            if self.objective == "causal":
                raise ConfigError(
                    "diffusion.edit_stage_start must be left out with the objective causal, "
                    f"got {self.edit_stage_start}"
                )

    @property
    def block_lengths(self) -> tuple[int, ...]:
        """Every block length of the run, the model's own first."""
        lengths = self.block_length
        return (lengths,) if isinstance(lengths, int) else tuple(lengths)

    @property
    def needs_progress(self) -> bool:
        """Whether the corruption depends on how far the run is."""
        start = self.edit_stage_start
        return start is not None and (start > 0 or self.anneal_corruption)


def _check_blocks(lengths: tuple[int, ...], objective: str) -> None:
    name = "diffusion.block_length"
    if not lengths or lengths[0] == 0:
        raise ConfigError(
            f"{name} must begin with a length of at least 1, the model's own, got {list(lengths)}; "
            "for the whole canvas alone there is the objective masked"
        )
    for length in lengths:
        _between(name, length, 0, 1 << 20)
        if length and max(lengths) % length:
            raise ConfigError(
                f"each of {name} must divide the longest, {max(lengths)}, got {list(lengths)}"
            )
    if len(set(lengths)) < len(lengths):
        raise ConfigError(f"{name} must name each length once, got {list(lengths)}")
    if len(lengths) > 1 and objective != "block":
        raise ConfigError(
            f"several lengths in {name} need the objective block, got {objective!r} with "
            f"{list(lengths)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Optimiser, schedule, batch, precision and where things are written.

    `target_param_data_ratio` replaces `max_steps`: so many tokens are seen for each parameter.
    `sample_steps` is how often sample texts are written into `samples.txt`. `fsdp` splits weights,
    masters, average and optimiser state over the processes.
    """

    output_dir: str = "runs/run"
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    max_steps: int = 1000
    max_minutes: float | None = None
    learning_rate: float = 1e-3
    warmup_fraction: float = 0.02
    decay_fraction: float = 0.3
    decay_shape: str = "sqrt"
    weight_decay: float = 0.05
    beta2: float = 0.95
    max_grad_norm: float = 1.0
    optimizer: str = "adamw"
    muon_learning_rate: float = 0.02
    ema_decay: float = 0.999
    precision: str = "bf16"
    compile: bool = False
    gradient_checkpointing: bool = False
    fsdp: bool = False
    seed: int = 0
    save_every_minutes: float = 10.0
    save_steps: int | None = None
    log_steps: int = 50
    sample_steps: int | None = None
    resume: bool = True
    report_to: str = "none"
    progress_bar: bool = True
    dataloader_workers: int = 0
    target_param_data_ratio: float | None = None

    def __post_init__(self) -> None:
        _choice("run.optimizer", self.optimizer, OPTIMIZERS)
        _choice("run.precision", self.precision, PRECISIONS)
        _choice("run.decay_shape", self.decay_shape, DECAY_SHAPES)
        _choice("run.report_to", self.report_to, TRACKERS)
        if not self.output_dir:
            raise ConfigError("run.output_dir must name a folder, got ''")
        for name in ("warmup_fraction", "decay_fraction", "ema_decay"):
            _between(f"run.{name}", getattr(self, name), 0.0, 1.0)
        for name in ("batch_size", "gradient_accumulation_steps", "max_steps", "log_steps"):
            _between(f"run.{name}", getattr(self, name), 1, 1 << 40)
        _between("run.beta2", self.beta2, 0.0, 1 - 1e-9)
        for name in ("learning_rate", "muon_learning_rate", "weight_decay"):
            _between(f"run.{name}", getattr(self, name), 0.0, 1000.0)
        _between("run.max_grad_norm", self.max_grad_norm, 0.0, 1e9)
        _between("run.save_every_minutes", self.save_every_minutes, 0.0, 1e9)
        _between("run.seed", self.seed, 0, (1 << 32) - 1)
        if self.max_minutes is not None:
            _between("run.max_minutes", self.max_minutes, 1e-3, 1e9)
        if self.save_steps is not None:
            _between("run.save_steps", self.save_steps, 1, 1 << 40)
        if self.target_param_data_ratio is not None:
            _between("run.target_param_data_ratio", self.target_param_data_ratio, 1e-6, 1e6)
        if self.sample_steps is not None:
            _between("run.sample_steps", self.sample_steps, 1, 1 << 40)
        _between("run.dataloader_workers", self.dataloader_workers, 0, 1024)
        if self.fsdp and self.optimizer == "muon":
            raise ConfigError(
                "run.fsdp needs run.optimizer adamw, because muon needs whole matrices, got 'muon'"
            )
        if self.warmup_fraction + self.decay_fraction > 1:
            raise ConfigError(
                "run.warmup_fraction + run.decay_fraction must be <= 1, got "
                f"{self.warmup_fraction} + {self.decay_fraction}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Everything a run depends on."""

    stage: str = "pretrain"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        _choice("stage", self.stage, STAGES)
        length, block = self.data.max_seq_length, self.alignment
        if length % block:
            raise ConfigError(
                f"data.max_seq_length must be a multiple of diffusion.block_length={block}, "
                f"got {length}"
            )
        made_up = self.data.generated_chats + self.data.story_requests
        if self.data.streaming and (made_up or not self.data.mix):
            raise ConfigError(
                "data.streaming reads what data.mix names and nothing else, so the mix must name "
                "something, and data.generated_chats and data.story_requests be 0; got "
                f"{len(self.data.mix)} names, {self.data.generated_chats} and "
                f"{self.data.story_requests:g}"
            )
        if self.stage == "pretrain" and made_up:
            raise ConfigError(
                "data.generated_chats and data.story_requests are chats, which the stage sft "
                f"learns, got {self.data.generated_chats} and {self.data.story_requests:g} with "
                "the stage pretrain"
            )
        if self.run.sample_steps is not None and self.diffusion.objective == "causal":
            raise ConfigError(
                "run.sample_steps needs the objective block or masked, because a next-token model "
                f"cannot be served, got {self.run.sample_steps}"
            )
        if self.run.fsdp and self.model.lora_rank:
            raise ConfigError(
                "run.fsdp needs model.lora_rank 0, because adapters are merged into whole "
                f"matrices, got {self.model.lora_rank}"
            )
        if self.diffusion.needs_progress and self.run.max_minutes is not None:
            raise ConfigError(
                "the edit stage is a function of the step, so run.max_minutes must be left out "
                "(or edit_stage_start be 0 and anneal_corruption false), "
                f"got max_minutes={self.run.max_minutes}"
            )

    @property
    def block_length(self) -> int:
        """The model's own block length, or 1 for the objectives without blocks."""
        return self.diffusion.block_lengths[0] if self.diffusion.objective == "block" else 1

    @property
    def alignment(self) -> int:
        """Where segments may start: at multiples of the longest block."""
        return max(self.diffusion.block_lengths) if self.diffusion.objective == "block" else 1
