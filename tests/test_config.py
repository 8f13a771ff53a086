import os
import pathlib
import re
import sys

import pytest

from tf_rnnt_kd.config import load_plan, trusted_by
from tf_rnnt_kd.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
RUNS = sorted(f"configs/{path.name}" for path in (ROOT / "configs").glob("*.gin"))
# What a user has to give, for each config that asks.
REQUIRED = {
    "LIBRISPEECH": "'gs://a/LibriSpeech'",
    "LIBRILIGHT": "'gs://a/librilight'",
    "DATA_DIR": "'folder'",
    "TEXT": "'text'",
}


def head(path):
    """The comment at the top of a file."""
    return "".join(line for line in (ROOT / path).read_text().split("from __gin__")[0].splitlines(True))


def needed(path):
    """`--param`s for the macros that a file's head says are required."""
    line = re.search(r"^# Required to be set: (.*)\.$", head(path), re.MULTILINE)[1]
    return [] if line == "nothing" else [f"{name}={REQUIRED[name]}" for name in line.split(", ")]


@pytest.mark.parametrize("path", RUNS)
def test_config_parses_is_complete_and_has_no_unused_macro(path):
    plan, text = load_plan(path, needed(path))
    assert plan.generations and plan.tests and plan.tokenizer.corpora
    assert "plan.Plan.generations" in text


@pytest.mark.parametrize("path", [path for path in RUNS if needed(path)])
def test_what_the_head_requires_is_required_and_named(path):
    for left_out in needed(path):
        name = left_out.split("=")[0]
        with pytest.raises(UserError, match=f"the macro {name} is required: give it with --param '{name}="):
            load_plan(path, [param for param in needed(path) if param != left_out])


@pytest.mark.parametrize("path", RUNS)
def test_the_head_says_what_a_reader_asks(path):
    for word in ("Source:", "Command:", "Hardware:", "Required to be set:", "Commonly overridden:"):
        assert f"# {word}" in head(path), word
    assert f"--config {path}" in head(path)


@pytest.mark.parametrize("path", RUNS)
def test_what_is_commonly_overridden_can_be(path):
    names = re.search(r"Commonly overridden: (.*)\.$", head(path), re.MULTILINE)[1].split(", ")
    for name in names:
        value = "(3, 4)" if name == "SEEDS" else "7"
        load_plan(path, [*needed(path), f"{name}={value}"])


def test_a_parameter_reaches_the_plan():
    plan, text = load_plan("configs/quickstart.gin", ["TEACHER_STEPS=7", "KL_WEIGHT=0.5", "plan.Plan.seeds=(4, 5)"])
    assert plan.generations[0].training.steps == 7 and plan.generations[1].training.steps != 7
    assert plan.generations[1].objective.kl_weight == 0.5 and plan.seeds == (4, 5)
    assert "TEACHER_STEPS = 7" in text and "KL_WEIGHT = 0.5" in text


def test_settings_of_training_that_the_sources_give():
    for path in (path for path in RUNS if "libri" in path):
        training = load_plan(path, needed(path))[0].generations[0].training
        assert (training.l2, training.labelled_fraction, training.precision) == (1e-6, 0.1, "mixed_bfloat16")
        assert (training.ema_decay, training.variational_noise, training.accumulation) == (0.0, 0.0, 1)


def test_loading_twice_gives_equal_text_and_forgets_what_was_given_before():
    first = load_plan("configs/quickstart.gin")[1]
    load_plan("configs/quickstart.gin", ["TEACHER_STEPS=7"])
    assert load_plan("configs/quickstart.gin")[1] == first


def test_a_small_plan_builds_its_models():
    plan, _ = load_plan("configs/quickstart.gin")
    models = [generation.model(12) for generation in plan.generations]
    assert [model.causal for model in models] == [False, False, True]
    assert all(0.7e6 < model.count_params() < 0.9e6 and model.vocabulary_size == 12 for model in models)
    assert len({id(model) for model in models}) == 3


def test_configs_are_found_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_plan("configs/quickstart.gin")[0].name == "quickstart"
    assert load_plan(str(ROOT / "configs" / "quickstart.gin"))[0].name == "quickstart"


def test_a_file_of_ones_own_may_include_parts_from_any_folder(monkeypatch, tmp_path):
    (tmp_path / "mine.gin").write_text("include 'configs/quickstart.gin'\nplan.Plan.name = 'mine'\n")
    monkeypatch.chdir(tmp_path)
    assert load_plan("mine.gin")[0].name == "mine"


@pytest.mark.parametrize("path", ["configs/quickstrat.gin", "quickstart", "config/quickstart.gin"])
def test_a_misspelt_file_is_refused_with_the_near_name(path):
    with pytest.raises(UserError, match=r"no config file .*: did you mean configs/quickstart\.gin\?"):
        load_plan(path)


def test_a_file_like_none_is_refused_with_all_names():
    with pytest.raises(UserError, match=r"there are configs/digits_cascade\.gin, .*configs/quickstart\.gin"):
        load_plan("zzzzzz")


def test_a_misspelt_macro_is_refused_with_the_near_name():
    with pytest.raises(UserError, match="--param sets TEACHER_STEP, which nothing reads: did you mean TEACHER_STEPS"):
        load_plan("configs/quickstart.gin", ["TEACHER_STEP=7"])


def test_a_macro_in_a_file_that_nothing_reads_is_refused(tmp_path):
    (tmp_path / "mine.gin").write_text("include 'configs/quickstart.gin'\nSTUDENT_STEP = 3\n")
    with pytest.raises(UserError, match="line 2 sets STUDENT_STEP, which nothing reads: did you mean STUDENT_STEPS"):
        load_plan(str(tmp_path / "mine.gin"))


@pytest.mark.parametrize(
    ("param", "words"),
    [
        ("loop.Training.stepz=7", "parameter named 'stepz': did you mean steps?"),
        ("teacher/loop.Training.clip=7", "did you mean clip_norm?"),
        ("loop.Training.zzz=7", "parameter named 'zzz'"),
        ("loop.Trainin.steps=7", "'loop.Trainin': did you mean loop.Training?"),
        ("nowhere.at_all.x=7", "'nowhere.at_all'"),
        ("TEACHER_STEPS=abc", "neither a number, a text in quotes, a tuple nor a @reference"),
        ("TEACHER_STEPS=", "is not of the form NAME=value"),
        ("TEACHER_STEPS=(1", ""),
    ],
)
def test_a_misspelt_parameter_or_value_is_one_line_that_names_it(param, words):
    with pytest.raises(UserError) as refused:
        load_plan("configs/quickstart.gin", [param])
    message = str(refused.value)
    assert message.endswith(words) and "\n" not in message and message.startswith(f"--param {param!r}")


@pytest.mark.parametrize("param", ["STEPS", "=7", "STEPS 7", "include 'x'", ""])
def test_a_parameter_without_a_value_is_refused(param):
    with pytest.raises(UserError, match=r"--param .* is not of the form NAME=value"):
        load_plan("configs/quickstart.gin", [param])


def test_what_the_plan_refuses_is_refused_here_too():
    with pytest.raises(UserError, match="development names 'nowhere', which is none of"):
        load_plan("configs/quickstart.gin", ["plan.Plan.development='nowhere'"])


@pytest.mark.parametrize("text", ["this is no gin", "import os\n", "include 'configs/nowhere.gin'\n", "x.y = 3\n"])
def test_a_broken_file_is_one_line_that_names_it(tmp_path, text):
    path = str(tmp_path / "broken.gin")
    pathlib.Path(path).write_text(text)
    with pytest.raises(UserError) as refused:
        load_plan(path)
    assert str(refused.value).startswith(path) and "\n" not in str(refused.value)


def test_loading_says_nothing(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_plan("configs/quickstart.gin")
    assert capfd.readouterr() == ("", "") and os.listdir(tmp_path) == []


def refused(path="configs/quickstart.gin", params=(), **options):
    """The lines by which a configuration is refused."""
    with pytest.raises(UserError) as error:
        load_plan(str(path), params, **options)
    assert all("\n" not in mistake for mistake in error.value.mistakes)
    return error.value.mistakes


def test_all_mistakes_are_told_at_once_each_in_a_line_with_its_name_and_place(tmp_path):
    (tmp_path / "mine.gin").write_text("include 'configs/quickstart.gin'\nPlan.seeds = 3\nSTUDENT_STEPS = 'many'\n")
    params = ["soft/objective.Objective.kl='latice'", "loop.Training.precision='bf16'", "TEACHER_STEP=3"]
    mistakes = refused(tmp_path / "mine.gin", params)
    for words in (
        f"{tmp_path}/mine.gin, line 2: Plan.seeds is 3: should be a tuple",
        f"{tmp_path}/mine.gin, line 3: soft/loop.Training.steps (by %STUDENT_STEPS) is 'many': should be",
        "soft/objective.Objective.kl is 'latice': none of lattice, ",
        "loop.Training.precision is 'bf16': none of float32, mixed_bfloat16",
        "--param sets TEACHER_STEP, which nothing reads: did you mean TEACHER_STEPS?",
    ):
        assert sum(words in mistake for mistake in mistakes) == 1, words
    assert len(mistakes) == 6  # STUDENT_STEPS is read twice


def test_mistakes_of_the_plan_as_a_whole_are_told_at_once_too():
    params = ["plan.Plan.development='digits-def'", "plan.Plan.tests=('digits-dev',)", "soft/loop.Training.steps=7"]
    mistakes = refused(params=[*params, "plan.Generation.labelled=('train',)"])
    assert len(mistakes) == 5 and "did you mean digits-dev?" in mistakes[0]
    assert any("steps of WarmupCosine is 1200, that of its training 7: they must be equal" in m for m in mistakes)


@pytest.mark.parametrize(
    ("param", "words"),
    [
        ("studnt/soft/objective.Objective.kl_weight=0.02", "a scope that nothing reads: did you mean soft?"),
        ("soft/conformer.ConformerEncoder.dropout=0.0", "ConformerEncoder is not made in that scope"),
        ("loop.Training.learning_rate=@schedules.WarmupCosine", "is @schedules.WarmupCosine: should be a LearningRate"),
        ("plan.Generation.labelled=('digits-labelled')", "one of a single value needs a comma, ('digits-labelled',)"),
        (
            "plan.Plan.corpora=[@othr/plan.Corpus()]",
            "@othr/plan.Corpus needs name, utterances: bind othr/plan.Corpus.name",
        ),
        ("plan.Generation.model=@loop.Training", "should give a Transducer, not a Training"),
        ("transducer.Transducer.vocabulary_size=5", "is given by the program"),
        ("plan.Plan.name=%X", "the macro X is required"),
        ("plan.Plan.tests=@plan.Plan.corpus", "is not among what can be configured"),
        ("plan.Plan.name=" + "(" * 3000, "nested too deeply"),
        ("A=1\nimport os", "is more than one NAME=value"),
        ("pla6n.Plan.name='x'", "no configurable matching 'pla6n.Plan': did you mean plan.Plan?"),
    ],
)
def test_a_mistake_that_was_accepted_or_a_traceback_once(param, words):
    assert any(words in mistake for mistake in refused(params=[param]))


@pytest.mark.parametrize("params", [["plan.Plan.name=%X", "X=%X"], ["plan.Plan.name=%X", "X=[%Y]", "Y=%X"]])
def test_what_is_made_of_itself_is_a_line(params):
    assert "%X is made of itself" in refused(params=params)[0]
    reference = ["plan.Plan.tokenizer=@plan.TokenizerSpec()", "plan.TokenizerSpec.corpora=@plan.TokenizerSpec()"]
    assert "plan.TokenizerSpec.corpora is @plan.TokenizerSpec()" in refused(params=reference)[0]


def test_misspelt_and_missing_modules_are_named_with_the_nearest(tmp_path):
    path = tmp_path / "mine.gin"
    start = "from __gin__ import dynamic_registration\nfrom tf_rnnt_kd.training import "
    path.write_text(start + "shedules\n")
    assert refused(path)[0].endswith("there is no module tf_rnnt_kd.training.shedules: did you mean schedules?")
    path.write_text(start + "schedules\nshedules.WarmupCosine.peak = 1.0\n")
    assert "no configurable matching 'shedules.WarmupCosine'" in refused(path)[0]


def test_an_included_scope_that_no_generation_takes_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "mine.gin"
    lines = ["include 'configs/quickstart.gin'", "include 'configs/models/streaming.gin'"]
    path.write_text("\n".join(lines))
    (mistake,) = refused(path)
    assert "streaming/conformer.ConformerEncoder.causal (and 2 more of it) has a scope that nothing reads" in mistake
    path.write_text("\n".join([*lines, "streaming/plan.Generation.export = True"]))
    params = ["plan.Plan.generations=[@teacher/streaming/plan.Generation()]", "plan.Plan.comparisons=[]"]
    mistakes = refused(path, params)
    assert any("ConformerEncoder.causal (and 2 more of it) has a scope that nothing reads" in m for m in mistakes)


def test_what_a_later_binding_leaves_out_on_purpose_is_no_mistake(tmp_path):
    params = ["plan.Plan.generations=[@teacher/plan.Generation()]", "plan.Plan.comparisons=[]"]
    plan, text = load_plan("configs/quickstart.gin", params)
    assert [g.name for g in plan.generations] == ["teacher"] and "soft/" not in text and "STUDENT_STEPS" not in text
    (tmp_path / "again.gin").write_text(text)
    assert load_plan(str(tmp_path / "again.gin"))[1] == text


@pytest.mark.parametrize("path", RUNS)
def test_the_resolved_text_is_a_config_of_the_same_plan(path, tmp_path):
    plan, text = load_plan(path, needed(path))
    (tmp_path / "again.gin").write_text(text)
    again, same = load_plan(str(tmp_path / "again.gin"))
    assert same == text and [g.training for g in again.generations][0].steps == plan.generations[0].training.steps
    assert [g.objective for g in again.generations] == [g.objective for g in plan.generations]


def test_a_plan_is_a_value():
    counts = {}
    first = load_plan("configs/quickstart.gin")[0]
    counts["before"] = first.generations[0].model(12).count_params()
    corpus = first.corpora[0].utterances.keywords
    wider, _ = load_plan(
        "configs/quickstart.gin", ["conformer.ConformerEncoder.width=32", "teacher/plan.Generation.export=True"]
    )
    load_plan("configs/libri_supervised.gin", needed("configs/libri_supervised.gin"))
    counts["after"] = first.generations[0].model(12).count_params()
    assert counts["before"] == counts["after"] > 2 * wider.generations[0].model(12).count_params()
    assert (
        first.corpora[0].utterances.keywords == corpus
        and first.corpora[0].utterances.func.__name__ == "generate_digits"
    )
    assert not first.generations[0].export and wider.generations[0].export


def test_includes_are_found_beside_the_file_and_in_the_project(tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "run.gin").write_text("include 'configs/quickstart.gin'\ninclude 'name.gin'\n")
    (tmp_path / "parts" / "name.gin").write_text("Plan.name = 'beside'\n")
    assert load_plan(str(tmp_path / "parts" / "run.gin"))[0].name == "beside"
    monkeypatch.chdir(tmp_path)
    assert load_plan("parts/run.gin")[0].name == "beside"
    (tmp_path / "parts" / "name.gin").write_text("include 'run.gin'\ninclude 'gone.gin'\n")
    mistakes = refused("parts/run.gin")
    assert (
        "'run.gin' includes itself" in mistakes[0] and "there is no 'gone.gin', neither beside the file" in mistakes[1]
    )


EVIL = "from __gin__ import dynamic_registration\nimport evil_module\n"


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that leaves a mark where it is imported."""
    (tmp_path / "evil_module.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef f(x=1):\n    return x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil_module", raising=False)
    return tmp_path / "ran"


@pytest.mark.parametrize("where", ["itself", "an include"])
def test_nothing_from_outside_is_imported_before_it_is_trusted(evil, tmp_path, where):
    path = tmp_path / "mine.gin"
    (tmp_path / "part.gin").write_text(EVIL)
    own = EVIL if where == "itself" else "include 'part.gin'\n"
    path.write_text(own + "include 'configs/quickstart.gin'\n")
    (mistake,) = refused(path)
    assert "imports evil_module, which runs code from outside of tf_rnnt_kd" in mistake and "--trust_config" in mistake
    assert refused(path, trusted=["evil"]) == (mistake,) and not evil.exists()
    text = load_plan(str(path), trusted=["evil_module"])[1]
    assert evil.exists() and "import evil_module\n" in text
    run = tmp_path / "run"
    run.mkdir()
    assert trusted_by(str(run)) == []
    (run / "config.gin").write_text(text)
    assert trusted_by(str(run)) == ["evil_module"]


@pytest.mark.parametrize(
    "name", ["plan.dataclasses.replace", "synthesis.os.system", "corpora.find_audio", "plan.__loader__.load_module"]
)
def test_names_do_not_lead_out_of_what_can_be_configured(tmp_path, name):
    module = {"plan": "nst", "synthesis": "data", "corpora": "data"}[name.partition(".")[0]]
    text = f"from __gin__ import dynamic_registration\nfrom tf_rnnt_kd.{module} import {name.partition('.')[0]}\n"
    (tmp_path / "mine.gin").write_text(f"include 'configs/quickstart.gin'\n{text}Plan.name = @{name}()\n")
    assert f"{name!r} is not among what can be configured" in refused(tmp_path / "mine.gin")[0]
