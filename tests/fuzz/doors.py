"""All doors, in the order of the table."""

from tests.fuzz.audio import Audio
from tests.fuzz.checkpoints import Checkpoints
from tests.fuzz.configs import Configs
from tests.fuzz.corpora import Corpora
from tests.fuzz.exports import Lite, SavedModels, Signatures, Stdin
from tests.fuzz.models import Models
from tests.fuzz.records import Records
from tests.fuzz.results import Results
from tests.fuzz.runs import Runs
from tests.fuzz.texts_read import Arpa, Sentences
from tests.fuzz.tokenizers import Tokenizers

DOORS = (
    Records, Checkpoints, Models, Tokenizers, Audio, Corpora, Arpa, Sentences, Results, Runs, Configs, Signatures, Lite,
    SavedModels, Stdin,
)  # fmt: skip
