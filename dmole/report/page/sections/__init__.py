"""The sections of the page, in reading order."""

from dmole.report.page.section import Section
from dmole.report.page.sections.matrix import MATRIX
from dmole.report.page.sections.summary import SUMMARY

SECTIONS: tuple[Section, ...] = (
    SUMMARY,
    MATRIX,
)
"""All sections, in the order of the page."""
