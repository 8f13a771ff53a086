"""What a plan would be refused for later, found before anything is made: its models, its batches, its data."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence

from tf_rnnt_kd.data.batching import check_divisible
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.nst.outline import build_network, build_student, vocabulary_of
from tf_rnnt_kd.nst.plan import Generation, Plan
from tf_rnnt_kd.nst.preparation import Prepared

Reader = Callable[[], Sequence]  # of a corpus, or of sentences


def find_mistakes(
    plan: Plan, prepared: Prepared, num_replicas: int, *, look: Callable[[Reader], None] | None
) -> list[str]:
    """One line for each thing that will stop the plan, which in itself is sound.

    Args:
      plan: what is to be done.
      prepared: what there is of it; only data that is missing there is looked for.
      num_replicas: among which batches are divided; 1 if that is not known.
      look: `peek` or `read_list`, at the reader of what is missing; None not to look for data.
    """
    vocabulary_size = vocabulary_of(plan, prepared)
    found = list(_in_data(plan, prepared, look)) if look else []
    for spec in plan.language_models:
        if spec.model:
            build = functools.partial(build_network, spec.model, vocabulary_size)
            found += _told(f"language model {spec.name!r}: ", build)
    for generation in plan.generations:
        mistakes = _in_generation(generation, vocabulary_size, num_replicas)
        found += [f"generation {generation.name!r}: {mistake}" for mistake in mistakes]
    return found


def peek(reader: Reader) -> None:
    """Raises UserError if a reader that can tell quickly, by its attribute `look`, has nothing to read."""
    function = getattr(reader, "func", reader)
    if hasattr(function, "look"):
        function.look(**getattr(reader, "keywords", {}))


def read_list(reader: Reader) -> None:
    """Raises UserError if a reader has nothing to read; one that can't tell quickly has to list all."""
    peek(reader)
    if not hasattr(getattr(reader, "func", reader), "look") and not reader():
        raise UserError("its reader lists nothing: check what it is given")


def _in_generation(generation: Generation, vocabulary_size: int, num_replicas: int) -> Iterator[str]:
    training = generation.training
    yield from _told("", lambda: check_divisible(training.buckets, num_replicas, training.accumulation))
    try:
        model = build_student(generation, vocabulary_size)
    except UserError as error:
        yield from error.mistakes
    else:
        yield from _in_fit(generation, model)


def _in_fit(generation: Generation, model: Transducer) -> Iterator[str]:
    """How model and objective do not go together."""
    objective, has_second = generation.objective, model.second_pass is not None
    if has_second and len(objective.passes) == 1:
        yield "a model with a second pass needs an objective for it: take cascade.CascadedObjective"
    if not has_second and len(objective.passes) > 1:
        yield "CascadedObjective needs a second pass: set Transducer.second_pass_blocks"
    if any(each.band for each in objective.passes) and not model.has_additive_joint:
        yield "Objective.band needs a second joint network: set Transducer.has_additive_joint = True"


def _in_data(plan: Plan, prepared: Prepared, look: Callable[[Reader], None]) -> Iterator[str]:
    for corpus in plan.corpora:
        if not prepared.has(corpus.name):
            yield from _told(f"corpus {corpus.name!r}: ", functools.partial(look, corpus.utterances))
    for spec in plan.language_models:
        if spec.sentences:
            yield from _told(f"language model {spec.name!r}: ", functools.partial(look, spec.sentences))
    named = {spec.name for spec in plan.language_models}
    paths = {decoding.language_model for generation in plan.generations for decoding in generation.decodings}
    for path in sorted(path for path in paths if path and path not in named and not os.path.exists(path)):
        yield f"there is no language model {path}: check its path"


def _told(where: str, attempt: Callable[[], object]) -> Iterator[str]:
    try:
        attempt()
    except UserError as error:
        yield from (f"{where}{mistake}" for mistake in error.mistakes)
