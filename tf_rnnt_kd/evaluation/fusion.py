"""Language models that a search adds to the transducer, and their weights."""

import os
from typing import NamedTuple

from tf_rnnt_kd.decoding.fusion import LabelScorer, internal_language_model, weighted_sum
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.files import sha256_of_file
from tf_rnnt_kd.models.ngram import NgramModel
from tf_rnnt_kd.models.saving import find_hash, load_language_model
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.text.arpa import read_arpa
from tf_rnnt_kd.text.tokenizer import Tokenizer


class Weights(NamedTuple):
    """What a label adds to a hypothesis: weight · log P - internal_weight · log P_internal + length_bonus, in nats."""

    weight: float = 0.0
    internal_weight: float = 0.0
    length_bonus: float = 0.0


NO_FUSION = Weights()


def open_language_model(path: str, tokenizer: Tokenizer) -> tuple[LabelScorer, str]:
    """A language model over the labels of `tokenizer`, and its hash.

    Args:
      path: folder of a trained one, or a file of n-grams over labels (`text.arpa`).
      tokenizer: of the transducer.

    Raises:
      UserError: there is none, or it is over other labels.
    """
    if os.path.isfile(path):
        model = NgramModel(read_arpa(path, tokenizer.pieces), tokenizer.vocabulary_size)
        return LabelScorer(model.initial, model.step), sha256_of_file(path)
    model, its_tokenizer, found = load_language_model(path)
    if its_tokenizer.hash != tokenizer.hash:
        raise UserError(f"{path} was trained on labels of another tokenizer: train one on those of {tokenizer.folder}")
    return LabelScorer(model.initial, model.step), found


def language_model_hash(path: str) -> str | None:
    """The hash that `open_language_model` gives; None where there is nothing."""
    return sha256_of_file(path) if os.path.isfile(path) else find_hash(path)


def fuse(model: Transducer, scorer: LabelScorer | None, weights: Weights) -> LabelScorer | None:
    """What a search adds to each label; None for nothing. What has no weight does not run.

    Args:
      model: the transducer, which has the internal language model.
      scorer: the language model, if any.
      weights: of both, and the bonus.
    """
    if not any(weights):
        return None
    scorers = [(internal_scorer(model), -weights.internal_weight)]
    if scorer is not None:
        scorers.append((scorer, weights.weight))
    return weighted_sum(scorers, length_bonus=weights.length_bonus)


def internal_scorer(model: Transducer) -> LabelScorer:
    """The internal language model of a transducer."""
    return internal_language_model(model.join, model.initial_prediction, model.step_prediction, blank_id=model.blank_id)
