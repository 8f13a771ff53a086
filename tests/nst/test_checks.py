import pathlib
import resource

import keras
import pytest

from tf_rnnt_kd.config import load_plan
from tf_rnnt_kd.data.corpora import read_librispeech
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.nst.checks import find_mistakes, peek, read_list
from tf_rnnt_kd.nst.outline import build_network
from tf_rnnt_kd.nst.preparation import Prepared

NOTHING = Prepared("nowhere")
LIBRI = ["LIBRISPEECH='nowhere/a'", "LIBRILIGHT='nowhere/b'"]


def mistakes(config="configs/quickstart.gin", params=(), num_replicas=1, look=None):
    return find_mistakes(load_plan(config, params)[0], NOTHING, num_replicas, look=look)


def test_a_sound_plan_has_none():
    assert mistakes(look=read_list) == []


@pytest.mark.parametrize(
    ("param", "words"),
    [
        ("conformer.ConformerEncoder.num_heads=5", "width 96"),
        ("teacher/plan.Generation.model=@causal/transducer.Transducer", None),
        ("causal/conformer.ConformerEncoder.left_context=None", "a causal encoder needs left_context"),
        ("conformer.ConformerEncoder.chunk=4", "chunk and training_chunks are of a causal encoder"),
        ("transducer.Transducer.second_pass_blocks=2", "second_pass_blocks go on top of a causal encoder"),
        ("teacher/objective.Objective.band=@objective.Band()", "Objective.band needs a second joint network"),
        ("loop.Training.accumulation=7", "7 micro-batches can't share evenly"),
    ],
)
def test_what_stops_a_generation_later_is_a_line_with_its_name_now(param, words):
    found = mistakes(params=[param])
    assert bool(found) == bool(words)
    for line in found:
        assert line.startswith("generation '") and "\n" not in line
    assert not words or any(words in line for line in found)


def test_model_and_objective_have_to_have_as_many_passes():
    (line,) = mistakes("configs/digits_cascade.gin", ["SECOND_PASS_BLOCKS=0", *_one("causal/cascade")])
    assert line == "generation 'cascade': CascadedObjective needs a second pass: set Transducer.second_pass_blocks"
    params = ["causal/cascade/plan.Generation.objective=@delayed/objective.Objective()", *_one("causal/cascade")]
    (line,) = mistakes("configs/digits_cascade.gin", params)
    assert "a model with a second pass needs an objective for it" in line


def _one(scope):
    generations = f"[@teacher/plan.Generation(), @{scope}/plan.Generation()]"
    return [f"plan.Plan.generations={generations}", "plan.Plan.comparisons=[]"]


def test_batches_have_to_be_divisible_among_the_replicas():
    found = mistakes(num_replicas=4)
    assert len(found) == 3 and all("4 replicas x 1 micro-batches can't share evenly" in line for line in found)
    assert mistakes(params=["batching.Buckets.batch_multiple=4"], num_replicas=4) == []


@pytest.mark.parametrize("look", [peek, read_list])
def test_missing_data_is_told_for_every_corpus(look):
    found = mistakes("configs/libri_supervised.gin", LIBRI[:1], look=look)
    assert len(found) == 4 and all("there is no folder nowhere/a/" in line for line in found)
    assert mistakes("configs/libri_supervised.gin", LIBRI[:1]) == []


def test_a_reader_that_cannot_tell_quickly_is_asked_for_its_list():
    peek(list)
    with pytest.raises(UserError, match="its reader lists nothing"):
        read_list(list)
    assert read_librispeech.look is not None


def test_a_text_and_a_language_model_that_are_not_there_are_told(tmp_path):
    params = [f"TEXT='{tmp_path}/gone.txt'", "lstm/plan.Decoding.language_model='nowhere/lm.arpa'"]
    found = mistakes("configs/open_text.gin", params, look=read_list)
    assert "there is no language model nowhere/lm.arpa: check its path" in found
    assert sum(f"cannot read sentences from {tmp_path}/gone.txt" in line for line in found) == 7


def test_the_largest_models_are_built_without_their_weights():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan, _ = load_plan("configs/libri_supervised.gin", LIBRI[:1])
    keras.config.set_dtype_policy("float32")
    model = build_network(plan.generations[0].model, 1024)
    assert 590e6 < model.count_params() < 610e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB; the weights are 2.4 GB
    assert keras.config.dtype_policy().name == "float32" and pathlib.Path("configs").is_dir()


def test_whatever_a_factory_raises_is_a_line():
    with pytest.raises(UserError, match=r"^its model can't be built: division by zero$"):
        build_network(lambda vocabulary_size: 1 / 0, 12)
