"""One run's settings as frozen dataclasses.

Defaults are the paper's values, or what `docs/paper-notes.md` chose where the paper is
silent. `config/freeze.py` makes them from a ConfigDict; nothing else reads one.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where image-caption pairs come from; the key of the mapping is its `name`.

    `kind` "scenes": drawn by the program (`split`, `seed`, `num_images`). "json": an
    annotation file `path` with images in `images` (a folder or a zip). "tfds": a TFDS
    data set `path` such as "coco_captions/2014" prepared under `images`. "webdataset":
    tars matching the glob `path`.
    """

    name: str = ""
    kind: Literal["scenes", "json", "tfds", "webdataset"] = "json"
    path: str = ""
    images: str = ""
    split: str = ""  # Karpathy's or TFDS's name, several joined by "+"; "" takes all
    weight: float = 0.0  # share in a mixture; 0 means the number of pairs
    seed: int = 0  # of `scenes`
    num_images: int = 0  # the first so many; 0 means all (for `scenes` its default)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: tuple[SourceConfig, ...] = ()
    validation: tuple[SourceConfig, ...] = ()
    test: tuple[SourceConfig, ...] = ()  # scored once, when a run has ended
    tokenizer: str = ""  # folder or hub name that holds vocab.txt
    text_length: int = 30  # tokens, special ones included; ALBEF
    keeps_sep: bool = True  # False: no [SEP], and room for one more word; ALBEF
    cleaning: Literal["albef", "blip"] = "albef"
    captions: Literal["pairs", "one_at_random"] = "pairs"  # what an epoch visits once
    crop_scale: tuple[float, float] = (0.2, 1.0)  # of the area, RandomResizedCrop
    num_workers: int = 0  # processes that read, decode and crop; 0: a thread
    prefetch: int = 2  # batches on their way
    max_corrupt_fraction: float = 0.01  # of images replaced before the run stops


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Device-side augmentation of uint8 images, after the crop."""

    flip_rate: float = 0.5
    flip_spares_sides: bool = True  # no flip where the caption says left or right
    num_ops: int = 2  # RandAugment N; 0 turns it off
    level: int = 7  # RandAugment M, of 10
    op_rate: float = 0.5  # each drawn op is applied with this probability
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The ViT; where `start_from` is set, the checkpoint decides the shape."""

    start_from: str = ""  # a file, folder or hub name of any format in docs/weights.md
    image_size: int = 256  # pixels a side
    patch_size: int = 16
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    layer_norm_eps: float = 1e-6
    activation: Literal["gelu", "gelu_tanh"] = "gelu"

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The BERT; where `start_from` is set, the checkpoint decides all but dropout."""

    start_from: str = ""  # as the ViT's
    vocab_size: int = 30522
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    max_positions: int = 512
    num_token_types: int = 2
    layer_norm_eps: float = 1e-12
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    dropout_rate: float = 0.1  # of hidden states and of attention probabilities


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Where `start_from` is set, that model decides all shapes but the image's."""

    # A run, a model's folder or a hub name: all parameters start from there.
    start_from: str = ""
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    allow_pickle: bool = False  # whether a start_from may be .pth, .pt or .bin
    embedding_width: int = 256
    num_proofread_layers: int = 6  # M_1, Table 6
    levels: Literal["uniform", "last"] = "uniform"  # Eq. (11), or Table 7 D
    global_feature: Literal["normed", "unnormed"] = "normed"  # [CLS] after the last LN
    heads: Literal["separate", "shared"] = "separate"  # of the local and global branch
    # Whether the gradient of correction reaches the word embeddings by its decoder too.
    decoder_trains_embeddings: bool = True
    initial_temperature: float = 0.07
    init_std: float = 0.02  # of new kernels; 0: 1 / sqrt(inputs), for narrow models


@dataclass(frozen=True, kw_only=True)
class EditorConfig:
    """The frozen masked-language model and how it edits, Sec. 3.2.1."""

    path: str = ""  # folder or hub name of a BertForMaskedLM
    sha256: str = ""  # of its weights; filled in when a run starts
    # File of a `vilem data edit`: edits come from there, and training needs no `path`;
    # with one the editor still makes the edits of validation.
    edit_table: str = ""
    edit_table_sha256: str = ""  # of that file; filled in when a run starts
    edit_rate: float = 0.15
    min_edits: int = 1  # where there is a word
    max_edits: int = 8  # K
    num_candidates: int = 20  # top-k
    masking: Literal["together", "one_by_one"] = "together"
    sampling: Literal["likely", "uniform", "vocabulary"] = "likely"  # Table 7 F: last
    keep_pieces: bool = True  # a ## piece is replaced by a ## piece only
    # While an editor is trained: of the chosen words so many are masked, half of the
    # rest stay as they are and half become any word (BERT).
    mask_rate: float = 0.8

    @property
    def manner(self) -> dict[str, Any]:
        """What decides the edits of a caption, beside the weights and the seed."""
        other = ("path", "sha256", "edit_table", "edit_table_sha256", "mask_rate")
        return {k: v for k, v in asdict(self).items() if k not in other}


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    local_weight: float = 0.8  # lambda_1
    global_weight: float = 0.2  # lambda_2
    local_detect: bool = True  # the four switches of Table 5
    local_correct: bool = True
    global_detect: bool = True
    global_correct: bool = True
    detect_reduction: Literal["sum", "per_edit", "mean"] = "sum"  # over a text's words
    # Steps over which both weights rise from 0, so that contrast sees words first.
    proofread_ramp_steps: int = 0
    soft_target_weight: float = 0.0  # alpha of ALBEF's momentum targets
    soft_target_ramp_steps: int = 0
    pairing: Literal["online", "cross"] = "online"
    negatives: Literal["global", "device"] = "global"
    # "image": every caption of the row's image, in the batch and in the queue.
    positives: Literal["own", "image"] = "own"
    queue_length: int = 65536  # N_q
    momentum: float = 0.995  # m
    momentum_dropout: bool = False
    min_temperature: float = 0.001
    max_temperature: float = 0.5

    @property
    def trained(self) -> dict[str, tuple[str, ...]]:
        """What the branches learn: {"local": ("detect", "correct"), ...}.

        A branch that learns nothing is left out.
        """
        tasks = {
            branch: tuple(
                task
                for task in ("detect", "correct")
                if getattr(self, f"{branch}_{task}")
            )
            for branch in ("local", "global")
        }
        return {branch: learnt for branch, learnt in tasks.items() if learnt}

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
    muon_rms: float = 0.2  # of the entries of an update; AdamW's are of 0.2 to 0.4
    learning_rate: float = 3e-4
    final_learning_rate: float = 1e-5
    warmup_steps: int = 2000
    decay_per: Literal["step", "epoch"] = "step"
    weight_decay: float = 0.02
    # ALBEF does: [CLS], positions and the temperature too.
    decays_all_but_biases_and_norms: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 0.0  # 0: no clipping


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    batch_size: int = 2048  # pairs a step, over all devices
    num_microbatches: int = 1
    num_epochs: float = 20.0  # used where num_steps is 0
    num_steps: int = 0
    max_skipped_in_a_row: int = 3  # non-finite steps before the run stops


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """What changes speed and memory, and rounding at most."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    attention: Literal["xla", "cudnn"] = "xla"  # of the ViT
    recompute: bool = False  # activations of each block in the backward pass
    scan_blocks: bool = False  # of the ViT: compiled once, run in a loop
    # What devices split among them; see sharding.py.
    sharding: Literal["replicated", "zero1", "fsdp"] = "replicated"
    fsdp_devices: int = 0  # that share one copy; 0: all of them
    # What texts may be cut to where a microbatch has no longer ones, rows sorted by
    # length: (16, 24), say. Exact; compiles once more a length.
    text_lengths: tuple[int, ...] = ()
    cls_only_last_layer: bool = True  # exact savings; switches for the equality tests
    joint_text_pass: bool = True
    editor_at_positions: bool = True


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    every_steps: int = 0  # 0: only at the end
    batch_size: int = 64
    text_length: int = 35
    num_proofread_images: int = 256
    edit_rate: float = 0.15  # of the words proofread there, whatever training has


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    every_steps: int = 50
    tensorboard: bool = True


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int = 1000
    keep: int = 2
    keep_best: bool = False  # by the mean recall of validation, apart in RUN/best


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run."""

    task: Literal["vilem", "editor"] = "vilem"
    seed: int = 0
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
        """How the captions are edited that evaluation proofreads."""
        return replace(self.editor, edit_rate=self.evaluation.edit_rate)

    @property
    def tokenizer_name(self) -> str:
        """Where vocab.txt is, unless a work directory has it: folder or hub name."""
        return self.data.tokenizer or self.model.text.start_from
