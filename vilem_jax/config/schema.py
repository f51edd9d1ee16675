"""One run's settings as frozen dataclasses.

Defaults are the paper's values, or what `docs/paper-notes.md` chooses if the paper does
not say. `config/freeze.py` makes them from a ConfigDict and checks the bounds.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Literal

from vilem_jax.config.bounds import (
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
)
from vilem_jax.config.sources import SourceConfig

RGB = tuple[float, float, float]
PositiveRGB = Annotated[RGB, Range(gt=0)]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: tuple[SourceConfig, ...] = ()
    validation: tuple[SourceConfig, ...] = ()
    test: tuple[SourceConfig, ...] = ()  # scored once, when a run has ended
    tokenizer: str = ""  # folder or hub name that holds vocab.txt
    text_length: int = 30  # tokens, special ones included; ALBEF
    keeps_sep: bool = True  # False: no [SEP], and room for one more token; ALBEF
    cleaning: Literal["albef", "blip"] = "albef"
    captions: Literal["pairs", "one_at_random"] = "pairs"  # what an epoch visits once
    crop_scale: tuple[float, float] = (0.2, 1.0)  # of the area, RandomResizedCrop
    num_workers: NonNegativeInt = 0  # processes that read, decode and crop; 0: a thread
    prefetch: NonNegativeInt = 2  # batches made ahead
    max_corrupt_fraction: Fraction = 0.01  # of images replaced before the run stops


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Device-side augmentation of uint8 images, after the crop."""

    flip_rate: Fraction = 0.5
    flip_spares_sides: bool = True  # no flip if the caption says left or right
    num_ops: NonNegativeInt = 2  # RandAugment N; 0 turns it off
    level: Annotated[int, Range(ge=0, le=10)] = 7  # RandAugment M, of 10
    op_rate: Fraction = 0.5  # each chosen op is applied with this probability
    mean: RGB = (0.48145466, 0.4578275, 0.40821073)
    std: PositiveRGB = (0.26862954, 0.26130258, 0.27577711)


# -1: the whole tower trains. 0: it is locked. n: the last n layers train.
NumTrainedLayers = Annotated[int, Range(ge=-1)]


class Tower:
    """What `num_trained_layers` means, for both towers; see `models/locked.py`."""

    num_layers: int
    num_trained_layers: int

    @property
    def has_locked(self) -> bool:
        """Whether embeddings, and layers if any, keep their values."""
        return self.num_trained_layers >= 0

    @property
    def num_locked_layers(self) -> int:
        return self.num_layers - self.num_trained_layers if self.has_locked else 0


@dataclass(frozen=True, kw_only=True)
class VisionConfig(Tower):
    """The ViT; if `start_from` is set, the checkpoint decides the shape."""

    start_from: str = ""  # a file, folder or hub name of any format in docs/weights.md
    image_size: PositiveInt = 256  # pixels a side
    patch_size: PositiveInt = 16
    width: PositiveInt = 768
    num_layers: PositiveInt = 12
    num_heads: PositiveInt = 12
    mlp_width: PositiveInt = 3072
    layer_norm_eps: PositiveFloat = 1e-6
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    num_trained_layers: NumTrainedLayers = -1

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class TextConfig(Tower):
    """The BERT; if `start_from` is set, the checkpoint decides its shape."""

    start_from: str = ""  # as the ViT's
    vocab_size: PositiveInt = 30522
    width: PositiveInt = 768
    num_layers: PositiveInt = 12
    num_heads: PositiveInt = 12
    mlp_width: PositiveInt = 3072
    max_positions: PositiveInt = 512
    num_token_types: PositiveInt = 2
    layer_norm_eps: PositiveFloat = 1e-12
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    dropout_rate: FractionBelowOne = 0.1  # of hidden states and attention
    num_trained_layers: NumTrainedLayers = -1


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """If `start_from` is set, that model decides all shapes but the image's."""

    # A run, a model's folder or a hub name: all parameters start from there.
    start_from: str = ""
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    allow_pickle: bool = False  # whether a start_from may be .pth, .pt or .bin
    embedding_width: PositiveInt = 256
    num_proofread_layers: PositiveInt = 6  # M_1, Table 6
    levels: Literal["uniform", "last"] = "uniform"  # Eq. (11), or Table 7 D
    global_feature: Literal["normed", "unnormed"] = "normed"  # [CLS] after the last LN
    heads: Literal["separate", "shared"] = "separate"  # of the local and global branch
    # Whether correction also trains the token embeddings through its decoder.
    decoder_trains_embeddings: bool = True
    initial_temperature: PositiveFloat = 0.07
    # Of new kernels; 0: 1 / sqrt(inputs), for narrow models.
    init_std: NonNegativeFloat = 0.02


@dataclass(frozen=True, kw_only=True)
class EditorConfig:
    """The frozen masked-language model and how it edits, Sec. 3.2.1."""

    path: str = ""  # folder or hub name of a BertForMaskedLM
    sha256: str = ""  # of its weights; filled in when a run starts
    # If not 0 and `path` is empty: the run first trains its editor for so many steps,
    # from the BERT of the text tower, in the folder `editor` of its work directory.
    train_steps: NonNegativeInt = 0
    # File of a `vilem data edit`: edits come from there, and training needs no `path`;
    # with one the editor still makes the edits of validation.
    edit_table: str = ""
    edit_table_sha256: str = ""  # of that file; filled in when a run starts
    edit_rate: Fraction = 0.15
    min_edits: NonNegativeInt = 1  # if the caption has an editable token
    max_edits: PositiveInt = 8  # K
    num_candidates: PositiveInt = 20  # top-k
    masking: Literal["together", "one_by_one"] = "together"
    sampling: Literal["likely", "uniform", "vocabulary"] = "likely"  # Table 7 F: last
    keep_pieces: bool = True  # a ## piece is replaced by a ## piece only
    # Only while an editor is trained: the fraction of the chosen tokens that is masked;
    # half of the others stay as they are, half become a random token (BERT).
    mask_rate: Fraction = 0.8

    @property
    def manner(self) -> dict[str, object]:
        """What decides the edits of a caption, besides the weights and the seed."""
        other = ("path", "sha256", "edit_table", "edit_table_sha256")
        other += ("train_steps", "mask_rate")
        return {k: v for k, v in asdict(self).items() if k not in other}


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    local_weight: NonNegativeFloat = 0.8  # lambda_1
    global_weight: NonNegativeFloat = 0.2  # lambda_2
    local_detect: bool = True  # the four switches of Table 5
    local_correct: bool = True
    global_detect: bool = True
    global_correct: bool = True
    detect_reduction: Literal["sum", "per_edit", "mean"] = "sum"  # over a text's tokens
    # Steps over which both weights rise from 0: the contrastive loss learns first.
    proofread_ramp_steps: NonNegativeInt = 0
    soft_target_weight: Fraction = 0.0  # alpha of ALBEF's momentum targets
    soft_target_ramp_steps: NonNegativeInt = 0
    pairing: Literal["online", "cross"] = "online"
    negatives: Literal["global", "device"] = "global"
    # "image": every caption of the row's image, in the batch and in the queue.
    positives: Literal["own", "image"] = "own"
    queue_length: NonNegativeInt = 65536  # N_q
    momentum: Fraction = 0.995  # m
    momentum_dropout: bool = False
    min_temperature: PositiveFloat = 0.001
    max_temperature: float = 0.5

    @property
    def trained(self) -> dict[str, tuple[str, ...]]:
        """What the branches learn: {"local": ("detect", "correct"), ...}.

        A branch that learns nothing is left out.
        """
        trained = {}
        for branch in ("local", "global"):
            tasks = ("detect", "correct")
            if learned := tuple(t for t in tasks if getattr(self, f"{branch}_{t}")):
                trained[branch] = learned
        return trained

    @property
    def has_local(self) -> bool:
        return "local" in self.trained

    @property
    def has_global(self) -> bool:
        return "global" in self.trained

    @property
    def has_proofreading(self) -> bool:
        return bool(self.trained)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    # "muon" is for the kernels between hidden layers; all the rest keeps AdamW.
    name: Literal["adamw", "muon"] = "adamw"
    # Of the entries of an update; AdamW's are 0.2 to 0.4.
    muon_rms: PositiveFloat = 0.2
    learning_rate: NonNegativeFloat = 3e-4
    final_learning_rate: NonNegativeFloat = 1e-5
    warmup_steps: NonNegativeInt = 2000
    decay_per: Literal["step", "epoch"] = "step"
    weight_decay: NonNegativeFloat = 0.02
    # ALBEF does: [CLS], positions and the temperature too.
    decays_all_but_biases_and_norms: bool = False
    beta1: FractionBelowOne = 0.9
    beta2: FractionBelowOne = 0.999
    eps: PositiveFloat = 1e-8
    clip_norm: NonNegativeFloat = 0.0  # 0: no clipping


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    batch_size: PositiveInt = 2048  # pairs a step, over all devices
    num_microbatches: PositiveInt = 1
    num_epochs: NonNegativeFloat = 20.0  # used if num_steps is 0
    num_steps: NonNegativeInt = 0
    max_skipped_in_a_row: PositiveInt = 3  # non-finite steps before the run stops

    def steps_of(self, epoch_length: int) -> int:
        """The steps of a run whose epochs have that many pairs."""
        steps_per_epoch = max(epoch_length // self.batch_size, 1)
        return self.num_steps or max(round(self.num_epochs * steps_per_epoch), 1)


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """What changes speed and memory, and rounding at most."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    # Of the ViT. "auto" is replaced when a run starts: cuDNN's kernel on NVIDIA GPUs of
    # capability 8.0 or more, in bfloat16, and XLA's own elsewhere.
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    recompute: bool = False  # activations of each block in the backward pass
    scan_blocks: bool = False  # of the ViT: compiled once, run in a loop
    # What devices split among them; see distributed/mesh.py.
    sharding: Literal["replicated", "zero1", "fsdp"] = "replicated"
    fsdp_devices: NonNegativeInt = 0  # that share one copy; 0: all of them
    # Lengths that a microbatch may be cut to if its texts are shorter, rows sorted by
    # length; for example (16, 24). Exact; one more compilation for each length.
    text_lengths: tuple[int, ...] = ()
    cls_only_last_layer: bool = True  # exact savings; switches for the equality tests
    joint_text_pass: bool = True
    editor_at_positions: bool = True


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    every_steps: NonNegativeInt = 0  # 0: only at the end
    batch_size: PositiveInt = 64
    text_length: int = 35
    num_proofread_images: PositiveInt = 256
    edit_rate: Fraction = 0.15  # of evaluation's edits; training has its own


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    every_steps: PositiveInt = 50
    tensorboard: bool = True


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: PositiveInt = 1000
    keep: PositiveInt = 2
    keep_best: bool = False  # by the mean recall of validation, in RUN/best


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run."""

    task: Literal["vilem", "editor"] = "vilem"
    seed: Annotated[int, Range(ge=0, lt=2**31)] = 0
    # Keys whose values follow from the data and the machine at the start: fit.py.
    # Empty once they have them, as in the config that the run stores.
    fitted: tuple[str, ...] = ()
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    editor: EditorConfig = field(default_factory=EditorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    @property
    def evaluation_editor(self) -> EditorConfig:
        """How evaluation edits the captions that it proofreads."""
        return replace(self.editor, edit_rate=self.evaluation.edit_rate)

    @property
    def tokenizer_name(self) -> str:
        """Folder or hub name with vocab.txt, unless the work directory has one."""
        return self.data.tokenizer or self.model.text.start_from
