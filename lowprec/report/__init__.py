"""Figures, tables and pages of HTML of what a study found; and a number format in text."""

from lowprec.report.drawn import figure as figure
from lowprec.report.results import Results as Results
from lowprec.report.site import write_report as write_report
from lowprec.report.terminal import number_line as number_line
