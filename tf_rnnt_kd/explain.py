"""`python -m tf_rnnt_kd.explain PATH …`: what a thing was made from, and what of that has changed since.

PATH is a run folder, a generation, a label set, a record set, an export, a language model or a results.json.
"""

import os

from absl import flags

from tf_rnnt_kd.errors import UserError, run_command

_DATA = flags.DEFINE_bool("data", True, "Also list the corpora, and compare them with the records.")
_TRUST_CONFIG = flags.DEFINE_bool(
    "trust_config", False, "Let the config import modules from outside of tf_rnnt_kd, which runs them."
)


def main(argv):
    """Prints the chain of each path."""
    if len(argv) < 2:
        raise UserError("explain needs a path: name a run folder, or anything in one")
    for path in argv[1:]:
        _explain(path)


def _explain(path):
    from tf_rnnt_kd.nst import configuration
    from tf_rnnt_kd.nst.explanation import explain

    home = configuration.find_home(path)
    data, unseen = {}, ""
    if _DATA.value and home is not None:
        try:
            data = _compare_with_data(home)
        except UserError as error:
            unseen = f"\nits corpora could not be looked at: {error.message}"
    print(explain(path, data) + unseen)


def _compare_with_data(home):
    """What of the records in a run folder no longer fits the corpora on disk."""
    from tf_rnnt_kd import config
    from tf_rnnt_kd.nst import configuration, preparation

    trusted = None if _TRUST_CONFIG.value else ()
    plan, _ = config.load_plan(os.path.join(home, configuration.FILE), trusted=trusted)
    return preparation.compare(plan, preparation.Prepared(configuration.records_folder(home)))


if __name__ == "__main__":
    run_command(main)
