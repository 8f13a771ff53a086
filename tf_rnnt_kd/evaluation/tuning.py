"""The weights of a fusion, chosen on a development set."""

import os
from collections.abc import Callable, Sequence
from typing import Annotated

import tensorflow as tf
from pydantic import Field, with_config
from typing_extensions import TypedDict

from tf_rnnt_kd import files
from tf_rnnt_kd.data.records import open_records, records_hash
from tf_rnnt_kd.decoding.fusion import LabelScorer, weighted_sum
from tf_rnnt_kd.evaluation.decode import evaluate_records, make_decoder
from tf_rnnt_kd.evaluation.fusion import Weights, internal_scorer, language_model_hash, open_language_model
from tf_rnnt_kd.evaluation.normalisers import DEFAULT
from tf_rnnt_kd.evaluation.results import score_set
from tf_rnnt_kd.lineage import begin
from tf_rnnt_kd.models.saving import find_hash, load_model
from tf_rnnt_kd.progress import say

Candidates = Sequence[Sequence[float]]  # values to choose from, for each of `Weights`

_Weight = Annotated[float, Field(ge=-1e6, le=1e6)]


@with_config(files.CLOSED)
class Trials(TypedDict):
    """What was tried: the weights and, last, the word error rate in percent."""

    trials: list[tuple[_Weight, _Weight, _Weight, files.Amount]]
    sha256: files.Sha256


def tune_weights(
    checkpoint: str,
    records: str,
    candidates: Candidates,
    *,
    language_model: str | None,
    beam: int,
    trials: str,
    normaliser: str = DEFAULT,
) -> Weights:
    """The candidates of the lowest word error rate on a development set; decodes it once for every trial.

    Each weight in turn is tried while the others hold, until a round finds nothing better. Of equals the first stays.

    Args:
      checkpoint: folder of the transducer.
      records: folder of the development set.
      candidates: for each of `Weights`; where one value is given, it is taken.
      language_model: as in `open_language_model`.
      beam: hypotheses that the search keeps.
      trials: JSON file of what was tried, so that a later start goes on.
      normaliser: as in `wer.count_errors`.

    Raises:
      UserError: what was tried was tried with another model, development set, beam or language model.
    """
    found = Weights(*(values[0] for values in candidates))
    if all(len(values) == 1 for values in candidates):
        return found
    inputs = {
        "model": find_hash(checkpoint),
        "records": records_hash(records),
        "beam": beam,
        "language_model": language_model_hash(language_model) if language_model else None,
        "normaliser": normaliser,
    }
    places = {"model": checkpoint, "records": records}
    known = _read_trials(trials) if begin(trials, "trials of weights", inputs, places) else {}
    decoder = None

    def error_rate(weights: Weights) -> float:
        nonlocal decoder
        if weights not in known:
            decoder = decoder or _Development(checkpoint, records, language_model, beam, normaliser)
            known[weights] = decoder.error_rate(weights)
            tried = [[*each, wer] for each, wer in known.items()]
            files.write_atomically(trials, files.dump_signed({"trials": tried}))
            shown = ", ".join(f"{name} {value:g}" for name, value in weights._asdict().items())
            say(f"  {os.path.basename(os.path.dirname(trials))}: {shown}: {known[weights]:.2f} % on development")
        return known[weights]

    return choose_weights(candidates, error_rate)


def choose_weights(candidates: Candidates, error_rate: Callable[[Weights], float]) -> Weights:
    """Each weight in turn, while the others hold, until a round finds nothing better."""
    best = Weights(*(values[0] for values in candidates))
    before = None
    while best != before:
        before = best
        for field, values in zip(Weights._fields, candidates, strict=True):
            best = min((best, *(best._replace(**{field: value}) for value in values)), key=error_rate)
    return best


class _Development:
    """A transducer, a language model and a development set, opened and traced once: weights are variables there."""

    def __init__(self, checkpoint, records, language_model, beam, normaliser):
        self.normaliser = normaliser
        self.model, self.tokenizer = load_model(checkpoint)
        self.records = open_records(records, tokenizer_hash=self.tokenizer.hash)
        self.weights = Weights(*(tf.Variable(0.0, trainable=False) for _ in Weights._fields))
        scorers = [(_scaled(internal_scorer(self.model), self.weights.internal_weight), -1.0)]
        if language_model:
            scorer, _ = open_language_model(language_model, self.tokenizer)
            scorers.append((_scaled(scorer, self.weights.weight), 1.0))
        fused = weighted_sum(scorers, length_bonus=self.weights.length_bonus)
        self.decode = make_decoder(self.model, beam=beam, label_scorer=fused)

    def error_rate(self, weights: Weights) -> float:
        for variable, value in zip(self.weights, weights, strict=True):
            variable.assign(value)
        found = evaluate_records(self.model, self.tokenizer, self.records, decode=self.decode)
        scored = score_set(found, self.normaliser)
        return 100.0 * float(scored.errors.sum()) / max(int(scored.words.sum()), 1)


def _scaled(scorer: LabelScorer, weight: tf.Variable) -> LabelScorer:
    def scale(scored):
        return weight * scored[0], scored[1]

    return LabelScorer(lambda size: scale(scorer.initial(size)), lambda label, state: scale(scorer.step(label, state)))


def _read_trials(path: str) -> dict[Weights, float]:
    try:
        found = files.read_signed(path, Trials, remedy="delete it, and start the same command again")
    except files.Missing:
        return {}
    return {Weights(*weights): wer for *weights, wer in found["trials"]}
