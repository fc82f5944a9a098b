"""The figures of a report, one in a file: frames in, a `Picture` with its finding out."""

from lowprec.report.figures.blocks import tensor_errors as tensor_errors
from lowprec.report.figures.errors import error_by_bits as error_by_bits
from lowprec.report.figures.layers import error_by_layer as error_by_layer
from lowprec.report.figures.loss import loss_increase as loss_increase
from lowprec.report.figures.operands import code_use as code_use
