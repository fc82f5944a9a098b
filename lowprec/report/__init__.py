"""Figures, tables and one HTML page of what a study found; and a number format in text."""

from lowprec.report.drawn import figure as figure
from lowprec.report.page import write_report as write_report
from lowprec.report.results import Results as Results
from lowprec.report.terminal import number_line as number_line
