"""A section of the page about one experiment, whose tables lie in a folder beside the page."""

import dataclasses

from lowprec.report.digest import Table
from lowprec.report.findings import Finding
from lowprec.report.shown import Shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """What the page shows of an experiment, and how it came about.

    Attributes:
      name: of the folder that the tables lie in, and of the section's anchor.
      heading, note: what the page says above it; note: of what the numbers are, in a sentence.
      command, date, seconds: of the run that made the tables.
      findings, figures, tables: in the order of the page.
    """

    name: str
    heading: str
    note: str
    command: str
    date: str
    seconds: int
    findings: list[Finding]
    figures: list[Shown]
    tables: list[Table]
