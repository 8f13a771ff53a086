"""What is to be done: corpora, a tokenizer, and generations that teach each other. Nothing here reads or writes."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, NamedTuple

from annotated_types import Ge

from tf_rnnt_kd.data import schema
from tf_rnnt_kd.data.corpora import Utterance
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation.normalisers import DEFAULT, NORMALISERS
from tf_rnnt_kd.features import stored
from tf_rnnt_kd.models.language_model import LanguageModel
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.options import (
    Count,
    Distinct,
    FileName,
    Finite,
    NotEmpty,
    NotNegative,
    OneOf,
    Positive,
    Seed,
    Text,
    checked,
    nearest,
)
from tf_rnnt_kd.text.tokenizer import KINDS
from tf_rnnt_kd.training.cascade import CascadedObjective
from tf_rnnt_kd.training.language_model import LanguageTraining
from tf_rnnt_kd.training.loop import Training
from tf_rnnt_kd.training.objective import Objective
from tf_rnnt_kd.training.step import check_undivided


@checked
@dataclasses.dataclass(frozen=True)
class Corpus:
    """Speech by name.

    Attributes:
      name: folder of its record set.
      utterances: lists them; their audio is read later, one by one.
      labelled: whether transcripts are used.
      hours: how much there is, for `--dry_run` where the corpus is not at hand.
      features: how to store log-mel features in place of audio where only trainings read it, "uint8" or "uint16"; None
        for audio everywhere. Label sets of this corpus are such places, and its own records if no teacher hears them.
    """

    name: FileName
    utterances: Callable[[], list[Utterance]]
    labelled: bool = True
    hours: Positive | None = None
    features: Annotated[str, OneOf(stored.DTYPES)] | None = None

    def __post_init__(self):
        if self.name == "tokenizer":
            raise UserError("no corpus can be named 'tokenizer': the tokenizer lies in a folder of that name")


@checked
@dataclasses.dataclass(frozen=True)
class TokenizerSpec:
    """How to make the tokenizer that all generations share.

    Attributes:
      kind: "characters", "unigram", "bpe" or "wordpiece".
      corpora: names of the labelled corpora whose transcripts it is trained on.
      vocabulary_size: blank included; None for what the characters need.
    """

    kind: Annotated[str, OneOf(KINDS)]
    corpora: Annotated[tuple[Text, ...], NotEmpty, Distinct]
    vocabulary_size: Annotated[Count, Ge(2)] | None = None


class Row(NamedTuple):
    """A row of the report: a model as it is evaluated.

    Attributes:
      name: in the report.
      folder: of its figures, below that of its generation.
      second_pass: whether a cascade hears the whole utterance, as in `models.saving.load_model`.
    """

    name: str
    folder: str
    second_pass: bool


@checked
@dataclasses.dataclass(frozen=True)
class LanguageModelSpec:
    """A language model over the tokenizer's labels: a network to train, or n-grams to estimate.

    Attributes:
      name: folder of its run; how decodings name it.
      corpora: labelled corpora whose transcripts it reads.
      sentences: lists more sentences, in the letters of the transcripts.
      model: factory of the network, called with the vocabulary size; None for n-grams.
      training: of the network.
      order: labels of the longest n-gram; None for a network.
    """

    name: FileName
    corpora: tuple[Text, ...] = ()
    sentences: Callable[[], list[str]] | None = None
    model: Callable[[int], LanguageModel] | None = None
    training: LanguageTraining | None = None
    order: Count | None = None


@checked
@dataclasses.dataclass(frozen=True)
class Decoding:
    """One more way to decode the tests: a beam, a language model, the internal one subtracted, a bonus for length.

    Of several values of a weight, the development set decides.

    Attributes:
      name: of its row in the report, after that of the generation.
      beam: hypotheses that the search keeps.
      language_model: name of one of the plan's, or path of another one (a folder or an ARPA file).
      weights: of the language model.
      internal_weights: of the internal one.
      length_bonuses: for each label, in nats.
    """

    name: FileName
    beam: Count = 8
    language_model: Text | None = None
    weights: Annotated[tuple[NotNegative, ...], NotEmpty, Distinct] = (0.1, 0.2, 0.3, 0.4)
    internal_weights: Annotated[tuple[NotNegative, ...], NotEmpty, Distinct] = (0.0,)
    length_bonuses: Annotated[tuple[Finite, ...], NotEmpty, Distinct] = (0.0,)

    @property
    def candidates(self) -> tuple[tuple[float, ...], ...]:
        """What there is to choose from, in the order of `evaluation.fusion.Weights`."""
        return self.weights if self.language_model else (0.0,), self.internal_weights, self.length_bonuses


@checked
@dataclasses.dataclass(frozen=True)
class Generation:
    """One model to train: a supervised teacher, or a student of an earlier generation.

    Attributes:
      name: folder of its run.
      model: factory, called with the vocabulary size.
      objective: hard or soft targets, and their weights; a `CascadedObjective` for a model with a second pass, which is
        then evaluated in both passes and labels by the second.
      training: steps, batches, rates.
      labelled: corpora with human transcripts.
      teacher: the earlier generation that labels `unlabelled`; None for a supervised model.
      unlabelled: corpora that the teacher labels.
      codec: how the teacher's lattice is stored, "factored" or "lattice"; None for hard targets.
      targets_dtype: in which it is stored.
      export: whether to write a SavedModel at the end.
      decodings: further ways to decode the tests, each a row of the report; the first row is greedy search.
    """

    name: FileName
    model: Callable[[int], Transducer]
    objective: Objective | CascadedObjective
    training: Training
    labelled: tuple[Text, ...]
    teacher: Text | None = None
    unlabelled: tuple[Text, ...] = ()
    codec: Annotated[str, OneOf(schema.CODECS)] | None = None
    targets_dtype: Annotated[str, OneOf(schema.DTYPES)] = "float32"
    export: bool = False
    decodings: Sequence[Decoding] = ()

    def system(self, decoding: Decoding) -> str:
        """What the report calls the generation so decoded."""
        return f"{self.name}, {decoding.name}"

    @property
    def rows(self) -> list[Row]:
        """Of the report: one a pass."""
        rows = [Row(self.name, "", False), Row(f"{self.name}, second pass", "second_pass", True)]
        return rows[: len(self.objective.passes)]


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """A corpus labelled by a generation: shared by every student that wants the same of the same teacher.

    Attributes:
      teacher: name of the generation.
      corpus: name of the corpus.
      codec: how its lattice is stored; None for transcripts alone.
      dtype: in which; of transcripts "float32", whatever was asked for.
      features: how features are stored in place of audio; None for audio.
    """

    teacher: str
    corpus: str
    codec: str | None
    dtype: str
    features: str | None = None

    @property
    def name(self) -> str:
        """Folder below the teacher's: no two different sets share it."""
        what = [self.codec or "transcripts", *([self.dtype] if self.dtype != "float32" else [])]
        return "-".join([self.corpus, *what, *([self.features] if self.features else [])])


@checked
@dataclasses.dataclass(frozen=True)
class Plan:
    """The whole experiment.

    Attributes:
      name: for the report.
      corpora: all that generations, development and tests name.
      tokenizer: see `TokenizerSpec`.
      generations: in order; a teacher comes before its students. None where there is only something to prepare.
      development: the labelled corpus watched during training.
      tests: labelled corpora, used once, for the report.
      seeds: the generations are trained once for each.
      language_models: for the decodings of generations; trained once for all seeds.
      comparisons: pairs of generations, or of their "NAME, second pass" or "NAME, DECODING", whose difference is
        reported with an interval.
      records_per_shard: utterances in a file.
      normaliser: of `evaluation.normalisers`, by which words are compared, in development and tests.
    """

    name: Text
    corpora: Annotated[Sequence[Corpus], NotEmpty]
    tokenizer: TokenizerSpec
    generations: Sequence[Generation]
    development: Text
    tests: Annotated[Sequence[Text], NotEmpty, Distinct]
    seeds: Annotated[Sequence[Seed], NotEmpty, Distinct] = (0,)
    language_models: Sequence[LanguageModelSpec] = ()
    comparisons: Sequence[Annotated[tuple[Text, Text], Distinct]] = ()
    records_per_shard: Count = 256
    normaliser: Annotated[str, OneOf(NORMALISERS)] = DEFAULT

    def __post_init__(self):
        mistakes = list(self._find_mistakes())
        if mistakes:
            raise UserError.of("the plan", mistakes)

    def corpus(self, name: str) -> Corpus:
        """The corpus of that name."""
        return next(corpus for corpus in self.corpora if corpus.name == name)

    def stored_features(self, corpus: Corpus) -> str | None:
        """How the corpus' own records hold features: not at all if a teacher or an evaluation hears its audio."""
        heard = {self.development, *self.tests, *(name for g in self.generations for name in g.unlabelled)}
        return None if corpus.name in heard else corpus.features

    def label_sets(self, generation: Generation) -> list[LabelSet]:
        """The sets that a student's teacher has to label for it.

        A student of hard targets reads the set of a fellow with soft targets where there is one: the transcripts are
        the same, and each corpus is labelled once.
        """
        fellows = [g for g in self.generations if g.teacher == generation.teacher and g.codec]
        owner = generation if generation.codec or not fellows else fellows[0]
        dtype = owner.targets_dtype if owner.codec else "float32"
        return [
            LabelSet(generation.teacher, corpus, owner.codec, dtype, self.corpus(corpus).features)
            for corpus in generation.unlabelled
        ]

    def _find_mistakes(self) -> Iterator[str]:
        yield from _twice("corpus", [corpus.name for corpus in self.corpora])
        yield from _twice("language model", [spec.name for spec in self.language_models])
        rows = [row.name for g in self.generations for row in g.rows]
        yield from _twice("generation", rows)
        decoded = [g.system(decoding) for g in self.generations for decoding in g.decodings]
        yield from _twice("row of the report", decoded if set(rows).isdisjoint(decoded) else [*set(rows), *decoded])
        labelled = [corpus.name for corpus in self.corpora if corpus.labelled]
        yield from _unknown("development", [self.development], labelled)
        yield from _unknown("tests", self.tests, labelled)
        yield from _unknown("the tokenizer", self.tokenizer.corpora, labelled)
        if self.generations and self.development in self.tests:
            yield f"tests names {self.development!r}, by which models are chosen: leave it out, or develop on another"
        for corpus in self.corpora:
            if corpus.features and corpus.name in (self.development, *self.tests):
                yield f"corpus {corpus.name!r}: an evaluation hears its audio, so leave out its features"
        for spec in self.language_models:
            yield from self._mistakes_of_language_model(f"language model {spec.name!r}", spec, labelled)
        for number, generation in enumerate(self.generations):
            earlier = [g.name for g in self.generations[:number]]
            yield from self._mistakes_of_generation(f"generation {generation.name!r}", generation, labelled, earlier)
        for pair in self.comparisons:
            yield from _unknown("comparisons", pair, [*rows, *decoded])

    def _mistakes_of_generation(self, where, generation, labelled, earlier) -> Iterator[str]:
        yield from _unknown(f"{where}: labelled", generation.labelled, labelled)
        yield from _unknown(f"{where}: unlabelled", generation.unlabelled, [corpus.name for corpus in self.corpora])
        if generation.teacher is not None:
            yield from _unknown(f"{where}: teacher", [generation.teacher], earlier)
        if bool(generation.teacher) != bool(generation.unlabelled):
            yield f"{where} needs both a teacher and unlabelled corpora, or neither"
        yield from _mistakes_of_targets(where, generation)
        for decoding in generation.decodings:
            yield from self._mistakes_of_decoding(f"{where}: decoding {decoding.name!r}", decoding)
        yield from _other_steps(where, generation.training)
        yield from self._held_out(f"{where} trains on", [*generation.labelled, *generation.unlabelled])

    def _mistakes_of_language_model(self, where, spec, labelled) -> Iterator[str]:
        yield from _unknown(f"{where}: corpora", spec.corpora, labelled)
        if not spec.corpora and spec.sentences is None:
            yield f"{where} has no text: give it corpora or sentences"
        if (spec.model is None) != (spec.training is None) or (spec.model is None) == (spec.order is None):
            yield f"{where} needs a model and its training, or the order of n-grams, and not both"
        if spec.training:
            yield from _other_steps(where, spec.training)
        yield from self._held_out(f"{where} reads", spec.corpora)

    def _mistakes_of_decoding(self, where, decoding) -> Iterator[str]:
        name = decoding.language_model
        if name is not None and "/" not in name and not name.endswith(".arpa"):  # not a path
            yield from _unknown(f"{where}: language_model", [name], [spec.name for spec in self.language_models])

    def _held_out(self, reader, names) -> Iterator[str]:
        for name in sorted({self.development, *self.tests} & {*names}):
            yield f"{reader} {name!r}, which is held out for development or test"


def _mistakes_of_targets(where: str, generation: Generation) -> Iterator[str]:
    """What of codec, objective and shares does not go together."""
    fraction = generation.training.labelled_fraction
    if generation.objective.needs_teacher != bool(generation.codec):
        yield f"{where}: a codec goes with kl_weight > 0, and kl_weight > 0 with a codec"
    try:
        check_undivided(where, generation.objective, generation.training.accumulation, jit_compile=False)
    except UserError as error:
        yield error.message
    if generation.codec == "lattice" and any(each.band for each in generation.objective.passes):
        yield f"{where}: a band needs the joint network of the teacher: set codec = 'factored'"
    if generation.teacher and fraction >= 1.0:
        yield f"{where}: labelled_fraction is {fraction:g}; with pseudo-labelled speech it is below 1"
    if not generation.labelled and (fraction > 0.0 or not generation.teacher):
        yield f"{where} has no labelled corpora: name some, or give it a teacher and labelled_fraction = 0"


def _other_steps(where: str, training: Training | LanguageTraining) -> Iterator[str]:
    """A learning rate that ends at another step than the training."""
    steps = getattr(training.learning_rate, "steps", training.steps)
    if steps != training.steps:
        rate = type(training.learning_rate).__name__
        yield f"{where}: steps of {rate} is {steps}, that of its training {training.steps}: they must be equal"


def _twice(what: str, names: Sequence[str]) -> Iterator[str]:
    for name, count in collections.Counter(names).items():
        if count > 1:
            yield f"two entries of the plan are named {what} {name!r}: rename one"


def _unknown(where: str, names: Sequence[str], known: Sequence[str]) -> Iterator[str]:
    for name in names:
        if name not in known:
            there = ", ".join(known) or "(nothing before it)"
            yield f"{where} names {name!r}, which is none of: {there}{nearest(name, known)}"
