"""The build backend: hatchling, behind one clear sentence where Python is too old.

Without it pip reads the dependencies of every extra first, and then tries their older and older releases for minutes.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - pip asks the backend before it looks at requires-python
    sys.exit(
        "px-sidecar needs Python 3.11 or later; this is Python {}.{}. "
        "Use a newer one, as in: python3.11 -m venv .venv".format(*sys.version_info[:2])
    )

from hatchling.build import *  # noqa: F403
