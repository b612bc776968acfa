"""The sections of the page, in reading order."""

from dmole.report.page.section import Section
from dmole.report.page.sections.activation import ACTIVATION
from dmole.report.page.sections.architecture import ARCHITECTURE
from dmole.report.page.sections.cases import CASES
from dmole.report.page.sections.confusions import CONFUSIONS
from dmole.report.page.sections.costs import COSTS
from dmole.report.page.sections.forgetting import FORGETTING
from dmole.report.page.sections.losses import LOSSES
from dmole.report.page.sections.map import MAP
from dmole.report.page.sections.matrix import MATRIX
from dmole.report.page.sections.modalities import MODALITY
from dmole.report.page.sections.sensitivity import SENSITIVITY
from dmole.report.page.sections.summary import SUMMARY
from dmole.report.page.sections.training import TRAINING

SECTIONS: tuple[Section, ...] = (
    SUMMARY,
    MATRIX,
    FORGETTING,
    ARCHITECTURE,
    MODALITY,
    TRAINING,
    ACTIVATION,
    CONFUSIONS,
    LOSSES,
    SENSITIVITY,
    MAP,
    CASES,
    COSTS,
)
"""All sections, in the order of the page."""
