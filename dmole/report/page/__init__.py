"""The HTML page of finished, running or old runs, made from their folders alone."""

from dmole.report.page.page import write_report
from dmole.report.page.record import RunRecord
from dmole.report.page.section import Section

__all__ = ["RunRecord", "Section", "write_report"]
