"""A section of the report about one experiment, whose tables lie in a folder beside the pages."""

import dataclasses

from lowprec.report.digest import Table
from lowprec.report.findings import Finding
from lowprec.report.shown import Shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """What the report shows of an experiment, and how it came about.

    Attributes:
      name: of the section's anchor.
      heading, note: what the page says above it; note: of what the numbers are, in a sentence.
      command, date, seconds: of the run that made the tables.
      findings, figures, tables: in the order of the page.
      folder: that the tables lie in, from the pages; by default its name.
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
    folder: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", self.folder or self.name)
