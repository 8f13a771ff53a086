import os
import pathlib
import re

import pytest

from tf_rnnt_kd.config import load_plan
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
    with pytest.raises(
        UserError, match="the config sets STUDENT_STEP, which nothing reads: did you mean STUDENT_STEPS"
    ):
        load_plan(str(tmp_path / "mine.gin"))


@pytest.mark.parametrize(
    ("param", "words"),
    [
        ("loop.Training.stepz=7", "parameter named 'stepz'. did you mean steps?"),
        ("teacher/loop.Training.clip=7", "did you mean clip_norm?"),
        ("loop.Training.zzz=7", "parameter named 'zzz'."),
        ("loop.Trainin.steps=7", "'loop.Trainin'. did you mean loop.Training?"),
        ("nowhere.at_all.x=7", "'nowhere.at_all'."),
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


@pytest.mark.parametrize("text", ["this is no gin", "import os\n", "include 'configs/nowhere.gin'\n", "x.y = @z\n"])
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
