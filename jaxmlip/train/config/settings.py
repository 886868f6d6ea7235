"""A training run as data: frozen dataclasses, and which values their fields may have."""

from dataclasses import MISSING, dataclass, field


def _number(default=MISSING, *, above=None, least=None, most=None):
    return field(default=default, metadata={"above": above, "least": least, "most": most})


@dataclass(frozen=True, kw_only=True)
class Model:
    architecture: str = "MACE"
    fields: dict = field(default_factory=dict)  # what is absent is filled from the data


@dataclass(frozen=True, kw_only=True)
class Data:
    train: str
    valid: str | None = None  # None: a share of the training frames
    valid_fraction: float = _number(0.05, above=0, most=0.5)
    keys: dict = field(default_factory=dict)  # {label: key in the file}
    units: dict = field(default_factory=dict)  # {label: unit in the file}: interfaces.labels.UNITS
    reference_energies: dict = field(default_factory=dict)  # {element: eV}; the rest is fitted
    train_isolated_atoms: bool = False  # otherwise they tell reference energies only
    group_key: str | None = None  # frames that have one value of it come into one part of the split
    held_frames: int = _number(20000, least=0)  # in memory, of HDF5 files and ASE databases
    checks: bool = True  # of units, signs and outliers, by statistics


@dataclass(frozen=True, kw_only=True)
class Loss:
    energy: float = _number(1.0, least=0)
    forces: float = _number(10.0, least=0)
    stress: float = _number(0.0, least=0)
    dipole: float = _number(0.0, least=0)
    polarizability: float = _number(0.0, least=0)
    charges: float = _number(0.0, least=0)
    born_charges: float = _number(0.0, least=0)
    hessian: float = _number(0.0, least=0)  # its products with directions: see Curvature
    function: str | dict = "squared"  # one of FUNCTIONS for all, or {label: function}
    delta: float | dict = _number(0.01, above=0)  # of huber: one for all, or {label: delta}
    energy_per: str = "atom"  # or structure: the total-energy form of the MACE paper
    stress_as: str = "stress"  # or virial: eV per atom instead of eV/Å³
    config_type_weights: dict = field(default_factory=dict)  # {config_type of a frame: weight}


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    learning_rate: float = _number(0.005, above=0)
    floor: float = _number(0.01, least=0, most=1)  # share of the learning rate left at the end
    warmup_steps: int = _number(200, least=0)
    weight_decay: float = _number(1e-6, least=0)
    clip: float = _number(10.0, above=0)
    ema: float = _number(0.99, least=0, most=0.999999)
    amsgrad: bool = True
    method: str = "adam"  # AdamW or AMSGrad; or muon, schedule_free
    schedule: str = "cosine"  # or constant, plateau (both after the same warm-up)
    factor: float = _number(0.8, above=0, most=1)  # of a plateau
    plateau: int = _number(50, least=0)  # validations without a better one before it


@dataclass(frozen=True, kw_only=True)
class Curvature:
    """Where labels of second derivatives come from and how many of them a step looks at."""

    hessians: str | None = None  # .npz, HDF5, XYZ: [3n, 3n] a frame (interfaces.hessians)
    valid_hessians: str | None = None
    force_constants: list = field(default_factory=list)  # phonopy files: more training frames
    modes: int = _number(0, least=0)  # softest phonons of each that are compared; 0: all directions
    teacher: str | None = None  # a potential, for the frames that have no Hessian
    teacher_directions: int = _number(0, least=0)  # its products a frame; 0: its whole Hessian
    directions: int = _number(1, least=1)  # a structure and step
    draw: str = "rademacher"  # or normal, single (one of the known directions: a column)
    every: int = _number(2, least=1)  # steps from one with curvature (3 to 4 times as dear) on


@dataclass(frozen=True, kw_only=True)
class SecondStage:
    """Other weights and a constant learning rate from a share of the run on (None: as before)."""

    start: float = _number(0.75, above=0, most=1)
    learning_rate: float | None = _number(0.001, above=0)  # None: the schedule goes on
    energy: float | None = _number(None, least=0)
    forces: float | None = _number(None, least=0)
    stress: float | None = _number(None, least=0)
    dipole: float | None = _number(None, least=0)
    polarizability: float | None = _number(None, least=0)
    charges: float | None = _number(None, least=0)
    born_charges: float | None = _number(None, least=0)
    hessian: float | None = _number(None, least=0)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run begins with instead of random parameters (`train.start`)."""

    model: str | None = None  # a file of ours, or a name or file that `find` of `train` knows
    update: str = "all"  # of its parameters; or last (readouts), lora (low ranks)
    rank: int = _number(4, least=1)  # of lora
    reference_energies: str | dict = "refit"  # or keep; or {element: eV}
    like: dict = field(default_factory=dict)  # {new element: the known one that it begins like}
    heads: list = field(default_factory=list)  # levels of theory, each with its own readouts
    head: str | None = None  # of frames that do not name one (info key `head`)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Frames of other data that are trained on beside the new ones, so as not to be forgotten."""

    train: str
    fraction: float = _number(0.5, above=0, most=0.99)  # of all training frames, as far as it goes
    weight: float = _number(1.0, above=0)  # of each of its frames
    labels: str = "file"  # or start: what the model that is started from predicts
    keys: dict = field(default_factory=dict)  # as of data
    units: dict = field(default_factory=dict)
    head: str | None = None  # of frames that do not name one


@dataclass(frozen=True, kw_only=True)
class Property:
    """A scalar of structures, read from the features of a frozen `start.model`: all that is trained
    then. Without hidden layers it is solved exactly (`start.properties.ridge`), in no epochs."""

    name: str
    key: str | None = None  # in the info of the frames; None: REF_<name>
    extensive: bool = False  # the sum over atoms; otherwise their mean
    widths: list = field(default_factory=list)  # of hidden layers
    unit: str = ""  # told in the model card


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training run."""

    data: Data
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    curvature: Curvature = field(default_factory=Curvature)
    second_stage: SecondStage | None = None
    start: Start | None = None
    replay: Replay | None = None
    property: Property | None = None
    metric: str = "loss"  # of validation, what is best: or a name like forces_mae_meV_per_A
    patience: int | None = _number(None, least=1)  # validations without a better one: the end
    remat: str = "none"  # or dots, all: what backward passes compute again to save memory
    epochs: int = _number(100, least=1)
    hours: float | None = _number(None, above=0)  # the schedule ends here if it comes first
    ensemble: int = _number(1, least=1)  # members, trained together, in one model file
    ensemble_share: float = _number(1.0, above=0, most=1)  # of the frames that each member sees
    uncertainty: bool = False  # fit that of the last layer when the training is done
    batch_atoms: int = _number(192, least=1)
    buckets: int = _number(2, least=0)  # padded shapes; 0: as few, up to 6, as bound the padding
    devices: int | str = _number(1, least=1)  # that share each batch; or all, of all processes
    seed: int = _number(0, least=0)
    dtype: str = "float32"
    output: str = "runs/train"
    checkpoint_minutes: float = _number(5.0, least=0)
    card: dict = field(default_factory=dict)  # copied into the model: level of theory, licence ...


SECTIONS = {
    "data": Data,
    "model": Model,
    "loss": Loss,
    "optimizer": Optimizer,
    "curvature": Curvature,
    "second_stage": SecondStage,
    "start": Start,
    "replay": Replay,
    "property": Property,
}
FUNCTIONS = ("squared", "absolute", "huber", "universal")
CHOICES = {
    "dtype": ("float32", "float64"),
    "remat": ("none", "dots", "all"),
    "loss.function": FUNCTIONS,
    "loss.energy_per": ("atom", "structure"),
    "loss.stress_as": ("stress", "virial"),
    "optimizer.method": ("adam", "muon", "schedule_free"),
    "optimizer.schedule": ("cosine", "constant", "plateau"),
    "start.update": ("all", "last", "lora"),
    "replay.labels": ("file", "start"),
    "curvature.draw": ("rademacher", "normal", "single"),
}
MAY_CHANGE = (
    *("output", "epochs", "hours", "checkpoint_minutes", "card", "patience"),
    *("devices", "data.held_frames"),  # the batches are the same
)
LABELS = (
    *("energy", "forces", "stress"),
    *("dipole", "polarizability", "charges", "born_charges", "hessian"),
)


def weights(config: Config) -> dict[str, float]:
    """{label: weight} of the labels with a weight above zero in any stage; that of the first."""
    first, second = (stage_weights(config, stage) for stage in (1, 2))
    return {name: first[name] for name in first if first[name] > 0 or second[name] > 0}


def stage_weights(config: Config, stage: int) -> dict[str, float]:
    """{label: weight} of every label in stage 1 or 2; of a property it is all there is."""
    if config.property is not None:
        return {config.property.name: 1.0}
    first = {name: getattr(config.loss, name) for name in LABELS}
    if stage == 1 or config.second_stage is None:
        return first
    given = {name: getattr(config.second_stage, name) for name in LABELS}
    return {name: first[name] if given[name] is None else given[name] for name in LABELS}
