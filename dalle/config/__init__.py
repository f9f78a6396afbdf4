"""One frozen dataclass for each thing that is configured. No torch here: a configuration is read and refused before
anything heavy is imported.

Defaults are the paper's values ("Zero-Shot Text-to-Image Generation", 2021) wherever it gives one; where it gives one
for each stage the default says whose it is. A field that the paper does not have says so and its default leaves it off.
`dalle.cli.arguments` turns these classes into `--help`, YAML and dotted overrides.
"""

from dalle.config.best_of import BestOf
from dalle.config.commands.caption import Caption, RankBy
from dalle.config.commands.completion import Completion
from dalle.config.commands.data import Filter, Filters, Tokenize
from dalle.config.commands.doctor import Doctor
from dalle.config.commands.evaluation.dedup import EVERY_IMAGE, Dedup
from dalle.config.commands.evaluation.evaluate import Evaluate
from dalle.config.commands.evaluation.study import Study, WorkerChecks
from dalle.config.commands.own import TrainFolder
from dalle.config.commands.planning.plan import Plan
from dalle.config.commands.publish import Export, Publish
from dalle.config.commands.sample import Sample
from dalle.config.commands.schedules import unreached_schedules
from dalle.config.commands.serve import Serve
from dalle.config.commands.stackgan import TrainStackGAN
from dalle.config.commands.stages import (
    Demo,
    Describe,
    DrawShapes,
    TrainCLIP,
    TrainDVAE,
    TrainPrior,
    TrainTokenizer,
)
from dalle.config.commands.text_encoder import TrainTextEncoder
from dalle.config.models import CLIPModel, DVAEModel, PriorModel
from dalle.config.run import Compression, Run, Wandb
from dalle.config.sampling import Sampling
from dalle.config.stackgan import CharCNNRNNModel, StackGANModel, StackGANObjective
from dalle.config.training import DVAEObjective, Images, Optimizer, Plateau, Precision, PriorObjective, Schedule

__all__ = [
    "EVERY_IMAGE",
    "BestOf",
    "CLIPModel",
    "Caption",
    "CharCNNRNNModel",
    "Completion",
    "Compression",
    "DVAEModel",
    "DVAEObjective",
    "Dedup",
    "Demo",
    "Describe",
    "Doctor",
    "DrawShapes",
    "Evaluate",
    "Export",
    "Filter",
    "Filters",
    "Images",
    "Optimizer",
    "Plan",
    "Plateau",
    "Precision",
    "PriorModel",
    "PriorObjective",
    "Publish",
    "RankBy",
    "Run",
    "Sample",
    "Sampling",
    "Schedule",
    "Serve",
    "StackGANModel",
    "StackGANObjective",
    "Study",
    "Tokenize",
    "TrainCLIP",
    "TrainDVAE",
    "TrainFolder",
    "TrainPrior",
    "TrainStackGAN",
    "TrainTextEncoder",
    "TrainTokenizer",
    "Wandb",
    "WorkerChecks",
    "unreached_schedules",
]
