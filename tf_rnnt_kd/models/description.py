"""What `model.json` says of a trained model, as declared types: nothing is built of what does not fit them."""

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, with_config
from typing_extensions import TypedDict

from tf_rnnt_kd import files

FORMAT = 2
TRANSDUCER, LANGUAGE_MODEL = "transducer", "language model"  # the kinds of model that a folder may hold

_Size = Annotated[int, Field(ge=1, le=2**20)]
_Blocks = Annotated[int, Field(ge=0, le=2**12)]
_Frames = Annotated[int, Field(ge=0, le=2**16)]  # 44 minutes
_Chunk = Annotated[int, Field(ge=1, le=2**12)]
_Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


class Weight(NamedTuple):
    """One array of `weights.npz`, in its order."""

    path: files.Name
    shape: list[_Size]
    dtype: Literal["float32"]


@with_config(files.CLOSED)
class PolicyName(TypedDict):
    """In which types a model computes."""

    name: Literal["float32", "mixed_bfloat16", "mixed_float16"]


@with_config(files.CLOSED)
class Policy(TypedDict):
    """A dtype policy as Keras writes it; Keras would make any object that it knows of another one."""

    module: Literal["keras"]
    class_name: Literal["DTypePolicy"]
    config: PolicyName
    registered_name: None


@with_config(files.CLOSED)
class EncoderArchitecture(TypedDict):
    """`ConformerEncoder.get_config`."""

    name: Literal["encoder"]
    trainable: Literal[True]
    dtype: Policy
    width: _Size
    num_blocks: _Blocks
    num_heads: _Size
    kernel_size: _Size
    causal: bool
    left_context: _Frames | None
    dropout: _Rate
    chunk: _Chunk
    training_chunks: Annotated[list[_Chunk], Field(max_length=2**10)]
    rematerialise: bool
    subsampling_channels: _Size


@with_config(files.CLOSED)
class Architecture(TypedDict):
    """`Transducer.get_config`."""

    vocabulary_size: _Size
    encoder: EncoderArchitecture
    prediction_width: _Size
    prediction_layers: _Size
    joint_width: _Size
    dropout: _Rate
    has_additive_joint: bool
    second_pass_blocks: _Blocks
    uses_second_pass: bool


@with_config(files.CLOSED)
class LanguageArchitecture(TypedDict):
    """`LanguageModel.get_config`."""

    vocabulary_size: _Size
    width: _Size
    num_layers: _Size
    dropout: _Rate


@with_config(files.OPEN)
class Headline(TypedDict):
    """What is looked at first: another format may hold anything else."""

    format: int


@with_config(files.OPEN)
class Signed(TypedDict):
    """What a model is known by."""

    sha256: files.Sha256


@with_config(files.OPEN)
class Kind(Headline):
    """What is looked at next: models of another kind hold another architecture."""

    kind: Literal[TRANSDUCER, LANGUAGE_MODEL]


@with_config(files.CLOSED)
class Description(Kind):
    """`model.json` of a transducer."""

    architecture: Architecture
    weights: list[Weight]
    weights_hash: files.Sha256
    tokenizer_hash: files.Sha256
    sha256: files.Sha256


@with_config(files.CLOSED)
class LanguageDescription(Kind):
    """`model.json` of a language model."""

    architecture: LanguageArchitecture
    weights: list[Weight]
    weights_hash: files.Sha256
    tokenizer_hash: files.Sha256
    sha256: files.Sha256


DESCRIPTIONS = {TRANSDUCER: Description, LANGUAGE_MODEL: LanguageDescription}


def least_weights(architecture: Architecture | LanguageArchitecture) -> int:
    """A count that a model of this architecture exceeds, and not by much: known before any of it is made."""
    if "encoder" not in architecture:
        width = architecture["width"]
        return architecture["num_layers"] * width**2 + architecture["vocabulary_size"] * width
    encoder = architecture["encoder"]
    width, blocks = encoder["width"], encoder["num_blocks"] + architecture["second_pass_blocks"]
    return (
        blocks * width * (width + encoder["kernel_size"])
        + encoder["subsampling_channels"] * max(width, encoder["subsampling_channels"])
        + architecture["prediction_layers"] * architecture["prediction_width"] ** 2
        + architecture["vocabulary_size"] * max(architecture["prediction_width"], architecture["joint_width"])
        + architecture["joint_width"] * max(architecture["prediction_width"], width)
    )
