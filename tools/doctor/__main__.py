"""`python -m cistron.tools.doctor`."""

import sys

from .. import cli

cli.run("doctor", sys.argv[1:])
