"""What is to be done: corpora, a tokenizer, and generations that teach each other. Nothing here reads or writes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tf_rnnt_kd.data.corpora import Utterance
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation.normalisers import DEFAULT, scoring
from tf_rnnt_kd.features import stored
from tf_rnnt_kd.models.language_model import LanguageModel
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.training.cascade import CascadedObjective
from tf_rnnt_kd.training.language_model import LanguageTraining
from tf_rnnt_kd.training.loop import Training
from tf_rnnt_kd.training.objective import Objective
from tf_rnnt_kd.training.step import check_undivided


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

    name: str
    utterances: Callable[[], list[Utterance]]
    labelled: bool = True
    hours: float | None = None
    features: str | None = None

    def __post_init__(self):
        if self.features not in (None, *stored.DTYPES):
            raise UserError(f"corpus {self.name!r}: features is {self.features!r}, not {' or '.join(stored.DTYPES)}")


@dataclasses.dataclass(frozen=True)
class TokenizerSpec:
    """How to make the tokenizer that all generations share.

    Attributes:
      kind: "characters", "unigram", "bpe" or "wordpiece".
      corpora: names of the labelled corpora whose transcripts it is trained on.
      vocabulary_size: blank included; None for what the characters need.
    """

    kind: str
    corpora: tuple[str, ...]
    vocabulary_size: int | None = None


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

    name: str
    corpora: tuple[str, ...] = ()
    sentences: Callable[[], list[str]] | None = None
    model: Callable[..., LanguageModel] | None = None
    training: LanguageTraining | None = None
    order: int | None = None


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

    name: str
    beam: int = 8
    language_model: str | None = None
    weights: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)
    internal_weights: tuple[float, ...] = (0.0,)
    length_bonuses: tuple[float, ...] = (0.0,)

    @property
    def candidates(self) -> tuple[tuple[float, ...], ...]:
        """What there is to choose from, in the order of `evaluation.fusion.Weights`."""
        return self.weights if self.language_model else (0.0,), self.internal_weights, self.length_bonuses


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

    name: str
    model: Callable[..., Transducer]
    objective: Objective | CascadedObjective
    training: Training
    labelled: tuple[str, ...]
    teacher: str | None = None
    unlabelled: tuple[str, ...] = ()
    codec: str | None = None
    targets_dtype: str = "float32"
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


@dataclasses.dataclass(frozen=True)
class Plan:
    """The whole experiment.

    Attributes:
      name: for the report.
      corpora: all that generations, development and tests name.
      tokenizer: see `TokenizerSpec`.
      generations: in order; a teacher comes before its students.
      development: the labelled corpus watched during training.
      tests: labelled corpora, used once, for the report.
      seeds: the generations are trained once for each.
      language_models: for the decodings of generations; trained once for all seeds.
      comparisons: pairs of generations, or of their "NAME, second pass" or "NAME, DECODING", whose difference is
        reported with an interval.
      records_per_shard: utterances in a file.
      normaliser: of `evaluation.normalisers`, by which words are compared, in development and tests.
    """

    name: str
    corpora: Sequence[Corpus]
    tokenizer: TokenizerSpec
    generations: Sequence[Generation]
    development: str
    tests: Sequence[str]
    seeds: Sequence[int] = (0,)
    language_models: Sequence[LanguageModelSpec] = ()
    comparisons: Sequence[tuple[str, str]] = ()
    records_per_shard: int = 256
    normaliser: str = DEFAULT

    def __post_init__(self):
        scoring(self.normaliser)
        _check_unique("corpus", [corpus.name for corpus in self.corpora])
        rows = [row.name for generation in self.generations for row in generation.rows]
        _check_unique("generation", rows)
        labelled = [corpus.name for corpus in self.corpora if corpus.labelled]
        _check_known("development", [self.development], labelled)
        _check_known("tests", self.tests, labelled)
        _check_known("the tokenizer", self.tokenizer.corpora, labelled)
        for name in (self.development, *self.tests):
            if self.corpus(name).features:
                raise UserError(f"corpus {name!r}: an evaluation hears its audio, so leave out its features")
        _check_unique("language model", [spec.name for spec in self.language_models])
        for spec in self.language_models:
            self._check_language_model(spec, labelled)
        earlier, rows = [], []
        for generation in self.generations:
            self._check_generation(generation, labelled, earlier)
            earlier.append(generation.name)
            rows += [row.name for row in generation.rows]
            rows += [generation.system(decoding) for decoding in generation.decodings]
        _check_unique("row of the report", rows)
        for pair in self.comparisons:
            _check_known("comparisons", pair, rows)

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

    def _check_generation(self, generation, labelled, earlier):
        where = f"generation {generation.name!r}"
        _check_known(f"{where}: labelled", generation.labelled, labelled)
        _check_known(f"{where}: unlabelled", generation.unlabelled, [corpus.name for corpus in self.corpora])
        if generation.teacher is not None:
            _check_known(f"{where}: teacher", [generation.teacher], earlier)
        if bool(generation.teacher) != bool(generation.unlabelled):
            raise UserError(f"{where} needs both a teacher and unlabelled corpora, or neither")
        if generation.objective.needs_teacher != bool(generation.codec):
            raise UserError(f"{where}: a codec goes with kl_weight > 0, and kl_weight > 0 with a codec")
        check_undivided(where, generation.objective, generation.training.accumulation, jit_compile=False)
        if generation.teacher and not 0.0 <= generation.training.labelled_fraction < 1.0:
            fraction = generation.training.labelled_fraction
            raise UserError(f"{where}: labelled_fraction is {fraction:g}; with pseudo-labelled speech it is below 1")
        for decoding in generation.decodings:
            self._check_decoding(f"{where}: decoding {decoding.name!r}", decoding)
        held_out = {self.development, *self.tests} & {*generation.labelled, *generation.unlabelled}
        if held_out:
            raise UserError(f"{where} trains on {sorted(held_out)[0]!r}, which is held out for development or test")

    def _check_language_model(self, spec, labelled):
        where = f"language model {spec.name!r}"
        _check_known(f"{where}: corpora", spec.corpora, labelled)
        if not spec.corpora and spec.sentences is None:
            raise UserError(f"{where} has no text: give it corpora or sentences")
        if (spec.model is None) != (spec.training is None) or (spec.model is None) == (spec.order is None):
            raise UserError(f"{where} needs a model and its training, or the order of n-grams, and not both")
        held_out = {self.development, *self.tests} & {*spec.corpora}
        if held_out:
            raise UserError(f"{where} reads {sorted(held_out)[0]!r}, which is held out for development or test")

    def _check_decoding(self, where, decoding):
        if decoding.beam < 1 or not all(decoding.candidates):
            raise UserError(f"{where} needs a beam of 1 or more, and a value for each weight")
        name = decoding.language_model
        if name is not None and "/" not in name and not name.endswith(".arpa"):  # not a path
            _check_known(f"{where}: language_model", [name], [spec.name for spec in self.language_models])


def _check_unique(what, names):
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two entries of the plan are named {what} {twice[0]!r}: rename one")


def _check_known(where, names, known):
    for name in names:
        if name not in known:
            raise UserError(f"{where} names {name!r}, which is none of: {', '.join(known) or '(nothing before it)'}")
