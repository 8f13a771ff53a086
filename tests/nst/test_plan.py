import dataclasses

import pytest

from tests import tiny
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.nst.plan import (
    Corpus,
    Decoding,
    Generation,
    LabelSet,
    LanguageModelSpec,
    Plan,
    Row,
    TokenizerSpec,
)
from tf_rnnt_kd.training.cascade import CascadedObjective
from tf_rnnt_kd.training.language_model import LanguageTraining
from tf_rnnt_kd.training.objective import Objective


def nothing():
    raise AssertionError("a plan reads no corpus")


def corpora():
    return [Corpus("train", nothing), Corpus("dev", nothing), Corpus("test", nothing), Corpus("audio", nothing, False)]


def with_features(*names):
    return [dataclasses.replace(c, features="uint8" if c.name in names else None) for c in corpora()]


def training(**changes):
    return dataclasses.replace(tiny.training(1_000), **changes)


def generation(name, teacher=None, **changes):
    pseudo = {"teacher": teacher, "unlabelled": ("audio",)} if teacher else {}
    defaults = {"objective": Objective(), "labelled": ("train",), "training": training(labelled_fraction=0.3)}
    return Generation(name, tiny.transducer, **{**defaults, **pseudo, **changes})


def soft(name, teacher="teacher", **changes):
    return generation(name, teacher, **{"objective": Objective(kl_weight=0.1), "codec": "factored", **changes})


def make_plan(*generations, **changes):
    defaults = {
        "name": "toy",
        "corpora": corpora(),
        "tokenizer": TokenizerSpec("characters", ("train",)),
        "generations": generations or (generation("teacher"), soft("student")),
        "development": "dev",
        "tests": ("test",),
    }
    return Plan(**{**defaults, **changes})


def test_a_sound_plan_is_accepted_and_finds_its_corpora():
    plan = make_plan(comparisons=[("student", "teacher")])
    assert plan.corpus("audio").labelled is False and plan.corpus("train").labelled
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.name = "other"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpora": [*corpora(), Corpus("dev", nothing)]}, "two entries of the plan are named corpus 'dev'"),
        ({"development": "def"}, "development names 'def', which is none of: train, dev, test"),
        ({"development": "audio"}, "development names 'audio', which is none of"),
        ({"tests": ("test", "tset")}, "tests names 'tset'"),
        ({"tests": ("audio",)}, "tests names 'audio'"),
        ({"tokenizer": TokenizerSpec("characters", ("audio",))}, "the tokenizer names 'audio'"),
        ({"comparisons": [("student", "teacher")]}, "comparisons names 'student', which is none of: teacher"),
        ({"corpora": with_features("dev")}, "corpus 'dev': an evaluation hears its audio, so leave out its features"),
        ({"corpora": with_features("test")}, "corpus 'test': an evaluation hears"),
    ],
)
def test_what_the_plan_names_must_be_there(changes, message):
    with pytest.raises(UserError, match=message):
        make_plan(generation("teacher"), **changes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (generation("teacher"), "two entries of the plan are named generation 'teacher'"),
        (generation("x", labelled=("audio",)), "generation 'x': labelled names 'audio'"),
        (generation("x", "teacher", unlabelled=("radio",)), "generation 'x': unlabelled names 'radio'"),
        (generation("x", "y"), "generation 'x': teacher names 'y', which is none of: teacher"),
        (generation("x", "x"), "generation 'x': teacher names 'x'"),
        (generation("x", "teacher", unlabelled=()), "'x' needs both a teacher and unlabelled corpora, or neither"),
        (generation("x", unlabelled=("audio",)), "'x' needs both a teacher and unlabelled corpora, or neither"),
        (generation("x", "teacher", codec="factored"), "'x': a codec goes with kl_weight > 0"),
        (generation("x", "teacher", objective=Objective(kl_weight=0.1)), "kl_weight > 0 with a codec"),
        (generation("x", "teacher", training=training()), "'x': labelled_fraction is 1"),
        (
            soft(
                "x",
                objective=Objective(kl_weight=0.1, teacher_delay=(0, 1)),
                training=training(labelled_fraction=0.3, accumulation=2),
            ),
            "'x': Objective.teacher_delay of several values: decided over the whole batch, .*accumulation = 2",
        ),
        (generation("x", labelled=("train", "dev")), "'x' trains on 'dev', which is held out"),
        (generation("x", "teacher", unlabelled=("test",)), "'x' trains on 'test', which is held out"),
    ],
)
def test_a_generation_must_fit_its_plan(wrong, message):
    with pytest.raises(UserError, match=message):
        make_plan(generation("teacher"), wrong)


def test_a_cascade_has_a_row_a_pass_and_is_compared_in_either():
    cascade = generation("cascade", objective=CascadedObjective())
    assert generation("teacher").rows == [Row("teacher", "", False)]
    assert cascade.rows == [Row("cascade", "", False), Row("cascade, second pass", "second_pass", True)]
    make_plan(generation("teacher"), cascade, comparisons=[("cascade, second pass", "cascade"), ("cascade", "teacher")])
    with pytest.raises(UserError, match="comparisons names 'teacher, second pass', which is none of: teacher, cascade"):
        make_plan(generation("teacher"), cascade, comparisons=[("cascade", "teacher, second pass")])
    with pytest.raises(UserError, match="two entries of the plan are named generation 'cascade, second pass'"):
        make_plan(cascade, generation("cascade, second pass"))


def test_a_cascade_that_learns_in_place_alone_needs_no_codec():
    in_place = CascadedObjective(first_pass=Objective(kl_weight=0.1))
    make_plan(generation("teacher", objective=in_place))
    with pytest.raises(UserError, match="kl_weight > 0 with a codec"):
        make_plan(
            generation("teacher"), generation("x", "teacher", objective=dataclasses.replace(in_place, in_place=False))
        )


def test_a_student_before_its_teacher_is_refused():
    with pytest.raises(UserError, match=r"teacher names 'teacher', which is none of: \(nothing before it\)"):
        make_plan(soft("student"), generation("teacher"))


def test_a_labelled_corpus_may_be_labelled_again_by_a_teacher():
    make_plan(generation("teacher"), soft("student", unlabelled=("train", "audio")))


def test_a_supervised_generation_has_no_label_sets():
    assert make_plan().label_sets(make_plan().generations[0]) == []


def test_each_student_has_the_sets_of_its_corpora():
    plan = make_plan(generation("teacher"), soft("student", unlabelled=("train", "audio"), targets_dtype="bfloat16"))
    sets = plan.label_sets(plan.generations[1])
    assert sets == [LabelSet("teacher", name, "factored", "bfloat16") for name in ("train", "audio")]
    assert [s.name for s in sets] == ["train-factored-bfloat16", "audio-factored-bfloat16"]


def test_features_stand_in_for_audio_where_only_trainings_read_it():
    plan = make_plan(corpora=with_features("train", "audio"))
    assert [plan.stored_features(corpus) for corpus in plan.corpora] == ["uint8", None, None, None]
    assert [s.features for s in plan.label_sets(plan.generations[1])] == ["uint8"]
    both = make_plan(
        generation("teacher"), soft("student", unlabelled=("train", "audio")), corpora=with_features("train")
    )
    assert both.stored_features(both.corpora[0]) is None
    assert [s.features for s in both.label_sets(both.generations[1])] == ["uint8", None]


def test_features_of_an_unknown_type_are_refused():
    with pytest.raises(UserError, match="Corpus.features is 'float16': none of uint8, uint16"):
        Corpus("train", nothing, features="float16")


def test_a_hard_student_shares_the_set_of_its_soft_fellow():
    plan = make_plan(
        generation("teacher"), generation("hard", "teacher"), soft("soft"), soft("lattice", codec="lattice")
    )
    hard, first, second = (plan.label_sets(g) for g in plan.generations[1:])
    assert hard == first == [LabelSet("teacher", "audio", "factored", "float32")]
    assert second == [LabelSet("teacher", "audio", "lattice", "float32")]


def test_a_hard_student_alone_has_transcripts():
    plan = make_plan(generation("teacher"), soft("other"), generation("hard", "other"))
    assert [s.name for s in plan.label_sets(plan.generations[2])] == ["audio-transcripts"]


LANGUAGE = LanguageTraining(1_000, tiny.training(10).learning_rate)
NGRAMS = LanguageModelSpec("ngrams", ("train",), order=3)


def decoded(*decodings):
    return generation("teacher", decodings=decodings)


def test_decodings_are_rows_that_comparisons_may_name():
    teacher = decoded(Decoding("fused", language_model="ngrams"), Decoding("beam"))
    plan = make_plan(teacher, language_models=(NGRAMS,), comparisons=[("teacher, fused", "teacher, beam")])
    assert plan.generations[0].system(Decoding("fused")) == "teacher, fused"
    assert Decoding("beam").candidates == ((0.0,), (0.0,), (0.0,))
    for path in ("folder/lm", "lm.arpa"):
        make_plan(decoded(Decoding("fused", language_model=path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language_models": (NGRAMS, NGRAMS)}, "two entries of the plan are named language model 'ngrams'"),
        ({"corpora": ("tain",)}, "language model 'ngrams': corpora names 'tain', which is none of: train, dev, test"),
        ({"corpora": ("train", "test")}, "language model 'ngrams' reads 'test', which is held out"),
        ({"corpora": ("dev",)}, "language model 'ngrams' reads 'dev', which is held out"),
        ({"corpora": ()}, "language model 'ngrams' has no text: give it corpora or sentences"),
        ({"order": None}, "needs a model and its training, or the order of n-grams, and not both"),
        ({"model": nothing}, "needs a model and its training, or the order"),
        ({"model": nothing, "training": LANGUAGE}, "needs a model and its training, or the order"),
    ],
)
def test_a_language_model_needs_text_and_one_kind(changes, message):
    spec = {key: changes.pop(key) for key in list(changes) if key != "language_models"}
    changes.setdefault("language_models", (dataclasses.replace(NGRAMS, **spec),))
    with pytest.raises(UserError, match=message):
        make_plan(decoded(), **changes)


@pytest.mark.parametrize(
    ("decodings", "message"),
    [
        (
            [Decoding("x", language_model="ngrms")],
            "decoding 'x': language_model names 'ngrms', which is none of: ngrams",
        ),
        ([Decoding("x"), Decoding("x")], "two entries of the plan are named row of the report 'teacher, x'"),
    ],
)
def test_a_decoding_that_cannot_be_is_refused(decodings, message):
    with pytest.raises(UserError, match=message):
        make_plan(decoded(*decodings), language_models=(NGRAMS,))


def test_a_normaliser_is_one_that_is_here():
    assert make_plan().normaliser == "none" and make_plan(normaliser="whitespace").normaliser == "whitespace"
    with pytest.raises(UserError, match="normaliser is 'whitespce': none of .*: did you mean whitespace"):
        make_plan(normaliser="whitespce")


def test_a_plan_of_which_data_is_prepared_only_needs_no_generation():
    plan = make_plan(generations=(), development="dev", tests=("dev",))
    assert plan.stored_features(plan.corpus("dev")) is None
