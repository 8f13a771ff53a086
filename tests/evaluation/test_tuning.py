import itertools
import json

import pytest

from tests.evaluation.test_fusion import checkpoint, ngrams  # noqa: F401  fixtures
from tf_rnnt_kd.evaluation import tuning
from tf_rnnt_kd.evaluation.decode import evaluate_checkpoint
from tf_rnnt_kd.evaluation.fusion import Weights
from tf_rnnt_kd.evaluation.tuning import choose_weights, tune_weights

CANDIDATES = ((0.2, 0.1, 0.4), (0.0, 0.3), (0.0, 0.5, 1.0))


def bowl(centre):
    """An error rate with one lowest point, in which the weights depend on each other."""

    def error_rate(weights):
        offsets = [ours - theirs for ours, theirs in zip(weights, centre, strict=True)]
        return 10 + sum(x * x for x in offsets) - 0.8 * offsets[0] * offsets[1]

    return error_rate


@pytest.mark.parametrize("centre", list(itertools.product(*CANDIDATES)))
def test_the_lowest_point_is_found_from_wherever(centre):
    assert choose_weights(CANDIDATES, bowl(centre)) == Weights(*centre)


def test_of_equals_the_first_stays():
    assert choose_weights(CANDIDATES, lambda weights: 7.0) == Weights(0.2, 0.0, 0.0)


def test_a_single_candidate_is_taken_without_a_look(work_dir):
    found = tune_weights("nowhere", "nowhere", ((0.3,), (0.1,), (0.0,)), language_model="nowhere", beam=2, trials="x")
    assert found == Weights(0.3, 0.1, 0.0)


def test_what_was_tried_is_not_tried_again(work_dir, monkeypatch):
    seen = []

    class Development:
        def __init__(self, *arguments):
            assert arguments == ("checkpoint", "records", None, 2, "whitespace")

        def error_rate(self, weights):
            if len(seen) == 3:
                raise KeyboardInterrupt
            seen.append(weights)
            return bowl((0.4, 0.3, 0.5))(weights)

    monkeypatch.setattr(tuning, "_Development", Development)
    trials = str(work_dir / "trials.json")
    arguments = "checkpoint", "records", CANDIDATES
    found, whole = None, []
    while found is None:
        try:
            found = tune_weights(*arguments, language_model=None, beam=2, trials=trials, normaliser="whitespace")
        except KeyboardInterrupt:  # killed after three trials
            assert len(seen) == 3
        whole += seen
        seen.clear()
    assert found == Weights(0.4, 0.3, 0.5)
    assert len(set(whole)) == len(whole) == len(json.loads((work_dir / "trials.json").read_text())["trials"])


@pytest.mark.slow  # traces three searches
def test_an_error_rate_is_that_of_an_evaluation_with_these_weights(checkpoint, ngrams, toy_records, work_dir):  # noqa: F811
    candidates = ((0.9, 0.0), (0.2,), (0.4,))
    search = {"language_model": ngrams, "beam": 3}
    found = tune_weights(checkpoint, toy_records.folder, candidates, trials=str(work_dir / "trials.json"), **search)
    trials = {Weights(*weights): wer for *weights, wer in json.loads((work_dir / "trials.json").read_text())["trials"]}
    assert set(trials) == {Weights(0.9, 0.2, 0.4), Weights(0.0, 0.2, 0.4)} and trials[found] == min(trials.values())
    for number, (weights, wer) in enumerate(trials.items()):
        output = str(work_dir / str(number) / "results.json")
        results = evaluate_checkpoint(checkpoint, [toy_records.folder], output, weights=weights, **search)
        assert results["records"].wer == pytest.approx(wer)
