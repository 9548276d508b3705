"""What happens once before the first step: check, find the weights, open the data, build the model, make the folder.

Read `verify` (everything that is checked before data or model are touched), `origin` (where the weights come from),
`data` and `resume` (rows, checked against the eos contract), `model`, then `run_folder`.
"""

from .data import TrainData, open_data
from .model import build_model_and_optimizer
from .origin import starting_point
from .resume import resume_data
from .run_folder import locked_run, open_run_folder
from .verify import Launch, Parts, host_facts, verify

__all__ = [
    "Launch",
    "Parts",
    "TrainData",
    "build_model_and_optimizer",
    "host_facts",
    "locked_run",
    "open_data",
    "open_run_folder",
    "resume_data",
    "starting_point",
    "verify",
]
