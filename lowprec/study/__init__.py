"""Comparisons: recipes on real operands, with a row for every number and a record of the run."""

from lowprec.study.compare import PRESETS as PRESETS
from lowprec.study.compare import Collected as Collected
from lowprec.study.compare import Preset as Preset
from lowprec.study.compare import compare_captured as compare_captured
from lowprec.study.compare import compare_files as compare_files
from lowprec.study.manifest import manifest as manifest
