"""Checkpoints in the layout of Hugging Face: read without a pickle, run layer by layer."""

from lowprec.models.checkpoints.architecture import Architecture as Architecture
from lowprec.models.checkpoints.architecture import Hooks as Hooks
from lowprec.models.checkpoints.entries import ARCHITECTURES as ARCHITECTURES
from lowprec.models.checkpoints.entries import Checkpoint as Checkpoint
from lowprec.models.checkpoints.entries import open_checkpoint as open_checkpoint
from lowprec.models.checkpoints.run import run_layers as run_layers
from lowprec.models.checkpoints.texts import read_text as read_text
