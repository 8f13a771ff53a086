"""`python -m tf_rnnt_kd.prepare --config FILE --output DIR`: the tokenizer and record sets of a plan."""

import os

from absl import flags

from tf_rnnt_kd.errors import UserError, run_command

_CONFIG = flags.DEFINE_string("config", None, "Gin file of the plan.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the tokenizer and the record sets.", required=True)
_PARAM = flags.DEFINE_multi_string("param", [], "Overrides a macro or binding of the config: NAME=value.")
_REMAKE = flags.DEFINE_bool("remake", False, "Make again what was made from other transcripts, audio or settings.")
_SKIP_BAD = flags.DEFINE_integer("skip_bad", 0, "Files of bad audio to leave out of the corpora.", lower_bound=0)
_TRUST_CONFIG = flags.DEFINE_bool(
    "trust_config", False, "Let the config import modules from outside of tf_rnnt_kd, which runs them; once a folder."
)


def main(argv):
    """Loads the plan and prepares its corpora."""
    del argv
    from tf_rnnt_kd.config import load_plan, trusted_by
    from tf_rnnt_kd.files import write_text
    from tf_rnnt_kd.nst import configuration
    from tf_rnnt_kd.nst.checks import find_mistakes, peek
    from tf_rnnt_kd.nst.preparation import Prepared, prepare
    from tf_rnnt_kd.progress import say

    trusted = None if _TRUST_CONFIG.value else trusted_by(_OUTPUT.value)
    plan, text = load_plan(_CONFIG.value, _PARAM.value, trusted=trusted)
    mistakes = find_mistakes(plan, Prepared(_OUTPUT.value), 1, look=peek)
    if mistakes:
        raise UserError.of(_CONFIG.value, mistakes)
    prepared = prepare(plan, _OUTPUT.value, remake=_REMAKE.value, skip_bad=_SKIP_BAD.value)
    tokens = prepared.tokenizer().vocabulary_size
    write_text(os.path.join(_OUTPUT.value, configuration.FILE), text)
    names = [corpus.name for corpus in plan.corpora]
    say(f"  {_OUTPUT.value}: a tokenizer of {tokens} labels, {len(names)} record sets: {', '.join(names)}")


if __name__ == "__main__":
    run_command(main)
